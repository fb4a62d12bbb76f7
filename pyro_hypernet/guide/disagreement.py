"""How often draws of a mixture's components predict otherwise than each other: whether these are different modes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.model.chunks import Chunked
from pyro_hypernet.model.traces import class_probabilities, functions_of, predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown


@dataclass(frozen=True, repr=False)
class Disagreement(Shown):
    """How far two draws are apart in what they predict, on average.

    Attributes:
        between: Of different components; NaN where there is one only.
        within: Of one component.
        measure: "classes": the share of the data for which the more probable class is another; "distance": the root
            mean square distance over data in standard deviations of the mean prediction over the data.
    """

    between: float
    within: float
    measure: str

    def __str__(self) -> str:
        if self.measure == "classes":
            between, within, what = f"{self.between:.1%}", f"{self.within:.1%}", "name another class for"
        else:
            between, within, what = f"{self.between:.3g}", f"{self.within:.3g}", "are apart by, in predictive sds,"
        if math.isnan(self.between):
            return f"Two draws {what} {within}."
        return f"Two draws {what} {between} between components and {within} within one."


@torch.no_grad()
def disagreement_of(
    model: Model, samples: Sequence[Mapping[str, Tensor]], args: tuple, kwargs: dict
) -> Disagreement | None:
    """Compares draws of several components, of each a dict from site to `(S, *shape)`, S at least 2.

    Returns:
        The mean over pairs of draws; None where the model has no data to predict.
    """
    together = {name: torch.cat([part[name] for part in samples]) for name in samples[0]}
    found = Chunked(model, together, lambda trace: _prediction(trace, together))(args, kwargs)
    if not found:
        return None
    measure, values = next(iter(found.items()))
    if measure == "classes":
        labels = values > 0.5 if values.dim() == 2 else values.argmax(-1)
        apart = torch.stack([(labels != row).double().mean(-1) for row in labels])
    else:
        values = values.double().reshape(len(values), len(values[0]) if values.dim() > 1 else 1, -1)
        spread = values.mean(0).std(0) if values.shape[1] > 1 else values.new_zeros(())
        flat = (values / torch.where(spread > 0, spread, 1.0)).flatten(1)
        apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    component = torch.arange(len(samples), device=apart.device).repeat_interleave(len(apart) // len(samples))
    same = component[:, None] == component
    within = apart[same & ~torch.eye(len(apart), dtype=torch.bool, device=apart.device)]
    return Disagreement(float(apart[~same].mean()), float(within.mean()), measure)


def _prediction(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Class probabilities of one draw, or the mean of the first site that models data, as far as it is known."""
    for name, node in predictive_nodes(trace, samples).items():
        probabilities = class_probabilities(node["fn"])
        if probabilities is not None:
            return {"classes": probabilities}
        if name in (means := functions_of(trace, samples)):
            return {"distance": means[name]}
    return {}

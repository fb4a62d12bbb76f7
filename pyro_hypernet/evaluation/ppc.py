"""Posterior predictive checks: whether data like the observed ones come out of the fitted model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws, run_by
from pyro_hypernet.evaluation.verdict import DOUBTFUL, GOOD, Check
from pyro_hypernet.model.traces import predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound

Statistic = Callable[[Tensor], Tensor]
STATISTICS: dict[str, Statistic] = {
    "mean": lambda y: y.mean(-1),
    "sd": lambda y: y.std(-1),
    "least": lambda y: y.min(-1).values,
    "greatest": lambda y: y.max(-1).values,
}


@dataclass(frozen=True, repr=False)
class Replicates(Shown):
    """A statistic of the data among the same of data that the fitted model makes.

    Attributes:
        site: The observed site.
        statistic: Its name.
        observed: Of the data.
        replicated: Of every replicate, shape `(S,)`.
        p_value: The share of replicates at or above the data, ties counting half: near 0 or 1 the model does not
            make such data. Not uniform under a right model, but drawn to ½.
        check: The reading.
    """

    site: str
    statistic: str
    observed: float
    replicated: Tensor
    p_value: float
    check: Check


@torch.no_grad()
def replicate(
    model: Model,
    posterior: Any,
    *args: Any,
    num_samples: int = 1000,
    statistics: Mapping[str, Statistic] | None = None,
    level: float = 0.01,
    **kwargs: Any,
) -> tuple[Replicates, ...]:
    """Compares data with replicates from the posterior predictive, statistic by statistic.

    These checks judge the model, not the guide: a right posterior of a wrong model fails them.

    Args:
        model: The Pyro model.
        posterior: A guide, a result of `nuts`, or a dict of samples.
        args: The model's arguments, data included.
        num_samples: Replicates S.
        statistics: From a name to a function of data, shape `(S, N)` to `(S,)`; None for mean, sd, least and greatest.
        level: Two-sided probability below which a statistic is doubtful.
        kwargs: The model's keyword arguments.

    Returns:
        One for every observed site and statistic.

    Raises:
        ValueError: If the model observes nothing.

    Source: Gelman, Meng and Stern 1996.
    """
    samples = draws(posterior, *args, num_samples=num_samples, **kwargs)
    bound = Bound(run_by(model, posterior), args, kwargs)

    def modelled(trace: Trace) -> dict[str, Any]:
        return {name: node for name, node in predictive_nodes(trace, samples).items() if node["is_observed"]}

    observed = {name: node["value"] for name, node in modelled(bound.trace_first(samples)).items()}
    if not observed:
        raise ValueError("The model observes nothing: pass its data, as in training.")
    made = bound.map(samples, lambda trace: {name: node["fn"].sample() for name, node in modelled(trace).items()})
    chosen = STATISTICS if statistics is None else statistics
    return tuple(
        _compare(site, name, function, observed[site], made[site], level)
        for site in observed
        for name, function in chosen.items()
    )


def _compare(site: str, name: str, function: Statistic, data: Tensor, made: Tensor, level: float) -> Replicates:
    own = float(function(data.reshape(1, -1).double())[0])
    values = function(made.reshape(len(made), -1).double())
    p_value = float((values > own).double().mean() + (values == own).double().mean() / 2)
    reading = f"The {name} of {site!r} is {own:.3g}; {p_value:.1%} of replicates have a greater one."
    extreme = min(p_value, 1 - p_value) < level / 2
    remedy = "The model does not make such data: look at its likelihood and priors." if extreme else ""
    check = Check(f"{name} of {site}", p_value, DOUBTFUL if extreme else GOOD, reading, remedy)
    return Replicates(site, name, own, values, p_value, check)

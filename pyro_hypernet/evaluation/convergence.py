"""Whether fits and populations agree: R-hat in function space, which finds modes that one fit missed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.ops.stats import gelman_rubin
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws, run_by
from pyro_hypernet.evaluation.verdict import BAD, DOUBTFUL, GOOD, Check
from pyro_hypernet.model.traces import functions_of
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.sample.rhat import side_by_side, worst
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound

AGREED, DISAGREED = 1.05, 1.2
# So many functions of every draw at most: an even choice of them.
_MOST_FUNCTIONS = 500


@dataclass(frozen=True, repr=False)
class Agreement(Shown):
    """How far the fits of one model are from being one.

    Attributes:
        rhat: R-hat of every function value, the fits taken for chains: the larger of the usual one, which sees
            different means, and that of distances from the median, which sees different spreads; shape `(F,)`.
        space: "function", or "weights" for models without deterministic and observed sites.
        num_fits: How many fits.
        check: The reading.
    """

    rhat: Tensor = field(repr=False)
    space: str
    num_fits: int
    check: Check

    @property
    def max_rhat(self) -> float:
        """The worst R-hat."""
        return float(self.rhat.max())

    @property
    def agree(self) -> bool:
        """Whether the fits agree."""
        return self.check.level == GOOD


def fits_agree(
    model: Model, posteriors: Sequence[Any], *args: Any, num_samples: int = 1000, **kwargs: Any
) -> Agreement:
    """Do k fits agree?

    Fits from different starts that reached the posterior predict the same. Where they do not, some missed a mode, or
    none was trained long enough; where they do, all may still have missed the same one.

    Args:
        model: The Pyro model.
        posteriors: Two or more guides, results of `nuts` or `refine`, or dicts of samples.
        args: The model's arguments, data included, or new inputs without data.
        num_samples: Draws from every one.
        kwargs: The model's keyword arguments.

    Raises:
        TypeError: If a posterior is of no known kind.
        ValueError: If there are fewer than two.

    Source: Gelman and Rubin 1992; of folded draws: Vehtari et al. 2021, section 3.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("f", slope * x)
        >>> up, down = {"slope": 1 + 0.1 * torch.randn(200)}, {"slope": -1 + 0.1 * torch.randn(200)}
        >>> fits_agree(model, [up, down], torch.ones(3)).agree
        False
    """
    if len(posteriors) < 2:
        raise ValueError(f"fits_agree needs at least two posteriors; got {len(posteriors)}.")
    values, space = [], "function"
    for posterior in posteriors:
        samples = draws(posterior, *args, num_samples=num_samples, **kwargs)
        functions = function_values(Bound(run_by(model, posterior), args, kwargs), samples)
        space = space if functions is not None else "weights"
        values.append(side_by_side(samples, 1).double() if functions is None else functions)
    size = min(len(value) for value in values)
    chains = torch.stack([value[:size] for value in values])
    folded = (chains - chains.flatten(0, 1).median(0).values).abs()
    rhat = torch.maximum(_rhat(chains), _rhat(folded))
    return Agreement(rhat, space, len(posteriors), _read(float(rhat.max()), len(posteriors), space))


def _rhat(chains: Tensor) -> Tensor:
    """R-hat of independent draws, shape `(k, S, F)`, without the split that chains need; 1 where all is still."""
    return gelman_rubin(chains).nan_to_num(nan=1.0, posinf=math.inf)


def _read(rhat: float, num_fits: int, space: str) -> Check:
    where = "function space" if space == "function" else "the space of weights"
    reading = f"R-hat of {num_fits} fits in {where} is {rhat:.2f}."
    level = GOOD if rhat <= AGREED else DOUBTFUL if rhat <= DISAGREED else BAD
    remedy = "" if level == GOOD else "The fits found different posteriors: refine(model, *args) finds all."
    return Check("restarts", rhat, level, reading, remedy)


@torch.no_grad()
def function_values(bound: Bound, samples: Mapping[str, Tensor]) -> Tensor | None:
    """The model's functions for every draw, flat.

    Args:
        bound: The model with its arguments.
        samples: A dict from every latent site to draws of shape `(S, *shape)`.

    Returns:
        Deterministic sites and means of observed sites (probabilities of classes), side by side and at most 500 of
        them, shape `(S, F)`, double precision; None where the model has neither.
    """
    flat = side_by_side(bound.map(samples, lambda trace: functions_of(trace, samples)), 1)
    if flat is None:
        return None
    flat = flat[:, :: -(-flat.shape[1] // _MOST_FUNCTIONS)].double()
    return flat[:, flat.isfinite().all(0)]


def function_rhat(bound: Bound, samples: Mapping[str, Tensor], num_populations: int) -> float:
    """The worst R-hat of populations that follow each other, in function space, or of the sites where there is none.

    Args:
        bound: The model with its arguments.
        samples: A dict from site to draws of shape `(populations * n, *shape)`.
        num_populations: How many there are; NaN for one.
    """
    if num_populations < 2:
        return math.nan
    values = function_values(bound, samples)
    values = side_by_side(samples, 1).double() if values is None else values
    return worst({"functions": gelman_rubin(values.unflatten(0, (num_populations, -1)))})

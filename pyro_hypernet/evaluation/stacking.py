"""Weights of a mixture's components by how well they predict data that were held out, together."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.metrics import log_predictive_of_all
from pyro_hypernet.evaluation.predict import log_likelihood
from pyro_hypernet.guide.guide_mixture import GuideMixture
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown

_MAX_ROUNDS, _TOLERANCE = 10_000, 1e-10


@dataclass(frozen=True, repr=False)
class Stacked(Shown):
    """What `stack` found.

    Attributes:
        weights: Of the components, float64, shape `(K,)`.
        score: Log predictive density of the held-out data by the mixture, in nats per datum, in hindsight.
        scores: The same by every component alone, shape `(K,)`.
    """

    weights: Tensor
    score: float
    scores: Tensor


@torch.no_grad()
def stack(model: Model, mixture: GuideMixture, *args: Any, num_samples: int = 100, **kwargs: Any) -> Stacked:
    """Weighs the components of a mixture so that together they predict held-out data best.

    Args:
        model: The Pyro model.
        mixture: A trained mixture; its weights are changed.
        args: The model's arguments with data that no component was trained on, and that serve as no test data.
        num_samples: Draws of every component.
        kwargs: The model's keyword arguments.

    Raises:
        TypeError: If it is no mixture.
        ValueError: If the model observes nothing, or the held-out data have no density under any component.

    Source: Yao, Vehtari, Simpson and Gelman 2018, arXiv 1704.02030, for stacking of predictive distributions.

    Example:
        >>> from torch import nn
        >>> from pyro_hypernet import GuideMixture, bayesianize
        >>> model = bayesianize(nn.Linear(2, 3), "categorical")
        >>> mixture = GuideMixture.from_starts(model, 2)
        >>> x, y = torch.randn(20, 2), torch.arange(20) % 3
        >>> mixture.setup(x, y).log_weights.exp().tolist()
        [0.5, 0.5]
        >>> stack(model, mixture, x, y, num_samples=10).weights.shape
        torch.Size([2])
    """
    if not isinstance(mixture, GuideMixture):
        raise TypeError(f"stack weighs the components of a GuideMixture; got {type(mixture).__name__}.")
    parts = []
    for own, guide in zip(mixture.models_for(model), mixture.components, strict=True):
        by_site = log_likelihood(own, guide, *args, num_samples=num_samples, **kwargs)
        parts.append(log_predictive_of_all(by_site))
    log_p = torch.stack(parts)
    weights = _stacking_weights(log_p)
    mixture.set_log_weights(weights.log())
    score = (log_p + weights.log()[:, None]).logsumexp(0).mean()
    return Stacked(weights, float(score), log_p.mean(1))


def _stacking_weights(log_p: Tensor) -> Tensor:
    """The weights that maximise the mean log density of a mixture, a concave function of them, by EM.

    Args:
        log_p: Log predictive density of every datum by every component, in nats, float64, shape `(K, N)`.

    Returns:
        Shape `(K,)`, sum 1.

    Raises:
        ValueError: If a datum has no density under any component.
    """
    best = log_p.max(0).values
    if not bool(best.isfinite().all()):
        raise ValueError(
            f"{int((~best.isfinite()).sum())} of {log_p.shape[1]} held-out data have no density that is a number under "
            "any component: check the data for NaN, or the components."
        )
    p = (log_p - best).exp()
    weights, reached = torch.full_like(p[:, 0], 1 / len(p)), -math.inf
    for _ in range(_MAX_ROUNDS):
        mixed = weights @ p
        score = float(mixed.log().mean())
        if score - reached < _TOLERANCE:
            break
        reached, weights = score, weights * (p / mixed).mean(1)
    return weights / weights.sum()

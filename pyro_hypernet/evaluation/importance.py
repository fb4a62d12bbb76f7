"""Importance weights of a guide's draws: the ELBO, k-hat, the log evidence, and how often a chain would accept."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.draws import check_has_density, draws, draws_and_log_prob
from pyro_hypernet.evaluation.psis import smoothed
from pyro_hypernet.model.chunks import MAX_BYTES
from pyro_hypernet.model.density import NUM_LOOKS
from pyro_hypernet.model.validate import refuse_minibatches
from pyro_hypernet.model.vectorize import Model, outside_of_pyro
from pyro_hypernet.sample.tempering import zero_if_bad
from pyro_hypernet.target import Target, bind_guide

# Weights within one per cent of each other: no tail to fit.
EQUAL_WEIGHTS = 0.01
# Above this Pareto shape neither weights nor the guide are to be believed (Vehtari et al. 2024, section 3.2.4).
BELIEVABLE_KHAT = 0.7


@dataclass(frozen=True)
class WeightedDraws:
    """Draws with the two densities that make importance weights of them.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`.
        log_p: log p(data, draw) in nats, shape `(S,)`, double precision, without Jacobians of supports.
        log_q: log q(draw) in nats, likewise.
    """

    samples: dict[str, Tensor] = field(repr=False)
    log_p: Tensor = field(repr=False)
    log_q: Tensor = field(repr=False)

    @property
    def log_weights(self) -> Tensor:
        """`log p − log q` in nats, shape `(S,)`: their mean is the ELBO."""
        return self.log_p - self.log_q

    def take(self, index: Tensor) -> "WeightedDraws":
        """The draws of these numbers, shape `(R,)`, repeated ones repeated."""
        samples = {name: value[index] for name, value in self.samples.items()}
        return WeightedDraws(samples, self.log_p[index], self.log_q[index])


@torch.no_grad()
def weighted_draws(
    model: Model,
    guide: Any,
    *args: Any,
    num_samples: int = 10_000,
    max_bytes: int = MAX_BYTES,
    what: str = "the weight of a draw",
    **kwargs: Any,
) -> WeightedDraws:
    """Independent draws from a guide with log p and log q.

    Args:
        model: The Pyro model.
        guide: An AutoHypernet or any other Pyro guide of all latent sites, with a density.
        args: The model's arguments, data included.
        num_samples: Number of draws S.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        what: What the weights are for, to be named where the model draws minibatches.
        kwargs: The model's keyword arguments.

    Raises:
        TypeError: If `guide` is no guide or a point estimate.
        ValueError: If the guide's sites are not the model's latent sites, or the model draws minibatches.
    """
    target = bind_to_weigh(model, guide, args, kwargs)
    return draw_weighted(target, guide, num_samples=num_samples, max_bytes=max_bytes, what=what)


def bind_to_weigh(model: Model, guide: Any, args: tuple, kwargs: dict[str, Any]) -> Target:
    """The model with its arguments, to weigh draws of a guide by; no random number is used up.

    Raises:
        TypeError: If `guide` is no guide or holds stored samples.
        RuntimeError: If the guide has not seen its model yet.
    """
    check_has_density(guide)
    with torch.random.fork_rng(devices=[]):
        return bind_guide(model, guide, args, kwargs, mode="eager")


@torch.no_grad()
def draw_weighted(
    target: Target, guide: Any, *, num_samples: int, max_bytes: int = MAX_BYTES, what: str = "the weight of a draw"
) -> WeightedDraws:
    """`weighted_draws` of a model that is bound to its arguments."""
    _refuse_noise(target, guide, what)
    samples, log_q = draws_and_log_prob(guide, *target.args, num_samples=num_samples, **target.kwargs)
    return WeightedDraws(samples, target.log_density(samples, max_bytes=max_bytes), log_q.double())


def _refuse_noise(target: Target, guide: Any, what: str) -> None:
    """Raises where the density is another at every call, as of minibatches: noise by which no draw can be weighed."""
    with outside_of_pyro(), torch.random.fork_rng(devices=[]):
        few = draws(guide, *target.args, num_samples=NUM_LOOKS, **target.kwargs)
        try:
            trace = target.trace({name: value[0] for name, value in few.items()})
        except Exception:  # a model that raises at this draw, where it has no density: not what is asked here
            return
        refuse_minibatches(trace, what)
        target.refuse_random(target.layout.unconstrain({name: few[name] for name in target.layout.names})[0], what)


def elbo(
    model: Model, guide: Any, *args: Any, num_samples: int = 1000, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> tuple[float, float]:
    """The evidence lower bound of a guide and its standard error.

    Args: As those of `weighted_draws`.

    Returns:
        The mean of `log p(data, w) − log q(w)` and its Monte Carlo standard error, both in nats.

    Raises:
        TypeError: If `guide` is no guide or a point estimate.
        ValueError: If the guide's sites are not the model's latent sites, or the model draws minibatches.
    """
    options = {"num_samples": num_samples, "max_bytes": max_bytes, "what": "elbo"}
    log_weights = weighted_draws(model, guide, *args, **options, **kwargs).log_weights
    error = float(log_weights.std()) / math.sqrt(len(log_weights)) if len(log_weights) > 1 else math.nan
    return float(log_weights.mean()), error


def khat(
    model: Model, guide: Any, *args: Any, num_samples: int = 10_000, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> float:
    """Pareto k-hat of the importance weights from a guide to the posterior: whether the guide may be believed.

    Below 0.5 the guide is close, below 0.7 importance sampling corrects what is missing; above 0.7 do not trust it: it
    misses mass that the posterior has, or is too narrow. k-hat judges all weights jointly: for a network with
    symmetries or hundreds of weights it is often above 0.7 although the predictions are good, so look at `compare` too.

    Args: As those of `weighted_draws`.

    Returns:
        k-hat, without unit; 0 where all weights are within one per cent of each other, as those of an exact posterior.

    Raises:
        ValueError: If a weight is not a number, or the model draws minibatches.

    Source: Yao, Vehtari, Simpson and Gelman 2018, "Yes, but did it work?", arXiv 1802.02538.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0))
        >>> guide = AutoNormal(model, init_scale=1.0)
        >>> _ = guide()
        >>> khat(model, guide, num_samples=100) < 0.5
        True
    """
    options = {"num_samples": num_samples, "max_bytes": max_bytes, "what": "khat"}
    return khat_of(weighted_draws(model, guide, *args, **options, **kwargs).log_weights)


def khat_of(log_weights: Tensor) -> float:
    """`khat` from log weights in nats, shape `(S,)`, that are −inf for draws that the posterior excludes.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    bad = log_weights.isnan() | (log_weights == math.inf)
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(log_weights)} log weights are NaN or +inf: the model's density or the guide's "
            "is not a number there. LogJoint.site_log_probs names the site."
        )
    if float(log_weights.max() - log_weights.min()) < EQUAL_WEIGHTS:
        return 0.0
    return smoothed(log_weights)[1]


def expected_acceptance(log_weights: Tensor) -> float:
    """The acceptance rate of the chains in the long run, in [0, 1], from log weights of independent draws, `(S,)`.

    `E min(1, w' / w)`, w' of q and w of the posterior (draws of q, weighted), over all pairs.

    Source: Neklyudov et al. 2018, arXiv 1810.07151, equation 9.
    """
    weights = (log_weights - log_weights.max()).exp().double().sort().values
    weights = weights[weights > 0]
    size, total = len(log_weights), float(weights.sum())
    above = torch.arange(len(weights) - 1, -1, -1, dtype=torch.float64, device=weights.device)
    given = (weights.cumsum(0) / weights + above) / size
    return float((weights / total * given).sum())


def finite_log_weights(log_weights: Tensor) -> Tensor:
    """Log weights, shape `(S,)`, with −inf, weight zero, where they are not a number or +inf.

    Raises:
        ValueError: If none is finite.
    """
    result = zero_if_bad(log_weights)
    if not bool(result.isfinite().any()):
        raise ValueError("No draw of the guide has a finite density: train it, or check the data for NaN.")
    return result

"""How good a guide is without any reference: the ELBO, importance weights, and what PSIS makes of them."""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.predict import MAX_BYTES
from pyro_hypernet.evaluation.psis import pareto_shape
from pyro_hypernet.evaluation.weighted import weighted_draws
from pyro_hypernet.vectorize import Model

# Weights within one per cent of each other: no tail to fit.
EQUAL_WEIGHTS = 0.01
# Above this Pareto shape neither weights nor the guide are to be believed (Vehtari et al. 2024, section 3.2.4).
BELIEVABLE_KHAT = 0.7


@torch.no_grad()
def importance_log_weights(
    model: Model, guide: Any, *args: Any, num_samples: int = 10_000, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> Tensor:
    """`log p(data, w) − log q(w)` of independent draws from a guide.

    Args:
        model: The Pyro model.
        guide: A guide with a density: an AutoHypernet or any other Pyro guide of all latent sites.
        args: The model's arguments, data included.
        num_samples: Number of draws S.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        kwargs: The model's keyword arguments.

    Returns:
        Log weights in nats, in double precision, shape `(S,)`: their mean is the ELBO, the log of the mean of their
        exponentials the log evidence.

    Raises:
        TypeError: If `guide` is no guide or a point estimate.
        ValueError: If the guide's sites are not the model's latent sites, or the model draws minibatches.
    """
    drawn = weighted_draws(model, guide, *args, num_samples=num_samples, max_bytes=max_bytes, **kwargs)
    return drawn.log_weights


def elbo(
    model: Model, guide: Any, *args: Any, num_samples: int = 1000, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> tuple[float, float]:
    """The evidence lower bound of a guide and its standard error.

    Args:
        model: The Pyro model.
        guide: A guide with a density; see `importance_log_weights`.
        args: The model's arguments, data included.
        num_samples: Number of draws.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        kwargs: The model's keyword arguments.

    Returns:
        The mean of `log p(data, w) − log q(w)` and its Monte Carlo standard error, both in nats.

    Raises:
        TypeError: If `guide` is no guide or a point estimate.
        ValueError: If the guide's sites are not the model's latent sites, or the model draws minibatches.
    """
    options = {"num_samples": num_samples, "max_bytes": max_bytes, "what": "elbo"}
    log_weights = weighted_draws(model, guide, *args, **options, **kwargs).log_weights
    error = (
        log_weights.std() / math.sqrt(len(log_weights)) if len(log_weights) > 1 else log_weights.new_tensor(math.nan)
    )
    return float(log_weights.mean()), float(error)


def khat(
    model: Model, guide: Any, *args: Any, num_samples: int = 10_000, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> float:
    """Pareto k-hat of the importance weights from a guide to the posterior: whether the guide may be believed.

    Below 0.5 the guide is close, below 0.7 importance sampling corrects what is missing; above 0.7 do not trust it: it
    misses mass that the posterior has, or is too narrow. k-hat judges all weights jointly: for a network with
    symmetries or hundreds of weights it is often above 0.7 although the predictions are good, so look at `compare` too.

    Args:
        model: The Pyro model.
        guide: A guide with a density; see `importance_log_weights`.
        args: The model's arguments, data included.
        num_samples: Number of draws.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        kwargs: The model's keyword arguments.

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
    """`khat` from log weights that are there already.

    Args:
        log_weights: In nats, shape `(S,)`; −inf for draws that the posterior excludes.

    Returns:
        k-hat, without unit.

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
    return pareto_shape(log_weights)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size of importance weights, `(Σ w)² / Σ w²`, between 1 and S.

    Args:
        log_weights: In nats, shape `(S,)`.

    Returns:
        A scalar, a number of draws.

    Source: Kish 1965.
    """
    return torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))


def importance_weighted_bound(log_weights: Tensor, *, num_particles: int) -> Tensor:
    """The importance-weighted lower bound on the log evidence, `E log mean_k w_k`; the ELBO at one particle.

    Args:
        log_weights: In nats, shape `(S,)`; a remainder of S over K is left out.
        num_particles: Draws K in every mean.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If there are fewer weights than particles.

    Source: Burda, Grosse and Salakhutdinov 2016, equation 8.
    """
    if not 1 <= num_particles <= len(log_weights):
        raise ValueError(f"num_particles must lie between 1 and {len(log_weights)}, the draws; got {num_particles}.")
    groups = log_weights[: len(log_weights) // num_particles * num_particles].reshape(-1, num_particles)
    return (torch.logsumexp(groups, -1) - math.log(num_particles)).mean()


def expected_acceptance(log_weights: Tensor) -> float:
    """The acceptance rate of the chains in the long run, from the weights of independent draws alone.

    `E min(1, w' / w)`, w' of q and w of the posterior (draws of q, weighted), over all pairs.

    Args:
        log_weights: In nats, shape `(S,)`.

    Returns:
        In [0, 1]; 1 where all weights are equal.

    Source: Neklyudov et al. 2018, arXiv 1810.07151, equation 9.
    """
    weights = (log_weights - log_weights.max()).exp().double().sort().values
    weights = weights[weights > 0]
    size, total = len(log_weights), float(weights.sum())
    above = torch.arange(len(weights) - 1, -1, -1, dtype=torch.float64, device=weights.device)
    given = (weights.cumsum(0) / weights + above) / size
    return float((weights / total * given).sum())

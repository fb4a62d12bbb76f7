"""The steps from one power of the likelihood to the next: how far, at what weights, and which draws go on."""

import math

import torch
from torch import Tensor

_POWER_ITERATIONS = 10


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective number of weighted draws, `(Σ w)² / Σ w²`, between 1 and S.

    Args:
        log_weights: Unnormalised, in nats, shape `(S,)`.

    Returns:
        A scalar, a number of draws.

    Source: Kish 1965.
    """
    return (-(2 * log_weights.log_softmax(0)).logsumexp(0)).exp()


def zero_if_bad(log_weights: Tensor) -> Tensor:
    """Log weights, in nats, with −inf, weight zero, where they are not a number or +inf."""
    return log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def next_beta(log_likelihood: Tensor, beta: float, share: float) -> float:
    """The highest beta, 1 at most, at which the draws' weights leave this share of them effective.

    Args:
        log_likelihood: Of every draw, in nats, shape `(S,)`; −inf where it has none.
        beta: The power of the likelihood that the draws are of, below 1.
        share: Between 0 and 1.

    Returns:
        A beta above the old one.
    """
    enough = share * int(log_likelihood.isfinite().sum())
    if effective_sample_size((1 - beta) * log_likelihood) >= enough:
        return 1.0
    low, high = beta, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return low if low > beta else high
        if effective_sample_size((middle - beta) * log_likelihood) >= enough:
            low = middle
        else:
            high = middle


def resample_systematically(log_weights: Tensor, num: int) -> Tensor:
    """Systematic resampling within every population.

    Args:
        log_weights: Unnormalised, in nats, shape `(populations, draws)`.
        num: Draws to choose in every population.

    Returns:
        Indices into the flattened draws, shape `(populations · num,)`, one population after the other.
    """
    populations, size = log_weights.shape
    shares = log_weights.double().softmax(-1).cumsum(-1)
    offsets = torch.rand(populations, 1, dtype=shares.dtype, device=shares.device)
    points = (torch.arange(num, device=shares.device) + offsets) / num
    index = torch.searchsorted(shares / shares[:, -1:], points.contiguous()).clamp(max=size - 1)
    return (index + size * torch.arange(populations, device=shares.device)[:, None]).flatten()


def resample_in_order(x: Tensor, log_weights: Tensor, num: int) -> Tensor:
    """Systematic resampling of draws lined up along the axis in which they differ most.

    On either side of any cut across that axis the number chosen is the expected one but for one draw, so that modes
    that lie apart along it keep their masses.

    Args:
        x: Draws, shape `(populations · draws, D)`.
        log_weights: Unnormalised, in nats, shape `(populations, draws)`.
        num: Draws to choose in every population.

    Returns:
        Indices as of `resample_systematically`, every population's in random order.
    """
    populations, size = log_weights.shape
    order = _places_along_main_axis(x).view(populations, size).argsort(-1)
    chosen = resample_systematically(log_weights.gather(1, order), num)
    starts = size * torch.arange(populations, device=x.device)[:, None]
    index = (order + starts).flatten()[chosen].view(populations, num)
    return index[:, torch.randperm(num, device=x.device)].flatten()


def mean_and_spread(w: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of every coordinate.

    Args:
        w: Draws, shape `(S, D)`.
        log_weights: Unnormalised, in nats, shape `(S,)`.

    Returns:
        Both of shape `(D,)`; the spread is at least 1e-6.
    """
    shares = log_weights.softmax(0)[:, None].to(w)
    mean = (shares * w).sum(0)
    return mean, (shares * (w - mean) ** 2).sum(0).sqrt().clamp(min=1e-6)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean of the weights over the last axis, in nats."""
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def _places_along_main_axis(x: Tensor) -> Tensor:
    """Standardised draws projected onto their first principal axis, by power iteration, shape `(S,)`."""
    x = x - x.mean(0)
    x = x / (x**2).mean(0).sqrt().clamp(min=1e-6)
    axis = torch.randn(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(_POWER_ITERATIONS):
        axis = x.mT @ (x @ axis)
        axis = axis / axis.norm().clamp(min=1e-30)
    return x @ axis

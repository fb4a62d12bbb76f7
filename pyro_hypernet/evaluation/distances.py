"""How far one set of draws stands from another: Wasserstein distance, ratio of spreads, maximum mean discrepancy."""

import torch
from torch import Tensor

from pyro_hypernet.model.quantiles import quantiles_of

# Of every marginal, at .005 to .995.
NUM_QUANTILES = 100


def wasserstein_over_sd(draws: Tensor, reference: Tensor) -> Tensor:
    """One-dimensional Wasserstein distance of every coordinate in units of the reference's sd, averaged.

    From 100 quantiles at .005 to .995, so tails beyond do not count. Coordinates in which the reference does not vary
    are left out.

    Args:
        draws: Shape `(S, *shape)`.
        reference: Shape `(T, *shape)`; T may differ from S.

    Returns:
        A scalar, in standard deviations; 0 where all marginals agree, NaN where the reference varies nowhere.

    Raises:
        ValueError: If the shapes do not fit.

    Source: the metric "W1/sd" of the project's reference posteriors.
    """
    draws, reference, sd = _comparable(draws, reference)
    levels = torch.linspace(0.005, 0.995, NUM_QUANTILES, dtype=draws.dtype, device=draws.device)
    distance = (quantiles_of(draws, levels) - quantiles_of(reference, levels)).abs().mean(0)
    return (distance / sd).mean()


def sd_ratio(draws: Tensor, reference: Tensor) -> Tensor:
    """Standard deviation of every coordinate over the reference's, averaged; below 1 means too narrow.

    Args and Raises: As of `wasserstein_over_sd`.
    """
    draws, reference, sd = _comparable(draws, reference)
    return (_sd(draws) / sd).mean()


def median_bandwidth(reference: Tensor) -> Tensor:
    """Median Euclidean distance between different draws `(T, *shape)`, the usual length scale for `mmd_squared`.

    Source: Gretton et al. 2012, section 8.
    """
    y = matrix(reference)
    upper = torch.triu_indices(len(y), len(y), 1, device=y.device)
    return torch.cdist(y, y)[upper[0], upper[1]].median()


def mmd_squared(draws: Tensor, reference: Tensor, *, bandwidth: Tensor | None = None) -> Tensor:
    """Unbiased squared maximum mean discrepancy with kernel `exp(−|x − y|² / (2 bandwidth²))`, over joint values.

    Args:
        draws: Shape `(S, *shape)`.
        reference: Shape `(T, *shape)`.
        bandwidth: Length scale; None for the median distance between the reference's draws.

    Returns:
        A scalar; 0 in expectation, so sometimes negative, where both come from one distribution.

    Raises:
        ValueError: If the shapes do not fit.

    Source: Gretton et al. 2012, equation 3.
    """
    _check(draws, reference)
    scale = median_bandwidth(reference) if bandwidth is None else bandwidth
    once = (torch.ones(1, len(values)) for values in (draws, reference))
    return mmd_replicates(draws, reference, *once, bandwidth=scale)[0]


def mmd_replicates(
    draws: Tensor, target: Tensor, counts: Tensor, target_counts: Tensor, *, bandwidth: Tensor
) -> Tensor:
    """`mmd_squared` in every replicate, shape `(R,)`; a draw taken twice makes no pair with itself.

    With `target` the draws themselves and counts of 0 and 1 that never meet, the distance of one part from another.

    Args:
        draws: Shape `(S, *shape)`.
        target: Shape `(T, *shape)`.
        counts: Shape `(R, S)`.
        target_counts: Shape `(R, T)`.
        bandwidth: Length scale of the kernel.

    Source: Arcones and Giné 1992, on the bootstrap of U-statistics.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(torch.cdist(a, b).square_().div_(-2 * bandwidth**2))

    def within(similar: Tensor, weights: Tensor) -> Tensor:
        twice = weights.square().sum(-1)
        return ((weights @ similar * weights).sum(-1) - twice) / (weights.sum(-1).square() - twice)

    x, y = matrix(draws), matrix(target)
    x, y = x - y.mean(0), y - y.mean(0)  # distances of centred points lose fewer digits
    ours, theirs = counts.to(x), target_counts.to(x)
    similar = kernel(y, y)
    own, between = (similar, similar) if draws is target else (kernel(x, x), kernel(x, y))
    across = (ours @ between * theirs).sum(-1) / (ours.sum(-1) * theirs.sum(-1))
    return within(own, ours) + within(similar, theirs) - 2 * across


def _comparable(draws: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both as matrices in double precision, without the coordinates in which the reference is constant; its sd."""
    _check(draws, reference)
    x, y = matrix(draws), matrix(reference)
    varies = y.max(0).values > y.min(0).values
    return x[:, varies], y[:, varies], _sd(y[:, varies])


def _sd(columns: Tensor) -> Tensor:
    """Standard deviations of columns; torch warns where there are none."""
    return columns.std(0) if columns.shape[1] else columns.new_zeros(0)


def matrix(draws: Tensor) -> Tensor:
    """Draws of shape `(S, *shape)` as rows, shape `(S, size)`, in double precision."""
    return draws.reshape(draws.shape[0], -1).double()


def _check(draws: Tensor, reference: Tensor) -> None:
    if draws.shape[1:] != reference.shape[1:] or min(draws.shape[0], reference.shape[0]) < 2:
        raise ValueError(
            "draws and reference must have shapes (S, *shape) and (T, *shape) with at least two draws each; got "
            f"{tuple(draws.shape)} and {tuple(reference.shape)}."
        )

"""Whether numbers are uniform: their empirical distribution function against bands that hold everywhere at once."""

import functools
import math

import torch
from torch import Tensor

# Sets of uniform numbers behind a band.
_NUM_NULL = 4000


def ecdf_band(num_values: int, *, coverage: float = 0.95, num_points: int | None = None) -> tuple[Tensor, ...]:
    """A band that the whole empirical distribution function of uniform numbers stays in with a given probability.

    Args:
        num_values: How many numbers M.
        coverage: The probability, for all points at once.
        num_points: Points K at which it is looked at; None for M, at most 200.

    Returns:
        Points, lower and upper ends of the band, shares in [0, 1], each of shape `(K,)`.

    Raises:
        ValueError: If a number is out of its range.

    Source: Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522, section 2.2, by simulation.
    """
    if num_values < 2 or not 0 < coverage < 1:
        raise ValueError(f"num_values must be at least 2 and coverage inside (0, 1); got {num_values} and {coverage}.")
    points = _points(num_values, num_points)
    # Tails are tied, for counts are whole; a hair less than the quantile keeps those that equal it inside.
    tail = float(torch.quantile(_null(num_values, len(points)), 1 - coverage)) / 2 * (1 - 1e-9)
    cdf = _binomial_cdf(num_values, points)
    lower = (cdf < tail).double().sum(-1) / num_values
    upper = (cdf < 1 - tail).double().sum(-1) / num_values
    return points, lower, upper


def uniform_p_value(values: Tensor) -> float:
    """How often uniform numbers would stray further from the diagonal somewhere than these do.

    Args:
        values: Numbers in [0, 1], shape `(M,)`.

    Returns:
        A p-value, from 1 / 4001 on, uniform where the numbers are.
    """
    points = _points(len(values), None)
    own = _least_tail(values.double()[None], points)
    return (1 + int((_null(len(values), len(points)) <= own).sum())) / (1 + _NUM_NULL)


def ecdf(values: Tensor, points: Tensor) -> Tensor:
    """The share of the values at or below every point, shape `(K,)`."""
    return (values.double()[:, None] <= points).double().mean(0)


def _points(num_values: int, num_points: int | None) -> Tensor:
    count = min(num_values, 200) if num_points is None else num_points
    return torch.arange(1, count, dtype=torch.float64) / count


@functools.lru_cache(maxsize=32)
def _null(num_values: int, num_points: int) -> Tensor:
    """The least tail probability of sets of uniform numbers, from a generator of its own, shape `(4000,)`."""
    generator = torch.Generator().manual_seed(0)
    points = torch.arange(1, num_points + 1, dtype=torch.float64) / (num_points + 1)
    chunks = []
    for _ in range(0, _NUM_NULL, 500):
        values = torch.rand(500, num_values, generator=generator, dtype=torch.float64)
        chunks.append(_least_tail(values, points))
    return torch.cat(chunks)


def _least_tail(values: Tensor, points: Tensor) -> Tensor:
    """Twice the least binomial tail probability over all points, for every row of values, shape `(rows,)`."""
    size = values.shape[1]
    counts = torch.searchsorted(
        values.sort(-1).values.contiguous(), points.expand(len(values), -1).contiguous(), right=True
    )
    cdf = torch.nn.functional.pad(_binomial_cdf(size, points), (1, 0))  # of −1 too
    index = torch.arange(len(points))
    below, above = cdf[index, counts + 1], 1 - cdf[index, counts]
    return (2 * torch.minimum(below, above)).min(-1).values


def _binomial_cdf(size: int, probabilities: Tensor) -> Tensor:
    """P(X <= k) of binomial numbers, k = 0 to `size`, shape `(K, size + 1)`."""
    k = torch.arange(size + 1, dtype=torch.float64)
    log_choose = math.lgamma(size + 1) - torch.lgamma(k + 1) - torch.lgamma(size - k + 1)
    p = probabilities[:, None]
    return (log_choose + k * p.log() + (size - k) * (1 - p).log()).exp().cumsum(-1).clamp(max=1)

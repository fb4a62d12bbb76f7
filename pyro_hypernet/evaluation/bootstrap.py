"""How sure a distance between two sets of draws is: the bootstrap, on sorted columns so that a replicate is cheap."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.distances import NUM_QUANTILES, matrix
from pyro_hypernet.evaluation.metrics import agreement, total_variation

# The spread of a distance is measured on this many coordinates at most, evenly spaced; the distance itself on all.
MAX_COLUMNS = 64
_MAX_DATA = 1000
_BOUNDS = {
    "w1_over_sd": (0.0, math.inf),
    "sd_ratio": (0.0, math.inf),
    "agreement": (0.0, 1.0),
    "total_variation": (0.0, 1.0),
}


def resampled_counts(num_draws: int, num_replicates: int, *, block: int = 1) -> Tensor:
    """How often every draw is taken in every bootstrap replicate, whole numbers of shape `(R, S)`: rows sum to S.

    Taken are blocks of neighbours on a circle: of 1 for independent draws, of about S over the effective sample size
    for a Markov chain.

    Source: Politis and Romano 1992, the circular block bootstrap.
    """
    starts = torch.randint(num_draws, (num_replicates, -(-num_draws // block)))
    index = (starts[..., None] + torch.arange(block)) % num_draws
    index = index.flatten(1)[:, :num_draws]
    return torch.zeros(num_replicates, num_draws, dtype=torch.long).scatter_add_(1, index, torch.ones_like(index))


def block_of(posterior: Any, num_kept: int) -> int:
    """Draws in one block of the bootstrap: those of a chain that count for one, by its effective sample sizes.

    Args:
        posterior: A result with `function_ess` or `ess`, dicts from site to sizes; 1 for anything else.
        num_kept: Number of draws taken from it.
    """
    sizes = getattr(posterior, "function_ess", None) or getattr(posterior, "ess", None)
    if not isinstance(sizes, Mapping):
        return 1
    finite = torch.cat([value.flatten() for value in sizes.values()])
    finite = finite[finite.isfinite()]
    middle = float(finite.median()) if len(finite) else num_kept
    return int(min(max(1.0, math.ceil(num_kept / max(middle, 1.0))), max(1, num_kept // 4)))


def shuffled_blocks(num_draws: int, block: int) -> Tensor:
    """A random order of S draws that keeps blocks of neighbours together, shape `(S,)`; see `resampled_counts`."""
    blocks = torch.arange(num_draws).split(block)
    return torch.cat([blocks[i] for i in torch.randperm(len(blocks)).tolist()])


class _ResampledColumns:
    """Coordinates of one set of draws, sorted once; quantiles, spreads and means of every replicate from counts.

    Args:
        values: Draws, shape `(S, *shape)`; of more than 64 coordinates 64 are looked at.
        counts: What `resampled_counts` gave, shape `(R, S)`.
        varying: Which coordinates to look at, booleans of shape `(size,)`; None for all.
    """

    def __init__(self, values: Tensor, counts: Tensor, varying: Tensor | None = None) -> None:
        columns = matrix(values)
        columns = columns if varying is None else columns[:, varying]
        if columns.shape[1] > MAX_COLUMNS:
            columns = columns[:, torch.linspace(0, columns.shape[1] - 1, MAX_COLUMNS).long()]
        self._counts = counts.to(columns.device)
        self._values, self._order = columns.T.contiguous().sort(-1)
        centred = columns - columns.mean(0)
        weights = self._counts.to(columns)
        first, second = weights @ centred / len(columns), weights @ centred.square() / len(columns)
        bessel = len(columns) / (len(columns) - 1)
        self.sd = ((second - first.square()).clamp(min=0) * bessel).sqrt()
        """Standard deviations, shape `(R, C)`."""

    def quantiles(self, replicate: int) -> Tensor:
        """The 100 quantiles of `wasserstein_over_sd` in one replicate, shape `(C, 100)`."""
        total = self._counts.shape[1]
        cumulative = self._counts[replicate][self._order].cumsum(-1)
        levels = torch.linspace(0.005, 0.995, NUM_QUANTILES, dtype=self._values.dtype, device=self._values.device)
        position = levels * (total - 1)
        lower, upper = (self._value_at(cumulative, bound.long()) for bound in (position.floor(), position.ceil()))
        return torch.lerp(lower, upper, (position - position.floor()).expand_as(lower))

    def _value_at(self, cumulative: Tensor, rank: Tensor) -> Tensor:
        wanted = (rank + 1).expand(len(cumulative), -1).contiguous()
        return self._values.gather(-1, torch.searchsorted(cumulative, wanted))


class ResampledTarget:
    """The reference's side of the marginal distances in every replicate, worked out once for all posteriors.

    Args:
        target: The reference's draws, shape `(T, *shape)`.
        counts: Shape `(R, T)`.
    """

    def __init__(self, target: Tensor, counts: Tensor) -> None:
        y = matrix(target)
        self._varying = y.max(0).values > y.min(0).values
        columns = _ResampledColumns(target, counts, self._varying)
        self._sd = columns.sd
        self._quantiles = torch.stack([columns.quantiles(replicate) for replicate in range(len(counts))])

    def replicates(self, draws: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """`wasserstein_over_sd` and `sd_ratio` of draws `(S, *shape)` by counts `(R, S)`, each of shape `(R,)`."""
        columns = _ResampledColumns(draws, counts, self._varying)
        gaps = torch.stack(
            [(columns.quantiles(r) - quantiles).abs().mean(-1) for r, quantiles in enumerate(self._quantiles)]
        )
        return {"w1_over_sd": (gaps / self._sd).nanmean(-1), "sd_ratio": (columns.sd / self._sd).nanmean(-1)}


def class_replicates(probabilities: Tensor, target: Tensor, counts: Tensor, target_counts: Tensor) -> dict[str, Tensor]:
    """`total_variation` and `agreement` of mean class probabilities in every replicate, by name, each of shape `(R,)`.

    Args:
        probabilities: Shape `(S, N, C)` or `(S, N)`; at most 1 000 of the N data are looked at.
        target: The reference's, T draws.
        counts: Shape `(R, S)`.
        target_counts: Shape `(R, T)`.
    """
    size = probabilities.shape[1]
    kept = torch.linspace(0, size - 1, min(size, _MAX_DATA), device=probabilities.device).long()

    def means(values: Tensor, weights: Tensor) -> Tensor:
        flat = values[:, kept].flatten(1)
        return (weights.to(flat) @ flat / len(values)).reshape(-1, *values[0, kept].shape)

    pairs = list(zip(means(probabilities, counts), means(target, target_counts), strict=True))
    return {
        "agreement": torch.stack([agreement(ours, theirs) for ours, theirs in pairs]),
        "total_variation": torch.stack([total_variation(ours, theirs) for ours, theirs in pairs]),
    }


def interval(key: str, value: float, replicates: Tensor, *, level: float) -> tuple[float, float]:
    """The quantiles of the replicates about their mean, laid about the distance and cut to its range.

    Resampling adds to a distance that cannot be negative; that is taken off. What the finite number of draws has added
    to `value` itself is not: the noise floor has it too.

    Args:
        key: Which distance.
        value: The distance.
        replicates: The same in every replicate, shape `(R,)`.
        level: Probability that the interval is to have.

    Returns:
        Lower and upper end; NaN where the distance is.

    Source: Efron and Tibshirani 1993, sections 10.2 and 13.3.
    """
    finite = replicates[replicates.isfinite()].double()
    if not math.isfinite(value) or not len(finite):
        return math.nan, math.nan
    low, high = (float(finite.quantile(p) - finite.mean()) for p in ((1 - level) / 2, (1 + level) / 2))
    least, greatest = _BOUNDS.get(key, (-math.inf, math.inf))
    return min(max(value + low, least), greatest), min(max(value + high, least), greatest)

"""R-hat and effective draws of many functions at once: populations and chains compared by what a model computes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def side_by_side(values: Mapping[str, Tensor], batch_dim: int) -> Tensor | None:
    """All functions in one tensor of shape `(*batch, functions)`.

    Args:
        values: A dict from site to values of shape `(*batch, ...)`, such as `Target.functions` returns.
        batch_dim: Number of axes of `batch`.

    Returns:
        None where there are no functions.
    """
    return torch.cat([v.reshape(*v.shape[:batch_dim], -1) for v in values.values()], dim=-1) if values else None


def worst(values: Mapping[str, Tensor]) -> float:
    """The largest finite entry of a dict from site to R-hats; NaN where there is none."""
    finite = [value[value.isfinite()] for value in values.values()]
    return max((float(value.max()) for value in finite if value.numel()), default=math.nan)


def pooled_rhat(values: Tensor) -> float:
    """One R-hat for many functions: variances between and within populations are summed over functions.

    Args:
        values: Shape `(populations, draws, functions)`.

    Returns:
        sqrt(1 + Σ between / Σ within), 1 where nothing varies.
    """
    within = values.double().var(1).mean(0).sum()
    between = values.double().mean(1).var(0).sum()
    return float((1 + between / within).sqrt()) if bool(within > 0) else 1.0


def effective_draws(values: Tensor) -> float:
    """Number of independent draws that know the functions' means as well, from the scatter of the chains' means.

    Chains that start at the same draw count as independent, so that this is too large while they have not forgotten it.

    Args:
        values: Shape `(chains, draws of a chain, functions)`.

    Returns:
        At most the number of draws.
    """
    chains, size, _ = values.shape
    values = values.double()
    total = values.flatten(0, 1).var(0).sum()
    of_means = values.mean(1).var(0).sum()
    return min(float(chains * total / of_means), float(chains * size)) if bool(of_means > 0) else float(chains * size)

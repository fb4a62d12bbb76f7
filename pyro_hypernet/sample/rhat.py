"""R-hat and effective draws of many functions at once: populations and chains compared by what a model computes."""

import math
from collections.abc import Mapping

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor


class Mixing:
    """What the R-hats of a result say, one dict from site to values for its sites and one for what it computes."""

    rhat: dict[str, Tensor]
    function_rhat: dict[str, Tensor]

    @property
    def max_rhat(self) -> float:
        """The worst R-hat over sites; weights of networks may differ by symmetry alone."""
        return worst(self.rhat)

    @property
    def max_function_rhat(self) -> float:
        """The worst R-hat in function space: the one to judge a network by."""
        return worst(self.function_rhat)

    @property
    def decisive_rhat(self) -> float:
        """The worst R-hat in function space, or over sites where the model computes nothing else."""
        return self.max_function_rhat if self.function_rhat else self.max_rhat


def check_chains(num_samples: int, num_chains: int, warmup_steps: int) -> None:
    """Raises a ValueError for numbers that no chains can be run and judged with."""
    if num_samples < 4 or num_chains < 1 or warmup_steps < 0:
        raise ValueError(
            "num_samples must be at least 4 (R-hat splits every chain), num_chains positive and warmup_steps not "
            f"negative; got {num_samples}, {num_chains} and {warmup_steps}."
        )


def rhat_and_ess(by_chain: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split R-hat and effective sample size of every entry.

    Args:
        by_chain: A dict from site to draws of shape `(chains, draws, *shape)`.

    Returns:
        Two dicts from site to values of shape `shape`.
    """
    rhat = {name: split_gelman_rubin(value) for name, value in by_chain.items()}
    return rhat, {name: effective_sample_size(value) for name, value in by_chain.items()}


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

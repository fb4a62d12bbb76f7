"""Independence Metropolis–Hastings with a guide as its proposal: a guide that is nearly right made exact."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.importance import finite_log_weights, weighted_draws
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.sample.rhat import check_chains, rhat_and_ess, worst
from pyro_hypernet.shown import Shown


@dataclass(frozen=True, repr=False)
class Metropolis(Shown):
    """Draws of chains that a guide proposes to.

    Attributes:
        samples: A dict from site to draws of shape `(chains * draws, *shape)`.
        samples_by_chain: A dict from site to draws of shape `(chains, draws, *shape)`.
        acceptance: Share of the proposals that were accepted, in [0, 1]; 1 where the guide is the posterior.
        rhat: A dict from site to split R-hat of every entry, shape `shape`.
        ess: A dict from site to the effective sample size of every entry, shape `shape`.
        longest_stay: The most steps that a chain stood still; beyond a tenth of its length do not believe it.
        seconds: Wall time.
    """

    samples: dict[str, Tensor] = field(repr=False)
    samples_by_chain: dict[str, Tensor] = field(repr=False)
    acceptance: float
    rhat: dict[str, Tensor] = field(repr=False)
    ess: dict[str, Tensor] = field(repr=False)
    longest_stay: int
    seconds: float

    @property
    def max_rhat(self) -> float:
        """The worst R-hat over sites."""
        return worst(self.rhat)


@torch.no_grad()
def metropolis(
    model: Model,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int = 100,
    num_chains: int = 8,
    **kwargs: Any,
) -> Metropolis:
    """Corrects a guide by Metropolis–Hastings chains whose every proposal is a fresh draw of the guide.

    `accept w' from w with probability min(1, [p(w') q(w)] / [p(w) q(w')])`: exact as chains grow wherever q reaches.
    All proposals are independent of the chain, so they are drawn and scored at once, and the chains only walk along
    their weights. Mass that the guide never proposes stays missed, whatever the acceptance: `refine` finds it.

    Args:
        model: The Pyro model.
        guide: A trained guide with a density: an AutoHypernet or any other Pyro guide of all latent sites.
        args: The model's arguments, data included.
        num_samples: Draws kept in every chain, at least 4.
        warmup_steps: Steps of every chain thrown away.
        num_chains: Chains, each with proposals of its own.
        kwargs: The model's keyword arguments.

    Returns:
        Draws, acceptance and diagnostics.

    Raises:
        TypeError: If the guide is none or a point estimate.
        ValueError: If a number is out of range, no proposal has a finite density, or the model draws minibatches.

    Source: Tierney 1994, section 2.3.3; the acceptance rate as a measure of the proposal: Neklyudov et al. 2018,
        arXiv 1810.07151.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_hypernet.guide.auto_hypernet import AutoHypernet
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoHypernet(model, init_scale=0.5).setup(torch.ones(3))
        >>> chains = metropolis(model, guide, torch.ones(3), num_samples=50, num_chains=4)
        >>> chains.samples["mean"].shape
        torch.Size([200])
    """
    check_chains(num_samples, num_chains, warmup_steps)
    start = time.perf_counter()
    proposals = weighted_draws(
        model, guide, *args, num_samples=num_chains * (num_samples + warmup_steps), what="metropolis", **kwargs
    )
    path = _walk(finite_log_weights(proposals.log_weights).view(num_chains, -1))
    flat = path + torch.arange(num_chains, device=path.device)[:, None] * path.shape[1]
    by_chain = {name: value[flat[:, warmup_steps:]] for name, value in proposals.samples.items()}
    moved = (path[:, 1:] != path[:, :-1]).double()
    rhat, ess = rhat_and_ess(by_chain)
    return Metropolis(
        samples={name: value.flatten(0, 1) for name, value in by_chain.items()},
        samples_by_chain=by_chain,
        acceptance=float(moved[:, max(0, warmup_steps - 1) :].mean()),
        rhat=rhat,
        ess=ess,
        longest_stay=max(int(row.unique_consecutive(return_counts=True)[1].max()) for row in path[:, warmup_steps:]),
        seconds=time.perf_counter() - start,
    )


def _walk(log_weights: Tensor) -> Tensor:
    """Which proposals chains stand at, step by step, `(chains, steps)`, that are offered these one after the other.

    The first of the log importance weights, `(chains, steps)`, in nats, is the start.
    """
    values = log_weights.cpu()
    log_u = torch.log(torch.rand(values.shape, dtype=values.dtype))
    at = torch.zeros(len(values), dtype=torch.long)
    here, path = values[:, 0].clone(), [at]
    for step in range(1, values.shape[1]):
        accepted = log_u[:, step] < values[:, step] - here
        # A chain that starts at an impossible point leaves it at the first chance.
        accepted = accepted | (here == -torch.inf)
        here = torch.where(accepted, values[:, step], here)
        at = torch.where(accepted, step, at)
        path.append(at)
    return torch.stack(path, dim=1).to(log_weights.device)

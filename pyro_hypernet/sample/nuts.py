"""The No-U-Turn sampler on the captured density, chains together and in parallel processes, with diagnostics."""

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.validate import refuse_minibatches
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.options import check_numbers
from pyro_hypernet.sample.no_u_turn import Chain, Evaluate, run_together
from pyro_hypernet.sample.processes import count_processes, share_out
from pyro_hypernet.sample.rhat import Mixing, check_chains, rhat_and_ess
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Target, Whole, bind

# Above this, chains have not found the same distribution (Vehtari et al. 2021 ask for 1.01 over long runs).
_MIXED_RHAT = 1.05
_START_ATTEMPTS, _START_RADIUS = 100, 2.0
_SHARE_OF_FAILURES = 0.01
# Said once, with the number, at the end.
_OF_FAILURES = "The density raises an error at some draws"


@dataclass(frozen=True)
class NutsKernel:
    """How `nuts` goes about it, which few need to change.

    Attributes:
        target_accept_prob: What the step size is adapted to.
        max_tree_depth: The most doublings of one trajectory.
        num_processes: Processes to share the chains; None for one per core, 1 for none.

    Raises:
        ValueError: If the number of processes is not positive.
    """

    target_accept_prob: float = 0.8
    max_tree_depth: int = 10
    num_processes: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"num_processes must be positive or None; got {self.num_processes}.")


@dataclass(frozen=True, repr=False)
class Nuts(Mixing, Shown):
    """Draws of several chains and what says whether to trust them.

    Attributes:
        samples: A dict from site to draws of shape `(chains * draws, *shape)`.
        samples_by_chain: A dict from site to draws of shape `(chains, draws, *shape)`.
        rhat: A dict from site to split R-hat of every entry, shape `shape`.
        ess: A dict from site to the effective sample size of every entry, shape `shape`.
        function_rhat: Split R-hat of the model's deterministic sites and of its observed sites' means, by site; these
            see through the symmetries of networks, which make weights of different chains differ.
        function_ess: Effective sample sizes of the same.
        diverging: Which draws ended a divergent transition, booleans of shape `(chains, draws)`.
        acceptance: Share of the kept steps of every chain that moved, as Pyro counts them.
        num_gradients: Gradients evaluated by every chain, warm-up included.
        seconds: Wall time, warm-up included.
        num_failed: Points at which the model raised an error, which count as of density zero.
    """

    samples: dict[str, Tensor] = field(repr=False)
    samples_by_chain: dict[str, Tensor] = field(repr=False)
    rhat: dict[str, Tensor] = field(repr=False)
    ess: dict[str, Tensor] = field(repr=False)
    function_rhat: dict[str, Tensor] = field(repr=False)
    function_ess: dict[str, Tensor] = field(repr=False)
    diverging: Tensor = field(repr=False)
    acceptance: tuple[float, ...]
    num_gradients: tuple[int, ...]
    seconds: float
    num_failed: int = 0

    @property
    def divergences(self) -> tuple[int, ...]:
        """Number of divergent transitions in every chain."""
        return tuple(self.diverging.sum(1).tolist())


def nuts(
    model: Model,
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int = 1000,
    num_chains: int = 4,
    guide: AutoHypernet | None = None,
    kernel: NutsKernel = NutsKernel(),
    max_seconds: float = math.inf,
    progress: bool = False,
    **kwargs: Any,
) -> Nuts:
    """Samples the posterior with the No-U-Turn sampler, the density and its gradient captured as one graph.

    The sampler is that of Pyro, NumPyro and Stan: multinomial weights, dual averaging of the step size, variances
    adapted in windows. Chains of one process share every evaluation of the density, and none waits for another.

    Args:
        model: The Pyro model.
        args: Its arguments.
        num_samples: Draws kept in every chain, at least 4.
        warmup_steps: Steps of adaptation in every chain, thrown away.
        num_chains: Number of chains, started uniformly in (−2, 2) in unconstrained space, or at draws of the guide.
        guide: A trained guide, through whose map the chains run (NeuTra): the sampler sees a target near N(0, I).
        kernel: Target acceptance, depth of trees and number of processes, such as `NutsKernel(max_tree_depth=8)`.
        max_seconds: After half of it no further step of adaptation is begun, and after all of it no further draw:
            chains then hold fewer, at least four.
        progress: Whether to show a bar, in one process only; quiet where the output is no terminal.
        kwargs: The model's keyword arguments.

    Returns:
        Draws and diagnostics. A warning says so where chains did not mix.

    Raises:
        RuntimeError: If the model has no latent site.
        TypeError: If `guide` is no AutoHypernet.
        ValueError: If a number is out of range, the model draws minibatches or other random numbers of its own, or no
            start with a finite density is found.

    Source: Hoffman and Gelman 2014; NeuTra: Hoffman et al. 2019, arXiv 1903.03704.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> draws = nuts(model, torch.ones(3), num_samples=1000, num_chains=1)
        >>> draws.samples["mean"].shape
        torch.Size([1000])
    """
    if guide is not None and not isinstance(guide, AutoHypernet):
        raise TypeError(
            f"NeuTra runs through the map of an AutoHypernet; got {type(guide).__name__}. Of a GuideMixture take one "
            "of mixture.components."
        )
    check_chains(num_samples, num_chains, warmup_steps)
    start = time.perf_counter()
    space = _Space(_bind(model, args, kwargs, guide), guide)
    starts = _starts(space, num_chains)
    points = torch.stack([space.to_weights(start) for start in starts])
    space.target.refuse_random(torch.cat([points, points + 0.5]), "nuts")
    seeds = [int(seed) for seed in torch.randint(2**31 - 1, (num_chains,))]
    options = {
        "num_samples": num_samples,
        "warmup_steps": warmup_steps,
        "target_accept_prob": kernel.target_accept_prob,
        "max_tree_depth": kernel.max_tree_depth,
        "max_seconds": max_seconds,
    }
    chains = _run_chains(space, starts, seeds, options, kernel.num_processes, progress)
    count = min(len(chain.draws) for chain in chains)  # they differ where the time was up
    w = space.to_weights(torch.stack([torch.from_numpy(chain.draws[-count:]).to(starts[0]) for chain in chains]))
    samples_by_chain = space.target.layout.constrain(w)[0]
    samples = {name: value.flatten(0, 1) for name, value in samples_by_chain.items()}
    functions = space.target.functions(samples)
    functions = {name: value.unflatten(0, (num_chains, -1)) for name, value in functions.items()}
    rhat, ess = rhat_and_ess(samples_by_chain)
    function_rhat, function_ess = rhat_and_ess(functions)
    result = Nuts(
        samples=samples,
        samples_by_chain=samples_by_chain,
        rhat=rhat,
        ess=ess,
        function_rhat=function_rhat,
        function_ess=function_ess,
        diverging=torch.stack([torch.from_numpy(chain.diverging[-count:]) for chain in chains]),
        acceptance=tuple(chain.acceptance for chain in chains),
        num_gradients=tuple(chain.num_gradients for chain in chains),
        seconds=time.perf_counter() - start,
        num_failed=space.num_failed,
    )
    _warn_of_failures(result)
    _warn_if_unmixed(result)
    return result


class _Space:
    """Where the sampler moves: the space of weights, or of a guide's noise, and the way from there to weights."""

    def __init__(self, target: Target, guide: AutoHypernet | None) -> None:
        self.target = target
        self.guide = guide
        self.num_failed_elsewhere = -target.log_joint.num_failed  # what it counted for others

    @property
    def num_failed(self) -> int:
        """Points so far at which the model raised an error, those of other processes included."""
        return self.target.log_joint.num_failed + self.num_failed_elsewhere

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density, shape `(...)`, and its gradient at `z` of shape `(..., D)`."""
        if self.guide is None:
            return self.target.value_and_grad(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            w, log_det = self.guide.bijection.forward_and_log_det(leaf)
            value, score = self.target.value_and_grad(w)
            (gradient,) = torch.autograd.grad((score * w).sum() + log_det.sum(), leaf)
        return value + log_det.detach(), gradient

    def evaluate_like(self, start: Tensor) -> Evaluate:
        """The same for arrays of float64, worked out in the dtype and on the device of a point."""

        run = self.value_and_grad if self.guide is not None else self.target.bind_value_and_grad()

        def evaluate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, gradient = run(torch.from_numpy(points).to(start))
            return value.double().cpu().numpy(), gradient.double().cpu().numpy()

        return evaluate

    def to_weights(self, z: Tensor) -> Tensor:
        if self.guide is None:
            return z
        with torch.no_grad():
            return self.guide.bijection.forward_and_log_det(z)[0]

    def start(self) -> Tensor:
        if self.guide is not None:
            return self.guide.get_base_dist().sample()
        return torch.empty_like(self.target.point).uniform_(-_START_RADIUS, _START_RADIUS)


def _bind(model: Model, args: tuple, kwargs: dict[str, Any], guide: AutoHypernet | None) -> Target:
    if guide is None:
        return bind(model, args, kwargs, "nuts")
    guide.setup(*args, **kwargs)
    refuse_minibatches(guide.prototype_trace, "nuts")
    return Whole(guide.density(model), args, kwargs)


def _starts(space: _Space, num_chains: int) -> list[Tensor]:
    starts: list[Tensor] = []
    for _ in range(_START_ATTEMPTS * num_chains):
        z = space.start()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OF_FAILURES, UserWarning)
            value, gradient = space.value_and_grad(z)
        if bool(value.isfinite()) and bool(gradient.isfinite().all()):
            starts.append(z)
        if len(starts) == num_chains:
            return starts
    raise ValueError(
        f"No start with a finite density in {_START_ATTEMPTS} tries: check the data for NaN and the priors' supports."
    )


def _run_chains(
    space: _Space,
    starts: list[Tensor],
    seeds: list[int],
    options: dict[str, Any],
    num_processes: int | None,
    progress: bool,
) -> list[Chain]:
    """Runs the chains together, or shared among forked processes, which inherit the captured graph."""
    processes = count_processes(len(starts), num_processes)
    if processes <= 1 or starts[0].device.type != "cpu":
        return _run_some(space, starts, seeds, options, progress)

    def run(share: list[int]) -> tuple[dict[int, Chain], int]:
        """The chains by number, and how often the model raised an error."""
        before = space.num_failed
        some = _run_some(space, [starts[i] for i in share], [seeds[i] for i in share], options, False)
        return dict(zip(share, some, strict=True)), space.num_failed - before

    shares = [list(range(len(starts)))[first::processes] for first in range(processes)]
    chains: dict[int, Chain] = {}
    for some, num_failed in share_out(run, shares, processes):
        chains.update(some)
        space.num_failed_elsewhere += num_failed
    return [chains[number] for number in range(len(starts))]


def _run_some(
    space: _Space, starts: list[Tensor], seeds: list[int], options: dict[str, Any], progress: bool
) -> list[Chain]:
    total = len(starts) * (options["num_samples"] + options["warmup_steps"])
    points = torch.stack(starts).double().cpu().numpy()
    with (
        warnings.catch_warnings(),
        tqdm(total=total, disable=None if progress else True, desc="nuts", leave=False) as bar,
    ):
        warnings.filterwarnings("ignore", _OF_FAILURES, UserWarning)
        return run_together(space.evaluate_like(starts[0]), points, seeds, bar.update, **options)


def _warn_of_failures(result: Nuts) -> None:
    # The search for a step size goes far out, as a rule, where a few failures say nothing.
    if result.num_failed > _SHARE_OF_FAILURES * sum(result.num_gradients):
        warnings.warn(
            f"{_OF_FAILURES}: at {result.num_failed} of about {sum(result.num_gradients)} points of NUTS, which count "
            "as of density zero.",
            stacklevel=3,
        )


def _warn_if_unmixed(result: Nuts) -> None:
    if result.decisive_rhat > _MIXED_RHAT:
        where = "in function space " if result.function_rhat else ""
        warnings.warn(
            f"NUTS has not mixed: the worst split R-hat {where}is {result.decisive_rhat:.2f}, above {_MIXED_RHAT}. Do "
            "not take these draws for the posterior: run longer, or reparametrise the model.",
            stacklevel=3,
        )

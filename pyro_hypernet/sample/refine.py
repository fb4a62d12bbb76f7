"""The posterior itself: tempered sequential Monte Carlo from the prior, with vectorised Hamiltonian moves."""

import math
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import validation_enabled
from pyro.ops.stats import gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.graphs.threads import one_thread_each
from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.options import check_numbers
from pyro_hypernet.sample.collapsed import collapse
from pyro_hypernet.sample.coverage import Coverage, cover
from pyro_hypernet.sample.moves import Trajectories
from pyro_hypernet.sample.processes import count_threads
from pyro_hypernet.sample.rhat import Mixing, effective_draws, pooled_rhat, side_by_side
from pyro_hypernet.sample.tempering import log_mean_exp, mean_and_spread, next_beta, resample_in_order, zero_if_bad
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import State, Target, Whole, bind, looks

# Every new beta keeps this share of the particles effective.
_ESS_SHARE = 0.5
_MAX_BETAS = 500
# Moves are repeated while fewer of them are accepted, for the step size is then still being found.
_LEAST_ACCEPTANCE, _MAX_ROUNDS = 0.5, 10
# Trajectories at every beta.
NUM_MOVES = 8
_MIXED_RHAT = 1.05
_LARGE_ERROR = 1.0


@dataclass(frozen=True)
class HmcKernel:
    """How `refine` moves draws, which few need to change.

    Attributes:
        num_leapfrogs: Most leapfrog steps of one trajectory; its length is adapted.
        collapse: Whether to integrate out what can be. One gradient then costs about the square of the block's size
            times the number of observations.
        num_threads: Threads that share the draws of a move; None for one per core, 1 for none but the caller's.

    Raises:
        ValueError: If a number is not positive.
    """

    num_leapfrogs: int = 64
    collapse: bool = True
    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_leapfrogs < 1 or (self.num_threads is not None and self.num_threads < 1):
            numbers = f"{self.num_leapfrogs} and {self.num_threads}"
            raise ValueError(f"num_leapfrogs and num_threads must be positive, or num_threads None; got {numbers}.")


@dataclass(frozen=True, repr=False)
class Refined(Mixing, Shown):
    """Draws of the posterior by tempered sequential Monte Carlo.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted, one population after the other.
        log_evidence: log p(data) in nats, averaged over populations.
        log_evidence_error: Its standard error over independent populations, in nats; NaN for one population.
        betas: The powers of the likelihood from 0 to 1.
        acceptance: Mean acceptance of the moves at every beta after the first.
        leapfrogs: Mean number of leapfrog steps of a move, likewise.
        rhat: A dict from site to R-hat over populations, shape `shape`.
        function_rhat: The same for deterministic sites and means of observed sites.
        pooled_rhat: One R-hat over populations for all functions together; NaN where there are none.
        ess: Effective number of draws for the functions' means, as far as the scatter of chains tells; NaN likewise.
        collapsed: Names of the sites that were integrated out and drawn from their conditional posterior in the end.
        num_gradients: Gradients evaluated, of one draw each.
        seconds_per_gradient: Of one draw, at the beta where they were fastest: captures are left out.
        seconds: Wall time.
        coverage: How the guide compares, where one was given.
    """

    samples: dict[str, Tensor] = field(repr=False)
    log_evidence: float
    log_evidence_error: float
    betas: tuple[float, ...] = field(repr=False)
    acceptance: tuple[float, ...] = field(repr=False)
    leapfrogs: tuple[float, ...] = field(repr=False)
    rhat: dict[str, Tensor] = field(repr=False)
    function_rhat: dict[str, Tensor] = field(repr=False)
    pooled_rhat: float
    ess: float
    collapsed: tuple[str, ...]
    num_gradients: int
    seconds_per_gradient: float
    seconds: float
    coverage: Coverage | None = None


def refine(
    model: Model,
    *args: Any,
    guide: JointGuide | None = None,
    num_samples: int = 2000,
    num_populations: int = 4,
    num_moves: int = NUM_MOVES,
    kernel: HmcKernel = HmcKernel(),
    max_seconds: float = math.inf,
    progress: bool = True,
    **kwargs: Any,
) -> Refined:
    """Carries draws of the prior to the posterior, through powers of the likelihood that rise from 0 to 1.

    Exact as the number of draws grows, multimodal posteriors included, for nothing is left out at the start. Every
    power is chosen so that half of the draws stay effective. Then some are chosen by their weights and moved by
    Hamiltonian Monte Carlo, all at once on the captured density, and the states on their way are the new draws.

    Weights to which normal observations answer linearly, such as the last layer of a network for regression, are
    integrated out, which leaves a posterior of fewer and less entangled weights, and drawn from their exact conditional
    posterior at the end.

    Args:
        model: A Pyro model whose latent sites can all be sampled from the prior.
        args: Its arguments, data included.
        guide: A trained guide to hold against the result. The draws never start from it: what a guide misses would stay
            missed.
        num_samples: Number of draws S, over all populations.
        num_populations: Populations that never mix, which give the errors; a divisor of `num_samples`.
        num_moves: Trajectories at every beta, all of whose states are kept: S / num_moves draws are moved.
        kernel: Length of trajectories, and whether to integrate out, such as `HmcKernel(collapse=False)`.
        max_seconds: After so long no further power is begun; draws are then of the last one.
        progress: Whether to show a bar; quiet where the output is no terminal.
        kwargs: The model's keyword arguments.

    Returns:
        Draws, log evidence and diagnostics. A warning says so where populations disagree.

    Raises:
        RuntimeError: If the model has no latent site.
        ValueError: If a number is out of range, the prior cannot be sampled, the model draws minibatches or other
            random numbers of its own, or no draw of the prior has a finite likelihood.

    Source: Del Moral, Doucet and Jasra 2006; adaptive powers: Jasra et al. 2011; keeping the states on the way:
    Dau and Chopin 2022, arXiv 2011.02328.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> refined = refine(model, torch.ones(3), num_samples=400, progress=False)
        >>> refined.samples["mean"].shape
        torch.Size([400])
        >>> refined.collapsed
        ('mean',)
    """
    _check_numbers(num_samples, num_populations, num_moves)
    start = time.perf_counter()
    target = bind_to_refine(model, args, kwargs, kernel)
    sizes = {"num_samples": num_samples, "num_populations": num_populations, "num_moves": num_moves}
    result = carry(target, **sizes, kernel=kernel, max_seconds=max_seconds, progress=progress)
    if guide is not None:
        result = replace(result, coverage=cover(target, guide, result.samples, num_samples=num_samples))
    _warn(result)
    return replace(result, seconds=time.perf_counter() - start)


def bind_to_refine(model: Model, args: tuple, kwargs: dict[str, Any], kernel: HmcKernel = HmcKernel()) -> Target:
    """What draws are carried through: the model bound to its arguments, what can be integrated out being so.

    Raises:
        RuntimeError: If the model has no latent site.
        ValueError: If the prior cannot be sampled, or the model draws minibatches or other random numbers of its own.
    """
    whole = _bind(model, args, kwargs)
    with validation_enabled(False):
        target = collapse(whole) if kernel.collapse else whole
    return target


def count_moved(num_samples: int, num_populations: int, num_moves: int = NUM_MOVES) -> int:
    """How many draws are moved at every power, so that all states on their way are enough."""
    return num_populations * math.ceil(num_samples / num_populations / num_moves)


def carry(
    target: Target,
    *,
    num_samples: int,
    num_populations: int,
    num_moves: int = NUM_MOVES,
    kernel: HmcKernel = HmcKernel(),
    max_seconds: float = math.inf,
    progress: bool = False,
) -> Refined:
    """`refine`, without a word of warning, of a target that its caller has bound and may carry other draws through.

    Raises:
        ValueError: If no draw of the prior has a finite likelihood.
    """
    start = time.perf_counter()
    x = target.sample_prior(num_moves * count_moved(num_samples, num_populations, num_moves))
    target.num_threads = count_threads(kernel.num_threads, x.device)
    with validation_enabled(False), one_thread_each(target.num_threads):
        cloud = _Cloud(target, x, num_populations, num_moves, kernel.num_leapfrogs)
        if not cloud.is_alive():
            target.raise_for_nan()
            raise ValueError(
                f"No draw of the prior has a finite likelihood, in one of {num_populations} populations of "
                f"{num_samples // num_populations}: check the data for NaN, or the priors, or use more samples."
            )
        _heat_up(cloud, progress, until=start + max_seconds)
        samples = target.samples(cloud.draws(num_samples))
        return _sum_up(cloud, samples, start)


class _Cloud:
    """All draws with their likelihoods, in populations that never mix, one after the other."""

    def __init__(self, target: Target, x: Tensor, num_populations: int, num_moves: int, num_leapfrogs: int) -> None:
        self.target, self.x = target, x
        self.num_populations = num_populations
        self.num_moves = num_moves
        self.num_chosen = len(x) // num_populations // num_moves
        self.trajectories = Trajectories(target.dim, max_leapfrogs=num_leapfrogs)
        self._before = target.num_rows
        # As many at a time as are moved later, so that the same graph serves.
        parts = x.split(len(x) // num_moves)
        self.log_likelihood = zero_if_bad(torch.cat([target(part, 0.0).log_likelihood for part in parts]))
        self.log_evidence = self.log_likelihood.new_zeros(num_populations).double()
        self.betas, self.acceptance, self.leapfrogs = [0.0], [], []
        self.seconds_per_gradient = math.inf

    @property
    def num_gradients(self) -> int:
        """Gradients evaluated for these draws, of one draw each."""
        return self.target.num_rows - self._before

    def is_alive(self) -> bool:
        """Whether every population has a draw with a finite likelihood."""
        return bool(self.log_likelihood.isfinite().view(self.num_populations, -1).any(-1).all())

    def heat(self) -> None:
        """Raises beta, chooses draws by their weights and moves them; their states are the new draws."""
        old = self.betas[-1]
        beta = next_beta(self.log_likelihood.double(), old, _ESS_SHARE)
        log_weights = (beta - old) * self.log_likelihood.double()
        of_populations = log_weights.view(self.num_populations, -1)
        self.log_evidence = self.log_evidence + log_mean_exp(of_populations)
        centre, spread = mean_and_spread(self.x, log_weights)
        chosen = self.x[resample_in_order(self.x, of_populations, self.num_chosen)]
        self.betas.append(beta)
        start, before = time.perf_counter(), self.num_gradients
        self._move(self.target(chosen, beta), beta, centre, spread)
        pace = (time.perf_counter() - start) / (self.num_gradients - before)
        self.seconds_per_gradient = min(self.seconds_per_gradient, pace)

    def draws(self, num_samples: int) -> Tensor:
        """As many draws of every population, shape `(num_samples, m)`; a few were more than asked for."""
        by_population = self.x.unflatten(0, (self.num_populations, -1))
        return by_population[:, : num_samples // self.num_populations].flatten(0, 1)

    def _move(self, state: State, beta: float, centre: Tensor, spread: Tensor) -> None:
        before = self.trajectories.num_leapfrogs, self.trajectories.num_moves
        for _ in range(_MAX_ROUNDS):
            states, rates = [], []
            for _ in range(self.num_moves):
                state, rate = self.trajectories.move(self.target, state, beta, centre, spread)
                states.append(state)
                rates.append(rate)
            if sum(rates) / len(rates) >= _LEAST_ACCEPTANCE:
                break
        self.acceptance.append(sum(rates) / len(rates))
        leapfrogs, moves = self.trajectories.num_leapfrogs - before[0], self.trajectories.num_moves - before[1]
        self.leapfrogs.append(leapfrogs / moves)
        self.x = self._in_chains([state.w for state in states])
        self.log_likelihood = zero_if_bad(self._in_chains([state.log_likelihood for state in states]))

    def _in_chains(self, values: list[Tensor]) -> Tensor:
        """Values of every move as population × move × chosen, flattened."""
        stacked = torch.stack(values).unflatten(1, (self.num_populations, -1))
        return stacked.transpose(0, 1).flatten(0, 2)


def _heat_up(cloud: _Cloud, progress: bool, *, until: float) -> None:
    bar = tqdm(total=1.0, disable=None if progress else True, desc="refine", leave=False)
    try:
        while cloud.betas[-1] < 1 and len(cloud.betas) < _MAX_BETAS:
            if time.perf_counter() > until:
                break
            cloud.heat()
            bar.update(cloud.betas[-1] - cloud.betas[-2])
    finally:
        bar.close()


def _sum_up(cloud: _Cloud, samples: dict[str, Tensor], start: float) -> Refined:
    populations = cloud.num_populations
    functions = cloud.target.functions(samples)
    by_population = {name: value.unflatten(0, (populations, -1)) for name, value in functions.items()}
    sites = {name: value.unflatten(0, (populations, -1)) for name, value in samples.items()}
    flat = side_by_side(by_population, 2)
    several = populations > 1
    return Refined(
        samples=samples,
        log_evidence=float(log_mean_exp(cloud.log_evidence)),
        log_evidence_error=float(cloud.log_evidence.std()) / populations**0.5 if several else math.nan,
        betas=tuple(cloud.betas),
        acceptance=tuple(cloud.acceptance),
        leapfrogs=tuple(cloud.leapfrogs),
        rhat={name: gelman_rubin(value) for name, value in sites.items()} if several else {},
        function_rhat={name: gelman_rubin(value) for name, value in by_population.items()} if several else {},
        pooled_rhat=pooled_rhat(flat) if several and flat is not None else math.nan,
        ess=_effective(flat, cloud.num_chosen) if flat is not None else math.nan,
        collapsed=cloud.target.collapsed,
        num_gradients=cloud.num_gradients,
        seconds_per_gradient=cloud.seconds_per_gradient,
        seconds=time.perf_counter() - start,
    )


def _effective(flat: Tensor, num_chosen: int) -> float:
    """From chains as long as all populations' draws fill: `(populations, moves · chosen, functions)`."""
    moves = flat.shape[1] // num_chosen
    if moves < 1:
        return float(flat.shape[:2].numel())
    chains = flat[:, : moves * num_chosen].unflatten(1, (moves, num_chosen))
    return effective_draws(chains.transpose(1, 2).flatten(0, 1)) * flat.shape[1] / (moves * num_chosen)


def _bind(model: Model, args: tuple, kwargs: dict[str, Any]) -> Whole:
    target = bind(model, args, kwargs, "refine", draws_prior=True)
    target.refuse_random(looks(target), "refine")
    return target


def _warn(result: Refined) -> None:
    if result.betas[-1] < 1:
        warnings.warn(
            f"refine gave up at beta {result.betas[-1]:.3g} of 1, after {len(result.betas)} powers of the likelihood: "
            "the draws are of a tempered posterior. Use more samples or moves.",
            stacklevel=3,
        )
    elif result.pooled_rhat > _MIXED_RHAT or result.log_evidence_error > _LARGE_ERROR:
        warnings.warn(
            f"The populations of refine disagree: R-hat in function space is {result.pooled_rhat:.3f} and the standard "
            f"error of the log evidence {result.log_evidence_error:.2g} nats. Use more samples or moves.",
            stacklevel=3,
        )


def _check_numbers(num_samples: int, num_populations: int, num_moves: int) -> None:
    if min(num_samples, num_populations, num_moves) < 1 or num_samples % num_populations:
        raise ValueError(
            "num_samples, num_populations and num_moves must be positive and num_samples a multiple of "
            f"num_populations; got {num_samples}, {num_populations} and {num_moves}."
        )

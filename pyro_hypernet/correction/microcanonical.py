"""Microcanonical Langevin chains on all data at once, from trained networks or a guide's draws."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import validation_enabled
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.bnn.starts import reinitialised
from pyro_hypernet.correction.move import check_sites, good_ones
from pyro_hypernet.correction.move_by_minibatch import widths_of
from pyro_hypernet.evaluation.draws import draws, temperature_of
from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.model.modes import climb, spread_of
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.model.validate import refuse_minibatches
from pyro_hypernet.options import check_numbers
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Whole, bind, bind_guide

# How fast old errors of the energy are forgotten, how fast the step size follows, with whose third power they grow, and
# how much more than aimed at one of them counts at most.
_FORGET, _RATE, _MOST_OFF = 0.05, 0.04 / 6, 100.0
# An error of a step's energy beyond this, in standard deviations of what is aimed at, puts a chain back.
_LOST = 30.0
# Steps of networks before they are chains, at most for this share of the time; draws of the prior for units of steps.
_CLIMBS, _CLIMBS_FOR, _NUM_WIDTHS = 1000, 0.25, 64
# So many of the prior's standard deviations beside a mode is where a chain begins.
_BESIDE = 0.05
# Share of steps that were put back, above which it is said.
_MOST_RETURNED = 0.01


@dataclass(frozen=True)
class MicrocanonicalKernel:
    """How `microcanonical` moves.

    Attributes:
        energy_variance: Of a step, over the number of weights: the step size is adapted to it. The bias of the draws
            falls with it, as does the speed: .1 is rough, .0005 nearly exact.
        coherence: Over how many widths of every weight a chain keeps its direction; long where weights are correlated.

    Raises:
        ValueError: If one of them is not positive.
    """

    energy_variance: float = 0.1
    coherence: float = 10.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if not (0 < self.energy_variance < math.inf and 0 < self.coherence < math.inf):
            raise ValueError(
                f"energy_variance and coherence must be positive; got {self.energy_variance} and {self.coherence}."
            )


@dataclass(frozen=True, repr=False)
class Microcanonical(Shown):
    """Draws of chains that started at given draws.

    Attributes:
        samples: A dict from site to draws of shape `(chains * draws, *shape)`.
        samples_by_chain: A dict from site to draws of shape `(chains, draws, *shape)`.
        temperature: Of the posterior that the chains move in: that of the guide they started from, else 1.
        energy_variance: Of a step after the warm-up, over the number of weights, one for every chain.
        num_steps: Steps of every chain, of one gradient each.
        num_returned: How often a chain was put back after a step that lost its energy.
        seconds: Wall time.
    """

    samples: dict[str, Tensor] = field(repr=False)
    samples_by_chain: dict[str, Tensor] = field(repr=False)
    temperature: float
    energy_variance: tuple[float, ...]
    num_steps: int
    num_returned: int
    seconds: float


def microcanonical(
    model: Model,
    posterior: Any,
    *args: Any,
    num_steps: int = 10_000,
    warmup_steps: int | None = None,
    num_samples: int = 1000,
    num_chains: int = 10,
    kernel: MicrocanonicalKernel = MicrocanonicalKernel(),
    max_seconds: float = math.inf,
    progress: bool = True,
    **kwargs: Any,
) -> Microcanonical:
    """Moves draws towards the posterior by microcanonical Langevin dynamics, each its own chain, all data in each step.

    A chain moves at constant speed and is only turned by the gradient, so it takes rough steps where Hamiltonian
    trajectories would diverge; nothing is rejected. From trained networks, as stored samples, this makes a deep
    ensemble Bayesian: every member explores its own mode. The draws are biased by the step size, see
    `MicrocanonicalKernel`, and modes that no start is in stay missed; for small networks `refine` and `nuts` are exact.

    Args:
        model: The Pyro model.
        posterior: Where chains start: stored samples, such as the parameters of trained networks, a guide, or a
            mixture of guides. The widths of its draws, within a component where it has such, scale the steps. Or a
            number: so many networks, of a model of `bayesianize` drawn anew by their modules, of others by the prior,
            that climb the posterior density by 1 000 steps of Adam, in at most a quarter of `max_seconds`.
        args: The model's arguments, data included.
        num_steps: Steps of every chain, the warm-up included.
        warmup_steps: First steps, in which step sizes are adapted and of which no draw is kept; None for half.
        num_samples: Draws to keep in all, evenly from every chain; rounded up to a multiple of the chains.
        num_chains: Chains, at most as many as stored samples; as many as networks where `posterior` is their number.
        kernel: How chains move.
        max_seconds: Steps and warm-up are cut, each in proportion, to what this time allows for.
        progress: Whether to show a bar; quiet where the output is no terminal.
        kwargs: The model's keyword arguments.

    Returns:
        Draws and what happened to them; `predict`, `score`, `to_arviz` and `distill` take it.

    Raises:
        TypeError: If the posterior is none of these.
        ValueError: If a number is out of range, the posterior is a number and the prior cannot be sampled, its sites
            are not the model's, the model draws minibatches, or no start has a finite density.

    Source: Robnik, De Luca, Silverstein and Seljak 2023, arXiv 2212.08549; from ensembles: Sommer et al. 2025, arXiv
        2502.06335 (MILE).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y)
        >>> found = microcanonical(model, {"mean": torch.randn(4, 2)}, torch.ones(9), num_steps=80, num_samples=20)
        >>> found.samples["mean"].shape, found.samples_by_chain["mean"].shape
        (torch.Size([20, 2]), torch.Size([4, 5, 2]))
    """
    warmup_steps = num_steps // 2 if warmup_steps is None else warmup_steps
    is_number = isinstance(posterior, int) and not isinstance(posterior, bool)
    num_chains = posterior if is_number else num_chains
    _check(kernel, num_steps, warmup_steps, num_samples, num_chains, max_seconds)
    start = time.perf_counter()
    if is_number:
        target = bind(model, args, kwargs, "microcanonical", draws_prior=True)
        w = _drawn_anew(target, num_chains)
    else:
        starts = draws(posterior, *args, num_samples=num_chains, **kwargs)
        target = bind_guide(model, posterior, args, kwargs)
        refuse_minibatches(check_sites(target, starts), "microcanonical")
        w = target.layout.unconstrain(starts)[0]
    with validation_enabled(False):
        if w.shape[-1] < 2:
            raise ValueError(f"Chains that only turn need at least two weights; the model has {w.shape[-1]}.")
        target.refuse_random(w[:2], "microcanonical")
        evaluate = target.bind_value_and_grad()
        if is_number:
            spread = spread_of(target.sample_prior(_NUM_WIDTHS))
            w = climb(evaluate, w, spread, num_steps=_CLIMBS, until=start + _CLIMBS_FOR * max_seconds)
            w = w + _BESIDE * spread * torch.randn_like(w)  # at a mode no gradient says how long a step may be
            posterior = target.layout.constrain(w)[0]
        scale = widths_of(posterior, target.layout, args, kwargs)
        value, gradient = evaluate(w)
        w = w[good_ones(value.isfinite() & gradient.isfinite().all(-1), target, "start")]
        chains = _Chains(w, scale, kernel, evaluate)
        plan = num_steps, warmup_steps, math.ceil(num_samples / len(w))
        kept = _run(chains, plan, start=start, max_seconds=max_seconds, progress=progress)
        by_chain = target.layout.constrain(torch.stack(kept or [chains.w.clone()], 1))[0]
    if chains.num_returned > _MOST_RETURNED * chains.num_steps * len(w):
        warn_caller(
            f"Chains were put back after {chains.num_returned} of {chains.num_steps * len(w)} steps that lost their "
            "energy: take a longer warm-up, warmup_steps=…, or a smaller "
            "kernel=MicrocanonicalKernel(energy_variance=…)."
        )
    return Microcanonical(
        samples={name: value.flatten(0, 1) for name, value in by_chain.items()},
        samples_by_chain=by_chain,
        temperature=temperature_of(posterior),
        energy_variance=tuple(chains.energy_variance.tolist()),
        num_steps=chains.num_steps,
        num_returned=chains.num_returned,
        seconds=time.perf_counter() - start,
    )


def _drawn_anew(target: Whole, number: int) -> Tensor:
    """Unconstrained weights of networks as their modules draw them, and of the prior where there is no network."""
    w = target.sample_prior(number)
    if not isinstance(target.model, BayesianNet):
        return w
    others = (reinitialised(target.model) for _ in range(number - 1))
    nets = [net.initial_values for net in (target.model, *others)]
    values = target.samples(w)
    values |= {name: torch.stack([net[name] for net in nets]).to(values[name]) for name in nets[0]}
    return target.layout.unconstrain(values)[0]


class _Chains:
    """Chains of constant speed: a leapfrog step of the isokinetic dynamics, then a little noise to the direction.

    Args:
        w: Where the chains start, unconstrained, shape `(C, D)`.
        scale: Widths of the weights, positive, shape `(D,)`.
        kernel: How to move.
        evaluate: From weights `(C, D)` to log densities `(C,)` and gradients `(C, D)`.

    Attributes:
        step_size: Of every chain, in widths of a weight, shape `(C, 1)`.
        num_steps: Steps so far.
        num_returned: How often a chain was put back after a step that lost its energy.
        num_steady: Steps without adaptation.

    Source: Robnik and Seljak 2023, arXiv 2303.18221, equations of the isokinetic integrator and of the partial refresh.
    """

    def __init__(self, w: Tensor, scale: Tensor, kernel: MicrocanonicalKernel, evaluate: Any) -> None:
        self.w, self.scale, self.kernel, self.evaluate = w.clone(), scale, kernel, evaluate
        self.value, self.gradient = self._at(self.w)
        self.direction = _unit(torch.randn_like(w))
        # The first steps turn a chain by about a tenth: from an ensemble's members they rise to what is stable.
        steepest = self.gradient.norm(dim=-1, keepdim=True).clamp(min=1.0)
        self.step_size = (0.1 * (w.shape[-1] - 1) / math.sqrt(w.shape[-1]) / steepest).clamp(max=0.1)
        self.num_steps = self.num_returned = self.num_steady = 0
        self._recent = w.new_full((len(w),), kernel.energy_variance)
        self._total = torch.zeros_like(self._recent)
        self._usual = self.step_size.log()

    @property
    def energy_variance(self) -> Tensor:
        """Mean square of the error of a step's energy over D, since steps are no longer adapted, shape `(C,)`."""
        return self._total / self.num_steady if self.num_steady else self._recent

    @torch.no_grad()
    def step(self, *, adapts: bool) -> None:
        """One step by one gradient; `adapts` the step size where it says so."""
        dim, length = self.w.shape[-1], self.step_size * math.sqrt(self.w.shape[-1])
        direction, turned = _turn(self.direction, self.gradient, length / 2)
        w = self.w + length * self.scale * direction
        value, gradient = self._at(w)
        direction, turned_again = _turn(direction, gradient, length / 2)
        error = turned + turned_again - (value - self.value)
        lost = ~(error.square() < _LOST**2 * max(1.0, dim * self.kernel.energy_variance))  # NaN is lost too
        if bool(lost.any()):
            w[lost], value[lost], gradient[lost] = self.w[lost], self.value[lost], self.gradient[lost]
            direction[lost] = torch.randn_like(direction[lost])
            self.num_returned += int(lost.sum())
        forgotten = ((2 * self.step_size / self.kernel.coherence).expm1() / dim).sqrt()
        self.direction = _unit(_unit(direction) + forgotten * torch.randn_like(direction))
        self.w, self.value, self.gradient = w, value, gradient
        variance = (error.square() / dim).nan_to_num(math.inf).clamp(max=_MOST_OFF * self.kernel.energy_variance)
        self.num_steps += 1
        if not adapts:
            self.num_steady += 1
            self._total += variance
            return
        self._recent.lerp_(variance, _FORGET)
        self.step_size = self.step_size * (self._recent / self.kernel.energy_variance)[:, None] ** -_RATE
        self._usual.lerp_(self.step_size.log(), _FORGET / 5)

    def settle(self) -> None:
        """Takes the usual step size of the last steps of adaptation from here on."""
        self.step_size = self._usual.exp()

    def _at(self, w: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.evaluate(w)
        return value, gradient * self.scale


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _turn(direction: Tensor, gradient: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """A direction turned towards the gradient for a length, and the change of the kinetic energy in nats, `(C,)`."""
    steepness = gradient.norm(dim=-1, keepdim=True).clamp(min=1e-20)
    uphill, angle = gradient / steepness, length * steepness / (gradient.shape[-1] - 1)
    along = (uphill * direction).sum(-1, keepdim=True)
    # cosh and sinh over cosh, which does not overflow.
    turned = direction / angle.cosh() + uphill * (angle.tanh() + along * (1 - 1 / angle.cosh()))
    change = angle - math.log(2) + torch.log1p(along + (1 - along) * (-2 * angle).exp())
    return _unit(turned), ((gradient.shape[-1] - 1) * change)[..., 0]


def _check(
    kernel: Any, num_steps: int, warmup_steps: int, num_samples: int, num_chains: int, max_seconds: float
) -> None:
    if not isinstance(kernel, MicrocanonicalKernel):
        raise TypeError(f"kernel must be a MicrocanonicalKernel; got {kernel!r}.")
    if num_samples < 1 or num_chains < 2 or not 0 <= warmup_steps < num_steps or not max_seconds > 0:
        raise ValueError(
            "num_samples and max_seconds must be positive, num_chains at least 2, warmup_steps below num_steps; got "
            f"{num_samples}, {max_seconds}, {num_chains}, {warmup_steps} and {num_steps}."
        )
    if num_steps - warmup_steps < math.ceil(num_samples / num_chains):
        raise ValueError(
            f"{num_steps - warmup_steps} steps after the warm-up are too few for {num_samples} draws of {num_chains} "
            "chains: take more steps, or fewer draws."
        )


def _run(
    chains: _Chains, plan: tuple[int, int, int], *, start: float, max_seconds: float, progress: bool
) -> list[Tensor]:
    """Steps to the end of steps or time, and keeps draws evenly after the warm-up; Ctrl-C ends it."""
    num_steps, warmup_steps, per_chain = plan
    kept: list[Tensor] = []
    warmup, share = warmup_steps / num_steps, 0.0  # of all steps, or of the time where that is nearer to its end
    with tqdm(total=num_steps, disable=None if progress else True, desc="microcanonical", leave=False) as bar:
        try:
            while share < 1:
                if share >= warmup and not chains.num_steady:
                    chains.settle()
                chains.step(adapts=share < warmup)
                share = max(chains.num_steps / num_steps, (time.perf_counter() - start) / max_seconds)
                if share >= warmup + (1 - warmup) * (len(kept) + 1) / per_chain - 1e-9:
                    kept.append(chains.w.clone())
                bar.update()
        except KeyboardInterrupt:
            pass  # the draws so far are worth having
    return kept

"""Draws of a guide moved towards the posterior: a few Hamiltonian trajectories from each, all at once."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import validation_enabled
from pyro.infer.autoguide import init_to_value
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.graphs.culprits import is_numerical
from pyro_hypernet.model.density import NUM_LOOKS
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.single_run import Model, trace_outside
from pyro_hypernet.model.validate import refuse_minibatches
from pyro_hypernet.sample.collapsed import collapse as collapsed
from pyro_hypernet.sample.moves import Trajectories
from pyro_hypernet.sample.rhat import side_by_side
from pyro_hypernet.sample.tempering import mean_and_spread
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound, State, Target, Whole, bind_guide

# The step size is found on other draws, so that the draws that are given out stay independent of each other.
_NUM_PILOTS, _PILOT_MOVES = 64, 20


@dataclass(frozen=True, repr=False)
class Moved(Shown):
    """Draws of a guide after some moves.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, independent of each other.
        acceptance: Mean acceptance of every move, as many as were made.
        num_leapfrogs: Gradients evaluated for every draw.
        shift: How far the moves took what the model computes, deterministic sites and means of observed ones: the
            mean Wasserstein distance from the guide's draws in standard deviations of the moved ones, up to noise of
            about `2 / √S`. The guide is off by at least so much; NaN where the model computes nothing.
        collapsed: Names of the sites that were integrated out and drawn from their conditional posterior in the end.
        seconds: Wall time.
    """

    samples: dict[str, Tensor] = field(repr=False)
    acceptance: tuple[float, ...]
    num_leapfrogs: int
    shift: float
    collapsed: tuple[str, ...]
    seconds: float


def move(
    model: Model,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    num_moves: int = 16,
    num_leapfrogs: int = 64,
    collapse: bool = True,
    max_seconds: float = math.inf,
    progress: bool = True,
    **kwargs: Any,
) -> Moved:
    """Moves every draw of a guide by Hamiltonian Monte Carlo that leaves the posterior as it is.

    Neither the total variation nor the Kullback–Leibler divergence of a draw to the posterior can grow by that, and the
    more moves the nearer it comes. A draw costs `num_moves` trajectories; its density is no longer known. Modes that
    the guide misses stay missed: `refine` finds them. Step size and length are found on draws of their own and then
    held fixed, so that the draws stay independent, but for the spread of every weight, which scales the steps and is
    that of all draws together. Ctrl-C ends the moves; the draws so far are returned.

    Weights to which normal observations answer linearly are integrated out on the way, as in `refine`.

    Args:
        model: The Pyro model.
        guide: A trained guide: an AutoHypernet or any other Pyro guide of all latent sites.
        args: The model's arguments, data included.
        num_samples: Number of draws S.
        num_moves: Trajectories of every draw.
        num_leapfrogs: Most leapfrog steps of one trajectory.
        collapse: Whether to integrate out what can be.
        max_seconds: After so long no further move is begun; some may be missing then, see `acceptance`.
        progress: Whether to show a bar; quiet where the output is no terminal.
        kwargs: The model's keyword arguments.

    Returns:
        Draws and what happened to them.

    Raises:
        TypeError: If `guide` is no guide.
        ValueError: If a number is out of range, the guide's sites are not the model's, the model draws minibatches, or
            no draw of the guide has a finite density.

    Source: Gilks and Berzuini 2001 (resample-move), for moves that leave the target as it is; after variational draws:
        Salimans, Kingma and Welling 2015, arXiv 1410.6460, and Hoffman 2017, "Learning deep latent Gaussian models
        with Markov chain Monte Carlo".

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_hypernet.guide.auto_hypernet import AutoHypernet
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoHypernet(model, init_scale=0.1).setup(torch.ones(3))
        >>> moved = move(model, guide, torch.ones(3), num_samples=200, num_moves=4, progress=False)
        >>> moved.samples["mean"].shape, len(moved.acceptance)
        (torch.Size([200]), 4)
    """
    if num_samples < 2 or num_moves < 1 or num_leapfrogs < 1 or not max_seconds > 0:
        raise ValueError(
            "num_samples must be at least 2, num_moves, num_leapfrogs and max_seconds positive; got "
            f"{num_samples}, {num_moves}, {num_leapfrogs} and {max_seconds}."
        )
    if not is_guide(guide):
        raise TypeError(f"move takes a guide that can be sampled for ever; got {type(guide).__name__}, stored samples.")
    start = time.perf_counter()
    before = draws(guide, *args, num_samples=num_samples + _NUM_PILOTS, **kwargs)
    whole = bind_guide(model, guide, args, kwargs)
    refuse_minibatches(check_sites(whole, before), "move")
    few = {name: value[:NUM_LOOKS] for name, value in before.items()}
    whole.refuse_random(whole.layout.unconstrain(few)[0], "move")
    w = whole.layout.unconstrain(before)[0]
    with validation_enabled(False):
        target = _collapsed(whole) if collapse else whole
        state = _start(target, target.coordinates(w))
        if target.dim and bool((state.w == state.w[0]).all()):
            raise ValueError(
                f"The draws of {type(guide).__name__} do not vary: move starts from draws of a guide, not from a point "
                "estimate."
            )
        centre, spread = mean_and_spread(state.w, torch.zeros_like(state.log_prior))
        trajectories = Trajectories(target.dim, max_leapfrogs=num_leapfrogs)
        pilots = _rows(state, slice(num_samples, None))
        _settle(trajectories, target, pilots, centre, spread, until=start + max_seconds / 2)
        state, num_before = _rows(state, slice(num_samples)), trajectories.num_leapfrogs
        acceptance: list[float] = []
        try:
            for _ in tqdm(range(num_moves), disable=None if progress else True, desc="move", leave=False):
                if time.perf_counter() - start > max_seconds:
                    break
                state, rate = trajectories.move(target, state, 1.0, centre, spread)
                acceptance.append(rate)
        except KeyboardInterrupt:
            pass  # the moves so far are worth having
        samples = target.samples(state.w)
    return Moved(
        samples=samples,
        acceptance=tuple(acceptance),
        num_leapfrogs=trajectories.num_leapfrogs - num_before,
        shift=_shift(whole, {name: value[:num_samples] for name, value in before.items()}, samples),
        collapsed=target.collapsed,
        seconds=time.perf_counter() - start,
    )


def check_sites(target: Target, samples: dict[str, Tensor]) -> Trace:
    """A run of the model at the first of draws of shape `(S, *shape)`; raises where it has other latent sites."""
    first = {name: value[0] for name, value in samples.items()}
    try:
        with torch.no_grad():
            trace = trace_outside(InitMessenger(init_to_value(values=first))(target.model), target.args, target.kwargs)
    except Exception as error:
        if not is_numerical(error):
            raise
        trace = target.trace_prior()  # the draw has no density; another will do
    target.layout.check(Layout.from_trace(trace), "the model")
    return trace


def _collapsed(whole: Whole) -> Target:
    try:
        return collapsed(whole)
    except NotImplementedError:  # the prior cannot be sampled, which only finding a block asks for
        return whole


def _start(target: Target, x: Tensor) -> State:
    """The state at these coordinates; draws without a finite density are replaced by others, chosen at random."""
    state = target(x)
    is_good = (state.log_prior + state.log_likelihood).isfinite() & state.gradient.isfinite().all(-1)
    return _rows(state, good_ones(is_good, target, "draw of the guide"))


def good_ones(is_good: Tensor, bound: Bound, what: str) -> Tensor:
    """The number of every draw, shape `(S,)`, or of a good one, chosen at random, where it has no finite density."""
    good = is_good.nonzero().flatten()
    if len(good) == 0:
        bound.raise_for_nan()
        raise ValueError(f"No {what} has a finite density: train the guide, or check the data.")
    other = good[torch.randint(len(good), is_good.shape, device=good.device)]
    return torch.where(is_good, torch.arange(len(is_good), device=good.device), other)


def _settle(
    trajectories: Trajectories, target: Target, state: State, centre: Tensor, spread: Tensor, *, until: float
) -> None:
    """Finds step size and length on draws that are thrown away."""
    for _ in range(_PILOT_MOVES):
        if time.perf_counter() > until:
            break
        state, _ = trajectories.move(target, state, 1.0, centre, spread)
    trajectories.is_adapting = False


def _rows(state: State, index: Any) -> State:
    return State(*(value[index] for value in state))


def _shift(target: Target, before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    old, new = (side_by_side(target.functions(samples), 1) for samples in (before, after))
    if old is None or new is None:
        return math.nan
    old, new = (values[values.isfinite().all(-1)] for values in (old, new))
    return float(wasserstein_over_sd(old, new)) if min(len(old), len(new)) > 1 else math.nan

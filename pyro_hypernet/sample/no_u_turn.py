"""The No-U-Turn sampler as a coroutine that asks for one density at a time, so that chains share their evaluations."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from pyro.ops.dual_averaging import DualAveraging
from pyro.ops.welford import WelfordCovariance

# A point, and what is to be sent back: log density and gradient there.
Asking: TypeAlias = "Generator[np.ndarray, tuple[float, np.ndarray], Chain]"
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# An energy off by more counts as a divergence.
_DIVERGED = 1000.0
# Stan's windows: the step size alone, then variances over windows that double, then the step size alone.
_FIRST, _LAST, _WINDOW, _LEAST_WARMUP = 75, 50, 25, 20
# Taken whatever the time: R-hat splits every chain.
_LEAST_DRAWS = 4


@dataclass(frozen=True)
class Chain:
    """What one chain gave.

    Attributes:
        draws: Points, float64, shape `(draws, D)`.
        diverging: Which draws ended a divergent transition, shape `(draws,)`.
        acceptance: Share of the kept transitions that moved.
        step_size: As adapted.
        num_gradients: Evaluations, warm-up included.
    """

    draws: np.ndarray = field(repr=False)
    diverging: np.ndarray = field(repr=False)
    acceptance: float
    step_size: float
    num_gradients: int


def run_together(
    evaluate: Evaluate, starts: np.ndarray, seeds: Sequence[int], note: Callable[[], None], **options: float
) -> list[Chain]:
    """Runs several chains, all their densities evaluated in one batch; no chain waits for another's trajectory.

    Args:
        evaluate: From points `(C, D)` to log densities `(C,)` and gradients `(C, D)`.
        starts: First points, float64, shape `(C, D)`.
        seeds: One for every chain.
        note: Called after every draw and every warm-up step.
        options: Of `sample`.

    Returns:
        The chains, which do not depend on which others run beside them, but for rounding.
    """
    coroutines = [sample(start, seed, note, **options) for start, seed in zip(starts, seeds, strict=True)]
    points = np.stack([next(coroutine) for coroutine in coroutines])
    chains: list[Chain | None] = [None] * len(coroutines)
    while any(chain is None for chain in chains):
        values, gradients = evaluate(points)
        for number, coroutine in enumerate(coroutines):
            if chains[number] is None:  # a chain that is done keeps its place, so that shapes stay
                try:
                    points[number] = coroutine.send((float(values[number]), gradients[number]))
                except StopIteration as stop:
                    chains[number] = stop.value
    return [chain for chain in chains if chain is not None]


def sample(
    start: np.ndarray,
    seed: int,
    note: Callable[[], None],
    *,
    num_samples: int,
    warmup_steps: int,
    target_accept_prob: float,
    max_tree_depth: int,
    max_seconds: float = math.inf,
) -> Asking:
    """One chain, as a coroutine.

    Args:
        start: The first point, of finite density, float64, shape `(D,)`.
        seed: Of its random numbers.
        note: Called after every transition.
        num_samples: Transitions kept.
        warmup_steps: Transitions of adaptation before them.
        target_accept_prob: What the step size is adapted to.
        max_tree_depth: The most doublings of one trajectory.
        max_seconds: After half of it no further step of adaptation is begun, and after all of it no further draw,
            but for the first four.

    Yields:
        Points; wants the log density and its gradient there sent back.

    Returns:
        The chain.

    Source: Hoffman and Gelman 2014; multinomial weights and generalised U-turns: Betancourt 2017; without recursion:
        Phan and Pradhan 2019 (NumPyro).
    """
    begin = time.perf_counter()
    sampler = _Sampler(np.random.default_rng(seed), start, max_tree_depth)
    sampler.value, sampler.gradient = yield start
    sampler.num_gradients = 1
    if warmup_steps > 0:
        yield from sampler.find_step_size()
    adaptation, log_average = _step_sizes(sampler.step_size), math.log(sampler.step_size)
    ends = _window_ends(warmup_steps)
    first = ends[0] - 1 if ends else 0
    variance = WelfordCovariance()
    for step in range(warmup_steps):
        if time.perf_counter() - begin > max_seconds / 2:
            break
        yield from sampler.transition()
        adaptation.step(target_accept_prob - sampler.accept_prob)
        log_size, log_average = adaptation.get_state()
        sampler.step_size = math.exp(log_size)
        if ends and first <= step < ends[-1]:
            variance.update(sampler.point)
            if step + 1 in ends[1:]:
                sampler.scale = np.sqrt(variance.get_covariance())  # drawn towards a small constant, as in Stan
                variance = WelfordCovariance()
                yield from sampler.find_step_size()
                adaptation, log_average = _step_sizes(sampler.step_size), math.log(sampler.step_size)
        note()
    sampler.step_size = math.exp(log_average)
    draws = np.empty((num_samples, len(start)))
    diverging, moved = np.zeros(num_samples, dtype=bool), np.zeros(num_samples, dtype=bool)
    count = num_samples
    for step in range(num_samples):
        if step >= _LEAST_DRAWS and time.perf_counter() - begin > max_seconds:
            count = step
            break
        yield from sampler.transition()
        draws[step], diverging[step], moved[step] = sampler.point, sampler.diverged, sampler.moved
        note()
    return Chain(
        draws[:count], diverging[:count], float(moved[:count].mean()), sampler.step_size, sampler.num_gradients
    )


class _Sampler:
    """The state of a chain; momenta are those of points divided by `scale`, so of unit mass."""

    def __init__(self, rng: np.random.Generator, start: np.ndarray, max_tree_depth: int) -> None:
        self.rng = rng
        self.point = start
        self.value, self.gradient = -math.inf, np.zeros_like(start)
        self.scale = np.ones_like(start)
        self.step_size = 1.0
        self.max_tree_depth = max_tree_depth
        self.accept_prob, self.diverged, self.moved = 0.0, False, False
        self.num_gradients = 0

    def find_step_size(self) -> Generator[np.ndarray, tuple[float, np.ndarray], None]:
        """Doubles or halves the step size until one step is accepted with probability 0.8 or so."""
        direction = 0
        for _ in range(50):
            momentum = self._momentum()
            _, after, _, value = yield from self._leapfrog(self.point, momentum, self.gradient, self.step_size)
            change = value - self.value - (after @ after - momentum @ momentum) / 2
            new = 1 if change > math.log(0.8) else -1  # NaN counts as too large a step
            if direction not in (0, new):
                return
            direction = new
            self.step_size *= 2.0**direction

    def transition(self) -> Generator[np.ndarray, tuple[float, np.ndarray], None]:
        """Moves on by one trajectory."""
        momentum = self._momentum()
        start = self.point
        energy = self.value - momentum @ momentum / 2
        # The ends of the trajectory: backwards and forwards.
        ends = {-1: (self.point, momentum, self.gradient), 1: (self.point, momentum, self.gradient)}
        log_weight, total, accepted, count = 0.0, momentum.copy(), 0.0, 0
        self.diverged = False
        for depth in range(self.max_tree_depth):
            direction = 1 if self.rng.random() < 0.5 else -1
            tree = _Tree(depth, len(momentum))
            end = ends[direction]
            while not tree.is_done:
                *end, value = yield from self._leapfrog(*end, direction * self.step_size)
                change = value - end[1] @ end[1] / 2 - energy
                change = -math.inf if math.isnan(change) else change
                accepted += math.exp(min(0.0, change))
                count += 1
                self.diverged = bool(change < -_DIVERGED)
                if self.diverged:
                    break
                tree.add(end, value, change, self.rng.random())
            if self.diverged or tree.turns:
                break
            ends[direction] = tuple(end)
            if math.log(self.rng.random() + 1e-300) < tree.log_weight - log_weight:
                self.point, self.gradient, self.value = tree.proposal
            log_weight = float(np.logaddexp(log_weight, tree.log_weight))
            total += tree.total
            if _turns(ends[-1][1], ends[1][1], total):
                break
        self.accept_prob = accepted / max(1, count)
        self.moved = self.point is not start

    def _momentum(self) -> np.ndarray:
        return self.rng.standard_normal(len(self.point))

    def _leapfrog(
        self, point: np.ndarray, momentum: np.ndarray, gradient: np.ndarray, size: float
    ) -> Generator[np.ndarray, tuple[float, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        momentum = momentum + size / 2 * (self.scale * gradient)
        point = point + size * (self.scale * momentum)
        value, gradient = yield point
        self.num_gradients += 1
        return point, momentum + size / 2 * (self.scale * gradient), gradient, value


class _Tree:
    """A subtree of 2^depth leapfrog steps, built from leaf to leaf, with the momenta that its U-turns need."""

    def __init__(self, depth: int, dim: int) -> None:
        self.size = 2**depth
        self.count = 0
        self.turns = False
        self.log_weight = -math.inf
        self.total = np.zeros(dim)
        self.proposal: tuple[np.ndarray, np.ndarray, float] = (self.total, self.total, -math.inf)
        # At most one momentum for every level, of the first leaf of a subtree that is not complete yet.
        self.firsts: list[tuple[np.ndarray, np.ndarray]] = [(self.total, self.total)] * (depth + 1)

    @property
    def is_done(self) -> bool:
        return self.turns or self.count == self.size

    def add(self, leaf: Sequence[np.ndarray], value: float, log_weight: float, chance: float) -> None:
        """Adds a leaf, takes it for the proposal by its weight, and looks for U-turns of all subtrees it completes."""
        point, momentum, gradient = leaf
        self.log_weight = float(np.logaddexp(self.log_weight, log_weight))
        if chance < math.exp(log_weight - self.log_weight):
            self.proposal = point, gradient, value
        before = self.total
        self.total = before + momentum
        number, self.count = self.count, self.count + 1
        level = bin(number >> 1).count("1")
        if number % 2 == 0:
            self.firsts[level] = momentum, before
            return
        completed = bin(number ^ (number + 1)).count("1") - 1  # trailing ones
        for place in range(level, level - completed, -1):
            first, before_first = self.firsts[place]
            if _turns(first, momentum, self.total - before_first):
                self.turns = True
                return


def _step_sizes(step_size: float) -> DualAveraging:
    """Dual averaging of the log step size. Source: Hoffman and Gelman 2014, section 3.2."""
    return DualAveraging(prox_center=math.log(10 * step_size))


def _window_ends(warmup_steps: int) -> list[int]:
    """Where variances start to be gathered, and where each of their windows ends."""
    if warmup_steps < _LEAST_WARMUP:
        return []
    first, last, window = _FIRST, _LAST, _WINDOW
    if first + last + window > warmup_steps:
        first, last = int(0.15 * warmup_steps), int(0.1 * warmup_steps)
        window = warmup_steps - first - last
    ends = [first]
    while ends[-1] < warmup_steps - last:
        end = ends[-1] + window
        window *= 2
        ends.append(warmup_steps - last if end + window > warmup_steps - last else end)
    return ends


def _turns(left: np.ndarray, right: np.ndarray, total: np.ndarray) -> bool:
    """Whether a trajectory with these momenta at its ends, and their sum over it, turns back."""
    middle = total - (left + right) / 2
    return bool(left @ middle <= 0 or right @ middle <= 0)

"""One step of a fit: loss and gradient, as they stand, as one captured graph, or compiled."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.graphs.cache import describe_shapes
from pyro_hypernet.graphs.run import (
    as_cuda_graph,
    as_inductor,
    has_compiler,
    is_compiled,
    same_random_numbers,
    why_no_script,
)
from pyro_hypernet.graphs.workspace import Workspace
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.train.capture import Captured
from pyro_hypernet.train.elbo import MAX_DISCREPANCY, VectorizedELBO

# Shapes of batches that are captured; others, such as what is left at an epoch's end, run as they are.
_MAX_GRAPHS = 4
# Shapes of batches whose number is remembered, to tell what repeats.
_MAX_COUNTED = 1000
# Steps timed before anything is decided; the first are slower, for they warm up.
_WARM_UP, _TIMED = 3, 5
# What a captured step took of one that is not, and a compiled of a captured one, where Python and launches dominate:
# see benchmarks/results/speed_step.md. The decision only has to be right by a factor of two or so.
_GRAPH_SHARE, _INDUCTOR_SHARE = 0.5, 0.5
# Capturing takes so many times what the first step took, which captures the density alone; compiling, by operation,
# and where it was compiled before.
_CAPTURE_FACTOR, _COMPILE_SECONDS, _CACHED_SECONDS = 3.0, 0.05, 0.003
# Of so many parameters a copy is dear.
_LONG = 500_000
# Parameters with more numbers stay vectors of their own: their gradients are not worth copying.
_ALONE = 2**15


@dataclass(frozen=True)
class Step:
    """What a step starts from.

    Attributes:
        loss: Minus the bound in nats.
        discrepancy: That of the estimate, see `estimate.Estimate`.
        norm: Of the whole gradient.
        gradients: The gradient, one vector for every vector of `FlatParameters`.
        particles: The particles, shape `(K, D)`, or `(K, 0)` where they are too long to be kept, their log p and log q
            in nats, shape `(K,)`; None where there are none.
    """

    loss: float
    discrepancy: float
    norm: float
    gradients: Sequence[Tensor]
    particles: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def failed(cls) -> "Step":
        """A step that came to nothing."""
        return cls(math.nan, 0.0, math.nan, (), None)

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class FlatParameters:
    """Parameters as views of few vectors, the small ones of a dtype and device together, for an optimiser to step.

    Args:
        leaves: The parameters, no two the same; they keep their identity and their values.
        shares: Of the step size, for parameters that do not take all of it.

    Attributes:
        vectors: The vectors.
        shares: Of the step size that each takes.
    """

    def __init__(self, leaves: Sequence[Tensor], shares: Mapping[Tensor, float] | None = None) -> None:
        self.leaves, shares = list(leaves), shares or {}
        self.workspace = Workspace()  # of all graphs that work out their gradients
        self._groups: dict[tuple, list[int]] = {}
        for number, leaf in enumerate(self.leaves):
            alone = number if leaf.numel() > _ALONE else -1
            key = leaf.dtype, leaf.device, alone, shares.get(leaf, 1.0)
            self._groups.setdefault(key, []).append(number)
        self.shares = [share for *_, share in self._groups]
        with torch.no_grad():
            self.vectors = [
                torch.cat([self.leaves[number].reshape(-1) for number in numbers]) for numbers in self._groups.values()
            ]
        for vector, numbers in zip(self.vectors, self._groups.values(), strict=True):
            parts = vector.split([self.leaves[number].numel() for number in numbers])
            for number, part in zip(numbers, parts, strict=True):
                self.leaves[number].data = part.view(self.leaves[number].shape)

    def gather(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of the parameters as vectors; zeros where there is none."""
        filled = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(self.leaves, gradients, strict=True)
        ]
        parts = ([filled[number].reshape(-1) for number in numbers] for numbers in self._groups.values())
        return [torch.cat(part) if len(part) > 1 else part[0] for part in parts]

    def release(self) -> None:
        """Gives every parameter memory of its own again."""
        for leaf in self.leaves:
            leaf.data = leaf.data.clone()


def are_long(vectors: Sequence[Tensor]) -> bool:
    """Whether parameters are so many that few copies of them fit in memory."""
    return sum(vector.numel() for vector in vectors) >= _LONG


class Stepper:
    """Loss and gradient at the guide's present parameters, for one batch after the other.

    Args:
        guide: The guide, set up.
        elbo: The bound, prepared for both.
        parameters: What to differentiate by.
        compile: "auto", "graph", "inductor" or "off".
        num_steps: How many steps there will be at most: what "auto" weighs the time of compiling against.
        is_fixed: Whether every batch is the same, so that what depends on the data alone is worked out once.
        join: Evaluates a step with other processes; `is_look=True` without gradients, for `look`.
        by_clock: Whether "auto" goes by what steps take; else it captures after the same number of steps always.
    """

    def __init__(
        self,
        model: Model,
        guide: AutoHypernet,
        elbo: VectorizedELBO,
        parameters: FlatParameters,
        *,
        compile: str,
        num_steps: int,
        is_fixed: bool,
        join: Callable[..., Step] | None = None,
        by_clock: bool = True,
    ) -> None:
        self.model, self.guide, self.elbo = model, guide, elbo
        self.parameters = parameters
        self.is_fixed, self._join = is_fixed, join or _alone
        self._graphs: dict[Any, Captured] = {}
        self._counts: Counter[str] = Counter()
        self._due: set[str] = set()  # captured in the process that this one goes on from, not yet here
        self._stages = _Stages(compile, num_steps, by_clock=by_clock)
        if elbo.mode != "graph":
            self._stages.settle("off", f'mode="{elbo.mode}" captures nothing')
        on_cpu = all(leaf.device.type == "cpu" for leaf in parameters.leaves)
        self._is_in_blocks = compile in ("auto", "graph") and elbo.mode == "graph" and on_cpu
        self._is_in_blocks &= are_long(parameters.vectors)

    @property
    def compile(self) -> str:
        """What is in use: "off", "graph" or "inductor"."""
        return self._stages.stage

    @property
    def reason(self) -> str:
        """Why so, in words."""
        return self._stages.reason

    def state_dict(self) -> dict[str, Any]:
        """What is captured, and what is to be: plain values."""
        captured = sorted({*self._graphs, *self._due})
        state = {"stages": vars(self._stages), "counts": self._counts, "captured": captured}
        return state | {"distrusted": self.elbo._is_distrusted, "in_blocks": self._is_in_blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Captures the same again as soon as it comes; what was compiled is compiled again after a step."""
        self.elbo._is_distrusted = state["distrusted"]
        self._is_in_blocks = state.get("in_blocks", False)  # of runs begun before there were blocks
        if state["stages"]["stage"] != "inductor":
            vars(self._stages).update(state["stages"])
            self._counts.update(state["counts"])
            self._due = set(state["captured"])

    def __call__(self, batch: tuple) -> Step:
        """Evaluates one batch; where path gradients are lost in rounding, by total ones from now on."""
        start = time.perf_counter()
        step = self._join(lambda: self._evaluate(batch))
        if step.discrepancy > MAX_DISCREPANCY:
            self.elbo.distrust(self.guide, step.discrepancy)
            self._start_again()
            return self(batch)
        if not self._stages.settled:
            self._stages.note(time.perf_counter() - start)
            self._advance(batch)
        return step

    def look(self, batch: tuple) -> Step:
        """Evaluates one batch by what there is, and plans nothing."""
        graphs = list(self._graphs.values())
        captured = graphs[0] if self.is_fixed and graphs else self._graphs.get(_key(batch))
        run = self._run if captured is None else lambda *batch: captured(batch)
        return self._join(lambda: self._step(run(*batch)), is_look=True)

    def _evaluate(self, batch: tuple) -> Step:
        captured = None if self._stages.settled and self._stages.stage == "off" else self._captured(batch)
        return self._step(self._run(*batch) if captured is None else captured(batch))

    def _start_again(self) -> None:
        """Forgets the graphs of another gradient."""
        self._graphs.clear()
        self._due.clear()
        if self._stages.stage == "inductor":
            self._stages.settle("graph", "path gradients were given up after compiling")

    def _run(self, *batch: Any) -> tuple[Any, ...]:
        """As it stands: the density captured, the guide run by Python."""
        estimate = self.elbo.estimate(self.model, self.guide, *batch)
        gradients = self.parameters.gather(
            torch.autograd.grad(estimate.surrogate, self.parameters.leaves, allow_unused=True)
        )
        return estimate.numbers(gradients), *gradients, estimate.w, estimate.log_p, estimate.log_q

    def _run_in_blocks(self, *batch: Any) -> tuple[Any, ...]:
        """The same without the particles, which would take memory until the next step."""
        *others, w, log_p, log_q = self._run(*batch)
        return *others, w.new_empty(len(w), 0), log_p, log_q

    @staticmethod
    def _step(outputs: tuple[Any, ...]) -> Step:
        numbers, *gradients, w, log_p, log_q = outputs
        return Step(*numbers.tolist(), gradients, (w, log_p, log_q))

    def _captured(self, batch: tuple) -> Captured | None:
        """The graph for a batch, where there is one, or is to be one: what comes once is not captured."""
        if self.is_fixed and self._graphs:
            return next(iter(self._graphs.values()))
        key = _key(batch)
        if key in self._graphs:
            return self._graphs[key]
        if key in self._due:
            self._due.remove(key)
            self._counts[key] += 1
            return self._capture(key, batch)
        if len(self._counts) >= _MAX_COUNTED:
            self._counts.clear()
        self._counts[key] += 1
        is_wanted = self._is_in_blocks or (self._stages.stage != "off" and self._counts[key] >= 2)
        if key is None or not is_wanted or len(self._graphs) + len(self._due) >= _MAX_GRAPHS:
            return None
        return self._capture(key, batch)

    def _advance(self, batch: tuple) -> None:
        """Moves on to a faster stage if that pays."""
        if self.elbo.runs != "graph" and self._stages.stage == "off" and self._stages.goal != "off":
            self._stages.settle("off", "the model cannot be captured as a graph")
        goal = self._stages.next(self._compile_seconds(batch), len(self._counts))
        if goal is None:
            return
        if self._stages.stage == "off":
            self._stages.stage = "graph"
            key = _key(batch)
            if key is None:
                self._fall_back("an argument is neither a tensor nor a plain value")
            elif self._stages.is_auto and self._counts[key] < 2:
                return  # it is captured when it comes again
            elif self._capture(key, batch) is None:
                return
        if goal == "inductor" and self._graphs:
            self._compile(batch)

    def _compile_seconds(self, batch: tuple) -> float:
        """About what compiling the graph would take, in seconds; 0 where none has been captured."""
        if not self._graphs or not self._stages.is_due:
            return 0.0
        captured = next(iter(self._graphs.values()))
        is_cached = is_compiled(captured.module, captured.inputs(batch))
        return (_CACHED_SECONDS if is_cached else _COMPILE_SECONDS) * len(captured.module.graph.nodes)

    def _capture(self, key: Any, batch: tuple) -> Captured | None:
        """Captures the step for batches of these shapes."""
        if self._is_in_blocks:
            return self._capture_in_blocks(key, batch)
        try:
            count, leaves = len(self.parameters.vectors), self.parameters.leaves
            options = {"is_fixed": self.is_fixed, "num_gradients": count, "overwrites": True}
            captured = Captured(self._run, leaves, batch, **options)
        except RuntimeError as error:
            return self._fall_back(str(error))
        self._graphs[key] = captured
        if captured.run is captured.module:  # neither scripted nor recorded on a GPU
            why = why_no_script() or "TorchScript lacks one of its operations"
            self._stages.reason = f"captured, run from Python: {why}"
        return captured

    def _capture_in_blocks(self, key: Any, batch: tuple) -> Captured | None:
        """Captures the step of many parameters before it has run, in little memory; as with few where that fails."""
        eager, leaves = self.elbo.with_options(mode="eager"), self.parameters.leaves
        with same_random_numbers(leaves):
            eager.prepare(self.model, self.guide, batch, {})
        eager.share, eager.skip = self.elbo.share, self.elbo.skip
        count = len(self.parameters.vectors)
        options = {"is_fixed": self.is_fixed, "num_gradients": count, "workspace": self.parameters.workspace}
        try:
            captured = Captured(
                self._run_in_blocks, leaves, batch, **options, loss=partial(eager.loss, self.model, self.guide)
            )
        except RuntimeError:
            self._is_in_blocks = False
            self._graphs.clear()
            return None
        self._graphs[key] = captured
        self._stages.settle("graph", "captured in blocks, which saves memory")
        return captured

    def _fall_back(self, reason: str) -> None:
        self._stages.settle("off", reason)
        self._graphs.clear()
        self._due.clear()

    def _compile(self, batch: tuple) -> None:
        """Compiles what was captured, if there is a compiler, and keeps it if it is faster."""
        captured = self._captured(batch)
        if captured is None:
            return
        on_cpu = all(leaf.device.type == "cpu" for leaf in self.parameters.leaves)
        if on_cpu and not has_compiler():
            self._stages.settle("graph", "no C++ compiler was found")
            return
        before, inputs = captured.run, captured.inputs(batch)
        try:
            compiled = as_inductor(captured.module, inputs)
            if not on_cpu and all(tensor.is_cuda for tensor in inputs):
                compiled = as_cuda_graph(compiled, inputs, len(captured.views))
            captured.run = compiled
            captured.check(batch)
        except RuntimeError as error:
            captured.run = before
            self._stages.settle("graph", str(error))
            return
        self._stages.stage = "inductor"
        if self._stages.is_auto:
            with same_random_numbers(self.parameters.leaves):
                seconds = [_time(captured, batch, run) for run in (before, compiled)]
            if seconds[1] > seconds[0]:
                captured.run = before
                took = f"compiled, a step took {1e3 * seconds[1]:.1f} ms instead of {1e3 * seconds[0]:.1f}"
                self._stages.settle("graph", took)
                return
        self._stages.settle("inductor")


class _Stages:
    """From "off" to "graph" to "inductor", as far as what the steps left would save is worth the time that it takes."""

    def __init__(self, compile: str, num_steps: int, *, by_clock: bool) -> None:
        self.by_clock = by_clock
        self.is_auto = compile == "auto"
        self.goal = "inductor" if self.is_auto else compile
        self.stage = "off"
        self.left = num_steps
        self.first = math.nan
        self.seconds: list[float] = []
        self.settled = compile == "off"
        self.reason = "as asked for"

    def settle(self, stage: str, reason: str = "") -> None:
        """Stays at this stage, for a new reason or the old one."""
        self.stage = self.goal = stage
        self.settled = True
        self.reason = reason or self.reason

    def note(self, seconds: float) -> None:
        """Notes what a step took."""
        self.left -= 1
        if math.isnan(self.first):
            self.first = seconds
        elif len(self.seconds) < _WARM_UP + _TIMED:
            self.seconds.append(seconds)

    @property
    def is_due(self) -> bool:
        """Whether enough steps were timed to decide on the next stage."""
        return self.is_auto and len(self.seconds) >= _WARM_UP + _TIMED

    def next(self, compile_seconds: float, num_shapes: int) -> str | None:
        """The stage to move on to, or None.

        Args:
            compile_seconds: About what compiling would take.
            num_shapes: Of batches seen.
        """
        if self.settled:
            return None
        if not self.is_auto:
            self.settled = True
            return self.goal
        if not self.is_due:
            return None
        if self.stage == "off" and num_shapes > _MAX_GRAPHS:
            first = f"the first {_WARM_UP + _TIMED + 1} batches have"
            return self.settle("off", f"{first} {num_shapes} shapes: few would come again")
        each = sorted(self.seconds[_WARM_UP:])[_TIMED // 2]
        stage, share, cost = ("graph", _GRAPH_SHARE, _CAPTURE_FACTOR * self.first * max(1, num_shapes))
        if self.stage == "graph":
            stage, share, cost = ("inductor", _INDUCTOR_SHARE, compile_seconds)
        saved = self.left * each * (1 - share)
        self.seconds.clear()
        verb = {"graph": "capturing", "inductor": "compiling"}[stage]
        if not self.by_clock and self.stage == "graph":
            return self.settle("graph", "captured in every process that goes on with this run")
        if self.by_clock and saved <= cost:
            return self.settle(self.stage, f"{verb} would take about {_spell(cost)} and save {_spell(saved)}")
        self.goal, self.reason = stage, f"{verb} was to take about {_spell(cost)} and to save {_spell(saved)}"
        return stage


def _key(batch: tuple) -> str | None:
    """What must be equal for a graph to serve again, in words that another process would use."""
    key = describe_shapes(batch)
    return None if key is None else str(key)


def _alone(evaluate: Callable[[], Step], *, is_look: bool = False) -> Step:
    return evaluate()


def _time(captured: Captured, batch: tuple, run: Callable[..., Any]) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    inputs = captured.inputs(batch)
    with torch.no_grad():
        for _ in range(_WARM_UP + _TIMED):
            start = time.perf_counter()
            run(*inputs)[0].tolist()
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def _spell(seconds: float) -> str:
    """Seconds, of two digits, written out."""
    return f"{float(f'{seconds:.2g}'):g} s"

"""A Pyro model, written for one draw, run for a batch of draws: vmapped, captured as a graph, or in a loop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs import record as recording
from pyro_hypernet.graphs.cache import Cache, describe_shapes
from pyro_hypernet.graphs.culprits import first_line, warn_caller
from pyro_hypernet.graphs.outside import Outside
from pyro_hypernet.graphs.record import excess, rounded_away
from pyro_hypernet.graphs.run import random_state, same_random_numbers, set_random_state, tensors_in
from pyro_hypernet.graphs.threads import in_threads
from pyro_hypernet.model.batched import Batched, grad_and_value
from pyro_hypernet.model.graph import Graph, capture
from pyro_hypernet.model.single_run import TRANSPARENT, Model, outside_of_pyro, trace_one

# What runs a model, for whoever runs models for many draws.
__all__ = ["MODES", "Model", "Vectorized", "grad_and_value", "outside_of_pyro", "trace_one"]
MODES = ("graph", "eager", "loop")


class Vectorized:
    """A function of one draw and the model's arguments as a function of a batch of draws.

    Pyro's validation, which branches on values, is off while the function runs.

    A graph is captured for all that is fixed in it: shapes, plain arguments, and what the function reads that is no
    argument, globals and the like (see `Outside`). It is recorded at other draws than those of the call, held against
    the call's uncaptured results, and held against them again at ever greater intervals: what is found to differ runs
    uncaptured from then on, after a warning.

    Args:
        function: `function(draw, args, kwargs)` to a pytree of tensors; `draw` is a tensor or a dict of tensors without
            batch axes.
        mode: "graph": captured once and used again while all shapes stay; "eager": vmapped anew at every call;
            "loop": one draw after the other. A function that cannot be vmapped moves to "loop" by itself, after one
            warning that names the line; one that cannot be captured moves to "eager".
        randomness: What `torch.func.vmap` does with random numbers drawn inside: "same" or "different" in every draw.
        differentiable: Whether results are to be differentiated by autograd. If not, graphs run as TorchScript,
            with less overhead, and only under `torch.no_grad`.
        failed: From a draw, and what was computed in spite of it or None, to what stands for its result where the
            function raises at it, as a zero density does; None to raise.

    Raises:
        ValueError: If the mode is unknown.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        mode: str = "graph",
        randomness: str = "same",
        differentiable: bool = True,
        failed: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        self.mode = mode
        options = {"randomness": randomness, "is_differentiated": differentiable, "failed": failed}
        self._batched = Batched(function, loops=mode == "loop", **options)
        self._notes_failures = False
        self._graphs = Cache()
        self._outside: Outside | None = None

    @property
    def num_failed(self) -> int:
        """At how many draws so far the function raised."""
        return self._batched.num_failed

    def __call__(self, draws: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The results, with a leading axis S, at draws of shape `(S, ...)`, a tensor or a dict of tensors."""
        with pyro.validation_enabled(False):
            return self._evaluate(draws, args, kwargs or {})

    def bind(self, args: tuple = (), kwargs: dict | None = None) -> Callable[[Any], Any]:
        """The function of draws alone, at these arguments, for a caller in a hurry.

        The graph is looked up once for every number of draws; the caller sees to it that neither the arguments nor the
        model's parameters change in between.
        """
        graphs: dict[int, Graph] = {}
        rest = tensors_in((args, kwargs or {}))

        def run(draws: Any) -> Any:
            number = len(pytree.tree_leaves(draws)[0])
            graph = graphs.get(number)
            if graph is not None and not graph.is_due:
                graph.calls += 1
                try:
                    return self._counted(graph.of_draws(rest, draws), graph)
                except RuntimeError:  # at some draw: see which
                    pass
            result = self(draws, args, kwargs)
            graph = self._graphs.get(self._key(draws, args, kwargs or {})) if self.mode == "graph" else None
            graphs.pop(number, None)
            if graph is not None and not graph.params:
                graphs[number] = graph
            return result

        return run

    def map(self, batches: Sequence[Any], args: tuple, kwargs: dict, *, num_threads: int = 1) -> list[Any]:
        """The results at several batches of draws, without gradients; captured, by several threads at once."""
        graph = self._shared_graph(batches, args, kwargs) if num_threads > 1 else None
        if graph is not None:
            rest = tensors_in((args, kwargs))
            graph.calls += len(batches)
            try:
                results = in_threads(lambda draws: graph.of_draws(rest, draws), batches, num_threads)
                return [self._counted(result, graph) for result in results]
            except RuntimeError:  # at some draw: see which
                pass
        return [self(draws, args, kwargs) for draws in batches]

    def _shared_graph(self, batches: Sequence[Any], args: tuple, kwargs: dict) -> Graph | None:
        """The graph for all of these, if they are of one shape and it can be trusted for so many calls."""
        if self.mode != "graph" or _PYRO_STACK:
            return None
        if len({describe_shapes(draws) for draws in batches}) != 1:
            return None
        key = self._key(batches[0], args, kwargs)
        graph = self._graphs.get(key)
        if graph is None or graph.params or graph.is_due_within(len(batches)):
            return None
        self._graphs.move_to_end(key)
        return graph

    def _key(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        """All that must be the same for a graph to serve again; None where that cannot be told."""
        if self._outside is None:
            self._outside = Outside(self._batched.function)
        shapes = describe_shapes((draws, args, kwargs))
        return None if shapes is None else (*shapes, self._outside.read())

    def _evaluate(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.mode != "graph" or not all(isinstance(handler, TRANSPARENT) for handler in _PYRO_STACK):
            return self._run(draws, args, kwargs)
        leaves, spec = pytree.tree_flatten((draws, args, kwargs))
        key = self._key(draws, args, kwargs)
        graph = self._graphs.get(key)
        if graph is None and torch.jit.is_tracing() and key is not None:
            # The tracer cannot follow vmap; what it can follow is a graph captured while it looks away.
            with _untraced():
                graph = self._capture(leaves, spec)
            if graph is not None:
                self._graphs.add(key, graph)
        if recording.is_recording:
            return self._run(draws, args, kwargs) if graph is None else self._counted(graph.inline(leaves), graph)
        if graph is None or not graph.is_current():
            return self._run_and_capture(key, leaves, spec)
        if torch.jit.is_tracing():
            return self._counted(graph(leaves), graph)
        try:
            if graph.is_due or (not graph.has_gradient and _is_differentiated(draws)):
                return self._run_and_check(graph, leaves, spec)
            self._graphs.move_to_end(key)
            graph.calls += 1
            return self._counted(graph(leaves), graph)
        except RuntimeError:  # at some draw: see which
            return self._run(draws, args, kwargs)

    def _counted(self, results: Any, graph: Graph) -> Any:
        """What a graph gives, without its notes of failures, which are counted."""
        return self._batched.counted(results) if graph.notes_failures else results

    def _run_and_capture(self, key: Any, leaves: list[Any], spec: Any) -> Any:
        """Runs as it stands, and captures a graph for the next call if that pays and agrees."""
        state = random_state(tensors_in(leaves))
        result = self._run(*pytree.tree_unflatten(leaves, spec))
        if key is None or self.mode != "graph":
            return result
        # What the model writes itself, such as a counter, is no reason for another graph.
        own = self._outside.changed(key[-1], self._outside.read())
        self._outside.forget(own)
        if own:
            key = self._key(*pytree.tree_unflatten(leaves, spec))
        if self._graphs.pays(key, self._outside):
            graph = self._capture(leaves, spec)
            if graph is not None and self._agrees(graph, result, leaves, spec, state, own):
                graph.held = self._outside.held()
                self._graphs.add(key, graph)
        return result

    def _run_and_check(self, graph: Graph, leaves: list[Any], spec: Any) -> Any:
        """Runs with and without the graph, on the same random numbers."""
        state = random_state(tensors_in(leaves))
        result = self._run(*pytree.tree_unflatten(leaves, spec))
        if self.mode == "graph":
            self._agrees(graph, result, leaves, spec, state, [])
        return result

    def _agrees(self, graph: Graph, result: Any, leaves: list, spec: Any, state: list, own: list[str]) -> bool:
        """Whether the graph gives the same results and gradients; if not, it is not used again."""
        draws = pytree.tree_unflatten(leaves, spec)[0]
        graph.calls += 1
        if graph.notes_failures != self._notes_failures:
            return False  # failures came up only now; another graph will note them
        try:
            with same_random_numbers(tensors_in(leaves)):
                set_random_state(state)
                found = graph(leaves)
            found = found[0] if graph.notes_failures else found
            pairs = [("its results", result, found)]
            if _is_differentiated(draws):
                graph.has_gradient = True
                pairs.append(("its gradients", *(_gradient(of, draws) for of in (result, found))))
        except RuntimeError:  # at some draw, as the uncaptured run too, but for what stands for it
            return True
        options = {"is_random": self._batched.randomness == "different"}
        for what, expected, other in pairs:
            if excess(expected, other, **options) <= 1:
                continue
            if what == "its results" and self._is_rounding(result, found, leaves, spec, state):
                continue
            self._give_up(what, own)
            return False
        return True

    def _is_rounding(self, result: Any, found: Any, leaves: list, spec: Any, state: list) -> bool:
        """Whether results differ as they do by rounding the draws, as where a covariance is nearly singular."""
        draws, args, kwargs = pytree.tree_unflatten(leaves, spec)
        runs = []
        for point in (draws, rounded_away(draws)):
            with same_random_numbers(tensors_in(leaves)):
                set_random_state(state)
                runs.append(self._run(point, args, kwargs))
        options = {"is_random": self._batched.randomness == "different"}
        return excess(result, runs[0], **options) <= 1 and excess(result, found, runs[1], **options) <= 1

    def _give_up(self, what: str, own: list[str]) -> None:
        self.mode = "eager"
        warn_caller(
            f"Captured as a graph, the model differs in {what} from a run of it as it stands: {_why(what, own)}. It "
            "runs uncaptured from now on: slower, and right. Pass what changes as an argument."
        )

    def _run(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        try:
            return self._batched(draws, args, kwargs)
        finally:
            self._follow()

    def _capture(self, leaves: list[Any], spec: Any) -> Graph | None:
        """A graph for arguments of these shapes; a failure to capture means mode "eager" from now on."""
        try:
            graph = capture(self._batched, leaves, spec)
        except Exception as error:
            if not self._batched.is_failure(error):  # else at some draw: perhaps at the next call
                self.mode = "eager"
                warn_caller(
                    f"The model could not be captured as a graph ({first_line(error)}); it runs uncaptured: slower, "
                    "with the same results."
                )
            return None
        finally:
            self._follow()
        if not graph.is_current():  # parameters local to their modules are not in the store, where changes would show
            self.mode = "eager"
            return None
        return graph

    def _follow(self) -> None:
        """Takes note of what a run has shown: that there is no vmapping it, or that graphs must note failures."""
        if self._batched.loops:
            self.mode = "loop"
        if self._batched.notes_failures != self._notes_failures:
            self._notes_failures, self._graphs = self._batched.notes_failures, Cache()


def _why(what: str, own: list[str]) -> str:
    """Why a graph may differ in this, in words; `own` is what the model has changed by itself."""
    if own:
        return f"the model changes {', '.join(map(repr, own))} by itself"
    if what == "its gradients":
        return "the model stops or replaces gradients"
    return (
        "the model reads something that is no argument of it, such as a clock, a file, data changed behind torch's "
        "back or random numbers that are not torch's"
    )


@contextmanager
def _untraced() -> Iterator[None]:
    """Pauses torch.jit.trace."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def _is_differentiated(draws: Any) -> bool:
    return torch.is_grad_enabled() and any(draw.requires_grad for draw in pytree.tree_leaves(draws))


def _gradient(results: Any, draws: Any) -> Any:
    """Of the sum of all results by the draws, zeros where there is none; nothing is freed."""
    total = sum(leaf.sum() for leaf in pytree.tree_leaves(results) if leaf.requires_grad)
    leaves = [draw for draw in pytree.tree_leaves(draws) if draw.requires_grad]
    if not isinstance(total, Tensor):
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)

"""A Pyro model, written for one draw, run for a batch of draws: vmapped, captured as a graph, or in a loop."""

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.agreement import excess, rounded_away
from pyro_hypernet.graphs.culprits import culprit, first_line, is_numerical, may_be_numerical, root_of
from pyro_hypernet.graphs.factories import FRESH, UNFILLED, BatchedFactories
from pyro_hypernet.graphs.factors import NotedFailures, raises_failures
from pyro_hypernet.graphs.outside import Outside
from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import as_script, random_state, same_random_numbers, set_random_state
from pyro_hypernet.graphs.simplify import simplify

Model = Callable[..., Any]
MODES = ("graph", "eager", "loop")
_MAX_GRAPHS = 32
# Graphs that were never used again before more are captured only for what came often; and how often that is, as long
# as there is room and after that.
_MAX_IN_VAIN, _OFTEN, _VERY_OFTEN, _MAX_SIGHTS = 4, 4, 64, 1024
# Draws to try one by one before an error is the model's own.
_MAX_TRIED = 16
# The calls at which a graph is held against an uncaptured run.
_CHECKS = frozenset(8**power for power in range(1, 12))


def trace_one(model: Model, values: Mapping[str, Tensor], args: tuple, kwargs: dict) -> Trace:
    """Runs the model once, conditioned on one value per site, without the distributions' own validation.

    Args:
        model: A Pyro model.
        values: A dict from latent site to its value, shape `shape`.
        args: The model's arguments.
        kwargs: The model's keyword arguments.

    Returns:
        The trace; conditioned sites count as observed.
    """
    conditioned = poutine.condition(model, data=dict(values))
    return poutine.trace(_AsDensity()(conditioned)).get_trace(*args, **kwargs)


@contextmanager
def outside_of_pyro(*, seed: int | None = None) -> Iterator[None]:
    """Puts aside what a caller of Pyro has under way, for a run of a model that is none of the caller's business.

    Hidden for the while are handlers, so that plates, masks and observers of parameter statements do not see the run;
    dimensions taken by plates; and the values that PyroModules keep during a call, for the run may be one of a module
    within its own call, as in NeuTraReparam.

    Args:
        seed: Also puts random state aside, on all devices, and starts from this seed; None draws on with the caller's.
    """
    handlers, dims = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    contexts = [(context, dict(vars(context))) for context in _calls_of_modules()]
    devices = range(torch.cuda.device_count()) if seed is not None and torch.cuda.is_initialized() else ()
    _PYRO_STACK.clear()
    _DIM_ALLOCATOR._stack.clear()
    for context, _ in contexts:
        context.active, context.cache = 0, {}
    try:
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = dims
        for context, before in contexts:
            vars(context).update(before)


def _calls_of_modules() -> list[Any]:
    """The contexts of all PyroModules within whose calls this is, each once; only the calls themselves know them."""
    contexts, frame = {}, sys._getframe()
    while frame is not None:
        if frame.f_code is PyroModule.__call__.__code__:
            context = frame.f_locals["self"]._pyro_context
            contexts[id(context)] = context
        frame = frame.f_back
    return list(contexts.values())


@contextmanager
def _untraced() -> Iterator[None]:
    """Pauses torch.jit.trace."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


@contextmanager
def inlined() -> Iterator[None]:
    """Lets captured graphs run operation by operation, for a caller that captures them in turn."""
    global _is_inlining
    before, _is_inlining = _is_inlining, True
    try:
        yield
    finally:
        _is_inlining = before


_is_inlining = False


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Keeps torch's attention layers off their path for inference, an operation without a derivative."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def grad_and_value(function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """`torch.func.grad_and_value` by the first argument, and plain autograd outside of vmap.

    An old `torch.autograd.Function`, without a `setup_context`, has a gradient only where nothing is vmapped: so a
    loop over draws asks autograd.

    Args:
        function: From a tensor and whatever else to a scalar, or with `has_aux` to a scalar and whatever else.
        has_aux: Whether there is more than the scalar.
    """
    transformed = torch.func.grad_and_value(function, has_aux=has_aux)

    def run(x: Tensor, *rest: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return transformed(x, *rest)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            result = function(leaf, *rest)
            value = result[0] if has_aux else result
            gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        return gradient, pytree.tree_map(_detached, result)

    return run


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


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
        self.function = function
        self.mode = mode
        self.randomness = randomness
        self.differentiable = differentiable
        self.failed = failed
        self.num_failed = 0
        self._notes_failures = False
        self._worked_at: Any = None
        self._factories = UNFILLED
        self._graphs = _Graphs()
        self._outside: Outside | None = None

    def __call__(self, draws: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Evaluates the function for every draw.

        Args:
            draws: A tensor or dict of tensors, shape `(S, ...)`.
            args: The model's arguments, the same for all draws.
            kwargs: The model's keyword arguments.

        Returns:
            The function's results with a leading axis S.
        """
        with pyro.validation_enabled(False):
            return self._evaluate(draws, args, kwargs or {})

    def bind(self, args: tuple = (), kwargs: dict | None = None) -> Callable[[Any], Any]:
        """The function of draws alone, at these arguments, for a caller in a hurry.

        The graph is looked up once for every number of draws; the caller sees to it that neither the arguments nor the
        model's parameters change in between.

        Args:
            args: The model's arguments.
            kwargs: The model's keyword arguments.
        """
        graphs: dict[int, Callable[[Any], Any]] = {}
        rest = [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]

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

    def _key(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        """All that must be the same for a graph to serve again; None where that cannot be told."""
        if self._outside is None:
            self._outside = Outside(self.function)
        shapes = describe_shapes((draws, args, kwargs))
        return None if shapes is None else (*shapes, self._outside.read())

    def _evaluate(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.mode != "graph" or not all(isinstance(handler, TRANSPARENT) for handler in _PYRO_STACK):
            return self._run(draws, args, kwargs)
        leaves, spec = pytree.tree_flatten((draws, args, kwargs))
        key = self._key(draws, args, kwargs)
        graph = self._graphs.get(key)
        if graph is None and torch.jit.is_tracing() and key is not None:
            # The tracer cannot follow vmap; what it can follow is a graph captured behind its back.
            with _untraced():
                graph = self._capture(leaves, spec)
            if graph is not None:
                self._graphs.add(key, graph)
        if _is_inlining:
            return self._run(draws, args, kwargs) if graph is None else self._counted(graph.inline(leaves), graph)
        if graph is None or not graph.is_current():
            return self._run_and_capture(key, leaves, spec)
        if torch.jit.is_tracing():
            return self._counted(graph(leaves), graph)
        try:
            if graph.is_due or (graph.has_gradient is None and _is_differentiated(draws)):
                return self._run_and_check(graph, leaves, spec)
            self._graphs.note(key)
            return self._counted(graph(leaves), graph)
        except RuntimeError:  # at some draw: see which
            return self._run(draws, args, kwargs)

    def _run_and_capture(self, key: Any, leaves: list[Any], spec: Any) -> Any:
        """Runs as it stands, and captures a graph for the next call if that pays and agrees."""
        state = random_state(_tensors(leaves))
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

    def _run_and_check(self, graph: "_Graph", leaves: list[Any], spec: Any) -> Any:
        """Runs with and without the graph, on the same random numbers."""
        state = random_state(_tensors(leaves))
        result = self._run(*pytree.tree_unflatten(leaves, spec))
        if self.mode == "graph":
            self._agrees(graph, result, leaves, spec, state, [])
        return result

    def _agrees(self, graph: "_Graph", result: Any, leaves: list, spec: Any, state: list, own: list[str]) -> bool:
        """Whether the graph gives the same results and gradients; if not, it is not used again."""
        draws = pytree.tree_unflatten(leaves, spec)[0]
        graph.calls += 1
        if graph.notes_failures != self._notes_failures:
            return False  # failures came up only now; another graph will note them
        try:
            with same_random_numbers(_tensors(leaves)):
                set_random_state(state)
                found = graph(leaves)
            found = found[0] if graph.notes_failures else found
            pairs = [("its results", result, found)]
            if _is_differentiated(draws):
                graph.has_gradient = True
                pairs.append(("its gradients", *(_gradient(of, draws) for of in (result, found))))
        except RuntimeError:  # at some draw, as the uncaptured run too, but for what stands for it
            return True
        options = {"is_random": self.randomness == "different"}
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
            with same_random_numbers(_tensors(leaves)):
                set_random_state(state)
                runs.append(self._run(point, args, kwargs))
        options = {"is_random": self.randomness == "different"}
        return excess(result, runs[0], **options) <= 1 and excess(result, found, runs[1], **options) <= 1

    def _give_up(self, what: str, own: list[str]) -> None:
        self.mode = "eager"
        why = (
            f"the model changes {', '.join(map(repr, own))} by itself"
            if own
            else "the model stops or replaces gradients"
            if what == "its gradients"
            else "the model reads something that is no argument of it, such as a clock, a file, data changed behind "
            "torch's back or random numbers that are not torch's"
        )
        _warn(
            f"Captured as a graph, the model differs in {what} from a run of it as it stands: {why}. It runs "
            "uncaptured from now on: slower, and right. Pass what changes as an argument."
        )

    def _run(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        with _slow_attention():
            return self._run_uncaptured(draws, args, kwargs)

    def _run_uncaptured(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.mode != "loop":
            state = random_state(pytree.tree_leaves(draws))
            try:
                return self._counted(self._vmapped(draws, args, kwargs))
            except Exception as error:
                if self._is_failure(error):
                    return self._run_noting(error, draws, args, kwargs, state)
                self._run_first(draws, args, kwargs)
            before, first = self._factories, None
            for factories in (before, FRESH):
                self._factories = factories
                try:
                    return self._counted(self._vmapped(draws, args, kwargs))
                except Exception as error:
                    if self._is_failure(error):
                        return self._run_noting(error, draws, args, kwargs, state)
                    first = first or error
            self._factories = before
            _warn_that_it_loops(first)
            self.mode = "loop"
        return self._looped(draws, args, kwargs)

    def _run_noting(self, error: Exception, draws: Any, args: tuple, kwargs: dict, state: list) -> Any:
        """Runs again from where the random numbers stood, noting failures instead of raising where that is known."""
        self._say_failure(error)
        set_random_state(state)
        if not self._notes_failures:
            self._notes_failures, self._graphs = True, _Graphs()
            try:
                return self._counted(self._vmapped(draws, args, kwargs))
            except Exception as another:
                if not self._is_failure(another):
                    self._notes_failures = False
        return self._in_parts(draws, args, kwargs, state)

    def _counted(self, result: Any, graph: "_Graph | None" = None) -> Any:
        """The result alone, of a graph or of `_vmapped`, where what is noted of failures comes with it."""
        if not (self._notes_failures if graph is None else graph.notes_failures):
            return result
        result, is_bad = result
        if not (torch.jit.is_tracing() or _is_inlining):
            self.num_failed += int(is_bad.sum())
        return result

    def _noting(self, draw: Any, args: tuple, kwargs: dict) -> tuple[Any, Tensor]:
        """The result of one draw, with what stands for it where it failed, and whether it did."""
        with NotedFailures(is_differentiated=self.differentiable) as failures:
            result = self.function(draw, args, kwargs)
        is_bad = failures.any(pytree.tree_leaves(draw)[0])
        instead = pytree.tree_leaves(self.failed(draw, result))
        leaves, spec = pytree.tree_flatten(result)
        chosen = [torch.where(is_bad, b, a) for a, b in zip(leaves, instead, strict=True)]
        return pytree.tree_unflatten(chosen, spec), is_bad

    def _is_failure(self, error: Exception) -> bool:
        return self.failed is not None and is_numerical(error)

    def _run_first(self, draws: Any, args: tuple, kwargs: dict) -> None:
        """Runs one draw by itself: for the model's own error, if it has one, and to make `pyro.param`s.

        A density may raise at this draw alone: then another is run.
        """
        first = None
        for number in range(min(_MAX_TRIED, len(pytree.tree_leaves(draws)[0]))):
            draw = pytree.tree_map(lambda draw, number=number: draw[number].detach(), draws)
            with torch.random.fork_rng(devices=[]), outside_of_pyro():
                try:
                    self.function(draw, args, kwargs)
                    return
                except Exception as error:
                    if self._is_failure(error):
                        return
                    if self.failed is None or not may_be_numerical(error):
                        raise
                    first = first or error
        raise first

    def _in_parts(self, draws: Any, args: tuple, kwargs: dict, state: list) -> Any:
        """Runs halves of the batch, and halves of these, until the draws at which the model raises are alone."""
        size = len(pytree.tree_leaves(draws)[0])
        if self.randomness == "same":
            set_random_state(state)
        try:
            return self._counted(self._vmapped(draws, args, kwargs))
        except Exception as error:
            if not self._is_failure(error):
                raise
            if size == 1:
                instead = self.failed(pytree.tree_map(lambda d: d[0], draws), None)
                if instead is None:
                    raise
                self.num_failed += 1
                return pytree.tree_map(lambda value: value[None], instead)
        halves = [slice(size // 2), slice(size // 2, None)]
        parts = [
            self._in_parts(pytree.tree_map(lambda d, half=half: d[half], draws), args, kwargs, state) for half in halves
        ]
        return pytree.tree_map(lambda *values: torch.cat(values), *parts)

    def _looped(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        size = pytree.tree_leaves(draws)[0].shape[0]
        rows, errors, shapes = [], [], describe_shapes((args, kwargs))
        for i in range(size):
            draw = pytree.tree_map(lambda d, i=i: d[i], draws)
            try:
                rows.append(self.function(draw, args, kwargs))
                self._worked_at = shapes
            except Exception as error:
                if self.failed is None or not (is_numerical(error) or may_be_numerical(error)):
                    raise
                errors.append(error)
                rows.append(self.failed(draw, rows[-1] if rows else None))
                if rows[-1] is None:
                    raise
        for error in errors:
            if not is_numerical(error) and (shapes is None or self._worked_at != shapes):
                raise error
        if errors:
            self._say_failure(errors[0])
            self.num_failed += len(errors)
        return pytree.tree_map(lambda *values: torch.stack(values), *rows)

    def _say_failure(self, error: Exception) -> None:
        if not self.num_failed:
            _warn(
                f"The density raises an error at some draws ({first_line(root_of(error))}): these count as draws of "
                "density zero. Where they are many, bound what they come of, or add to the diagonal of a covariance."
            )

    def _vmapped(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        function = self._noting if self._notes_failures else self.function
        if self.randomness == "same" and self._factories is UNFILLED:
            return torch.func.vmap(lambda draw: function(draw, args, kwargs), randomness="same")(draws)

        def one(draw: Any, zero: Tensor) -> Any:
            with BatchedFactories(zero, self._factories):
                return function(draw, args, kwargs)

        first = pytree.tree_leaves(draws)[0]
        zeros = torch.zeros(first.shape[0], device=first.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # torch's own samplers
            warnings.filterwarnings("ignore", "An output with one or more elements was resized", UserWarning)
            return torch.func.vmap(one, randomness=self.randomness)(draws, zeros)

    def _capture(self, leaves: list[Any], spec: Any) -> "_Graph | None":
        """A graph for arguments of these shapes; a failure to capture means mode "eager" from now on."""

        def batched(*tensors: Tensor) -> Any:
            remaining = iter(tensors)
            merged = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            results, out_spec[0] = pytree.tree_flatten(self._vmapped(*pytree.tree_unflatten(merged, spec)))
            return tuple(results)

        out_spec: list[Any] = [None]
        draws, args, kwargs = pytree.tree_unflatten(leaves, spec)
        # In another order, so that a graph that holds the draws themselves is found out.
        turned = pytree.tree_map(lambda draw: draw.detach().roll(1, 0), draws)
        tensors = [leaf.detach() for leaf in _tensors(pytree.tree_leaves((turned, args, kwargs)))]
        try:
            with (
                same_random_numbers(tensors),
                _slow_attention(),
                outside_of_pyro(),
                poutine.trace(param_only=True) as params,
            ):
                module = record(batched, *tensors)
                if self.failed is not None and not self._notes_failures and raises_failures(module):
                    self._notes_failures, self._graphs = True, _Graphs()
                    module = record(batched, *tensors)
                module = simplify(module)
                scripted = not (self.differentiable or params.trace.nodes)
                run = as_script(module, tensors) if scripted else module
        except Exception as error:
            if self._is_failure(error):
                return None  # at some draw: perhaps at the next call
            self.mode = "eager"
            _warn(
                f"The model could not be captured as a graph ({first_line(error)}); it runs uncaptured: slower, with "
                "the same results."
            )
            return None
        graph = _Graph(module, run, out_spec[0], params.trace, notes_failures=self._notes_failures)
        if not graph.is_current():  # parameters local to their modules are not in the store, where changes would show
            self.mode = "eager"
            return None
        return graph


class _Graphs:
    """The graphs of a function, and whether another one would pay."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._sights: dict[Any, int] = {}
        self._has_warned = False

    def get(self, key: Any) -> "_Graph | None":
        """The graph for a key, if there is one."""
        return self._graphs.get(key)

    def note(self, key: Any) -> None:
        """Notes that a graph was of use."""
        self._graphs.move_to_end(key)
        self._graphs[key].calls += 1

    def add(self, key: Any, graph: "_Graph") -> None:
        """Adds a graph, in the place of the one that was not used for longest if they are too many."""
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def pays(self, key: Any, outside: Outside) -> bool:
        """Whether to capture a graph: at once, but once some were in vain only for what came often."""
        in_vain = sum(graph.calls <= 1 for graph in self._graphs.values())
        if key in self._graphs or (in_vain < _MAX_IN_VAIN and len(self._graphs) < _MAX_GRAPHS):
            return True
        if len(self._sights) >= _MAX_SIGHTS:
            self._sights.clear()
        sights = self._sights[key] = self._sights.get(key, 0) + 1
        often = sights > (_OFTEN if len(self._graphs) < _MAX_GRAPHS else _VERY_OFTEN)
        if not often and not self._has_warned:
            changing = _what_differs([*self._graphs, key], outside)
            if changing:
                self._has_warned = True
                _warn(
                    f"The model runs uncaptured where {changing} has a new value, for a graph is made for one value: "
                    "slower, with the same results. Pass what changes as a tensor, in few shapes."
                )
        return often


class _Graph:
    """A captured graph, and the `pyro.param`s that it holds by reference."""

    def __init__(
        self, module: GraphModule, run: Callable[..., Any], out_spec: Any, params: Trace, *, notes_failures: bool
    ) -> None:
        self.module = module
        self.run = run
        self.out_spec = out_spec
        self.params = {name: _leaf(name) for name in params.nodes}
        self.notes_failures = notes_failures
        self.held: list[Any] = []
        self.calls = 0
        self.has_gradient: bool | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time to hold it against an uncaptured run: at the 8th call, the 64th and so on."""
        return self.calls in _CHECKS

    def is_current(self) -> bool:
        """Whether the parameter store still holds the very tensors that were captured."""
        return all(leaf is not None and _leaf(name) is leaf for name, leaf in self.params.items())

    def __call__(self, leaves: list[Any]) -> Any:
        if _PYRO_STACK:  # SVI learns from these statements which parameters to step
            for name in self.params:
                pyro.param(name)
        results = self.run(*_tensors(leaves))
        return pytree.tree_unflatten(results, self.out_spec)

    def of_draws(self, rest: list[Tensor], draws: Any) -> Any:
        """Runs at other draws, all other tensors as they were."""
        return pytree.tree_unflatten(self.run(*pytree.tree_leaves(draws), *rest), self.out_spec)

    def inline(self, leaves: list[Any]) -> Any:
        """Runs operation by operation."""
        results = self.module(*_tensors(leaves))
        return pytree.tree_unflatten(results, self.out_spec)


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_differentiated(draws: Any) -> bool:
    return torch.is_grad_enabled() and any(draw.requires_grad for draw in pytree.tree_leaves(draws))


def _gradient(results: Any, draws: Any) -> Any:
    """Of the sum of all results by the draws, zeros where there is none; nothing is freed."""
    total = sum(leaf.sum() for leaf in pytree.tree_leaves(results) if leaf.requires_grad)
    leaves = [draw for draw in pytree.tree_leaves(draws) if draw.requires_grad]
    if not isinstance(total, Tensor):
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)


def _what_differs(keys: list[Any], outside: Outside) -> str:
    """Names of the plain arguments, or of what is outside of them, that differ between keys."""
    names = set()
    for one, other in pairwise(keys):
        (leaves, spec, read), (leaves2, spec2, read2) = one, other
        names.update(repr(name) for name in outside.changed(read, read2))
        if spec == spec2:
            paths = [path for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(range(len(leaves)), spec))]
            names.update(
                _argument(path) for path, a, b in zip(paths, leaves, leaves2, strict=True) if a != b and path[0].idx > 0
            )
    return ", ".join(sorted(names))


def _argument(path: Any) -> str:
    key = path[1]
    return f"argument {key.key!r}" if hasattr(key, "key") else f"argument number {key.idx + 1}"


class _AsDensity(Messenger):
    """What a run for its density needs.

    Validation is off in distributions that were made before, too, such as the priors of a PyroSample. What `obs_mask`
    leaves as a latent has its prior in the places that are observed as well: nothing else depends on it there, and with
    no prior it would have no posterior. Pyro names it, and what it observes just before, after the statement.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, before, self._last = msg["name"], self._last, msg["name"]
        if name.endswith("_unobserved") and before == name.removesuffix("_unobserved") + "_observed":
            msg["mask"] = None
        if hasattr(msg["fn"], "_validate_args"):
            msg["fn"] = _unvalidated(msg["fn"])


# Handlers that only watch: a graph captured without them means the same under them.
TRANSPARENT = (TraceMessenger, BlockMessenger)


def _unvalidated(fn: Any) -> Any:
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = _unvalidated(fn.base_dist)
    return fn


def _leaf(name: str) -> Tensor | None:
    return pyro.get_param_store()._params.get(name)


def describe_shapes(arguments: Any) -> Any:
    """What must be equal for a graph to serve again: shapes of tensors, and all else but tensors' values.

    Args:
        arguments: A pytree.

    Returns:
        Something to hash, or None where an argument cannot be told from another.
    """
    leaves, spec = pytree.tree_flatten(arguments)
    described = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            described.append((tuple(map(int, leaf.shape)), leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
            described.append((type(leaf), leaf))
        else:
            return None
    return (tuple(described), spec)


def _warn_that_it_loops(error: Exception) -> None:
    """Says which line of the user's code, or which distribution's, keeps the model from being vmapped."""
    _warn(
        f"The model cannot be vmapped over draws because of {culprit(error)} ({first_line(root_of(error))}); it runs "
        "in a loop, one draw after the other, which is slower. Replace `.item()`, `if` on a tensor's value and loops "
        "over values by tensor operations such as torch.where."
    )


def _warn(message: str) -> None:
    """Warns at the first line outside of the package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((_FOLDER, _TORCH)):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


_FOLDER, _TORCH = str(Path(__file__).parent), str(Path(torch.__file__).parent)

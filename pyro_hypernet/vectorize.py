"""A Pyro model, written for one draw, run for a batch of draws: vmapped, captured as a graph, or in a loop."""

import copy
import linecache
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import as_script, same_random_numbers
from pyro_hypernet.graphs.simplify import simplify

Model = Callable[..., Any]
MODES = ("graph", "eager", "loop")
_MAX_GRAPHS = 16


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
    return poutine.trace(_Unvalidated()(conditioned)).get_trace(*args, **kwargs)


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

    Args:
        function: `function(draw, args, kwargs)` to a pytree of tensors; `draw` is a tensor or a dict of tensors without
            batch axes.
        mode: "graph": captured once and used again while all shapes stay; "eager": vmapped anew at every call;
            "loop": one draw after the other. A function that cannot be vmapped moves to "loop" by itself, after one
            warning that names the line; one that cannot be captured moves to "eager".
        randomness: What `torch.func.vmap` does with random numbers drawn inside: "same" or "different" in every draw.
        differentiable: Whether results are to be differentiated by autograd. If not, graphs run as TorchScript,
            with less overhead, and only under `torch.no_grad`.

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
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
        self.function = function
        self.mode = mode
        self.randomness = randomness
        self.differentiable = differentiable
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()

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

        def run(draws: Any) -> Any:
            number = len(pytree.tree_leaves(draws)[0])
            if number in graphs:
                return graphs[number](draws)
            result = self(draws, args, kwargs)
            graph = self._graphs.get(describe_shapes((draws, args, kwargs or {})))
            if graph is not None and not graph.params:
                rest = [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
                graphs[number] = partial(graph.of_draws, rest)
            return result

        return run

    def _evaluate(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.mode != "graph" or not all(isinstance(handler, TRANSPARENT) for handler in _PYRO_STACK):
            return self._run(draws, args, kwargs)
        leaves, spec = pytree.tree_flatten((draws, args, kwargs))
        key = describe_shapes((draws, args, kwargs))
        graph = self._graphs.get(key)
        if graph is None and torch.jit.is_tracing() and key is not None:
            # The tracer cannot follow vmap; what it can follow is a graph captured behind its back.
            with _untraced():
                self._capture(key, leaves, spec)
            graph = self._graphs.get(key)
        if _is_inlining:
            return self._run(draws, args, kwargs) if graph is None else graph.inline(leaves)
        if graph is None or not graph.is_current():
            result = self._run(draws, args, kwargs)
            if key is not None and self.mode == "graph":
                self._capture(key, leaves, spec)
            return result
        self._graphs.move_to_end(key)
        return graph(leaves)

    def _run(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        with _slow_attention():
            return self._run_uncaptured(draws, args, kwargs)

    def _run_uncaptured(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.mode != "loop":
            try:
                return self._vmapped(draws, args, kwargs)
            except Exception:
                self._run_first(draws, args, kwargs)
            try:
                return self._vmapped(draws, args, kwargs)
            except Exception as error:
                _warn_that_it_loops(error)
                self.mode = "loop"
        size = pytree.tree_leaves(draws)[0].shape[0]
        rows = [self.function(pytree.tree_map(lambda d, i=i: d[i], draws), args, kwargs) for i in range(size)]
        return pytree.tree_map(lambda *values: torch.stack(values), *rows)

    def _run_first(self, draws: Any, args: tuple, kwargs: dict) -> None:
        """Runs one draw by itself: for the model's own error, if it has one, and to make `pyro.param`s."""
        first = pytree.tree_map(lambda draw: draw[0].detach(), draws)
        with torch.random.fork_rng(devices=[]), poutine.block():
            self.function(first, args, kwargs)

    def _vmapped(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        if self.randomness == "same":
            return torch.func.vmap(lambda draw: self.function(draw, args, kwargs), randomness="same")(draws)

        def one(draw: Any, zero: Tensor) -> Any:
            with _BatchedFactories(zero):
                return self.function(draw, args, kwargs)

        first = pytree.tree_leaves(draws)[0]
        zeros = torch.zeros(first.shape[0], device=first.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # torch's own samplers
            warnings.filterwarnings("ignore", "An output with one or more elements was resized", UserWarning)
            return torch.func.vmap(one, randomness=self.randomness)(draws, zeros)

    def _capture(self, key: Any, leaves: list[Any], spec: Any) -> None:
        """Adds a graph for arguments of these shapes; a failure to capture means mode "eager" from now on."""

        def batched(*tensors: Tensor) -> Any:
            remaining = iter(tensors)
            merged = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            results, out_spec[0] = pytree.tree_flatten(self._vmapped(*pytree.tree_unflatten(merged, spec)))
            return tuple(results)

        out_spec: list[Any] = [None]
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        try:
            # Gradients on or off, the graph is the same: it may be differentiated later.
            with (
                same_random_numbers(tensors),
                _slow_attention(),
                poutine.block(),
                poutine.trace(param_only=True) as params,
            ):
                module = simplify(record(batched, *tensors))
                scripted = not (self.differentiable or params.trace.nodes)
                run = as_script(module, tensors) if scripted else module
        except Exception as error:
            self.mode = "eager"
            warnings.warn(
                f"The model could not be captured as a graph ({_first_line(error)}); it runs uncaptured: "
                "slower, with the same results.",
                stacklevel=5,
            )
            return
        graph = _Graph(module, run, out_spec[0], params.trace)
        if not graph.is_current():  # parameters local to their modules are not in the store, where changes would show
            self.mode = "eager"
            return
        self._graphs[key] = graph
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)


class _Graph:
    """A captured graph, and the `pyro.param`s that it holds by reference."""

    def __init__(self, module: GraphModule, run: Callable[..., Any], out_spec: Any, params: Trace) -> None:
        self.module = module
        self.run = run
        self.out_spec = out_spec
        self.params = {name: _leaf(name) for name in params.nodes}

    def is_current(self) -> bool:
        """Whether the parameter store still holds the very tensors that were captured."""
        return all(leaf is not None and _leaf(name) is leaf for name, leaf in self.params.items())

    def __call__(self, leaves: list[Any]) -> Any:
        if _PYRO_STACK:  # SVI learns from these statements which parameters to step
            for name in self.params:
                pyro.param(name)
        results = self.run(*[leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return pytree.tree_unflatten(results, self.out_spec)

    def of_draws(self, rest: list[Tensor], draws: Any) -> Any:
        """Runs at other draws, all other tensors as they were."""
        return pytree.tree_unflatten(self.run(*pytree.tree_leaves(draws), *rest), self.out_spec)

    def inline(self, leaves: list[Any]) -> Any:
        """Runs operation by operation."""
        results = self.module(*[leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return pytree.tree_unflatten(results, self.out_spec)


class _BatchedFactories(TorchFunctionMode):
    """Gives new tensors the batch axis of vmap, so that torch's samplers can fill them in place, each draw anew."""

    factories = (torch.empty, torch.empty_like, torch.Tensor.new, torch.Tensor.new_empty)

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self.zero = zero

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.factories and result.is_floating_point():
            return result + self.zero.to(result.dtype)
        return result


class _Unvalidated(Messenger):
    """Turns off validation in distributions that were made before, such as the priors of a PyroSample."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
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
    """Says which line of the user's code keeps the model from being vmapped."""
    ours = (str(Path(torch.__file__).parent), str(Path(pyro.__file__).parent), str(Path(__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    where = "unknown place"
    if frames:
        code = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
        where = f"{frames[-1].filename}:{frames[-1].lineno}: `{code}`"
    warnings.warn(
        f"The model cannot be vmapped over draws because of {where} ({_first_line(error)}); it runs in a loop, one "
        "draw after the other, which is slower. Replace `.item()`, `if` on a tensor's value and loops over values by "
        "tensor operations such as torch.where.",
        stacklevel=5,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]

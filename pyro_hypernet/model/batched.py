"""A function of one draw run for a batch of draws as it stands: vmapped, or one draw after the other."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs import record as recording
from pyro_hypernet.graphs.batching import FRESH, UNFILLED, BatchedFactories, NotedFailures
from pyro_hypernet.graphs.cache import describe_shapes
from pyro_hypernet.graphs.culprits import culprit, first_line, is_numerical, may_be_numerical, root_of, warn_caller
from pyro_hypernet.graphs.run import random_state, set_random_state
from pyro_hypernet.model.single_run import outside_of_pyro

# Draws to try one by one before an error is the model's own.
_MAX_TRIED = 16


@dataclass(eq=False)
class Batched:
    """A function of one draw and the model's arguments as a function of a batch of draws, nothing of it captured.

    A function that cannot be vmapped runs in a loop from then on, after one warning that names the line.

    Attributes:
        function: `function(draw, args, kwargs)` to a pytree of tensors.
        randomness: As of `Vectorized`.
        is_differentiated: Whether results are to be differentiated by autograd.
        failed: As of `Vectorized`.
        loops: Whether it runs in a loop.
        num_failed: At how many draws so far the function raised.
        notes_failures: Whether `vmapped` gives, beside the results, at which draws they are but stood for.
    """

    function: Callable[..., Any]
    randomness: str
    is_differentiated: bool
    failed: Callable[[Any, Any], Any] | None
    loops: bool
    num_failed: int = 0
    notes_failures: bool = False
    _worked_at: Any = None
    _factories: frozenset[Any] = UNFILLED

    def __call__(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        """The function's results at draws of shape `(S, ...)`, with a leading axis S."""
        with slow_attention():
            return self._looped(draws, args, kwargs) if self.loops else self._batched(draws, args, kwargs)

    def _batched(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        state = random_state(pytree.tree_leaves(draws))
        try:
            return self._results(draws, args, kwargs)
        except Exception as error:
            if self.is_failure(error):
                return self._run_noting(error, draws, args, kwargs, state)
            self._run_first(draws, args, kwargs)
        before, first = self._factories, None
        for factories in (before, FRESH):
            self._factories = factories
            try:
                return self._results(draws, args, kwargs)
            except Exception as error:
                if self.is_failure(error):
                    return self._run_noting(error, draws, args, kwargs, state)
                first = first or error
        self._factories = before
        self.loops = True
        warn_caller(
            f"The model cannot be vmapped over draws because of {culprit(first)} ({first_line(root_of(first))}); it "
            "runs in a loop, one draw after the other, which is slower. Replace `.item()`, `if` on a tensor's value "
            "and loops over values by tensor operations such as torch.where."
        )
        return self._looped(draws, args, kwargs)

    def vmapped(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        """The results of the function vmapped, which may raise; a pair where failures are noted."""
        function = self._noting if self.notes_failures else self.function
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

    def counted(self, noted: tuple[Any, Tensor]) -> Any:
        """The results alone, of a pair; failures are counted."""
        result, is_bad = noted
        if not (torch.jit.is_tracing() or recording.is_recording):
            self.num_failed += int(is_bad.sum())
        return result

    def is_failure(self, error: Exception) -> bool:
        """Whether an error comes of a draw's numbers, and something stands for its result."""
        return self.failed is not None and is_numerical(error)

    def _results(self, draws: Any, args: tuple, kwargs: dict) -> Any:
        results = self.vmapped(draws, args, kwargs)
        return self.counted(results) if self.notes_failures else results

    def _run_noting(self, error: Exception, draws: Any, args: tuple, kwargs: dict, state: list) -> Any:
        """Runs again from where the random numbers stood, noting failures instead of raising where that is known."""
        self._say_failure(error)
        set_random_state(state)
        if not self.notes_failures:
            self.notes_failures = True
            try:
                return self._results(draws, args, kwargs)
            except Exception as another:
                if not self.is_failure(another):
                    self.notes_failures = False
        return self._in_parts(draws, args, kwargs, state)

    def _noting(self, draw: Any, args: tuple, kwargs: dict) -> tuple[Any, Tensor]:
        """The result of one draw, with what stands for it where it failed, and whether it did."""
        with NotedFailures(is_differentiated=self.is_differentiated) as failures:
            result = self.function(draw, args, kwargs)
        is_bad = failures.any(pytree.tree_leaves(draw)[0])
        instead = pytree.tree_leaves(self.failed(draw, result))
        leaves, spec = pytree.tree_flatten(result)
        chosen = [torch.where(is_bad, b, a) for a, b in zip(leaves, instead, strict=True)]
        return pytree.tree_unflatten(chosen, spec), is_bad

    def _run_first(self, draws: Any, args: tuple, kwargs: dict) -> None:
        """Runs one draw by itself: for the model's own error, if it has one, and to make `pyro.param`s.

        A density may raise at this draw alone: then another is run.
        """
        errors = []
        for number in range(min(_MAX_TRIED, len(pytree.tree_leaves(draws)[0]))):
            draw = pytree.tree_map(lambda draw, number=number: draw[number].detach(), draws)
            with torch.random.fork_rng(devices=[]), outside_of_pyro():
                try:
                    self.function(draw, args, kwargs)
                    return
                except Exception as error:
                    if self.is_failure(error):
                        return
                    if self.failed is None or not may_be_numerical(error):
                        raise
                    errors.append(error)
        raise errors[0]

    def _in_parts(self, draws: Any, args: tuple, kwargs: dict, state: list) -> Any:
        """Runs halves of the batch, and halves of these, until the draws at which the model raises are alone."""
        size = len(pytree.tree_leaves(draws)[0])
        if self.randomness == "same":
            set_random_state(state)
        try:
            return self._results(draws, args, kwargs)
        except Exception as error:
            if not self.is_failure(error):
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
            warn_caller(
                f"The density raises an error at some draws ({first_line(root_of(error))}): these count as draws of "
                "density zero. Where they are many, bound what they come of, or add to the diagonal of a covariance."
            )


@contextmanager
def slow_attention() -> Iterator[None]:
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

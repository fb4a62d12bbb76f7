"""The model run at many draws, and on much data, in chunks that fit in memory."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_hypernet.graphs.culprits import is_numerical
from pyro_hypernet.graphs.run import tensors_in
from pyro_hypernet.model.called import blaming_arguments
from pyro_hypernet.model.single_run import Model, trace_one
from pyro_hypernet.model.traces import deterministic_nodes
from pyro_hypernet.model.vectorize import Vectorized

# Memory for one chunk's intermediate results.
MAX_BYTES = 2**28
# Chunks that fit into a core's cache run several times faster, if there are enough of them to capture a graph for:
# of draws, and of the data where one draw is more.
_CACHED_BYTES, _CACHED_ROWS, _LEAST_CHUNKS = 2**22, 2**23, 16


class Chunked:
    """A model run for all of some draws, a bounded number of draws at a time, with fresh noise in every draw.

    Where one draw is much work, and the model says that its rows are independent, data are cut into chunks, too. What
    is captured for one call serves the next, as for the batches of a loader.

    Args:
        model: A Pyro model; its sampled sites get other noise in every draw. An attribute `rows_are_independent` says
            that the first axis of all tensors among its arguments, and of what is collected, is that of the data, each
            of which is worked out from its own row alone; it is tried whether that is so.
        samples: A dict from site to values of shape `(S, *shape)`.
        collect: From the trace of one draw to a pytree of tensors.
        batch_size: Draws run at once; None for as many as fit into `max_bytes`.
        max_bytes: Memory for the intermediate results of one chunk, in bytes.

    Raises:
        ValueError: If `batch_size` is not positive; when called, if names or shapes of the samples are not the model's.
    """

    def __init__(
        self,
        model: Model,
        samples: Mapping[str, Tensor],
        collect: Callable[[Trace], Any],
        *,
        batch_size: int | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        self.model, self.samples, self.collect = model, samples, collect
        self.batch_size, self.max_bytes = batch_size, max_bytes
        self.total = next(iter(samples.values())).shape[0]
        options = {"randomness": "different", "differentiable": False}
        self._eager = Vectorized(self._of_one, mode="eager", **options)
        self._graph = Vectorized(self._of_one, mode="graph", **options)
        self._num_calls = 0

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        """What `collect` returns, every tensor with a leading axis S."""
        with blaming_arguments(self.model, args, kwargs):
            return self._in_chunks(args, kwargs)

    def _in_chunks(self, args: tuple, kwargs: dict) -> Any:
        first: list[tuple[Trace, Any]] = []
        needed = max(1, count_bytes(lambda: first.append(self._first(args, kwargs))))
        pieces = self._pieces(*first[0], needed, args, kwargs) if first else [(args, kwargs)]
        size = self.batch_size or max(1, len(pieces) * self.max_bytes // needed)
        cached = max(1, min(size, len(pieces) * _CACHED_BYTES // needed))
        if self.batch_size is None and self.total * len(pieces) >= _LEAST_CHUNKS * cached:
            size = cached
        size = min(size, self.total)
        is_worth = self._num_calls or self.total * len(pieces) >= _LEAST_CHUNKS * size
        self._num_calls += 1
        results = [self._run(*piece, size, self._graph if is_worth else self._eager) for piece in pieces]
        if len(results) == 1:
            return results[0]
        return pytree.tree_map(lambda *parts: torch.cat(parts, 1), *results)

    def _of_one(self, values: dict[str, Tensor], args: tuple, kwargs: dict) -> Any:
        return self.collect(trace_one(self.model, values, args, kwargs))

    def _first(self, args: tuple, kwargs: dict) -> tuple[Trace, Any]:
        """The trace of the first draw, whose sites are held against the samples, and what is collected of it."""
        trace = trace_one(self.model, {name: value[0] for name, value in self.samples.items()}, args, kwargs)
        _check_samples(self.samples, trace)
        return trace, self.collect(trace)

    def _pieces(self, first: Trace, found: Any, needed: int, args: tuple, kwargs: dict) -> list[tuple[tuple, dict]]:
        """The arguments, or those of consecutive rows where all at once are much for one draw."""
        most = min(_CACHED_ROWS, self.max_bytes)
        if needed <= most or not getattr(self.model, "rows_are_independent", False):
            return [(args, kwargs)]
        leaves = tensors_in((args, kwargs, found))
        lengths = {leaf.shape[0] if leaf.dim() else 0 for leaf in leaves}
        rows = lengths.pop() if len(lengths) == 1 else 0
        each = math.ceil(rows / math.ceil(needed / most))
        if not 0 < each < rows:
            return [(args, kwargs)]
        pieces = [_rows((args, kwargs), slice(start, start + each)) for start in range(0, rows, each)]
        with pyro.validation_enabled(False):
            is_part = _is_part(self._first(*pieces[0])[0], first, each)
        return pieces if is_part else [(args, kwargs)]

    def _run(self, args: tuple, kwargs: dict, size: int, run: Vectorized) -> Any:
        """All draws, so many at a time."""
        results, same = None, []
        for start in range(0, self.total, size):
            chunk = {name: value[start : start + size] for name, value in self.samples.items()}
            is_rest = start + size > self.total
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The model could not be captured as a graph", UserWarning)
                result = (self._eager if is_rest else run)(chunk, args, kwargs)
            if size == self.total:
                return result
            leaves, spec = pytree.tree_flatten(result)
            if results is None:
                # What the model returns is often a site's very value: kept once.
                places = [(leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]
                same = [places.index(place) for place in places]
                whole = [leaf.new_empty((self.total, *leaf.shape[1:])) for leaf in leaves]
                results = pytree.tree_unflatten([whole[number] for number in same], spec)
            wholes = pytree.tree_leaves(results)
            for number, part in enumerate(leaves):
                if same[number] == number:
                    wholes[number][start : start + size] = part
        return results


def _is_part(part: Trace, whole: Trace, num_rows: int) -> bool:
    """Whether the first rows by themselves give what they give beside the others, as far as it is deterministic."""
    nodes = deterministic_nodes(part)
    return bool(nodes) and all(
        torch.allclose(node["value"], whole.nodes[name]["value"][:num_rows], rtol=1e-3, atol=1e-4)
        for name, node in nodes.items()
    )


def _rows(arguments: Any, rows: slice) -> Any:
    """Some rows of all tensors among the arguments."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, arguments)


def count_bytes(function: Callable[[], Any]) -> int:
    """Bytes of everything that a function computes, run once without Pyro's validation.

    An upper bound of what it holds at once; of a draw without density, as for want of a Cholesky factor, up to where
    it fails.
    """
    with _CountBytes() as counter, pyro.validation_enabled(False):
        try:
            function()
        except Exception as error:
            if not is_numerical(error):
                raise
    return counter.bytes


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of every operation's result."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes += leaf.numel() * leaf.element_size()
        return result


def _check_samples(samples: Mapping[str, Tensor], trace: Trace) -> None:
    """Raises a ValueError unless all samples, of shape `(S, *shape)`, are of the trace's sample sites and shapes."""
    for name, value in samples.items():
        node = trace.nodes.get(name)
        if node is None or node["type"] != "sample" or node["infer"].get("_deterministic"):
            sites = [
                n for n, other in trace.nodes.items() if other["type"] == "sample" and not site_is_subsample(other)
            ]
            raise ValueError(f"Samples hold site {name!r}, which the model does not sample; its sites are {sites}.")
        shape = node["fn"].batch_shape + node["fn"].event_shape
        if value.shape[1:] != shape:
            raise ValueError(
                f"Samples of site {name!r} must have shape (S, *{tuple(shape)}), as in the model; got "
                f"{tuple(value.shape)}. Pyro's Predictive adds singleton plate axes: reshape its samples."
            )

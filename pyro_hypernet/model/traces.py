"""The model run at given draws: which of its sites hold data, what it computes, and many draws in chunks."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_hypernet.graphs.culprits import is_numerical
from pyro_hypernet.model.single_run import Model, trace_one
from pyro_hypernet.model.vectorize import Vectorized

# Memory for one chunk's intermediate results.
MAX_BYTES = 2**28
# Chunks that fit into a core's cache run several times faster, if there are enough of them to capture a graph for.
_CACHED_BYTES, _LEAST_CHUNKS = 2**22, 16
_WRAPPERS = (
    torch.distributions.Independent,
    pyro.distributions.MaskedDistribution,
    pyro.distributions.ExpandedDistribution,
)


def observed_nodes(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The sites of a conditioned trace that hold data.

    Args:
        trace: A trace of the model conditioned on one draw of `samples`.
        samples: The dict of samples; its sites are not data.

    Returns:
        A dict from site name to its node in the trace.
    """
    return {name: node for name, node in _data_nodes(trace, samples).items() if node["is_observed"]}


def predictive_nodes(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The sites of a conditioned trace that model data, whether the data are given or not; no `pyro.factor`.

    Args:
        trace: A trace of the model conditioned on one draw of `samples`.
        samples: The dict of samples; its sites are not data.

    Returns:
        A dict from site name to its node in the trace.
    """
    return {name: node for name, node in _data_nodes(trace, samples).items() if not isinstance(node["fn"], Unit)}


def deterministic_nodes(trace: Trace) -> dict[str, dict[str, Any]]:
    """The `pyro.deterministic` sites of a trace, a dict from name to node."""
    return {name: node for name, node in trace.nodes.items() if (node.get("infer") or {}).get("_deterministic")}


def pointwise_log_prob(node: dict[str, Any]) -> Tensor:
    """Log density of every datum of an observed node, in nats: without plate scales, zero where masked."""
    return scale_and_mask(node["fn"].log_prob(node["value"]), 1.0, node["mask"])


def functions_of(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model computes from one draw: where populations and chains are compared, for weights have symmetries.

    Args:
        trace: A trace of the model conditioned on one draw of `samples`.
        samples: The dict of samples.

    Returns:
        A dict from deterministic sites to their values and from sites that model data to their means, all of floating
        point; empty where no mean is known.
    """
    values = {name: node["value"] for name, node in deterministic_nodes(trace).items()}
    values |= {name: _mean_of(node["fn"]) for name, node in predictive_nodes(trace, samples).items()}
    return {name: value for name, value in values.items() if value is not None and value.is_floating_point()}


def _mean_of(fn: Any) -> Tensor | None:
    """The mean of a distribution, or of what it wraps where it has none itself, or None; probabilities count as one."""
    inner = fn
    while hasattr(inner, "base_dist") and not hasattr(inner, "probs"):
        inner = inner.base_dist
    probs = getattr(inner, "probs", None)
    if isinstance(probs, Tensor):
        return probs
    for distribution in (fn, inner):
        try:
            return distribution.mean
        except (AttributeError, NotImplementedError):
            continue
    return None


def class_probabilities(fn: Any) -> Tensor | None:
    """Of a distribution over classes, shape `(N, C)`, or `(N,)` of the positive one; None of any other distribution."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Bernoulli):
        return fn.probs.flatten()
    if isinstance(fn, (torch.distributions.Categorical, torch.distributions.OneHotCategorical)):
        return fn.probs.reshape(-1, fn.probs.shape[-1])
    return None


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


def map_in_chunks(
    model: Model,
    samples: Mapping[str, Tensor],
    args: tuple,
    kwargs: dict,
    *,
    collect: Callable[[Trace], Any],
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Runs the model for every draw, with a bounded number of draws at a time and fresh noise in every draw.

    Args:
        model: A Pyro model; its sampled sites get other noise in every draw.
        samples: A dict from site to values of shape `(S, *shape)`.
        args: The model's arguments.
        kwargs: Its keyword arguments.
        collect: From the trace of one draw to a pytree of tensors.
        batch_size: Draws run at once; None for as many as fit into `max_bytes`.
        max_bytes: Memory for the intermediate results of one chunk, in bytes.

    Returns:
        What `collect` returns, every tensor with a leading axis S.

    Raises:
        ValueError: If `batch_size` is not positive, or names or shapes of the samples are not the model's.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")

    def run_one(values: dict[str, Tensor], args: tuple, kwargs: dict, *, is_checked: bool = True) -> Any:
        trace = trace_one(model, values, args, kwargs)
        if not is_checked:
            _check_samples(samples, trace)
        return collect(trace)

    def run_first() -> None:
        run_one({name: value[0] for name, value in samples.items()}, args, kwargs, is_checked=False)

    needed = max(1, count_bytes(run_first))
    total = next(iter(samples.values())).shape[0]
    size = batch_size or max(1, max_bytes // needed)
    cached = max(1, min(size, _CACHED_BYTES // needed))
    if batch_size is None and total >= _LEAST_CHUNKS * cached:
        size = cached
    in_chunks = _Chunks(run_one, total, size)
    for start in range(0, total, size):
        in_chunks.run(start, {name: value[start : start + size] for name, value in samples.items()}, args, kwargs)
    return in_chunks.results


class _Chunks:
    """Runs a function for some of the draws at a time, captured as a graph where there are many chunks."""

    def __init__(self, function: Callable[..., Any], total: int, size: int) -> None:
        self.total, self.size = total, size
        eager = Vectorized(function, mode="eager", randomness="different")
        many = total >= _LEAST_CHUNKS * size
        options = {"mode": "graph", "randomness": "different", "differentiable": False}
        self._whole, self._rest = (Vectorized(function, **options) if many else eager), eager
        self._same: list[int] = []
        self.results: Any = None

    def run(self, start: int, chunk: dict[str, Tensor], args: tuple, kwargs: dict) -> None:
        """Runs the draws from `start` on and puts their results in place."""
        run = self._whole if start + self.size <= self.total else self._rest
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The model could not be captured as a graph", UserWarning)
            result = run(chunk, args, kwargs)
        if start == 0 and self.size >= self.total:
            self.results = result
            return
        leaves, spec = pytree.tree_flatten(result)
        if start == 0:
            # What the model returns is often a site's very value: kept once.
            places = [(leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]
            self._same = [places.index(place) for place in places]
            whole = [leaf.new_empty((self.total, *leaf.shape[1:])) for leaf in leaves]
            self.results = pytree.tree_unflatten([whole[number] for number in self._same], spec)
        wholes = pytree.tree_leaves(self.results)
        for number, part in enumerate(leaves):
            if self._same[number] == number:
                wholes[number][start : start + self.size] = part


def count_bytes(function: Callable[[], Any]) -> int:
    """Runs a function of one draw and counts what it needs.

    Args:
        function: A function without arguments, run once without Pyro's validation.

    Returns:
        Bytes of everything that it computes: an upper bound of what it holds at once. Of a draw that has no density, as
        for want of a Cholesky factor, up to where it fails.
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


def _data_nodes(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Sample sites that are neither latent nor deterministic nor subsampling."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and name not in samples
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic")
    }

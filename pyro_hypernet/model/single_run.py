"""One run of a model, whatever the caller of Pyro has under way."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from pyro_hypernet.model.called import blaming_arguments

Model = Callable[..., Any]
# Handlers that only watch: a graph captured without them means the same under them.
TRANSPARENT = (TraceMessenger, BlockMessenger)


def trace_one(model: Model, values: Mapping[str, Tensor], args: tuple, kwargs: dict) -> Trace:
    """Runs the model once, conditioned on one value per site, without the distributions' own validation.

    Returns:
        The trace, as handlers outside see it; conditioned sites count as observed.
    """
    conditioned = poutine.condition(model, data=dict(values))
    with blaming_arguments(model, args, kwargs):
        return poutine.trace(_AsDensity()(conditioned)).get_trace(*args, **kwargs)


def trace_outside(model: Model, args: tuple, kwargs: Mapping[str, Any]) -> Trace:
    """Runs a model, or a guide, once as it stands, seen by no handler outside of it."""
    with outside_of_pyro(), blaming_arguments(model, args, kwargs):
        return poutine.trace(model).get_trace(*args, **kwargs)


def trace_aside(
    model: Model, values: Mapping[str, Tensor], args: tuple, kwargs: dict, *, seed: int | None = None
) -> Trace:
    """`trace_one` within `outside_of_pyro`, nothing of it differentiable, without Pyro's validation."""
    with torch.no_grad(), outside_of_pyro(seed=seed), pyro.validation_enabled(False):
        return trace_one(model, values, args, kwargs)


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


def _unvalidated(fn: Any) -> Any:
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = _unvalidated(fn.base_dist)
    return fn

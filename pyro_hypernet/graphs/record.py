"""A function of tensors recorded as a graph of operations, at little cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def record(function: Callable[..., Any], *tensors: Tensor) -> torch.fx.GraphModule:
    """Runs the function once and records what it does, gradients and vmap included.

    Args:
        function: Of tensors alone; Python numbers and branches in it are fixed from now on.
        tensors: Its arguments, of the shapes that the graph is to take.
    """
    # A third of a second to import.
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # One mode for the shapes of all values; torch would make one for every value, a quarter of the time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*tensors)

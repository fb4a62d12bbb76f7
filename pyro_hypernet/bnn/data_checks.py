"""Whether inputs, outputs and targets of a network fit each other, or a clear word on why not."""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_hypernet.bnn.calls import Call, check_finite
from pyro_hypernet.bnn.likelihoods import Likelihood


def check_counts(call: Call, y: Tensor | None) -> None:
    """Of inputs, targets and what these count."""
    x, weight = call.tensors[0], call.y_weight
    if y is not None:
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(
                f"x and y must hold the same number of data; their shapes are {tuple(x.shape)} and {tuple(y.shape)}."
            )
        check_finite("y", y)
    if weight is not None and (weight.shape != x.shape[:1] or not bool((weight > 0).all())):
        raise ValueError(
            f"y_weight must hold a positive number for each of {len(x)} data; its shape is {tuple(weight.shape)}, its "
            f"least value {weight.min():.3g}: leave out data that do not count."
        )


def check_shape(f: Tensor, call: Call, class_axis: int) -> None:
    """Of the outputs, shape `(N, ..., out)`."""
    number = call.tensors[0].shape[0]
    if f.dim() < 2 or f.shape[0] != number or not -f.dim() <= class_axis < f.dim():
        raise ValueError(
            f"The network must map x, shape {tuple(call.tensors[0].shape)}, to outputs of shape ({number}, out), "
            f"or ({number}, *positions, out); got {tuple(f.shape)}."
        )


def check_targets(y: Tensor | None, f: Tensor, positioned: Tensor, likelihood: Likelihood, class_axis: int) -> None:
    """Of the targets, for outputs `f` whose last axis is made that of classes in `positioned`."""
    width = positioned.shape[-1]
    likelihood.check_width(width)
    if y is None or not is_readable(y):
        return
    if f.dim() > 2:
        expected = (*positioned.shape[:-1], *likelihood.target_shape(width))
        if y.shape != expected:
            classes_first = class_axis == -1 and y.shape == (f.shape[0], *f.shape[2:])
            hint = f"; for classes in axis 1 of the outputs, {tuple(f.shape)}, class_axis=1" if classes_first else ""
            raise ValueError(
                f"y must have shape {tuple(expected)} for {likelihood!r}, a target at every position; got "
                f"{tuple(y.shape)}{hint}."
            )
        y = y.flatten(0, positioned.dim() - 2)
    likelihood.check_targets(y, width)


def blame_whole_numbers(error: RuntimeError, call: Call) -> None:
    """Raises where a network failed for inputs whose type it does not take."""
    whole = [x.dtype for x in call.tensors if not x.is_floating_point() and x.dtype != torch.bool]
    if whole and "type" in str(error):
        raise TypeError(
            f"The network cannot take inputs of {whole[0]}: convert them as for its training, images for example by "
            f"x.float() / 255 ({error})."
        ) from error


def is_readable(value: Tensor) -> bool:
    """Whether values may be looked at: not while a graph is captured, nor in data that are vmapped over."""
    is_captured = get_proxy_mode() is not None or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not is_captured and not torch._C._functorch.is_batchedtensor(value)

"""New tensors with the batch axis of vmap, so that they can be written to in place."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What torch's samplers fill.
UNFILLED = frozenset({torch.empty, torch.empty_like, Tensor.new, Tensor.new_empty})
# What models and distributions write to, each draw its own.
FRESH = UNFILLED | {
    torch.zeros,
    torch.zeros_like,
    torch.ones,
    torch.ones_like,
    torch.full,
    torch.full_like,
    torch.eye,
    torch.tensor,
    torch.clone,
    Tensor.clone,
    Tensor.new_tensor,
    Tensor.new_zeros,
    Tensor.new_ones,
    Tensor.new_full,
}
# Of whole numbers and booleans only these: others are made to be read, as indices and sizes.
_WRITTEN = FRESH - {torch.tensor, Tensor.new_tensor, torch.clone, Tensor.clone}


class BatchedFactories(TorchFunctionMode):
    """Gives new tensors the batch axis of vmap, and fills where a mask says so without looking at the mask.

    Args:
        zero: A zero of every draw, seen from inside of vmap, shape `()`.
        factories: Which functions' results get the axis, `UNFILLED` or `FRESH`; with the latter `x[mask] = number`,
            which looks for the places where the mask is true, becomes an operation on all places too.
    """

    def __init__(self, zero: Tensor, factories: frozenset[Any] = UNFILLED) -> None:
        super().__init__()
        self.zero = zero
        self.factories = factories

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__setitem__ and self.factories is FRESH and _is_filling(*args):
            place, mask, value = args
            mask = mask.reshape(mask.shape + (1,) * (place.dim() - mask.dim()))
            return place.masked_fill_(mask, value)
        result = func(*args, **(kwargs or {}))
        if func not in self.factories or not isinstance(result, Tensor):
            return result
        if result.is_floating_point() or result.is_complex():
            return result + self.zero.to(result.dtype)
        if self.factories is FRESH and func in _WRITTEN:
            zero = self.zero.to(result.dtype)
            return result | zero if result.dtype is torch.bool else result + zero
        return result


def _is_filling(place: Tensor, mask: Any, value: Any) -> bool:
    """Whether `place[mask] = value` writes one number to wherever a mask is true."""
    is_mask = isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.shape == place.shape[: mask.dim()]
    return is_mask and (not isinstance(value, Tensor) or value.dim() == 0)

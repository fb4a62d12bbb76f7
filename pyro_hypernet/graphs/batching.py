"""What vmap cannot do by itself: write to new tensors draw by draw, and go on where a draw's matrix has no factor."""

from collections.abc import Callable
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


def _info_of_factor(matrix: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.linalg.cholesky_ex(matrix).info


def _info_of_inverse(matrix: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.linalg.inv_ex(matrix).info


_INFOS: dict[Any, Callable[..., Tensor]] = {
    torch.linalg.cholesky: _info_of_factor,
    torch.cholesky: _info_of_factor,
    Tensor.cholesky: _info_of_factor,
    torch.linalg.inv: _info_of_inverse,
    torch.inverse: _info_of_inverse,
    Tensor.inverse: _info_of_inverse,
    torch.linalg.solve: _info_of_inverse,
}


# The same that tell of failures instead of raising.
_TELLING: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: torch.linalg.cholesky_ex,
    torch.linalg.inv: torch.linalg.inv_ex,
    torch.inverse: torch.linalg.inv_ex,
    Tensor.inverse: torch.linalg.inv_ex,
    torch.linalg.solve: torch.linalg.solve_ex,
}


def raises_failures(module: torch.fx.GraphModule) -> bool:
    """Whether a graph asks for factors; run from C++ it then goes on with what is none, without an error.

    Args:
        module: As recorded.
    """
    return any(node.target is torch.ops.aten._linalg_check_errors.default for node in module.graph.nodes)


class NotedFailures(TorchFunctionMode):
    """Notes that a matrix has no Cholesky factor or no inverse, instead of raising.

    Args:
        is_differentiated: Whether results will be differentiated by who runs this. The identity is then factorised in
            the matrix's place, at the price of a second factor, for a gradient of what is not chosen can be NaN.
    """

    def __init__(self, *, is_differentiated: bool) -> None:
        super().__init__()
        self.is_differentiated = is_differentiated
        self._bad: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _TELLING and not self.is_differentiated:
            result, info = _TELLING[func](*args, **kwargs)
            self._bad.append((info != 0).any())
            return result
        if func in _INFOS and args:
            matrix = args[0]
            info = _INFOS[func](matrix.detach(), *args[1:], **kwargs)
            is_bad = (info != 0)[..., None, None]
            identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            self._bad.append(is_bad.any())
            args = (torch.where(is_bad, identity, matrix), *args[1:])
        return func(*args, **kwargs)

    def any(self, like: Tensor) -> Tensor:
        """Whether there was any, shape `()`."""
        return torch.stack(self._bad).any() if self._bad else torch.zeros((), dtype=torch.bool, device=like.device)

"""Factors of matrices that have none, noted instead of raised, so that one draw does not fail a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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

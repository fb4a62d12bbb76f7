"""Invertible maps of R^D with exact log determinants, as Pyro transforms."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

# Rows of a forward pass without gradients on a CPU, and numbers in them: see benchmarks/results/NOTES.md, "Speed".
_ROWS, _LEAST_ROWS, _NUMBERS = 512, 16, 2**20


def widened(x: Tensor) -> Tensor:
    """In float32 where the dtype is narrower: sums over many weights would drown in bfloat16's eight bits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Bijection(TransformModule):
    """A bijection of R^D. A subclass writes the two methods below, and so is a Pyro transform.

    Points have shape `(..., D)`, log determinants `(...)`, in nats; in float32 where points are narrower. The last pair
    of points and its log determinant are kept, as with every Pyro transform: scoring a fresh draw costs nothing.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._cached_log_det: tuple[Any, Any, Any] = (None, None, None)

    @property
    def fast_inverse(self) -> bool:
        """Whether the inverse costs about as much as the map itself."""
        return all(child.fast_inverse for child in self.children() if isinstance(child, Bijection))

    @property
    def sign(self) -> int:
        """Not known in general. Transforms then raise NotImplementedError, at which `hasattr` and torch.jit stumble."""
        raise AttributeError(f"{type(self).__name__} does not know the sign of its determinant.")

    @property
    def suits_path_gradient(self) -> bool:
        """Whether the score of the density that it makes is cheap and tame enough for path gradients."""
        parts = (module for module in self.modules() if module is not self and isinstance(module, Bijection))
        return self.fast_inverse and all(part.suits_path_gradient for part in parts)

    @abstractmethod
    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `x`, shape `(..., D)`; returns the image and `log|det dy/dx|`, shape `(...)`."""

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `y` back; returns the preimage and `log|det dx/dy|`, the inverse's own log determinant."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`log|det dy/dx|` at `x`; free for the pair that was mapped last."""
        cached_x, cached_y, log_det = self._cached_log_det
        if x is cached_x and y is cached_y:
            return log_det
        return self.forward_and_log_det(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.forward_and_log_det(x)
        self._cached_log_det = x, y, log_det
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.inverse_and_log_det(y)
        self._cached_log_det = x, y, -log_det
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_inv": None,
            "_cached_x_y": (None, None),
            "_cached_log_det": (None, None, None),
        }


class Chain(Bijection):
    """Several bijections one after the other, the first applied first."""

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    @property
    def fast_inverse(self) -> bool:
        return all(bijection.fast_inverse for bijection in self.bijections)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[:-1])
        for bijection in self.bijections:
            x, part = bijection.forward_and_log_det(x)
            log_det = log_det + part
        return x, log_det

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_det = y.new_zeros(y.shape[:-1])
        for bijection in reversed(self.bijections):
            y, part = bijection.inverse_and_log_det(y)
            log_det = log_det + part
        return y, log_det


class Blocks(Bijection):
    """Several bijections side by side, each on its own contiguous slice of the coordinates.

    Args:
        bijections: One for every slice.
        sizes: Lengths of the slices; they add up to D.

    Raises:
        ValueError: If there are not as many bijections as slices.
    """

    def __init__(self, bijections: Sequence[Bijection], sizes: Sequence[int]) -> None:
        super().__init__()
        if len(bijections) != len(sizes):
            raise ValueError(f"Blocks needs one bijection for every slice; got {len(bijections)} and {len(sizes)}.")
        self.bijections = nn.ModuleList(bijections)
        self.sizes = list(sizes)

    @property
    def fast_inverse(self) -> bool:
        return all(bijection.fast_inverse for bijection in self.bijections)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(self.bijections, x.split(self.sizes, dim=-1), strict=True)
        return self._join([bijection.forward_and_log_det(part) for bijection, part in parts])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(self.bijections, y.split(self.sizes, dim=-1), strict=True)
        return self._join([bijection.inverse_and_log_det(part) for bijection, part in parts])

    @staticmethod
    def _join(results: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.cat([value for value, _ in results], dim=-1), sum(log_det for _, log_det in results)


def in_pieces(bijection: Bijection, x: Tensor) -> tuple[Tensor, Tensor]:
    """A forward pass, many rows on a CPU piece by piece: without gradients what a piece leaves behind fits its caches.

    Args:
        bijection: The map.
        x: Rows, shape `(S, D)`.

    Returns:
        What `forward_and_log_det` gives.
    """
    rows = max(_LEAST_ROWS, min(_ROWS, _NUMBERS // x.shape[-1]))
    if torch.is_grad_enabled() or x.device.type != "cpu" or len(x) <= rows:
        return bijection.forward_and_log_det(x)
    values, log_dets = zip(*(bijection.forward_and_log_det(piece) for piece in x.split(rows)), strict=True)
    return torch.cat(values), torch.cat(log_dets)

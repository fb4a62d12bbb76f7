"""Linear maps: diagonal, triangular, low rank, permutation."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from pyro_hypernet.maps.bijection import Bijection, widened


class Identity(Bijection):
    """`y = x`: the hypernetwork of the mean field."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(y.shape[:-1])


class ShiftAndScale(Bijection):
    """`y = loc + exp(log_scale) x` in every coordinate; a subclass says what both are."""

    @abstractmethod
    def loc_and_log_scale(self) -> tuple[Tensor, Tensor]:
        """Both of shape `(D,)`."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.loc_and_log_scale()
        return loc + log_scale.exp() * x, widened(log_scale).sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.loc_and_log_scale()
        return (y - loc) * (-log_scale).exp(), -widened(log_scale).sum().expand(y.shape[:-1])


class Affine(ShiftAndScale):
    """Shift and scale every coordinate: `y = loc + scale * x`.

    Args:
        loc: Image of the origin, shape `(D,)`.
        scale: Standard deviations when `x` is standard normal, positive, shape `(D,)`.

    Raises:
        ValueError: If a scale is not positive, or the shapes differ.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if loc.shape != scale.shape:
            raise ValueError(f"scale must have the shape of loc, {tuple(loc.shape)}; got {tuple(scale.shape)}.")
        if not scale.is_meta and bool((scale <= 0).any()):
            raise ValueError(f"scale must be positive; its least entry is {scale.min():.3g}.")
        self.loc = nn.Parameter(loc.clone())
        self.log_scale = nn.Parameter(scale.log())

    def loc_and_log_scale(self) -> tuple[Tensor, Tensor]:
        return self.loc, self.log_scale


class UnitTriangular(Bijection):
    """`y = x + tril(A, -1) x`: every correlation of D coordinates, log determinant zero; the identity at the start.

    Args:
        dim: D; the parameter has D² entries, of which those below the diagonal count.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + x @ self.weight.tril(-1).mT, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        columns = y.reshape(-1, y.shape[-1]).mT
        lower = self.weight.tril(-1)  # the unit diagonal is understood
        x = torch.linalg.solve_triangular(widened(lower), widened(columns), upper=False, unitriangular=True)
        return x.mT.reshape(y.shape).to(y), y.new_zeros(y.shape[:-1])


class LowRank(Bijection):
    """`y = x + U Vᵀ x` in O(D r) time and memory; the identity at the start (U = 0).

    Determinant and inverse come from the r × r matrix `C = I + VᵀU`: `det(I + UVᵀ) = det C` and
    `x = y − U C⁻¹ Vᵀ y`. The entropy keeps training away from the singular ones, where the log determinant is −inf.
    With an Affine after it this is low rank plus diagonal.

    Args:
        dim: D.
        rank: r, at most D.

    Raises:
        ValueError: If the rank is not between 1 and D.

    Source: Matrix determinant lemma and the Sherman–Morrison–Woodbury formula.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        if not 1 <= rank <= dim:
            raise ValueError(f"rank must be between 1 and the dimension {dim}; got {rank}.")
        self.u = nn.Parameter(torch.zeros(dim, rank))
        self.v = nn.Parameter(torch.randn(dim, rank) / dim**0.5)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + (x @ self.v) @ self.u.mT, self._log_det().expand(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        inner = (y @ self.v).reshape(-1, self.v.shape[1])
        solved = torch.linalg.solve(self._capacitance(), widened(inner).mT).mT.reshape((*y.shape[:-1], -1)).to(y)
        return y - solved @ self.u.mT, -self._log_det().expand(y.shape[:-1])

    def _capacitance(self) -> Tensor:
        product = widened(self.v.mT @ self.u)
        return torch.eye(len(product), dtype=product.dtype, device=product.device) + product

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self._capacitance()).logabsdet


class Permute(Bijection):
    """`y_i = x_{permutation[i]}`: fixed, and saved with the parameters.

    Args:
        permutation: The numbers 0 … D − 1 in some order, shape `(D,)`, int64.
    """

    def __init__(self, permutation: Tensor) -> None:
        super().__init__()
        device = torch.empty(0).device  # made on the CPU, so that it is the same everywhere, it joins the parameters
        self.register_buffer("permutation", permutation.to(device))
        self.register_buffer("inverse_permutation", permutation.argsort().to(device))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., self.permutation], x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y[..., self.inverse_permutation], y.new_zeros(y.shape[:-1])

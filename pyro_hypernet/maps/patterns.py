"""Patterned: weights multiplied by low-rank patterns, whose strengths a few of the weights carry."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_hypernet.maps.bijection import Bijection, widened
from pyro_hypernet.maps.linear import Affine

# Of the logarithm of a factor: a pattern multiplies by e^2 at most, however far the noise is out.
_MOST = 2.0


class Patterned(Bijection):
    """A diagonal Gaussian whose weight matrices are multiplied by `exp(A diag(z) B)`, in first order `1 + A diag(z) B`.

    Of every matrix with noise E, r entries z of E itself, its *carriers*, say how strong r learnt patterns are, of
    which pattern k has rank one, `A[:, k] B[k, :]`:

        W = (loc + scale ⊙ E) ⊙ exp(P),   P = 2 tanh(A diag(z) B / 2), and 0 at the carriers.

    The carriers depend on their own noise alone; given them, all others are multiplied by numbers that are known: a
    triangular map, so `log|det| = Σ log scale + Σ P` is exact, and the inverse reads z off the carriers first. A is
    zero at the start.

    Args:
        loc: Centres at the start, shape `(D,)`.
        scale: Standard deviations at the start, positive, shape `(D,)`.
        shapes: Of every matrix its first coordinate, its rows and its columns.
        carriers: Of every matrix the coordinates that carry its strengths, shape `(r,)`, int64.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, shapes: Sequence[tuple[int, int, int]], carriers: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.affine = Affine(loc, scale)
        sizes = [(rows, columns, len(z)) for (_, rows, columns), z in zip(shapes, carriers, strict=True)]
        self.left = nn.ParameterList(loc.new_zeros(rows, rank) for rows, _, rank in sizes)
        self.right = nn.ParameterList(torch.randn(rank, columns).to(loc) for _, columns, rank in sizes)
        self.starts = [start for start, _, _ in shapes]
        for number, z in enumerate(carriers):
            self.register_buffer(f"carriers_{number}", z.to(loc.device))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, log_det = self.affine.forward_and_log_det(x)
        log_factors = self._log_factors(x)
        return w * log_factors.exp(), log_det + widened(log_factors).sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_factors = self._log_factors(self.affine.inverse_and_log_det(y)[0])  # carriers are not multiplied
        x, log_det = self.affine.inverse_and_log_det(y * (-log_factors).exp())
        return x, log_det - widened(log_factors).sum(-1)

    def _log_factors(self, x: Tensor) -> Tensor:
        """P of noise that is right at the carriers, shape `(..., D)`."""
        parts, end = [], 0
        for number, (start, left, right) in enumerate(zip(self.starts, self.left, self.right, strict=True)):
            carriers = getattr(self, f"carriers_{number}")
            pattern = ((x[..., None, carriers] * left) @ right).flatten(-2)
            pattern = _MOST * (pattern / _MOST).tanh()
            parts += [x.new_zeros((*x.shape[:-1], start - end)), pattern.index_fill(-1, carriers - start, 0.0)]
            end = start + pattern.shape[-1]
        return torch.cat([*parts, x.new_zeros((*x.shape[:-1], x.shape[-1] - end))], -1)

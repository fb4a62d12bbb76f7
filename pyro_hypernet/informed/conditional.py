"""A block of weights drawn from a Gaussian given all the others, by a linear model's own formulas."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_hypernet.informed.linear_block import LinearBlock, Linearised
from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.model.arguments import Arguments

# Rows are mapped in chunks of about so many numbers.
_CHUNK = 2**20


class GaussianConditional(Bijection):
    """Draws a block b of the weights given the others a: `b = m(a) + L(a)⁻ᵀ x_b`, `L Lᵀ` the conditional precision.

    The observations' locations are affine in b. A Gaussian pseudo-likelihood with learnt targets and precisions, times
    the prior, gives m and L by least squares. With normal likelihoods and priors that is the exact conditional
    posterior, and nothing is learnt; elsewhere targets and precisions are learnt with everything else. The map is
    a bijection with exact log determinant: a passes, and b moves by a triangular matrix that depends on a.

    Kin: pseudo-targets as in Ober and Aitchison 2021 (arXiv 2005.08140), there for every layer at learnt inputs, here
    for what is linear at the data of `setup`, which the map keeps as buffers.

    Args:
        targets: Pseudo-targets, shape `(n,)`.
        log_precisions: Log precisions relative to the likelihood's own, shape `(n,)`.
    """

    def __init__(
        self, linear_block: LinearBlock, targets: Tensor, log_precisions: Tensor, args: tuple, kwargs: dict
    ) -> None:
        super().__init__()
        self.linear_block = linear_block
        self.arguments = Arguments(args, kwargs)
        self.register_buffer("index", linear_block.index.to(torch.empty(0).device))
        zeros = targets.new_zeros(len(linear_block.index))
        start = {"targets": targets, "log_precisions": log_precisions}
        for name, value in {**start, "prior_shift": zeros, "prior_log_precision": zeros}.items():
            if linear_block.is_exact:  # nothing to learn: what is known would only be shaken
                self.register_buffer(name, value.clone())
            else:
                self.register_parameter(name, nn.Parameter(value.clone()))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_chunks(self._forward, x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_chunks(self._backward, y)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centre, factor, log_det = self._conditional(x)
        noise = x[:, self.index].double()[..., None]
        block = torch.linalg.solve_triangular(factor.mT, centre + noise, upper=True)[..., 0]
        return x.index_copy(1, self.index, block.to(x)), -log_det.to(x)

    def _backward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        centre, factor, log_det = self._conditional(y)
        noise = (factor.mT @ y[:, self.index].double()[..., None] - centre)[..., 0]
        return y.index_copy(1, self.index, noise.to(y)), log_det.to(y)

    def _conditional(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`Lᵀ mean`, Cholesky factor L of the precision and its log determinant, in float64, for rows of `w`."""
        centre, factor, _ = self.solve(self.linear_block(w, *self.arguments.values()))
        return centre, factor, factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def solve(self, answer: Linearised) -> tuple[Tensor, Tensor, Tensor]:
        """The least squares themselves, for the answer of S weights.

        Returns:
            `Lᵀ mean`, shape `(S, B, 1)`; the Cholesky factor L of the precision, shape `(S, B, B)`; both float64; and
            whether it is that factor, shape `(S,)`, and not what stands for one where rounding left none.
        """
        dtype = torch.float64 if self.linear_block.is_sharp else answer.offset.dtype
        jacobian = answer.jacobian.to(dtype)
        own, learnt = answer.log_precision.to(dtype), self.log_precisions.to(dtype).exp()
        prior = self.prior_log_precision.double().exp() / answer.prior_scale.double() ** 2
        residual = (self.targets - answer.offset).to(dtype)
        if self.linear_block.is_constant and self.linear_block.is_level:
            # One product serves all rows, which differ by a factor.
            weighted, factors = jacobian[0] * learnt[:, None], own[:, 0].exp()
            total = (weighted.mT @ jacobian[0]).double() * factors[:, None, None].double()
            pull = (residual @ weighted).double() * factors[:, None].double()
        else:
            weighted = jacobian * (own.exp() * learnt)[..., None]
            total = (weighted.mT @ jacobian).double()
            pull = (weighted.mT @ residual[..., None])[..., 0].double()
        loc = (answer.prior_loc + self.prior_shift).double()
        if answer.prior_jacobian is None:
            total, pull = total + torch.diag_embed(prior), pull + prior * loc
        else:  # b − A b is normal around loc
            eye = torch.eye(len(self.index), dtype=prior.dtype, device=prior.device)
            nested = eye - answer.prior_jacobian.double()
            weighted = nested * prior[..., None]
            total, pull = total + weighted.mT @ nested, pull + (weighted.mT @ loc[..., None])[..., 0]
        factor, pull, is_one = _factor(total, pull, torch.finfo(dtype).eps)
        # Not cholesky_solve: on a GPU no CUDA graph can hold it.
        return torch.linalg.solve_triangular(factor, pull[..., None], upper=False), factor, is_one

    def _in_chunks(self, function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        rows = max(1, _CHUNK // (len(self.targets) * (len(self.index) + 1)))
        # Equal chunks, so that few graphs are captured.
        parts = [function(part) for part in flat.split(rows)]
        values, log_dets = (torch.cat(part) for part in zip(*parts, strict=True))
        return values.reshape(x.shape), log_dets.reshape(x.shape[:-1])


def _factor(total: Tensor, pull: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """A Cholesky factor of a precision at any weights, its pull, and whether it is one: any such map is a bijection.

    The diagonal grows by what was lost in rounding, which is what a singular matrix has in place of its smallest
    eigenvalues; where even that fails the factor is diagonal, and where the model gave no numbers it is one.
    The precisions, `total`, are of shape `(S, B, B)`, the pull, precision times mean, of `(S, B)`.
    """
    size = total.shape[-1]
    known = (total.sum((-1, -2)) + pull.sum(-1)).isfinite()[:, None]
    total = total + torch.diag_embed(size * rounding * total.diagonal(dim1=-2, dim2=-1))
    total = torch.where(known[..., None], total, torch.eye(size, dtype=total.dtype, device=total.device))
    factor, info = torch.linalg.cholesky_ex(total)
    alone = torch.diag_embed(total.diagonal(dim1=-2, dim2=-1).sqrt())
    is_one = info == 0
    return torch.where(is_one[:, None, None], factor, alone), torch.where(known, pull, 0.0), is_one

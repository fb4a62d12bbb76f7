"""Maps from unconstrained values to supports, exact in float32 also where values lie next to a boundary."""

import math
from typing import Any

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import CorrCholeskyTransform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import softplus


class StableCorrCholesky(CorrCholeskyTransform):
    """Torch's map to Cholesky factors of correlations, its log determinant from the unconstrained value.

    Torch takes `log(1 − sum y²)` of rounded values, which is −∞ or no number where a row has been used up; of the same
    rows `1 − sum y²` is a product of `1 − tanh² x`, whose logarithm is known at any x.
    """

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: Any = None) -> Tensor:
        log_left = 2 * (math.log(2) - x - softplus(-2 * x))  # log(1 − tanh² x)
        rows = vec_to_tril_matrix(log_left, diag=-1).cumsum(-1)
        return log_left.sum(-1) + 0.5 * tril_matrix_to_vec(rows, diag=-2).sum(-1)


class _StableCorrCholesky(type(constraints.corr_cholesky)):
    """Torch's support under another name, so that `biject_to` of it is the stable map."""


biject_to.register(_StableCorrCholesky, lambda _: StableCorrCholesky())


def stable(support: constraints.Constraint) -> constraints.Constraint:
    """The support itself; where torch's map to it is not stable, the same under the name of one that is."""
    if type(support) is type(constraints.corr_cholesky):
        return _StableCorrCholesky()
    if isinstance(support, constraints.independent):
        base = stable(support.base_constraint)
        if base is not support.base_constraint:
            return constraints.independent(base, support.reinterpreted_batch_ndims)
    return support


def transform_to(support: constraints.Constraint) -> Transform:
    """The bijection from unconstrained values to a support."""
    return biject_to(stable(support))

"""Maps from unconstrained values to supports, exact in float32 also where values lie next to a boundary."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import constraints as pyros
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import CorrCholeskyTransform, ExpTransform, StickBreakingTransform
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import logsigmoid, pad, softplus

# Between e^±40 lie numbers of float32 whose squares and quotients are numbers, too.
_FURTHEST = 40.0


class StableCorrCholesky(CorrCholeskyTransform):
    """Torch's map to Cholesky factors of correlations, by logarithms of what is left of a row.

    Torch takes `1 − sum y²` of rounded values, which is zero or less where a row has been used up; of the same rows it
    is a product of `1 − tanh² x`, whose logarithm is known at any x, and a sum of what follows in the row.
    """

    def _call(self, x: Tensor) -> Tensor:
        values = vec_to_tril_matrix(x, diag=-1)
        left = _log_left(values).cumsum(-1) / 2  # the log of what the row has left, after every column
        left = pad(left[..., :-1], [1, 0]).clamp(min=-_FURTHEST)
        below = torch.ones_like(values).tril(-1)
        return left.exp() * (values.tanh() * below + torch.eye(values.shape[-1]).to(values))

    def _inverse(self, y: Tensor) -> Tensor:
        rest = (y * y).flip(-1).cumsum(-1).flip(-1)  # a row's sum of squares, from every column on
        rest = pad(rest[..., 1:], [0, 1]).clamp(min=torch.finfo(y.dtype).tiny)
        return tril_matrix_to_vec((y / rest.sqrt()).asinh(), diag=-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: Any = None) -> Tensor:
        log_left = _log_left(x)
        rows = vec_to_tril_matrix(log_left, diag=-1).cumsum(-1)
        return log_left.sum(-1) + 0.5 * tril_matrix_to_vec(rows, diag=-2).sum(-1)


def _log_left(x: Tensor) -> Tensor:
    """log(1 − tanh² x)."""
    return 2 * (math.log(2) - x.abs() - softplus(-2 * x.abs()))


class StableCorrMatrix(Transform):
    """Pyro's map to correlation matrices, mixed with as much of the identity as they need to have a Cholesky factor.

    In float32 the product of a factor and its transpose may have none, and a prior that asks for it raises an error;
    a part of `8 d` roundings of the identity leaves a bijection, to all matrices that can be told from singular ones.
    """

    bijective = True
    domain = constraints.real_vector
    codomain = pyros.corr_matrix
    _factor = StableCorrCholesky()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StableCorrMatrix)

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        part = _part(factor)
        identity = torch.eye(factor.shape[-1]).to(factor)
        return (1 - part) * (factor @ factor.mT) * (1 - identity) + identity

    def _inverse(self, y: Tensor) -> Tensor:
        identity = torch.eye(y.shape[-1]).to(y)
        whole = y * (1 - identity) / (1 - _part(y)) + identity
        factor, failures = torch.linalg.cholesky_ex(whole)
        rounded, _ = torch.linalg.cholesky_ex(y)  # of what only rounding has taken out of the image
        return self._factor.inv(torch.where((failures == 0)[..., None, None], factor, rounded))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        size = y.shape[-1]
        order = torch.arange(size - 1, -1, -1).to(x)
        log_diagonal = vec_to_tril_matrix(_log_left(x), diag=-1).sum(-1) / 2
        whole = self._factor.log_abs_det_jacobian(x, y) + (order * log_diagonal).sum(-1)
        return whole + size * (size - 1) / 2 * math.log1p(-_part(y))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return self._factor.forward_shape(shape)

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return self._factor.inverse_shape(shape)


def _part(matrix: Tensor) -> float:
    return 8 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps


class StableStickBreaking(StickBreakingTransform):
    """Torch's map to simplices, by logarithms of what is left of the stick, so that no part of it is zero."""

    def _call(self, x: Tensor) -> Tensor:
        return self._log_parts(x).exp().clamp(min=torch.finfo(x.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return y[..., :-1].log() - left.log() + _log_offsets(y[..., 1:])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return (logsigmoid(_log_offsets(x) - x) + self._log_parts(x)[..., :-1]).sum(-1)

    @staticmethod
    def _log_parts(x: Tensor) -> Tensor:
        logits = x - _log_offsets(x)
        return pad(logsigmoid(-logits).cumsum(-1), [1, 0]) + pad(logsigmoid(logits), [0, 1])


def _log_offsets(x: Tensor) -> Tensor:
    """Logarithms of how many parts of the stick follow."""
    return torch.arange(x.shape[-1], 0, -1).to(x).log()


class StableOrdered(Transform):
    """Pyro's map to ordered vectors; entries that rounding has made equal are moved apart by as much as it takes."""

    bijective = True
    domain = constraints.real_vector
    codomain = pyros.ordered_vector

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def _call(self, x: Tensor) -> Tensor:
        return _apart(torch.cat([x[..., :1], x[..., 1:].exp()], -1).cumsum(-1))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1], y.diff(dim=-1).log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., 1:].sum(-1)


class StablePositiveOrdered(StableOrdered):
    """The exponential of an ordered vector, as far as it is a number."""

    codomain = pyros.positive_ordered_vector

    def _call(self, x: Tensor) -> Tensor:
        logs = torch.cat([x[..., :1], x[..., 1:].exp()], -1).cumsum(-1)
        return _apart(logs.clamp(-_FURTHEST, _FURTHEST).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., :1].log(), (y.diff(dim=-1) / y[..., :-1]).log1p().log()], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return super().log_abs_det_jacobian(x, y) + y.log().sum(-1)


def _apart(values: Tensor) -> Tensor:
    """The same where every entry is greater than the one before; else the next number after that one."""
    parts = [values[..., 0]]
    for value in values[..., 1:].unbind(-1):
        parts.append(torch.maximum(value, _next(parts[-1], 1)))
    return torch.stack(parts, -1)


def _next(value: Tensor, sign: int) -> Tensor:
    """A number one or two roundings away, upwards or downwards."""
    return value + sign * (value.abs() * torch.finfo(value.dtype).eps + torch.finfo(value.dtype).tiny)


class StableOneSided(ExpTransform):
    """All numbers beyond an end, `end ± exp(x)`; what rounding has put on the end lies next to it."""

    def __init__(self, end: float | Tensor, *, is_above: bool) -> None:
        super().__init__()
        self.end, self.is_above = end, is_above
        self.codomain = (constraints.greater_than if is_above else constraints.less_than)(end)

    @property
    def sign(self) -> int:
        return 1 if self.is_above else -1

    def __eq__(self, other: object) -> bool:
        is_same = isinstance(other, StableOneSided) and self.is_above == other.is_above
        return is_same and bool((torch.as_tensor(self.end) == torch.as_tensor(other.end)).all())

    def _call(self, x: Tensor) -> Tensor:
        end = torch.as_tensor(self.end).to(x)
        further = torch.maximum if self.is_above else torch.minimum
        return further(end + self.sign * x.exp(), _next(end, self.sign))

    def _inverse(self, y: Tensor) -> Tensor:
        return (self.sign * (y - self.end)).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class _Stable(constraints.Constraint):
    """A support under another name, so that `biject_to` of it is the stable map."""

    def __init__(self, support: constraints.Constraint) -> None:
        super().__init__()
        self.support = support

    @property
    def is_discrete(self) -> bool:
        return self.support.is_discrete

    @property
    def event_dim(self) -> int:
        return self.support.event_dim

    def check(self, value: Tensor) -> Tensor:
        return self.support.check(value)


_MAPS: dict[type, Callable[[Any], Transform]] = {
    type(constraints.corr_cholesky): lambda _: StableCorrCholesky(),
    type(pyros.corr_matrix): lambda _: StableCorrMatrix(),
    type(constraints.simplex): lambda _: StableStickBreaking(),
    type(pyros.ordered_vector): lambda _: StableOrdered(),
    type(pyros.positive_ordered_vector): lambda _: StablePositiveOrdered(),
    constraints.greater_than: lambda support: StableOneSided(support.lower_bound, is_above=True),
    constraints.greater_than_eq: lambda support: StableOneSided(support.lower_bound, is_above=True),
    constraints.less_than: lambda support: StableOneSided(support.upper_bound, is_above=False),
}
biject_to.register(_Stable, lambda support: _MAPS[type(support.support)](support.support))


def stable(support: constraints.Constraint) -> constraints.Constraint:
    """The support itself; where torch's map to it is not stable, the same under the name of one that is."""
    end = getattr(support, "lower_bound", getattr(support, "upper_bound", None))
    if type(support) in _MAPS and not (isinstance(end, int | float) and end == 0):  # exp itself is stable
        return _Stable(support)
    if isinstance(support, constraints.independent):
        base = stable(support.base_constraint)
        if base is not support.base_constraint:
            return constraints.independent(base, support.reinterpreted_batch_ndims)
    return support


def transform_to(support: constraints.Constraint) -> Transform:
    """The bijection from unconstrained values to a support."""
    return biject_to(stable(support))

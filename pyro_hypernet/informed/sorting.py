"""Maps that respect a group of symmetries: noise and weights change places by the same permutations and flips."""

import math

import torch
from torch import Tensor, nn

from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.maps.bijection import Bijection, Chain
from pyro_hypernet.maps.linear import ShiftAndScale

_LOG2 = math.log(2)
# Beyond this −log probability the normal's quantile function gives up, in float64.
_FAR = 600.0
# Of tails, which underflow 38 standard deviations out; and of the spacings of two keys, which rounding may make equal.
_LEAST, _LEAST_SPACING = 1e-300, 1e-30


class Sorted(Bijection):
    """Sends R^H to sorted numbers, so that standard normal noise becomes sorted standard normal draws.

    The spacings of sorted draws are, up to known factors, independent exponentials after the map to the tail's log
    probability (Rényi 1953), and these come from independent normals.

    Args:
        keys: The coordinates to sort, shape `(H,)`; all others pass.
        positive: Whether they become absolute values, so half-normal.
    """

    def __init__(self, keys: Tensor, positive: bool) -> None:
        super().__init__()
        device = torch.empty(0).device
        self.positive = positive
        # Not saved: the group of symmetries, which the guide describes in its file, says them.
        self.register_buffer("keys", keys.to(device), persistent=False)
        left = torch.arange(len(keys), 0, -1, dtype=torch.float64, device=device)
        self.register_buffer("left", left, persistent=False)
        self.log_order = math.lgamma(len(keys) + 1) + (len(keys) * _LOG2 if positive else 0.0)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eta = x[..., self.keys].double()
        tails = (_tail(eta) / self.left).cumsum(-1)
        y = _half_normal_of_tail(tails) if self.positive else _normal_of_tail(tails)
        return x.index_copy(-1, self.keys, y.to(x)), self._log_det(eta, y).to(x)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        keys = y[..., self.keys].double()
        tails = _tail_of_half_normal(keys) if self.positive else _tail(keys)
        spacings = torch.diff(tails, dim=-1, prepend=torch.zeros_like(tails[..., :1])) * self.left
        eta = _normal_of_tail(spacings.clamp(min=_LEAST_SPACING))
        return y.index_copy(-1, self.keys, eta.to(y)), -self._log_det(eta, keys).to(y)

    def _log_det(self, eta: Tensor, y: Tensor) -> Tensor:
        """Both sides are standard normal, the image on one of |G| parts of the space."""
        return (y**2 - eta**2).sum(-1) / 2 - self.log_order


class KeyedAffine(ShiftAndScale):
    """Shift and scale, where the keys of a group of symmetries are only scaled, all by one fixed number.

    Args:
        loc: Image of the origin, shape `(D,)`; ignored at the keys.
        scale: Positive, shape `(D,)`.
        fixed: Coordinates that are only scaled, and not learnt, shape `(k,)`.
    """

    def __init__(self, loc: Tensor, scale: Tensor, fixed: Tensor) -> None:
        super().__init__()
        free = torch.ones_like(loc).index_fill(0, fixed.to(loc.device), 0.0)
        self.register_buffer("free", free)
        self.register_buffer("log_scale", scale.log())
        self.loc = nn.Parameter(loc * free)
        self.log_stretch = nn.Parameter(torch.zeros_like(loc))

    def loc_and_log_scale(self) -> tuple[Tensor, Tensor]:
        return self.loc * self.free, self.log_scale + self.log_stretch * self.free


class Symmetrized(Bijection):
    """`T(g eps) = g T(eps)` for every symmetry g: what `inner` does in one part of the space, done in all of them.

    Noise is made canonical by a symmetry (keys sorted, and positive where signs flip), mapped, and moved back by the
    same symmetry. Standard normal noise is as likely in every part, so draws cover all symmetric modes alike, and log q
    is exact with its −log|G|, at the price of one mode.

    Args:
        inner: From R^D, standard normal, to the canonical part of weight space; its last step but affine maps that keep
            the order is `sort`.
        sort: `Sorted` for every group, so that its inverse sends canonical noise to R^D.
        symmetries: The group.
    """

    def __init__(self, inner: Bijection, sort: Chain, symmetries: Symmetries) -> None:
        super().__init__()
        self.inner = inner
        self.sort = sort
        self.symmetries = symmetries

    @property
    def suits_path_gradient(self) -> bool:
        return False  # the score may grow like one over the distance of two keys: no finite variance

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.symmetries = self.symmetries.to(x.device)
        canonical, moves = self.symmetries.canonicalise(x.reshape(-1, x.shape[-1]))
        normal, log_det = self.sort.inverse_and_log_det(canonical)
        y, more = self.inner.forward_and_log_det(normal)
        return self.symmetries.undo(y, moves).reshape(x.shape), (log_det + more).reshape(x.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.symmetries = self.symmetries.to(y.device)
        canonical, moves = self.symmetries.canonicalise(y.reshape(-1, y.shape[-1]))
        normal, log_det = self.inner.inverse_and_log_det(canonical)
        x, more = self.sort.forward_and_log_det(normal)
        return self.symmetries.undo(x, moves).reshape(y.shape), (log_det + more).reshape(y.shape[:-1])


def _tail(z: Tensor) -> Tensor:
    """−log P(Z > z) for standard normal Z."""
    return -torch.special.log_ndtr(-z).clamp(max=-_LEAST)


def _tail_of_half_normal(z: Tensor) -> Tensor:
    """−log P(|Z| > z), exact also where z is near zero."""
    near = z < 1
    inner = -torch.log1p(-torch.special.erf(torch.where(near, z, 0.5) / math.sqrt(2)))
    return torch.where(near, inner, _tail(torch.where(near, 1.0, z)) - _LOG2)


# In both inverses every branch is fed harmless numbers where another is used, lest its NaN gradients leak.
def _normal_of_tail(tail: Tensor) -> Tensor:
    """The z with −log P(Z > z) = tail."""
    low, far = tail < _LOG2, tail > _FAR
    below = torch.special.ndtri(-torch.expm1(-torch.where(low, tail, 0.5)))
    above = -torch.special.ndtri(torch.exp(-torch.where(low, 1.0, tail.clamp(max=_FAR))))
    return _with_far(torch.where(low, below, above), far, tail)


def _half_normal_of_tail(tail: Tensor) -> Tensor:
    """The z > 0 with −log P(|Z| > z) = tail."""
    low, far = tail < 1, tail > _FAR
    below = math.sqrt(2) * torch.special.erfinv(-torch.expm1(-torch.where(low, tail, 0.5)))
    above = -torch.special.ndtri(torch.exp(-torch.where(low, 1.0, tail.clamp(max=_FAR))) / 2)
    return _with_far(torch.where(low, below, above), far, tail)


def _with_far(near: Tensor, far: Tensor, tail: Tensor) -> Tensor:
    """Where the tail's probability underflows: the tail grows like z² / 2, up to a logarithm."""
    edge = torch.where(far, near, 1.0)
    beyond = torch.where(far, tail - _FAR, 0.0)
    return torch.where(far, (edge**2 + 2 * beyond).sqrt(), near)

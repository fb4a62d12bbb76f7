"""A bound on how fast unconstrained coordinates run away, so that what they stand for stays a number in float32."""

import torch
from torch import Tensor, nn

from pyro_hypernet.maps.bijection import Bijection, Chain
from pyro_hypernet.model.layout import Layout

# Within so much of the centre nothing changes. e^±16 are positive values of 1e7 and 1e-7, and logits at which a float32
# can no longer tell a probability from one. Beyond, one that is a thousand away adds 2: densities divide by the
# fourth power of a scale on their way to a gradient, and e^-22 to the fourth is the end of float32.
RANGE, SLOWNESS = 16.0, 0.25
# No centre is further out: e^±56 and its inverse are numbers.
_FURTHEST = 40.0


class Bounded(Bijection):
    """`y = x` near the centre, beyond the range `y = centre ± (range + s log(1 + excess / s))`, in some coordinates.

    A bijection of R^D with a continuous derivative. Weights that run away, as they do now and then under a step size
    that is too great, then reach the ends of their support slowly: exp does not overflow, and no scale becomes zero.

    Args:
        index: The coordinates, shape `(k,)`.
        centre: Their centres, shape `(k,)`.
        slowness: s; the less, the slower.
    """

    def __init__(self, index: Tensor, centre: Tensor, slowness: float = SLOWNESS) -> None:
        super().__init__()
        self.slowness = slowness
        self.register_buffer("index", index.to(torch.empty(0).device))
        self.register_buffer("centre", centre.detach().clone())

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        away = x[..., self.index] - self.centre
        stretch = ((away.abs() - RANGE).clamp(min=0) / self.slowness).log1p()
        near = away.clamp(-RANGE, RANGE)
        return self._place(x, self.centre + near + away.sign() * self.slowness * stretch), -stretch.sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        away = y[..., self.index] - self.centre
        stretch = (away.abs() - RANGE).clamp(min=0) / self.slowness
        near = away.clamp(-RANGE, RANGE)
        return self._place(y, self.centre + near + away.sign() * self.slowness * stretch.expm1()), stretch.sum(-1)

    def _place(self, x: Tensor, values: Tensor) -> Tensor:
        return x.index_copy(-1, self.index, values.to(x))


def bounds(layout: Layout, loc: Tensor, *, shared: Tensor | None = None) -> list[Bounded]:
    """The bound on all coordinates of sites on a constrained support; nothing where there is none.

    Args:
        layout: The sites.
        loc: Centres, shape `(D,)`.
        shared: Coordinates that symmetries carry into others, or flip; their centre is zero.
    """
    parts = [torch.arange(s.start, s.start + s.size, device="cpu") for s in layout.sites if not s.is_unconstrained]
    if not parts:
        return []
    index = torch.cat(parts)
    if shared is not None:
        loc = loc.index_fill(0, shared.to(loc.device), 0.0)
    return [Bounded(index, loc[index.to(loc.device)].clamp(-_FURTHEST, _FURTHEST))]


def is_bounded(bijection: Bijection) -> bool:
    """Whether there is a bound somewhere in a map."""
    return any(isinstance(part, Bounded) for part in bijection.modules())


def slowness_of(bijection: Bijection) -> float | None:
    """That of a map's bounds; None where there are none."""
    return next((part.slowness for part in bijection.modules() if isinstance(part, Bounded)), None)


def drop_bounds(bijection: Bijection) -> None:
    """Takes all bounds out of a map, as it was in files of version 1."""
    for chain in bijection.modules():
        if isinstance(chain, Chain):
            chain.bijections = nn.ModuleList(part for part in chain.bijections if not isinstance(part, Bounded))


def loosen_bounds(bijection: Bijection) -> None:
    """Makes all bounds of a map those of files up to version 2."""
    for part in bijection.modules():
        if isinstance(part, Bounded):
            part.slowness = 1.0

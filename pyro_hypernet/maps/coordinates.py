"""Coordinates of weight space, and the map that moves them and leaves the rest."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_hypernet.maps.bijection import Bijection, widened
from pyro_hypernet.maps.bounds import SLOWNESS

# Log norms that are further above where they start, by a factor of 3 000, are slowed down.
_NORM_RANGE = 8.0
# The groups of so many weights are short integers, which take half the memory: sums of few are faster by long ones.
_MANY = 2**17


class Coordinates(nn.Module):
    """m coordinates of a point of R^D, that can be read and written back.

    For every point `read(write(u, read(u), new)) == new`, and writing what was read changes nothing.
    """

    def prepared(self) -> "Coordinates":
        """The same coordinates, with what `read` and `write` share worked out."""
        return self

    @abstractmethod
    def read(self, u: Tensor) -> Tensor:
        """The coordinates of `u`, shape `(..., D)` to `(..., m)`."""

    @abstractmethod
    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """The point like `u`, whose coordinates are `old`, with coordinates `new`: shape `(..., D)`."""

    def log_det(self, old: Tensor, new: Tensor) -> Tensor:
        """What writing adds to the log determinant of `old -> new`, shape `(...)`: nothing, unless it rescales."""
        return new.new_zeros(new.shape[:-1])

    def slow_down(self, new: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor | float]:
        """Coordinates of which those that run away do so slowly, or back, and the log determinant of that."""
        return new, 0.0


class All(Coordinates):
    """The point itself."""

    def read(self, u: Tensor) -> Tensor:
        return u

    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return new


class Subset(Coordinates):
    """Some of the coordinates.

    Args:
        index: Which, shape `(m,)`, int64, no two the same.
    """

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def read(self, u: Tensor) -> Tensor:
        return u[..., self.index]

    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return u.index_copy(-1, self.index, new)


class Subspace(Coordinates):
    """The components along r learnt orthonormal directions: `read(u) = Qᵀu`, in O(D r).

    The directions U are made orthonormal by the Cholesky factor of `UᵀU = L Lᵀ`: `Q = U L⁻ᵀ` is never formed, and
    nothing larger than U itself is made.

    Args:
        dim: D.
        rank: r, between 1 and D.

    Raises:
        ValueError: If the rank is out of its range.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        if not 1 <= rank <= dim:
            raise ValueError(f"rank must be between 1 and the number of weights, {dim}; got {rank}.")
        self.directions = nn.Parameter(torch.randn(dim, rank) / dim**0.5)

    def prepared(self) -> Coordinates:
        return _Along(self.directions, self._inverse_factor())

    def read(self, u: Tensor) -> Tensor:
        return self.prepared().read(u)

    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return self.prepared().write(u, old, new)

    def _inverse_factor(self) -> Tensor:
        """`L⁻¹`, shape `(r, r)`; in float64, for UᵀU squares the condition of the directions."""
        fixed = self.directions.detach()
        half = fixed.mT @ self.directions
        # UᵀU in value, and in its first derivative too, which is then one product with D rows instead of two.
        gram = (half + half.mT - half.detach()).double()
        factor = torch.linalg.cholesky_ex(gram).L
        one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor, one, upper=False).to(self.directions)


class _Along(Coordinates):
    """Components along `Q = U L⁻ᵀ`, its factors given."""

    def __init__(self, directions: Tensor, inverse_factor: Tensor) -> None:
        super().__init__()
        self._factors = directions, inverse_factor  # a tuple, lest the module takes the parameter for its own

    def read(self, u: Tensor) -> Tensor:
        directions, inverse_factor = self._factors
        return u @ directions @ inverse_factor.mT

    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        directions, inverse_factor = self._factors
        return u + (new - old) @ inverse_factor @ directions.mT


class GroupNorms(Coordinates):
    """The log norm of every group of weights, and the free weights themselves.

    Writing a log norm rescales the group, which keeps its direction: in polar coordinates `dw = r^d d(log r) dΩ`, so
    that d weights whose log norm moves from `old` to `new` add `d (new − old)` to the log determinant. All coordinates
    are standardised by where they lie at the start, so that a network sees values of order one.

    Args:
        group: For every weight the number of its group, or −1 for a free weight; shape `(D,)`, int64.
        loc: Centre of the weights at the start, shape `(D,)`.
        scale: Their standard deviations at the start, shape `(D,)`.
    """

    def __init__(self, group: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.num_groups = int(group.max()) + 1
        free = (group < 0).nonzero()[:, 0]
        group = group.index_fill(0, free, self.num_groups)  # the free ones are a group more, that nothing reads
        sizes = torch.bincount(group, minlength=self.num_groups)[: self.num_groups]
        self.register_buffer("free", free.to(loc.device))
        dtype = torch.int32 if len(group) >= _MANY else torch.long
        self.register_buffer("group", group.to(loc.device, dtype), persistent=False)
        self.register_buffer("sizes", sizes.to(loc))
        # At loc = 0 the log norm of loc is −inf; of the root mean square it is finite everywhere.
        square = self._sum_by_group(loc**2 + scale**2)
        # The delta method on half the log of the squared norm: (2d)^(-1/2) at loc = 0, less where loc is the larger.
        variance = self._sum_by_group(2 * scale**4 + 4 * loc**2 * scale**2)
        spread = variance.sqrt() / (2 * square)
        self.register_buffer("centre", torch.cat([square.log() / 2, loc[self.free]]))
        self.register_buffer("spread", torch.cat([spread, scale[self.free]]))

    def read(self, u: Tensor) -> Tensor:
        log_norms = self._sum_by_group(u**2).log() / 2
        return (torch.cat([log_norms, u[..., self.free]], dim=-1) - self.centre) / self.spread

    def write(self, u: Tensor, old: Tensor, new: Tensor) -> Tensor:
        growth = ((new - old) * self.spread)[..., : self.num_groups]
        factors = functional.pad(growth.exp(), (0, 1)).index_select(-1, self.group)
        free = (new * self.spread + self.centre)[..., self.num_groups :]
        return (u * factors).index_copy(-1, self.free, free)

    def log_det(self, old: Tensor, new: Tensor) -> Tensor:
        growth = ((new - old) * self.spread)[..., : self.num_groups]
        return (widened(growth) * self.sizes).sum(-1)

    def slow_down(self, new: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor | float]:
        # Upwards alone: a norm may well be next to nothing, also at the start.
        above, s = new[..., : self.num_groups] * self.spread[: self.num_groups], SLOWNESS
        excess = (above - _NORM_RANGE).clamp(min=0)
        slowed = s * (torch.expm1(excess / s) if backwards else torch.log1p(excess / s))
        log_det = excess.sum(-1) / s if backwards else -slowed.sum(-1) / s
        shift = (slowed - excess) / self.spread[: self.num_groups]
        return new + functional.pad(shift, (0, len(self.spread) - self.num_groups)), log_det

    def _sum_by_group(self, values: Tensor) -> Tensor:
        zeros = values.new_zeros((*values.shape[:-1], self.num_groups + 1))
        return zeros.index_add(-1, self.group, values)[..., : self.num_groups]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As files have it: the numbers of the grouped weights, and the group of each."""
        grouped = (self.group < self.num_groups).nonzero()[:, 0]
        destination |= {f"{prefix}grouped": grouped, f"{prefix}free": self.free}
        destination[f"{prefix}group"] = self.group[grouped].long()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        grouped, group = (state_dict.pop(f"{prefix}{name}", None) for name in ("grouped", "group"))
        if grouped is not None and group is not None:
            self.group.fill_(self.num_groups)
            self.group[grouped.to(self.group.device)] = group.to(self.group)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Steer(Bijection):
    """Reads coordinates, moves them by a hypernetwork, writes them back.

    Args:
        coordinates: Which.
        hypernet: The map that moves them, of R^m.
    """

    def __init__(self, coordinates: Coordinates, hypernet: Bijection) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.hypernet = hypernet

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coordinates = self.coordinates.prepared()
        old = coordinates.read(x)
        new, log_det = self.hypernet.forward_and_log_det(old)
        new, slowed = coordinates.slow_down(new)
        return coordinates.write(x, old, new), log_det + coordinates.log_det(old, new) + slowed

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        coordinates = self.coordinates.prepared()
        new = coordinates.read(y)
        moved, slowed = coordinates.slow_down(new, backwards=True)
        old, log_det = self.hypernet.inverse_and_log_det(moved)
        return coordinates.write(y, new, old), log_det + coordinates.log_det(new, old) + slowed

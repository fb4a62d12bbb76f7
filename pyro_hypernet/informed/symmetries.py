"""Symmetries of a density: hidden units that may be permuted, and signs that may be flipped, found by trying."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.model.layout import Layout, Site

# A change that leaves the density as it was, up to rounding, at this many points is a symmetry.
_NUM_POINTS = 4
_ABSOLUTE, _RELATIVE = 1e-4, 1e-5
_MAX_SITES, _MAX_SCALARS, _MAX_TRIALS = 4, 8, 3000
_SCALAR = -1

Axis = tuple[str, int]


@dataclass(frozen=True)
class Units:
    """Units that may change places: the hidden units of one layer with all weights into and out of each.

    Attributes:
        axes: The sites, and the axis of each that counts units; −1 where the site is a single number.
        key_site: The site whose first weight of every unit tells units apart.
        flips: Whether the signs of all weights of a unit may be flipped at once, as under tanh.
        index: Flat coordinates of every unit, in the same order for all, shape `(H, k)`.
        keys: For every unit the coordinate that tells it from others, shape `(H,)`.
    """

    axes: tuple[Axis, ...]
    key_site: str
    flips: bool
    index: Tensor
    keys: Tensor

    @classmethod
    def make(cls, layout: Layout, axes: Sequence[Axis], key_site: str, flips: bool) -> "Units":
        """The units counted by these axes."""
        index = {name: _index(layout[name], axis) for name, axis in axes}
        return cls(tuple(axes), key_site, flips, torch.cat(list(index.values()), dim=1), index[key_site][:, 0])

    @property
    def log_order(self) -> float:
        """The log of the number of permutations and flips."""
        count = len(self.index)
        return math.lgamma(count + 1) + (count * math.log(2) if self.flips else 0.0)


@dataclass(frozen=True)
class _SignedPermutation:
    """A permutation and signs for every draw, both of shape `(S, H)`."""

    order: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Symmetries:
    """A group of symmetries of a density, acting on flat weights.

    Attributes:
        groups: Layers of units, in the order in which draws are made canonical.
    """

    groups: tuple[Units, ...] = ()

    @property
    def log_order(self) -> float:
        """log|G|, the log of the number of symmetric copies of a draw, in nats."""
        return sum(units.log_order for units in self.groups)

    def canonicalise(self, w: Tensor) -> tuple[Tensor, list[_SignedPermutation]]:
        """The one copy, `(S, D)`, whose keys are sorted, and positive where signs may flip; and the moves there."""
        moves = []
        for units in self.groups:
            keys = w[:, units.keys]
            signs = torch.where(keys < 0, -1.0, 1.0).to(w) if units.flips else torch.ones_like(keys)
            order = (keys * signs).argsort(-1)
            moves.append(_SignedPermutation(order, signs.gather(-1, order)))
            w = _apply(units, w, moves[-1])
        return w, moves

    def undo(self, w: Tensor, moves: Sequence[_SignedPermutation]) -> Tensor:
        """Applies the inverse of the moves that `canonicalise` returned to weights of shape `(S, D)`."""
        for units, move in zip(reversed(self.groups), reversed(moves), strict=True):
            back = move.order.argsort(-1)
            w = _apply(units, w, _SignedPermutation(back, move.signs.gather(-1, back)))
        return w

    def random_copies(self, w: Tensor) -> Tensor:
        """A symmetric copy of every draw, all copies equally likely, shape `(S, D)`."""
        for units in self.groups:
            noise = torch.rand((len(w), len(units.index)), device=w.device)
            signs = torch.where(torch.rand_like(noise) < 0.5, -1.0, 1.0) if units.flips else torch.ones_like(noise)
            w = _apply(units, w, _SignedPermutation(noise.argsort(-1), signs.to(w)))
        return w

    def to(self, device: torch.device) -> "Symmetries":
        """The same group with its indices on a device."""
        if all(units.index.device == device for units in self.groups):
            return self
        return Symmetries(tuple(replace(u, index=u.index.to(device), keys=u.keys.to(device)) for u in self.groups))

    def describe(self) -> list[dict[str, Any]]:
        """The group in lists and numbers, for a file."""
        return [{"axes": u.axes, "key_site": u.key_site, "flips": u.flips} for u in self.groups]

    @classmethod
    def from_description(cls, layout: Layout, described: list[dict[str, Any]]) -> "Symmetries":
        """The group that `describe` described."""
        return cls(
            tuple(
                Units.make(layout, [(name, axis) for name, axis in d["axes"]], d["key_site"], d["flips"])
                for d in described
            )
        )

    def __str__(self) -> str:
        signs = ", and their signs flipped"
        return "\n".join(
            f"found: {', '.join(name for name, _ in units.axes)}: {len(units.index)} hidden units that may be "
            f"reordered{signs if units.flips else ''}, which the posterior does not notice."
            for units in self.groups
        )


def find_symmetries(
    log_prob: Callable[[Tensor], Tensor], layout: Layout, points: Tensor, *, no_keys_in: Sequence[str] = ()
) -> Symmetries:
    """Tries which axes of the sites may be permuted together, and which weights may flip their signs together.

    Every set of two to four axes of equal length, each of another site, is tried at several points, and so are joint
    flips of sites of one number each. What leaves the density as it was, up to rounding, is a symmetry: nothing needs
    to be known of the model. Axes that may be permuted by themselves (exchangeable weights) are left alone.

    Args:
        log_prob: From flat weights `(S, D)` to log densities `(S,)`, or to several that must all stay, `(S, k)`.
        points: A few points at which to try, shape `(P, D)`, such as draws of the prior.
        no_keys_in: Sites that must not hold keys.
    """
    trial = _Trial(log_prob, points[:_NUM_POINTS])
    groups: list[Units] = []
    taken: set[Axis] = set()
    for axes in _candidates(layout, trial):
        key_site = next((name for name, _ in axes if name not in no_keys_in), None)
        if key_site is None or taken.intersection(axes):
            continue
        units = Units.make(layout, axes, key_site, True)
        permutes = axes[0][1] == _SCALAR or trial.permutes(units.index)
        if permutes:
            flips = trial.flips(units.index)
            if flips or axes[0][1] != _SCALAR:
                groups.append(replace(units, flips=flips))
                taken.update(axes)
    return Symmetries(tuple(_with_keys(groups, layout, no_keys_in))).to(points.device)


def _with_keys(groups: list[Units], layout: Layout, no_keys_in: Sequence[str]) -> Iterator[Units]:
    """The groups in an order in which no later one moves an earlier one's keys; those without such are left out."""
    while groups:
        for units in groups:
            moved = {name for other in groups if other is not units for name, _ in other.axes}
            key = next((name for name, _ in units.axes if name not in no_keys_in and name not in moved), None)
            if key is not None:
                break
        else:
            return
        yield Units.make(layout, units.axes, key, units.flips)
        groups = [other for other in groups if other is not units]


class _Trial:
    """The density at a few points, and whether a change of coordinates leaves it there."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor], points: Tensor) -> None:
        self.log_prob = log_prob
        self.points = points
        with torch.no_grad():
            self.values = log_prob(points)

    def permutes(self, index: Tensor) -> bool:
        """Whether the units of `index`, shape `(H, k)`, may change places."""
        # A turn and an exchange of two make all permutations; a random one might make few, such as turns of a ring.
        turn = torch.arange(len(index), device="cpu").roll(1)
        exchange = torch.arange(len(index), device="cpu")
        exchange[:2] = exchange[:2].flip(0)
        return self._permutes_by(index, exchange) and self._permutes_by(index, turn)

    def _permutes_by(self, index: Tensor, order: Tensor) -> bool:
        moved = self.points.clone()
        moved[:, index.flatten()] = self.points[:, index[order].flatten()]
        return self._unchanged(moved)

    def flips(self, index: Tensor) -> bool:
        """Whether all signs of a unit may flip."""
        chosen = index[0]  # one flip and all permutations make every flip; pairs would make pairs only
        moved = self.points.clone()
        moved[:, chosen] = -moved[:, chosen]
        return self._unchanged(moved)

    @torch.no_grad()
    def _unchanged(self, moved: Tensor) -> bool:
        difference = (self.log_prob(moved) - self.values).abs()
        return bool((difference <= _ABSOLUTE + _RELATIVE * self.values.abs()).all())  # NaN counts as a change


def _candidates(layout: Layout, trial: _Trial) -> Iterator[tuple[Axis, ...]]:
    """Sets of axes that might go together, smaller sets first; none that goes by itself."""
    by_length: dict[int, list[Axis]] = {}
    for site in layout.sites:
        if site.is_unconstrained:
            for axis, length in enumerate(site.shape):
                if length > 1:
                    by_length.setdefault(length, []).append((site.name, axis))
    trials = 0
    for axes in by_length.values():
        tied = [axis for axis in axes if len(axes) > 1 and not trial.permutes(_index(layout[axis[0]], axis[1]))]
        for size in range(2, _MAX_SITES + 1):
            for chosen in combinations(tied, size):
                trials += 1
                if len({name for name, _ in chosen}) == size and trials <= _MAX_TRIALS:
                    yield chosen
    scalars = [site for site in layout.sites if site.size == 1 and site.is_unconstrained][:_MAX_SCALARS]
    tied = [(site.name, _SCALAR) for site in scalars if not trial.flips(_index(site, _SCALAR))]
    for size in range(2, _MAX_SITES + 1):
        yield from combinations(tied, size)


def _index(site: Site, axis: int) -> Tensor:
    """Flat coordinates by unit, shape `(H, k)`."""
    flat = torch.arange(site.start, site.start + site.size, device="cpu")
    if axis == _SCALAR:
        return flat[None]
    return flat.view(site.shape).movedim(axis, 0).reshape(site.shape[axis], -1)


def _apply(units: Units, w: Tensor, move: _SignedPermutation) -> Tensor:
    """Unit j becomes what unit `order[j]` was, its signs multiplied by `signs[j]`."""
    values = w[:, units.index]
    values = values.gather(1, move.order[:, :, None].expand_as(values)) * move.signs[:, :, None]
    return w.index_copy(1, units.index.flatten(), values.flatten(1))

"""The deep sets of a model's hidden units: which of their weights every coupling passes, and which it moves."""

import torch
from torch import Tensor

from pyro_hypernet.informed.deep_sets import SetCoupling, SharedAffine, Slots
from pyro_hypernet.informed.symmetries import Symmetries, Units
from pyro_hypernet.maps.bijection import Bijection, Chain
from pyro_hypernet.model.layout import Layout

# Couplings, and the width of their networks.
_NUM_LAYERS, _HIDDEN = 8, 32


def set_couplings(
    layout: Layout,
    loc: Tensor,
    scale: Tensor,
    symmetries: Symmetries,
    *,
    none_of: Tensor | None = None,
    is_exact: bool = False,
) -> Bijection:
    """Couplings that treat hidden units as a set, then one shift and scale for all units' weights of one kind.

    Weights between two layers of hidden units are scaled only: they belong to two units at once.

    Args:
        loc: Centre at the start, shape `(D,)`; zero is taken where signs may flip.
        scale: Standard deviations at the start, shape `(D,)`; their mean over a layer's units is taken.
        symmetries: The layers of units.
        none_of: Coordinates that no coupling moves, shape `(k,)`.
        is_exact: Whether they are not even shifted and scaled.
    """
    owners = torch.zeros(layout.dim, dtype=torch.long, device="cpu")
    indices = [units.index.cpu() for units in symmetries.groups]
    for index in indices:
        owners[index.flatten()] += 1
    left = torch.zeros(layout.dim, dtype=torch.bool, device="cpu")
    if none_of is not None:
        left[none_of.cpu()] = True
    own = [index[:, (owners[index[0]] == 1) & ~left[index[0]]] for index in indices]
    free = ((owners == 0) & ~left).nonzero().flatten()
    couplings = []
    for number in range(_NUM_LAYERS):
        groups = [_slots(units, index, number) for units, index in zip(symmetries.groups, own, strict=True)]
        passed, moved = _halves(len(free), number)
        couplings.append(SetCoupling(groups, free[passed], free[moved], hidden=_HIDDEN))
    return Chain(*couplings, _shared_affine(layout, loc, scale, symmetries, left & is_exact))


def _slots(units: Units, own: Tensor, number: int) -> Slots:
    """What passes and what moves in coupling `number` of the coordinates that are these units' alone, `(H, k)`."""
    passed, moved = _halves(own.shape[1], number)
    return Slots(own[:, passed], own[:, moved], units.flips)


def _shared_affine(layout: Layout, loc: Tensor, scale: Tensor, symmetries: Symmetries, fixed: Tensor) -> SharedAffine:
    """One class for what permutations carry into each other."""
    classes = torch.arange(layout.dim, device="cpu")
    flipped = torch.zeros(layout.dim, dtype=torch.bool, device="cpu")
    for _ in range(1 + len(symmetries.groups)):  # a weight between two layers is carried by both
        for units in symmetries.groups:
            index = units.index.cpu()
            classes[index] = classes[index].min(0).values.expand(index.shape)
            flipped[index.flatten()] |= units.flips
    kinds, classes = classes.unique(return_inverse=True)
    first = kinds.to(loc.device)
    at = classes.to(scale.device)
    mean = scale.new_zeros(len(kinds)).index_add(0, at, scale) / classes.bincount().to(scale)
    still = fixed[kinds].to(loc.device)
    return SharedAffine(classes, loc[first], mean, flipped[kinds].to(loc.device) | still, still)


def _halves(count: int, number: int) -> tuple[Tensor, Tensor]:
    """Which of `count` slots pass and which move in coupling `number`: every two couplings move all.

    Shuffled anew for every second coupling; a single slot passes and moves in turn.
    """
    generator = torch.Generator("cpu").manual_seed(number // 2)
    order = torch.randperm(count, generator=generator, device="cpu")
    first, second = order[: count // 2], order[count // 2 :]
    return (first, second) if number % 2 else (second, first)

"""Whether two runs of the same function agree, up to rounding."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# Random numbers may fall on the other side of a threshold, or whole numbers come of rounded ones, in this share.
_LOOSE = 0.05
# By so much more than its own change under rounded arguments may a result differ.
_MARGIN = 10.0


def tolerance(dtype: torch.dtype) -> float:
    """Greatest relative difference that counts as rounding: 1e-3 in float32, 4e-8 in float64."""
    return 3 * torch.finfo(dtype).eps ** 0.5 if dtype.is_floating_point else _LOOSE


def rounded_away(draws: Any) -> Any:
    """The same draws, every number off by some last digits, to see how much that alone does to a result.

    Args:
        draws: A pytree of tensors.
    """

    def off(draw: Any) -> Any:
        if not (isinstance(draw, Tensor) and draw.is_floating_point()):
            return draw
        signs = 1 - 2 * (torch.arange(draw.numel(), device=draw.device) % 2).view(draw.shape).to(draw.dtype)
        return draw.detach() * (1 + 4 * torch.finfo(draw.dtype).eps * signs)

    return pytree.tree_map(off, draws)


def excess(expected: Any, found: Any, moved: Any = None, *, is_random: bool = False) -> float:
    """By how many tolerances two results differ, in the worst draw and tensor; at most 1 where they agree.

    Args:
        expected: A pytree of tensors with a leading axis of draws.
        found: The same of another run.
        moved: The same at arguments that are rounded away: results that change by that alone may differ by more.
        is_random: Whether random numbers are compared.
    """
    leaves = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
    others = pytree.tree_leaves(moved) if moved is not None else pytree.tree_leaves(expected)
    pairs = ((*pair, other) for pair, other in zip(leaves, others, strict=True) if isinstance(pair[0], Tensor))
    return max((_excess(*(leaf.detach() for leaf in leaves), is_random) for leaves in pairs), default=0.0)


def _excess(expected: Tensor, found: Tensor, moved: Tensor, is_random: bool) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    relative = max(tolerance(expected.dtype), _LOOSE if is_random else 0.0)
    rows = [leaf.reshape(len(leaf), -1).double() for leaf in (expected, found, moved)]
    expected, found, moved = rows
    norm = expected.norm(dim=1)
    is_number, other = norm.isfinite(), found.norm(dim=1).isfinite()
    if bool((is_number != other).double().mean() > 0.5):
        return float("inf")
    both = is_number & other
    if not bool(both.any()):
        return 0.0
    own = (moved - expected).norm(dim=1).nan_to_num(nan=torch.inf)[both]
    difference, norm = (found - expected).norm(dim=1)[both], norm[both]
    return float((difference / (relative * (1 + norm + norm.median()) + _MARGIN * own)).max())

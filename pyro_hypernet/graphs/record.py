"""A function recorded as a graph of operations, and whether two runs of it agree, up to rounding."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# Random numbers may fall on the other side of a threshold, or whole numbers come of rounded ones, in this share.
_LOOSE = 0.05
# By so much more than its own change under rounded arguments may a result differ.
_MARGIN = 10.0
# Numbers of a row that are compared at once.
_PIECE = 2**16
# Whether a function is being recorded, so that captured graphs within it are to run operation by operation.
is_recording = False


def record(
    function: Callable[..., Any], *tensors: Tensor, shapes_alone_of: Sequence[Tensor] | None = None
) -> torch.fx.GraphModule:
    """Runs the function once and records what it does, gradients and vmap included, at little cost.

    Args:
        function: Of tensors alone; Python numbers and branches in it are fixed from now on.
        tensors: Its arguments, of the shapes that the graph is to take.
        shapes_alone_of: None to run the function for real; else nothing is worked out but shapes, in no memory to
            speak of, which a function that looks at values refuses: the first of the arguments, where the function
            reads these by itself.
    """
    # A third of a second to import.
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, make_fx, set_proxy_slot

    def known(*fakes: Tensor) -> Any:
        tracer = get_proxy_mode().tracer
        for real, fake in zip(shapes_alone_of or (), fakes, strict=False):
            set_proxy_slot(real, tracer, get_proxy_slot(fake, tracer))
        return function(*fakes)

    global is_recording
    before, is_recording = is_recording, True
    try:
        # One mode for the shapes of all values; torch would make one for every value, a quarter of the time.
        is_real = shapes_alone_of is None
        mode = FakeTensorMode(allow_fallback_kernels=True, allow_non_fake_inputs=not is_real)
        with tracing(TracingContext(mode)):
            if is_real:
                return make_fx(function)(*tensors)
            return make_fx(known, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    finally:
        is_recording = before


def _tolerance(dtype: torch.dtype) -> float:
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
    ours = _rows(expected)
    triples = zip(ours, _rows(found), ours if moved is None else _rows(moved), strict=True)
    triples = [triple for triple in triples if triple[0].numel()]
    if any(one.shape != other.shape for one, other, _ in triples):
        return float("inf")
    if not triples:
        return 0.0
    are_numbers = [torch.stack([t[which].isfinite().all(1) for t in triples]).all(0) for which in (0, 1)]
    if bool((are_numbers[0] != are_numbers[1]).double().mean() > 0.5):
        return float("inf")
    both = are_numbers[0] & are_numbers[1]
    return max(_excess(*triple, both, is_random) for triple in triples) if bool(both.any()) else 0.0


def _rows(results: Any) -> list[Tensor]:
    """Every tensor as a matrix with a row for each draw."""
    leaves = [leaf.detach() for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
    return [leaf.reshape(len(leaf), -1) if leaf.numel() else leaf for leaf in leaves]


def _excess(expected: Tensor, found: Tensor, moved: Tensor, both: Tensor, is_random: bool) -> float:
    """Over the draws at which both are numbers."""
    relative = max(_tolerance(expected.dtype), _LOOSE if is_random else 0.0)
    norm = _norms(expected, both)
    own = 0.0 if moved is expected else _norms(moved, both, expected).nan_to_num(nan=torch.inf)
    difference = _norms(found, both, expected)
    return float((difference / (relative * (1 + norm + norm.median()) + _MARGIN * own)).max())


def _norms(rows: Tensor, which: Tensor, others: Tensor | None = None) -> Tensor:
    """Of these rows, or of their difference from others, in double precision, piece by piece: no large copies."""
    pieces = []
    for at in range(0, rows.shape[1], _PIECE):
        piece = rows[which, at : at + _PIECE].double()
        piece = piece if others is None else piece - others[which, at : at + _PIECE].double()
        pieces.append(piece.norm(dim=1))
    return torch.stack(pieces).norm(dim=0)

"""Memory on the CPU for the long results of graphs, taken once, shared by all of a run's, kept from step to step."""

import ctypes
import gc
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_hypernet.graphs.nodes import VIEWS, dtype_of, shape_of

aten = torch.ops.aten
# What can write its result to where it is told, without memory of its own.
_OUT = {
    aten.mm.default: aten.mm.out,
    aten.bmm.default: aten.bmm.out,
    aten.addmm.default: aten.addmm.out,
    aten.cat.default: aten.cat.out,
    aten.tril.default: aten.tril.out,
    aten.randn.default: aten.randn.out,
    aten.index.Tensor: aten.index.Tensor_out,
    aten.index_select.default: aten.index_select.out,
    aten.index_copy.default: aten.index_copy.out,
}
# A result that is shorter than another by a share takes as much memory, for that one to follow it.
_ROUND = 1.1


@dataclass
class _Unit:
    """One long result, and long parts that it is put together from, which are made in their places.

    Attributes:
        node: What makes the result.
        start: The number of the first operation that writes there.
        end: Of the last one that reads.
        parts: From what makes a part to how many numbers of the result come before it.
    """

    node: fx.Node
    start: int
    end: int
    parts: dict[fx.Node, int] = field(default_factory=dict)


def without_graph(module: fx.GraphModule) -> nn.Module:
    """What runs as a captured graph does and holds no description of it, which takes some kilobytes a node."""
    made = type("Run", (nn.Module,), {"forward": type(module).forward})()
    made._modules, made._buffers, made._parameters = module._modules, module._buffers, module._parameters
    for group in made.children():
        if isinstance(getattr(group, "body", None), fx.GraphModule):
            group.body = without_graph(group.body)
    return made


def give_back() -> None:
    """Returns memory that was let go of to the system, where the C library can: glibc keeps what lies in between."""
    gc.collect()
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; on Windows there is no such name as None
        return None


class Workspace:
    """Pieces of memory for graphs that run one after the other, each of which may write over what another left."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []

    def place(self, module: fx.GraphModule, before: Callable[[Any], Any], least: int) -> None:
        """Gives every long result of a graph a place, which it has for itself until it was used last.

        Args:
            module: The graph, changed; to be compiled again. Its calls of modules take places by `places`, a dict from
                numbers of results to matrices.
            before: From an operation to the one in whose memory its result lies, step by step: itself where it has
                memory of its own.
            least: Results of fewer numbers are left alone.
        """
        units = _units(module.graph, before, least)
        sizes, busy = [_bytes(unit.node) for unit in units], {}  # from pieces to where they were used last
        for unit in units:
            free = [number for number in range(len(self.pieces)) if busy.get(number, -1) < unit.start]
            number = self._choose(free, _bytes(unit.node), sizes)
            busy[number] = unit.end
            whole = self.pieces[number][: _bytes(unit.node)].view(dtype_of(unit.node))
            for part, at in unit.parts.items():
                _write_to(module, part, whole[at : at + math.prod(shape_of(part))])
            if unit.parts:
                _complete(module, unit, whole, before)
            else:
                _write_to(module, unit.node, whole)

    def _choose(self, free: list[int], size: int, sizes: list[int]) -> int:
        fits = [number for number in free if len(self.pieces[number]) >= size]
        if fits:
            return min(fits, key=lambda number: len(self.pieces[number]))
        size = max(other for other in sizes if other <= _ROUND * size)
        self.pieces.append(torch.empty(size, dtype=torch.uint8, device="cpu"))
        return len(self.pieces) - 1


def _units(graph: fx.Graph, before: Callable[[Any], Any], least: int) -> list[_Unit]:
    """What needs a place, in the order in which it is written to."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    ends: dict[Any, int] = {}
    for node, number in order.items():
        for part in node.all_input_nodes:
            ends[_owner(part, before)] = number
    units = {}
    for node, number in order.items():
        if not _is_long(node, least) or before(node) is not node:
            continue
        is_one_of_several = node.target is operator.getitem and node.args[0].op == "call_module"
        if is_one_of_several or node.target in _OUT:
            start = order[node.args[0]] if is_one_of_several else number
            units[node] = _Unit(node, start, ends.get(node, number))
    for node, unit in list(units.items()):
        for part, at in _joined(node):
            owner = _owner(part, before)
            if owner in units and units[owner].end == order[node] and not units[owner].parts and _is_all(part, before):
                unit.parts[owner] = at
                unit.start = min(unit.start, units.pop(owner).start)
    return sorted(units.values(), key=lambda unit: unit.start)


def _is_long(node: fx.Node, least: int) -> bool:
    shape = shape_of(node)
    return shape is not None and math.prod(shape) >= least


def _owner(node: Any, before: Callable[[Any], Any]) -> Any:
    """What first wrote to the memory of a result."""
    while isinstance(node, fx.Node) and (previous := before(node)) is not node:
        node = previous
    return node


def _is_all(node: fx.Node, before: Callable[[Any], Any]) -> bool:
    """Whether a result is all of that memory, in the same order."""
    while (previous := before(node)) is not node:
        if shape_of(previous) is None or math.prod(shape_of(node)) != math.prod(shape_of(previous)):
            return False
        is_written_over = node.target is operator.getitem or node.target._schema.is_mutable
        if not is_written_over and node.target not in (*VIEWS, aten.detach.default):
            return False
        node = previous
    return True


def _joined(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """The parts that lie one after the other in a result, and how many numbers come before each."""
    if node.target is not aten.cat.default:
        return []
    parts, shape = node.args[0], shape_of(node)
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(shape)
    if math.prod(shape[:axis]) != 1 or any(dtype_of(part) != dtype_of(node) for part in parts):
        return []
    at, found = 0, []
    for part in parts:
        found.append((part, at))
        at += math.prod(shape_of(part))
    return found


def _write_to(module: fx.GraphModule, node: fx.Node, place: Tensor) -> None:
    if node.target is operator.getitem:
        group = module.get_submodule(node.args[0].target)
        group.places[node.args[1]] = place.view(group.key[1:])
        return
    node.kwargs = {"out": _buffer(module, node, place.view(shape_of(node)))}
    node.target = _OUT[node.target]


def _complete(module: fx.GraphModule, unit: _Unit, whole: Tensor, before: Callable[[Any], Any]) -> None:
    """Puts the other parts of a result beside those that are there."""
    joined = _joined(unit.node)
    places = [None if _owner(part, before) in unit.parts else at for part, at in joined]
    place = _buffer(module, unit.node, whole.view(shape_of(unit.node)))
    unit.node.target, unit.node.kwargs = _put, {}
    unit.node.args = (place, [part for part, _ in joined], places)


def _buffer(module: fx.GraphModule, node: fx.Node, value: Tensor) -> fx.Node:
    name = f"_place{sum(name.startswith('_place') for name, _ in module.named_buffers())}"
    module.register_buffer(name, value, persistent=False)
    with module.graph.inserting_before(node):
        return module.graph.get_attr(name)


def _put(whole: Tensor, parts: Sequence[Tensor], places: Sequence[int | None]) -> Tensor:
    """Parts at their places in a vector; those at None are there."""
    flat = whole.view(-1)
    for part, at in zip(parts, places, strict=True):
        if at is not None:
            flat[at : at + part.numel()].view(part.shape).copy_(part)
    return whole


def _bytes(node: fx.Node) -> int:
    return math.prod(shape_of(node)) * dtype_of(node).itemsize

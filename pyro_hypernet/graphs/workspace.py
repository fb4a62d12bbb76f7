"""Memory on the CPU for the long results of graphs, taken once, shared by all of a run's, kept from step to step."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyro_hypernet.graphs.nodes import dtype_of, shape_of

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


class Workspace:
    """Pieces of memory for graphs that run one after the other, each of which may write over what another left."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []

    def place(self, module: fx.GraphModule, owner_of: Callable[[Any], Any], least: int) -> None:
        """Gives every long result of a graph a place, which it has for itself until it was used last.

        Args:
            module: The graph, changed; to be compiled again. Its calls of modules take places by `places`, a dict from
                numbers of results to tensors.
            owner_of: From an operation to the one whose memory its result lies in, and that does not write over others.
            least: Results of fewer numbers are left alone.
        """
        nodes = list(module.graph.nodes)
        ends: dict[Any, int] = {}
        for number, node in enumerate(nodes):
            for part in node.all_input_nodes:
                ends[owner_of(part)] = number
        made = [(number, node) for number, node in enumerate(nodes) if self._is_placed(node, owner_of, least)]
        sizes = [_bytes(node) for _, node in made]
        busy: dict[int, int] = {}  # from pieces to where they were used last
        for number, node in made:
            start = nodes.index(node.args[0]) if node.target is operator.getitem else number
            free = [piece for piece in range(len(self.pieces)) if busy.get(piece, -1) < start]
            piece = self._choose(free, _bytes(node), sizes)
            busy[piece] = ends.get(node, number)
            self._write_to(module, node, piece)

    @staticmethod
    def _is_placed(node: fx.Node, owner_of: Callable[[Any], Any], least: int) -> bool:
        if shape_of(node) is None or math.prod(shape_of(node)) < least or owner_of(node) is not node:
            return False
        is_part = node.target is operator.getitem and node.args[0].op == "call_module"
        return is_part or node.target in _OUT

    def _choose(self, free: list[int], size: int, sizes: list[int]) -> int:
        fits = [piece for piece in free if len(self.pieces[piece]) >= size]
        if fits:
            return min(fits, key=lambda piece: len(self.pieces[piece]))
        size = max(other for other in sizes if other <= _ROUND * size)
        self.pieces.append(torch.empty(size, dtype=torch.uint8, device="cpu"))
        return len(self.pieces) - 1

    def _write_to(self, module: fx.GraphModule, node: fx.Node, piece: int) -> None:
        place = self.pieces[piece][: _bytes(node)].view(dtype_of(node)).view(shape_of(node))
        if node.target is operator.getitem:
            group = module.get_submodule(node.args[0].target)
            group.places[node.args[1]] = place.view(group.key[1:])
            return
        name = f"_place{sum(name.startswith('_place') for name, _ in module.named_buffers())}"
        module.register_buffer(name, place, persistent=False)
        with module.graph.inserting_before(node):
            out = module.graph.get_attr(name)
        node.target, node.kwargs = _OUT[node.target], {"out": out}


def _bytes(node: fx.Node) -> int:
    return math.prod(shape_of(node)) * dtype_of(node).itemsize

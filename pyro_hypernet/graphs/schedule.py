"""The order of a graph's operations in which its long results are held for the shortest time."""

import heapq
import math
import operator
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from torch import fx

from pyro_hypernet.graphs.nodes import dtype_of, has_effect, is_random, shape_of


def in_little_memory(graph: fx.Graph, base_of: Callable[[Any], Any], least: int) -> None:
    """Puts operations that make long results as late as can be, and those that need them last as early.

    Of the operations that could come next the first in the present order is taken that lets go of as much memory as it
    takes; where there is none, the one that takes least. Random numbers are drawn in the order that is.

    Args:
        graph: The graph, changed.
        base_of: From an operation to the one whose memory its result lies in.
        least: Results of fewer numbers do not count.
    """
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    memory = _Memory(nodes, base_of, least)
    needs = {node: {part for part in node.all_input_nodes if part in memory.order} for node in nodes}
    fixed = [node for node in nodes if is_random(node) or has_effect(node)]
    for one, other in pairwise(fixed):
        needs[other].add(one)
    users: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    for node, parts in needs.items():
        for part in parts:
            users[part].append(node)
    ready = _Ready(memory)
    left = {node: len(parts) for node, parts in needs.items()}
    ready.add(node for node in nodes if not left[node])
    at = next(reversed(graph.nodes))
    while (node := ready.next()) is not None:
        at.prepend(node)
        memory.run(node)
        for user in users[node]:
            left[user] -= 1
        ready.add(user for user in users[node] if not left[user])


class _Memory:
    """What long results take while operations come one after the other."""

    def __init__(self, nodes: list[fx.Node], base_of: Callable[[Any], Any], least: int) -> None:
        self.order = {node: number for number, node in enumerate(nodes)}
        self.base_of, self.least = base_of, least
        self.sizes = {node: self._size(node) for node in nodes}
        self.parts = {node: [user for user in node.users if user.target is operator.getitem] for node in nodes}
        self.waiting: dict[fx.Node, set[fx.Node]] = {}  # from long results to what still needs them
        for node in nodes:
            for base in self._bases(node):
                self.waiting.setdefault(base, set()).add(node)

    def _size(self, node: fx.Node) -> int:
        """Bytes of a long result in memory of its own."""
        shape = shape_of(node)
        if shape is None or self.base_of(node) is not node or math.prod(shape) < self.least:
            return 0
        return math.prod(shape) * dtype_of(node).itemsize

    def _bases(self, node: fx.Node) -> set[fx.Node]:
        return {base for base in map(self.base_of, node.all_input_nodes) if self.sizes.get(base)}

    def growth(self, node: fx.Node) -> int:
        """By how many bytes more are held after an operation."""
        # One of several results is there from the operation on that all are of.
        made = 0 if node.target is operator.getitem else sum(self.sizes[part] for part in (node, *self.parts[node]))
        return made - sum(self.sizes[base] for base in self._bases(node) if self.waiting[base] == {node})

    def first_use(self, node: fx.Node) -> int:
        """Where in the present order its result is needed first."""
        users = [user for part in (self.parts[node] or [node]) for user in part.users]
        return min((self.order.get(user, len(self.order)) for user in users), default=-1)

    def run(self, node: fx.Node) -> None:
        """An operation has come."""
        for base in self._bases(node):
            self.waiting[base].discard(node)


class _Ready:
    """Operations that could come next."""

    def __init__(self, memory: _Memory) -> None:
        self.memory = memory
        self.free: list[tuple[int, fx.Node]] = []
        self.others: set[fx.Node] = set()

    def add(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            self.others.add(node)

    def next(self) -> fx.Node | None:
        """The next one, taken out; None where all have come."""
        for node in [node for node in self.others if self.memory.growth(node) <= 0]:
            self.others.remove(node)
            heapq.heappush(self.free, (self.memory.order[node], node))
        if self.free:
            return heapq.heappop(self.free)[1]
        if not self.others:
            return None
        memory = self.memory
        node = min(self.others, key=lambda node: (memory.growth(node), memory.first_use(node), memory.order[node]))
        self.others.remove(node)
        return node

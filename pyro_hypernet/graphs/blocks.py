"""Graphs of long vectors run in little memory: what works number by number in blocks that fit a cache, and in place."""

import copy
import math
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.blockwise import Blockwise, Key, Operand, Result
from pyro_hypernet.graphs.nodes import COPIES, VIEWS, ZEROS, dtype_of, has_effect, is_random, mutates, shape_of
from pyro_hypernet.graphs.schedule import in_little_memory
from pyro_hypernet.graphs.simplify import merge_equal
from pyro_hypernet.graphs.workspace import Workspace

aten = torch.ops.aten
# Results of so many numbers are long.
_LONG = 2**17
# Other names of the same numbers in the same order.
_RENAMED = (*VIEWS, *COPIES, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
_SUMS = (aten.sum.default, aten.sum.dim_IntList)
# By one index for all rows: numbers of a table, and sums by group.
_LOOKUP, _GROUPED = aten.index_select.default, aten.index_add.default
# What can write over its first argument.
_IN_PLACE = {
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_fill.int_Scalar: aten.index_fill_.int_Scalar,
    aten.index_put.default: aten.index_put_.default,
    aten.masked_fill.Scalar: aten.masked_fill_.Scalar,
    aten.add.Tensor: aten.add_.Tensor,
    aten.addmm.default: aten.addmm_.default,
}


def in_blocks(module: fx.GraphModule, workspace: Workspace | None = None) -> fx.GraphModule:
    """The same operations on long vectors in little memory, and in few passes; results are the same up to rounding.

    What works number by number is put into groups, of which each makes one pass, with sums and with lookups in short
    tables; what is cheap is worked out again where it is used; and results are written over what nothing else needs.

    Args:
        module: The graph, which must not change its inputs, with shapes in its metadata.
        workspace: Where its long results lie, those that it returns too until the next run of any graph there; None
            for memory of their own.

    Returns:
        Another graph, to be run from Python.
    """
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    _merge_puts(module.graph)
    _out_of_place(module.graph)
    if any(map(mutates, module.graph.nodes)):
        return module
    merge_equal(module.graph, {node for node in module.graph.nodes if not is_random(node)})
    made = _Groups(module.graph).rebuilt(module)
    in_little_memory(made.graph, base_of, _LONG)
    _overwrite(made)
    if workspace is not None:
        workspace.place(made, partial(_memory_of, made), _LONG)
    made.recompile()
    return made


def _out_of_place(graph: fx.Graph) -> None:
    """Operations that write over what nothing else needs, by those that do not: the order is then free."""
    for node in filter(mutates, graph.nodes):
        name, overload = node.target._schema.name.removeprefix("aten::"), node.target._overloadname
        packet = getattr(aten, name.removesuffix("_"), None)
        first = node.args[0]
        is_own = first.op == "call_function" and base_of(first) is first and len(first.users) == 1
        if is_own and overload in (packet.overloads() if packet else ()):
            node.target = getattr(packet, overload)


def _merge_puts(graph: fx.Graph) -> None:
    """`x + y put into zeros` is y added to x in its places."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or not _is_long(node):
            continue
        for x, put in (node.args, node.args[::-1]):
            if not (isinstance(put, fx.Node) and isinstance(x, fx.Node) and put.target is aten.index_put.default):
                continue
            is_alone = len(put.args) == 4 and put.args[3] and put.args[0].target in ZEROS and len(put.users) == 1
            if is_alone and shape_of(x) == shape_of(node) and dtype_of(x) == dtype_of(node):
                node.target, node.args = aten.index_put.default, (x, *put.args[1:])
                break
    graph.eliminate_dead_code()


def _is_long(node: Any) -> bool:
    shape = shape_of(node)
    return shape is not None and math.prod(shape) >= _LONG and node.op == "call_function"


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // max(1, rows)


def _source(node: Any) -> Any:
    """The operation behind other names of its result."""
    while isinstance(node, fx.Node) and node.target in _RENAMED:
        node = node.args[0]
    return node


class _Groups:
    """What of a graph is worked out together, in blocks."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.order = {node: number for number, node in enumerate(graph.nodes)}
        self.lookups = {node for node in graph.nodes if self._is_lookup(node)}
        self.pointwise = self.lookups | {node for node in graph.nodes if self._is_pointwise(node)}
        self.sums = {node for node in graph.nodes if self._is_sum(node)}
        self.keys: dict[fx.Node, Key] = {}
        self.levels: dict[fx.Node, int] = {}
        for node in graph.nodes:
            self._place(node)
        self.free = {node for node in graph.nodes if self._is_free(node)}
        for node in reversed(graph.nodes):
            self._sink(node)

    def _is_pointwise(self, node: fx.Node) -> bool:
        if not _is_long(node) or not isinstance(node.target, torch._ops.OpOverload) or node.kwargs:
            return False
        if torch.Tag.pointwise not in node.target.tags or node.target._schema.is_mutable or is_random(node):
            return False
        shape, dtype = shape_of(node), dtype_of(node)
        inputs = node.all_input_nodes
        fits = all(shape_of(part) is not None and self._as_matrix(part, shape) is not None for part in inputs)
        return bool(inputs) and dtype.is_floating_point and fits and all(dtype_of(part) == dtype for part in inputs)

    @staticmethod
    def _is_lookup(node: fx.Node) -> bool:
        """Whether it holds numbers of a short table, in places that an input says."""
        if node.target is not _LOOKUP or not _is_long(node) or node.kwargs:
            return False
        return _is_by_input(*node.args) and not _is_as_long(node.args[0]) and dtype_of(node).is_floating_point

    def _is_sum(self, node: fx.Node) -> bool:
        """Whether it is the sum over every row, or by groups, of what is worked out in blocks."""
        if node.target is _GROUPED and len(node.args) == 4 and not node.kwargs and not _is_as_long(node):
            values = node.args[3]
            is_matrix = _matrix(shape_of(values)) == _matrix(shape_of(_source(values)))
            return is_matrix and _source(values) in self.pointwise and _is_by_input(*node.args[:3])
        if node.target not in _SUMS or node.kwargs or _source(node.args[0]) not in self.pointwise:
            return False
        shape = shape_of(node.args[0])
        if _matrix(shape) != _matrix(shape_of(_source(node.args[0]))):
            return False
        if node.target is aten.sum.default:
            return True
        dims = sorted(dim % len(shape) for dim in node.args[1])
        rest = list(range(1, len(shape))) if len(shape) > 1 else [0]
        return dims == rest or (shape[0] == 1 and dims == list(range(len(shape))))

    @staticmethod
    def _as_matrix(part: fx.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The shape of an operand as a matrix that goes with a result of a shape; None where it does not."""
        rows, size = _matrix(shape)
        padded = (1,) * (len(shape) - len(shape_of(part))) + shape_of(part)
        if math.prod(padded) == 1:
            return 1, 1
        if len(shape) == 1:
            return (1, size) if padded == shape else None
        if padded[0] not in (1, rows):
            return None
        if padded[1:] == shape[1:]:
            return padded[0], size
        return (padded[0], 1) if math.prod(padded[1:]) == 1 else None

    def _place(self, node: fx.Node) -> None:
        """As early as can be."""
        if node not in self.pointwise and node not in self.sums:
            self.levels[node] = max((self.levels[part] for part in node.all_input_nodes), default=0)
            return
        values = node if node in self.pointwise else _summed(node)
        rows, size = _matrix(shape_of(values))
        level = 0
        for part in map(_source, [values] if node in self.sums else node.all_input_nodes):
            is_beside = part in self.pointwise and self.keys[part][1:] == (rows, size)
            level = max(level, self.levels[part] + (0 if is_beside or part.op in ("placeholder", "get_attr") else 1))
        self.keys[node], self.levels[node] = Key(level, rows, size), level

    def _is_free(self, node: fx.Node) -> bool:
        """Whether it comes of inputs and tables alone and is not long in the making."""
        if node not in self.pointwise:
            return False
        todo, seen = [node], set()
        while todo:
            part = _source(todo.pop())
            if part in seen or part in self.lookups or part.op in ("placeholder", "get_attr"):
                continue
            if part not in self.pointwise or len(seen) > 3:
                return False
            seen.add(part)
            todo += part.all_input_nodes
        return True

    def _users(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """What uses a result, with the name by which it does."""
        for user in node.users:
            if user.target in _RENAMED:
                yield from self._users(user)
            else:
                yield user, node

    def _sink(self, node: fx.Node) -> None:
        """As late as can be, where that holds no more."""
        if node not in self.pointwise:
            return
        users = [user for user, _ in self._users(node)]
        key = self.keys[node]
        if not users or any(user not in self.keys or self.keys[user][1:] != key[1:] for user in users):
            return
        level = min(self.keys[user].level for user in users)
        if level <= key.level:
            return
        extended = 0
        for part in {_source(part) for part in node.all_input_nodes}:
            if part.op in ("placeholder", "get_attr") or not _is_long(part) or part in self.free:
                continue
            last = max((self.levels[user] for user, _ in self._users(part) if user is not node), default=-1)
            extended += last < level
        if extended <= 1:
            self.keys[node], self.levels[node] = key._replace(level=level), level

    def rebuilt(self, module: fx.GraphModule) -> fx.GraphModule:
        """The graph with a call for every group."""
        members: dict[Key, list[fx.Node]] = {}
        units: list[tuple[tuple[int, int, int], fx.Node | Key]] = []
        for node in self.graph.nodes:
            if node in self.keys:
                members.setdefault(self.keys[node], []).append(node)
            elif node.target not in _RENAMED and node.op != "output":
                is_given = node.op in ("placeholder", "get_attr")
                units.append(((-1 if is_given else self.levels[node], 1, self.order[node]), node))
        units += [((key.level, 0, self.order[nodes[0]]), key) for key, nodes in members.items()]
        graph, new, root = fx.Graph(), {}, nn.Module()

        def copied(node: fx.Node) -> fx.Node:
            if node not in new:  # another name of a result
                new[node] = graph.node_copy(node, copied)
            return new[node]

        for _, unit in sorted(units, key=lambda unit: unit[0]):
            if not isinstance(unit, Key):
                new[unit] = graph.node_copy(unit, copied)
                continue
            made = self._group(unit, members[unit])
            if made is None:
                continue
            block, inputs, results = made
            name = f"_blocks{len(list(root.children()))}"
            root.add_module(name, block)
            call = graph.call_module(name, tuple(copied(part) for part in inputs))
            for number, node in enumerate(results):
                new[node] = graph.call_function(operator.getitem, (call, number))
                new[node].meta = dict(node.meta)
                if node.target is _GROUPED:
                    new[node] = graph.call_function(aten.add.Tensor, (copied(node.args[0]), new[node]))
                    new[node].meta = dict(node.meta)
        output = next(iter(reversed(self.graph.nodes)))
        graph.output(fx.map_arg(output.args[0], copied))
        for node in graph.nodes:
            if node.op == "get_attr":
                setattr(root, node.target, getattr(module, node.target))
        made = fx.GraphModule(root, graph)
        made.graph.eliminate_dead_code(has_effect)
        return made

    def _group(self, key: Key, nodes: list[fx.Node]) -> tuple[Blockwise, list[fx.Node], list[fx.Node]] | None:
        """What works one group out, what of, and what it gives; None where that is nothing."""
        results = [node for node in nodes if node in self.sums or self._is_needed_outside(node)]
        if not results:
            return None
        body = _Body(self, key)
        outputs, made = [], []
        for node in results:
            of = _summed(node) if node in self.sums else node
            values = body.value(of, shape_of(of))
            index = body.number(node.args[2], (1, key.size)) if node.target is _GROUPED else None
            if node in self.sums and index is None:
                values = body.graph.call_function(aten.sum.dim_IntList, (values, [1]))
            made.append(values)
            outputs.append(Result(shape_of(node), dtype_of(node), node in self.sums, index))
        body.graph.output(tuple(made))
        return Blockwise(fx.GraphModule({}, body.graph), key, body.operands, outputs), body.inputs, results

    def _is_needed_outside(self, node: fx.Node) -> bool:
        """Whether it is used otherwise than within its group, or where it is worked out again."""
        key, size = self.keys[node], _matrix(shape_of(node))[1]
        for user, _ in self._users(node):
            of = self.keys.get(user)
            if of is None or not (of == key or (node in self.free and of.size == size)):
                return True
        return False


class _Body:
    """What one group does with a block.

    Args:
        groups: All of them.
        key: Which.
    """

    def __init__(self, groups: _Groups, key: Key) -> None:
        self.groups, self.key, self.graph = groups, key, fx.Graph()
        self.inputs: list[fx.Node] = []
        self.operands: list[Operand] = []
        self.taken: list[fx.Node] = []  # the body's names of its inputs
        self.inside: dict[fx.Node, fx.Node] = {}

    def value(self, part: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        """An operand of a result of a shape."""
        groups, source = self.groups, _source(part)
        is_free = source in groups.free and _matrix(shape_of(source))[1] == self.key.size
        if groups.keys.get(source) != self.key and not is_free:
            return self.taken[self.number(part, groups._as_matrix(part, shape))]
        if source not in self.inside:
            self.inside[source] = self._lookup(source) if source in groups.lookups else self._call(source)
        return self.inside[source]

    def _call(self, node: fx.Node) -> fx.Node:
        args = fx.map_arg(node.args, lambda part: self.value(part, shape_of(node)))
        return self.graph.call_function(node.target, args)

    def _lookup(self, node: fx.Node) -> fx.Node:
        table, _, index = node.args
        rows, size = _matrix(shape_of(table))
        table = self.taken[self.number(table, (rows, size), is_whole=True)]
        index = self.taken[self.number(index, (1, self.key.size))]
        index = self.graph.call_function(aten.reshape.default, (index, [-1]))
        return self.graph.call_function(_LOOKUP, (table, 1, index))

    def number(self, part: fx.Node, shape: tuple[int, int], *, is_whole: bool = False) -> int:
        """Which input a part is, taken as a matrix of this shape."""
        source, operand = _source(part), Operand(shape, is_whole)
        for number, pair in enumerate(zip(self.inputs, self.operands, strict=True)):
            if pair == (source, operand):
                return number
        with self.graph.inserting_after(self.taken[-1] if self.taken else self.graph._root):
            self.taken.append(self.graph.placeholder(f"x{len(self.inputs)}"))
        self.inputs.append(source)
        self.operands.append(operand)
        return len(self.inputs) - 1


def _summed(node: fx.Node) -> fx.Node:
    """What a sum is of."""
    return node.args[3 if node.target is _GROUPED else 0]


def _is_by_input(table: fx.Node, axis: int, index: fx.Node) -> bool:
    """Whether the last of at most two axes of a table is gone through by an input."""
    shape = shape_of(table)
    is_last = shape is not None and 1 <= len(shape) <= 2 and axis % len(shape) == len(shape) - 1
    return is_last and isinstance(index, fx.Node) and index.op in ("placeholder", "get_attr")


def _is_as_long(node: Any) -> bool:
    return math.prod(shape_of(node)) >= _LONG


def base_of(node: Any) -> Any:
    """What a result may share memory with."""
    while isinstance(node, fx.Node) and (whole := _whole_of(node)) is not None:
        node = whole
    return node


def _whole_of(node: fx.Node) -> Any:
    """What a result is a view of, or one of several; None where it is none."""
    made = node.args[0] if node.target is operator.getitem else node
    if made.op != "call_function" or not isinstance(made.target, torch._ops.OpOverload):
        return None
    schema = made.target._schema
    is_view = any(result.alias_info is not None for result in schema.returns) and not schema.is_mutable
    return made.args[0] if is_view or made.target is aten._unsafe_view.default else None


def _memory_of(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """In whose memory a result lies: what it is a view of, or is written over; else itself."""
    call = node.args[0] if node.target is operator.getitem else None
    if node.target in _IN_PLACE.values():
        return node.args[0]
    if isinstance(call, fx.Node) and call.op == "call_module":
        donors = module.get_submodule(call.target).donors
        return call.args[donors[node.args[1]]] if node.args[1] in donors else node
    whole = _whole_of(node)
    return node if whole is None else whole


def _overwrite(module: fx.GraphModule) -> None:
    """Writes results over what nothing else needs."""
    for node in reversed(list(module.graph.nodes)):  # as late as can be, when what is written over has been read
        if node.target in _IN_PLACE and _is_long(node):
            min(node.users).prepend(node)
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    last: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        for user in node.users:
            last[base_of(node)] = max(last.get(base_of(node), -1), order[user])

    def ends(part: fx.Node, at: fx.Node) -> bool:
        """Whether memory of its own, as long as itself, is used here for the last time, and by no other name."""
        base = base_of(part)
        if base.op != "call_function" or shape_of(base) is None or last[base] != order[at]:
            return False
        others = [other for other in pytree.tree_leaves((at.args, at.kwargs)) if isinstance(other, fx.Node)]
        alone = sum(base_of(other) is base for other in others) == 1
        return alone and math.prod(shape_of(base)) == math.prod(shape_of(part))

    for node in module.graph.nodes:
        if node.op == "call_module":
            group = getattr(module, node.target)
            for number, output in enumerate(group.outputs):
                for place, part in enumerate(node.args):
                    is_taken = output.is_sum or place in group.donors.values() or dtype_of(part) != output.dtype
                    if not is_taken and group.inputs[place] == Operand(group.key[1:]) and ends(part, node):
                        group.donors[number] = place
                        break
        elif node.target in _IN_PLACE and not node.kwargs and _is_long(node):
            first = node.args[0]
            if shape_of(first) == shape_of(node) and dtype_of(first) == dtype_of(node) and ends(first, node):
                node.target = _IN_PLACE[node.target]

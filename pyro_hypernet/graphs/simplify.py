"""A captured graph made smaller: by all passes, and those for operations that do nothing, twice, or are undone."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.constants import fold, merge_constants, permute_back
from pyro_hypernet.graphs.nodes import (
    COPIES,
    RESHAPED,
    SAME,
    VIEWS,
    ZEROS,
    dtype_of,
    has_effect,
    insert,
    shape_of,
    untouched,
)
from pyro_hypernet.graphs.products import add_in_products, unexpand_products

aten = torch.ops.aten
# What leaves a tensor as it is where the number is 1.
_BY_NUMBER = (aten.pow.Tensor_Scalar, aten.mul.Tensor, aten.mul.Scalar)


def simplify(module: fx.GraphModule, *, constants: bool = False) -> fx.GraphModule:
    """Makes a captured graph smaller in place, with the same results up to rounding.

    What is computed twice is computed once, operations without effect go, constants are merged, and products with an
    operand that was copied along the other's batch become one product.

    Args:
        module: The graph, with shapes in its metadata, as `make_fx` leaves them.
        constants: Whether tensors that the graph holds never change, so that what depends on them alone is worked
            out now.

    Returns:
        The same module.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    fixed = untouched(graph)
    _drop_zeros(graph, fixed)
    _join_slices(graph, fixed)
    _shorten(graph, fixed)
    if constants:
        fold(module, fixed)
        permute_back(module, fixed)
    _drop_what_does_nothing(graph, fixed)
    merge_equal(graph, fixed)
    changes = [unexpand_products(graph), _cancel_shifts(graph, fixed)]
    if any(changes):
        graph.eliminate_dead_code()
        merge_equal(graph, fixed)
    if constants:
        fold(module, fixed)
        merge_constants(module, fixed)
    add_in_products(graph, fixed)
    graph.eliminate_dead_code(has_effect)  # as TorchScript, so that random numbers are the same without it
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _drop_zeros(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Sums with zeros that change neither shape nor dtype."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or node not in fixed:
            continue
        for zeros, other in (node.args, node.args[::-1]):
            if not (isinstance(zeros, fx.Node) and zeros.target in ZEROS and zeros in fixed):
                continue
            if shape_of(node) is None or shape_of(other) != shape_of(node):
                continue
            if other in fixed and other.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(other)
                graph.erase_node(node)
                break
    graph.eliminate_dead_code()


def _join_slices(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Gradients of slices that lie side by side: put side by side instead of padded with zeros and added."""
    for node in reversed(graph.nodes):
        if node.target is not aten.add.Tensor or node not in fixed or any(_is_part(user, node) for user in node.users):
            continue
        parts = list(_summands(node, node, fixed))
        slices = [part for part in parts if part.target is aten.slice_backward.default and part in fixed]
        if len(slices) < 2 or shape_of(node) is None:
            continue
        shape, dim = shape_of(node), slices[0].args[2]
        slices.sort(key=lambda part: part.args[3])
        starts, stops = zip(*((part.args[3], min(part.args[4], shape[dim])) for part in slices), strict=True)
        is_whole = starts[0] == 0 and stops[-1] == shape[dim] and starts[1:] == stops[:-1]
        if not is_whole or any((*part.args[1:3], part.args[5]) != (list(shape), dim, 1) for part in slices):
            continue
        with graph.inserting_before(node):
            total = insert(graph, dtype_of(node), aten.cat.default, shape, [part.args[0] for part in slices], dim)
            fixed.add(total)
            for part in parts:
                if part not in slices:
                    total = insert(graph, dtype_of(node), aten.add.Tensor, shape, total, part)
                    fixed.add(total)
        node.replace_all_uses_with(total)
    graph.eliminate_dead_code()


def _is_part(node: fx.Node, of: fx.Node) -> bool:
    """Whether a sum is there for one other sum of the same shape."""
    return node.target is aten.add.Tensor and not node.kwargs and len(of.users) == 1 and shape_of(of) == shape_of(node)


def _summands(node: Any, total: fx.Node, fixed: set[fx.Node]) -> Iterator[fx.Node]:
    """What is added up to a total, all of its shape and dtype."""
    for part in node.args[:2]:
        if not isinstance(part, fx.Node) or shape_of(part) != shape_of(total) or dtype_of(part) != dtype_of(total):
            yield node
            return
    for part in node.args[:2]:
        is_sum = part.target is aten.add.Tensor and not part.kwargs and len(part.users) == 1 and part in fixed
        yield from _summands(part, total, fixed) if is_sum else [part]


def _shorten(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """First powers, products with 1, double negatives, sums over one element, and other names for a change of shape."""
    for node in list(graph.nodes):
        if node not in fixed or node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source, shape = node.args[0], shape_of(node)
        if source not in fixed or shape is None or shape_of(source) is None or dtype_of(source) != dtype_of(node):
            continue
        same = None
        if node.target in _BY_NUMBER and not isinstance(node.args[1], fx.Node) and node.args[1] == 1:
            same = source
        elif node.target is aten.neg.default and source.target is aten.neg.default and source.args[0] in fixed:
            same = source.args[0]
        elif _is_turn(node) and _is_turn(source) and source.args[0] in fixed:
            axes = [sorted(axis % len(shape) for axis in (turn.args[1:] or (0, 1))) for turn in (node, source)]
            same = source.args[0] if axes[0] == axes[1] else None
        is_lone = node.target is aten.sum.dim_IntList and math.prod(shape) == math.prod(shape_of(source))
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.target in RESHAPED or is_lone:
            node.target, node.args, node.kwargs = aten.reshape.default, (source, list(shape)), {}


def _is_turn(node: fx.Node) -> bool:
    """Whether it exchanges two axes."""
    return node.target is aten.transpose.int or (node.target is aten.t.default and len(shape_of(node) or ()) == 2)


def _drop_what_does_nothing(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Views to the shape that is there already, and detachments."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node not in fixed:
            continue
        source = node.args[0] if node.args else None
        same = shape_of(node) is not None and shape_of(node) == shape_of(source)
        if (node.target in SAME and same) or (node.target in COPIES and source in fixed):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.target in VIEWS and source in fixed and source.op == "call_function" and source.target in VIEWS:
            node.target = aten.reshape.default
            node.args = (source.args[0], list(shape_of(node) or node.args[1]))


def merge_equal(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Computes once what is computed twice from the same; `fixed`: what is neither random nor written to."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node not in fixed or node.op not in ("call_function", "get_attr"):
            continue
        key = _key(node)
        if key is None:
            continue
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _key(node: fx.Node) -> Any:
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    try:
        key = (node.op, node.target, tuple((type(leaf), leaf) for leaf in leaves), spec)
        hash(key)
    except TypeError:
        return None
    return key


def _cancel_shifts(graph: fx.Graph, fixed: set[fx.Node]) -> bool:
    """`(x − c) − mean(x − c)` is `x − mean(x)` where c is the same along the mean: normalised logits, centred."""
    found = False
    for node in list(graph.nodes):
        if node.target is not aten.mean.dim or len(node.args) < 3 or node.args[2] is not True:
            continue
        shifted, dims = node.args[0], node.args[1]
        users = [user for user in node.users if user.target is aten.sub.Tensor and user.args == (shifted, node)]
        if len(users) != len(node.users) or shifted.target is not aten.sub.Tensor or shifted not in fixed:
            continue
        x, c = shifted.args[:2]
        shapes = shape_of(x), shape_of(c)
        if shifted.kwargs or None in shapes or len(shapes[0]) != len(shapes[1]) or shapes[0] != shape_of(shifted):
            continue
        if all(shapes[1][dim] == 1 for dim in dims):
            found = True
            node.args = (x, *node.args[1:])
            for user in users:
                user.args = (x, node)
    return found

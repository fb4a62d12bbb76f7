"""What a captured graph knows before it runs."""

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.nodes import (
    FULL,
    MAX_FILLED,
    ONES,
    SCALINGS,
    ZEROS,
    constant_of,
    dtype_of,
    is_for_one,
    is_of,
    shape_of,
)

aten = torch.ops.aten
# No result worked out beforehand holds more numbers.
_MAX_FOLDED = 2**22


def fold(module: fx.GraphModule, fixed: set[fx.Node]) -> None:
    """Works out what depends on constants alone."""
    graph, known = module.graph, {}
    for node in list(graph.nodes):
        if node not in fixed:
            continue
        if node.op == "get_attr":
            value = getattr(module, node.target, None)
            if isinstance(value, Tensor):
                known[node] = _compact(value.detach())
        elif node.target in (*ZEROS, *ONES, *FULL):
            value, like = _filled_with(node), node.meta["val"]
            if value is not None and like.numel() <= MAX_FILLED:
                known[node] = torch.full(like.shape, value, dtype=like.dtype, device=like.device)
        elif node.op == "call_function" and all(parent in known for parent in node.all_input_nodes):
            value = _worked_out(node, *fx.map_arg((node.args, node.kwargs), known.__getitem__))
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            if all(leaf.numel() <= _MAX_FOLDED or _is_one_number(leaf) for leaf in tensors):
                known[node] = value
    number = 0
    for node, value in known.items():
        used_by_others = any(user not in known for user in node.users)
        if node.op != "call_function" or not used_by_others or not isinstance(value, Tensor):
            continue
        while hasattr(module, f"_folded{number}"):
            number += 1
        value = value if value.numel() > MAX_FILLED and _is_one_number(value) else value.contiguous()
        module.register_buffer(f"_folded{number}", value, persistent=False)
        with graph.inserting_before(node):
            constant = graph.get_attr(f"_folded{number}")
        constant.meta = {"val": value}
        node.replace_all_uses_with(constant, lambda user: user not in known)
        fixed.add(constant)
    graph.eliminate_dead_code()


def _worked_out(node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, of one number where its arguments are but one number each."""
    shape, tensors = shape_of(node), [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_short = shape is None or math.prod(shape) <= MAX_FILLED or torch.Tag.pointwise not in node.target.tags
    with torch.no_grad():
        if is_short or not all(map(_is_one_number, tensors)):
            return node.target(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.flatten()[:1].view(()), (args, kwargs))
        return node.target(*args, **kwargs).to(dtype_of(node)).expand(shape)


def _is_one_number(value: Tensor) -> bool:
    """Whether one place in memory stands for all of a tensor."""
    return all(stride == 0 or size == 1 for stride, size in zip(value.stride(), value.shape, strict=True))


def _compact(value: Tensor) -> Tensor:
    """A long constant that is the same everywhere, as one number."""
    if value.numel() <= MAX_FILLED or not value.is_floating_point() or _is_one_number(value):
        return value
    least, most = value.aminmax()
    return least.expand(value.shape) if bool(least == most) else value


def _filled_with(node: fx.Node) -> float | None:
    """The number that a constant holds everywhere."""
    if node.target in ZEROS or node.target in ONES:
        return float(node.target in ONES)
    named = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))
    value = {**named, **node.kwargs}["fill_value"]
    return None if isinstance(value, fx.Node) else value


def merge_constants(module: fx.GraphModule, fixed: set[fx.Node]) -> None:
    """`-x / a`, `x * a * b` and `x - a - b` with constants a and b: one operation."""
    for node in list(module.graph.nodes):
        is_binary = node.op == "call_function" and node in fixed and len(node.args) == 2 and not node.kwargs
        while is_binary and is_of(node, torch.is_floating_point) and _merge_constant(module, node, fixed):
            pass
    module.graph.eliminate_dead_code()


def _merge_constant(module: fx.GraphModule, node: fx.Node, fixed: set[fx.Node]) -> bool:
    """Takes one operation less to a node; whether there was one to spare."""
    x, other = node.args
    if node.target is aten.mul.Tensor and constant_of(module, x, fixed) is not None:
        x, other = other, x
    value = constant_of(module, other, fixed)
    if value is None or not isinstance(x, fx.Node):
        return False
    if node.target is aten.div.Tensor:
        is_number = not isinstance(value, Tensor)
        return not (is_number and value == 0) and _set(module, node, aten.mul.Tensor, x, 1 / value, fixed)
    is_product = node.target in SCALINGS
    if not (is_product or node.target is aten.sub.Tensor):
        return False
    if x not in fixed or not is_for_one(x) or x.kwargs or shape_of(x) is None or dtype_of(x) != dtype_of(node):
        return False
    if is_product and x.target is aten.neg.default and x.args[0] in fixed:
        return _set(module, node, aten.mul.Tensor, x.args[0], -value, fixed)
    if not (x.target in SCALINGS if is_product else x.target is aten.sub.Tensor) or len(x.args) != 2:
        return False
    first, second = x.args
    if is_product and constant_of(module, first, fixed) is not None:
        first, second = second, first
    inner = constant_of(module, second, fixed)
    if inner is None or first not in fixed or dtype_of(first) != dtype_of(node):
        return False
    if is_product:
        return _set(module, node, aten.mul.Tensor, first, inner * value, fixed)
    return _set(module, node, aten.sub.Tensor, first, inner + value, fixed)


def _set(module: fx.GraphModule, node: fx.Node, target: Any, x: fx.Node, value: Any, fixed: set[fx.Node]) -> bool:
    """Makes a node an operation on x and a constant, if that has its shape and dtype; whether it had."""
    if isinstance(value, Tensor):
        if tuple(torch.broadcast_shapes(shape_of(x), value.shape)) != shape_of(node) or value.dtype != dtype_of(node):
            return False
        number = sum(name.startswith("_merged") for name, _ in module.named_buffers())
        module.register_buffer(f"_merged{number}", value.contiguous(), persistent=False)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(f"_merged{number}")
        constant.meta = {"val": value}
        fixed.add(constant)
        node.target, node.args = target, (x, constant)
        return True
    if shape_of(x) != shape_of(node):
        return False
    node.target, node.args = target, (x, value)
    return True


def permute_back(module: fx.GraphModule, fixed: set[fx.Node]) -> None:
    """The gradient of a permutation by a constant: its inverse instead of sums into zeros."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.index_put.default or node not in fixed or len(node.args) < 4:
            continue
        zeros, places, values, adds = node.args
        used = [(axis, place) for axis, place in enumerate(places) if place is not None]
        if not adds or not _is_zero(module, zeros, fixed) or shape_of(values) != shape_of(node):
            continue
        if len(used) != 1 or used[0][1].op != "get_attr" or used[0][1] not in fixed:
            continue
        axis, place = used[0]
        order = getattr(module, place.target).detach()
        if order.dim() != 1 or order.dtype != torch.long or len(order) != shape_of(node)[axis]:
            continue
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            continue
        name = f"_inverse_of_{place.target}"
        module.register_buffer(name, order.argsort(), persistent=False)
        with graph.inserting_before(node):
            inverse = graph.get_attr(name)
            inverse.meta = {"val": order}
            fixed.add(inverse)
        node.target, node.args = aten.index.Tensor, (values, [None] * axis + [inverse])


def _is_zero(module: fx.GraphModule, node: fx.Node, fixed: set[fx.Node]) -> bool:
    if node.op == "get_attr":
        value = constant_of(module, node, fixed)
        return value is not None and not bool(value.any())
    return node.target in ZEROS and node in fixed

"""What can be said of the operations of a captured graph, and how to add one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
SAME = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default)
COPIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
ZEROS = (aten.new_zeros.default, aten.zeros.default, aten.zeros_like.default)
ONES = (aten.new_ones.default, aten.ones.default, aten.ones_like.default)
FULL = (aten.new_full.default, aten.full.default, aten.full_like.default)
SCALINGS = (aten.mul.Tensor, aten.mul.Scalar)
RESHAPED = (aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
# Views of all of their argument.
TURNED = (*VIEWS, aten.t.default, aten.transpose.int)
# No constant that one number stands for, or that is made of two, holds more numbers.
MAX_FILLED = 2**16


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of an operation's result, None where that is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(map(int, value.shape)) if isinstance(value, Tensor) else None


def dtype_of(node: fx.Node) -> torch.dtype:
    """The dtype of an operation's result, a tensor."""
    return node.meta["val"].dtype


def is_of(node: fx.Node, is_kind: Callable[[Tensor], bool]) -> bool:
    """Whether an operation's result is a tensor of a kind, such as `torch.is_floating_point`."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and is_kind(value)


def _is_op(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def mutates(node: fx.Node) -> bool:
    """Whether it writes over an argument."""
    return _is_op(node) and node.target._schema.is_mutable


def is_random(node: fx.Node) -> bool:
    """Whether its result is drawn at random."""
    return _is_op(node) and torch.Tag.nondeterministic_seeded in node.target.tags


def has_effect(node: fx.Node) -> bool:
    """Whether it is needed though nothing needs its result: random numbers that nothing uses are not."""
    return node.is_impure() and (mutates(node) or not is_random(node))


def untouched(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose result is never written to, by way of a view either, and not random."""
    touched: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if mutates(node) or node in touched:
            touched.add(node)
            touched.update(node.all_input_nodes)
    return {node for node in graph.nodes if node not in touched and not is_random(node)}


def insert(graph: fx.Graph, dtype: torch.dtype, target: Any, shape: tuple[int, ...], *args: Any) -> fx.Node:
    """A new operation with the shape of its result."""
    node = graph.call_function(target, args)
    node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return node


def constant_of(module: fx.GraphModule, node: Any, fixed: set[fx.Node]) -> Any:
    """The number or tensor of floats that an operand is in every run, else None."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return float(node)
    if not isinstance(node, fx.Node) or node.op != "get_attr" or node not in fixed:
        return None
    value = getattr(module, node.target, None)
    is_small = isinstance(value, Tensor) and value.is_floating_point() and value.numel() <= MAX_FILLED
    return value.detach() if is_small and not isinstance(value, nn.Parameter) else None


def is_for_one(node: fx.Node) -> bool:
    """Whether at most one operation that is needed itself needs it."""
    return sum(bool(user.users) or user.op == "output" for user in node.users) <= 1

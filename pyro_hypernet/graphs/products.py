"""Products of matrices: not copied, added in place."""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from pyro_hypernet.graphs.nodes import TURNED, VIEWS, dtype_of, insert, shape_of, untouched

aten = torch.ops.aten
# Products of so many numbers get memory of their own, kept from run to run.
_KEPT_FROM = 2**20
# What can write over its first argument, and results that share memory with nothing else.
_OVERWRITING = {
    aten.addmm.default: aten.addmm_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.tanh.default: aten.tanh_.default,
    aten.exp.default: aten.exp_.default,
    aten.silu.default: aten.silu_.default,
    aten.relu.default: aten.relu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
}
_FRESH = {aten.mm.default, aten.bmm.default, *_OVERWRITING, *_OVERWRITING.values()}


def unexpand_products(graph: fx.Graph) -> bool:
    """`bmm` of x, the same for all b, and m, the same for all s, over all pairs (s, b): one product.

    Vmapping over draws s and, within, over changes b of a last layer copies the hidden units x for every b. With x of
    shape `(S, n, H)` and m of shape `(B, H, C)` the result is `(S n, H) @ (H, B C)` in another order.
    """
    found = False
    for node in list(graph.nodes):
        if node.target is not aten.bmm.default:
            continue
        x, m = (_expanded(operand) for operand in node.args)
        if x is None or m is None:
            continue
        (x, (s, b, n, h)), (m, (s2, b2, h2, c)) = x, m
        if (s, b, h) != (s2, b2, h2) or _padded(x) != (s, 1, n, h) or _padded(m) != (1, b, h, c) or min(s, b) == 1:
            continue
        found = True
        with graph.inserting_before(node):
            call = partial(insert, graph, node.meta["val"].dtype)
            flat = call(aten.reshape.default, (s * n, h), x, [s * n, h])
            columns = call(aten.reshape.default, (b, h, c), m, [b, h, c])
            columns = call(aten.permute.default, (h, b, c), columns, [1, 0, 2])
            columns = call(aten.reshape.default, (h, b * c), columns, [h, b * c])
            product = call(aten.mm.default, (s * n, b * c), flat, columns)
            product = call(aten.reshape.default, (s, n, b, c), product, [s, n, b, c])
            product = call(aten.permute.default, (s, b, n, c), product, [0, 2, 1, 3])
            product = call(aten.reshape.default, (s * b, n, c), product, [s * b, n, c])
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    return found


def _expanded(node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """What was copied along one of two batch axes to make an operand of `bmm`, and the four axes."""
    chain = (aten.clone.default, *VIEWS)
    while isinstance(node, fx.Node) and node.target in chain:
        node = node.args[0]
    shape = shape_of(node)
    if shape is None or len(shape) != 4 or node.target is not aten.expand.default:
        return None
    return node.args[0], shape


def _padded(node: fx.Node) -> tuple[int, ...] | None:
    """Its shape with four axes."""
    shape = shape_of(node)
    return None if shape is None else (1,) * (4 - len(shape)) + shape


def add_in_products(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """`y + A @ B` in one operation."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or node not in fixed:
            continue
        for product, other in (node.args, node.args[::-1]):
            if not isinstance(product, fx.Node) or product.target is not aten.mm.default or len(product.users) > 1:
                continue
            dtypes = {part.meta["val"].dtype for part in (node, product, other) if isinstance(part, fx.Node)}
            if (
                isinstance(other, fx.Node)
                and shape_of(other) == shape_of(product) == shape_of(node)
                and len(dtypes) == 1
            ):
                node.target, node.args = aten.addmm.default, (other, *product.args)
                break


def in_place(module: fx.GraphModule, overwritten: Sequence[int]) -> fx.GraphModule:
    """A copy that writes over what nothing else needs: sums onto products, functions onto their arguments.

    Args:
        module: The graph.
        overwritten: Numbers of results that the next run may write over.
    """
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    graph, fixed = module.graph, untouched(module.graph)
    bases: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in fixed and node.target in VIEWS and shape_of(node) is not None:
            # Sizes said in full, for TorchScript mixes up lists that hold a -1; and a sum written over one of its
            # arguments lies in memory as that does, so that what was a view may need a copy.
            node.target, node.args = aten.reshape.default, (node.args[0], list(shape_of(node)))
        if node not in fixed or node.kwargs or node.target not in _OVERWRITING or shape_of(node) is None:
            continue
        swaps = node.target in (aten.add.Tensor, aten.mul.Tensor) and isinstance(node.args[1], fx.Node)
        for args in (node.args, node.args[::-1]) if swaps else (node.args,):
            base = _base(args[0], fixed, alone=True)
            if base is None or shape_of(args[0]) != shape_of(node) or dtype_of(base) != dtype_of(node):
                continue
            if any(other is args[0] for other in args[1:]):
                continue
            bases[node] = bases.get(base, base)
            node.target, node.args = _OVERWRITING[node.target], args
            break
    results = next(iter(reversed(graph.nodes))).args[0]
    for number in overwritten:
        base = _base(results[number], fixed, alone=False)
        keep(module, bases.get(base, base), f"_kept{number}")
    module.recompile()
    return module


def keep(module: fx.GraphModule, product: fx.Node | None, name: str) -> None:
    """Keeps a large product's memory from run to run; nothing happens where it is none.

    Args:
        module: The graph, changed; to be compiled again.
        product: The operation.
        name: Of a new buffer.
    """
    if product is None or product.target is not aten.mm.default or math.prod(shape_of(product)) < _KEPT_FROM:
        return
    like = product.meta["val"]
    module.register_buffer(name, torch.empty(like.shape, dtype=like.dtype, device=like.device), persistent=False)
    with module.graph.inserting_before(product):
        place = module.graph.get_attr(name)
    product.target, product.kwargs = aten.mm.out, {"out": place}


def _base(node: Any, fixed: set[fx.Node], *, alone: bool) -> fx.Node | None:
    """The operation that a result is another view of; `alone`: if that is all that it is for."""
    while isinstance(node, fx.Node) and node in fixed and not (alone and len(node.users) > 1):
        if node.target in _FRESH:
            return node
        if node.target not in TURNED:
            return None
        node = node.args[0]
    return None

"""Captured graphs of tensor operations: made smaller, and run from C++ or compiled."""

import copy
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
# No result worked out beforehand holds more numbers.
_MAX_FOLDED = 2**22
_SAME = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default)
_COPIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_ZEROS = (aten.new_zeros.default, aten.zeros.default, aten.zeros_like.default)
# Results that nothing else shares memory with, and views that keep all of them.
_PRODUCTS = (aten.mm.default, aten.addmm.default)
_TURNED = (*_VIEWS, aten.t.default, aten.transpose.int)
# Products of so many numbers get memory of their own, kept from run to run.
_KEPT_FROM = 2**20


def simplify(module: fx.GraphModule, *, constants: bool = False) -> fx.GraphModule:
    """Makes a captured graph smaller in place, with the same results up to rounding.

    What is computed twice is computed once, operations without effect go, and products with an operand that was copied
    along the other's batch become one product.

    Args:
        module: The graph, with shapes in its metadata, as `make_fx` leaves them.
        constants: Whether tensors that the graph holds never change, so that what depends on them alone is worked
            out now.

    Returns:
        The same module.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    fixed = _untouched(graph)
    _drop_zeros(graph, fixed)
    if constants:
        _fold(module, fixed)
    _drop_what_does_nothing(graph, fixed)
    _merge_equal(graph, fixed)
    changes = [_unexpand_products(graph), _cancel_shifts(graph, fixed)]
    if any(changes):
        graph.eliminate_dead_code()
        _merge_equal(graph, fixed)
    if constants:
        _fold(module, fixed)
    _add_in_products(graph, fixed)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def as_script(
    module: fx.GraphModule, tensors: Sequence[Tensor], *, overwritten: Sequence[int] = ()
) -> Callable[..., Any]:
    """The same operations run from C++, constants worked out beforehand, sums of products in place.

    Args:
        module: The graph.
        tensors: Inputs of the shapes that it will see.
        overwritten: Numbers of results that the next run may write over. Where they are large products their memory is
            kept: fresh memory costs more than the product that fills it.

    Returns:
        The script; the graph as it is, run from Python, on a GPU, where TorchScript compiles kernels of its own for
        minutes and a CUDA graph does away with Python, and where TorchScript does not know an operation, as the
        gradient of a convolution: these are few and long.
    """
    if any(tensor.is_cuda for tensor in tensors):
        return module
    try:
        return _traced(_in_place(module, overwritten), tensors)
    except RuntimeError as error:
        if "unsupported argument type" not in str(error):
            raise
        return module


def _traced(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    with warnings.catch_warnings(), torch.no_grad(), same_random_numbers(tensors):
        warnings.simplefilter("ignore")  # on the age of TorchScript, and on constants, which are meant
        return torch.jit.freeze(torch.jit.trace(module, tuple(tensors), check_trace=False).eval())


def as_inductor(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph compiled by torch's inductor, random numbers as without it.

    Args:
        module: The graph.
        tensors: Inputs of the shapes that it will see.

    Raises:
        RuntimeError: If it cannot be compiled, by whatever error of inductor's.
    """
    from torch import _inductor as inductor  # seconds to import, and few runs need it

    with warnings.catch_warnings(), torch.no_grad(), same_random_numbers(tensors):
        warnings.simplefilter("ignore")
        try:
            options = {"fallback_random": True, "compile_threads": 1}
            compiled = inductor.compile(module, list(tensors), options=options)
            compiled(*tensors)
        except Exception as error:
            raise RuntimeError(f"inductor could not compile the graph: {str(error)[:200]}") from error
    return compiled


def as_cuda_graph(run: Callable[..., Any], tensors: Sequence[Tensor], num_kept: int) -> Callable[..., Any]:
    """Records all launches of a run on a GPU and replays them as one; results are overwritten by the next call.

    Args:
        run: A function of tensors without a synchronisation.
        tensors: Inputs on the GPU, of the shapes that it will see.
        num_kept: How many of the first inputs always lie where these do; all others are copied in at every call.

    Raises:
        RuntimeError: If an operation cannot be recorded; random numbers go on as if nothing had been tried.
    """
    kept, copied = list(tensors[:num_kept]), [tensor.clone() for tensor in tensors[num_kept:]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side), same_random_numbers(tensors):
        for _ in range(3):
            run(*kept, *copied)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[tensors[0].device.index or 0]
    untouched = generator.clone_state()
    try:
        with torch.no_grad(), torch.cuda.graph(graph):
            results = run(*kept, *copied)
    except RuntimeError:
        generator.graphsafe_set_state(untouched)  # the other one believes that it is still being recorded
        raise

    def replay(*tensors: Tensor) -> Any:
        for place, tensor in zip(copied, tensors[num_kept:], strict=True):
            place.copy_(tensor)
        graph.replay()
        return results

    return replay


@contextmanager
def same_random_numbers(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Leaves torch's generators as they were, so that what runs inside is not seen outside.

    Args:
        tensors: Whose devices' generators.
    """
    devices = list({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which inductor needs for the CPU."""
    from torch._inductor import config  # the compiler that inductor would take

    chosen = config.cpp.cxx
    names = [name for name in (chosen if isinstance(chosen, (tuple, list)) else [chosen]) if name]
    return any(shutil.which(name) for name in [*names, "g++", "clang++"])


def _shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(map(int, value.shape)) if isinstance(value, Tensor) else None


def _is_op(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _mutates(node: fx.Node) -> bool:
    return _is_op(node) and node.target._schema.is_mutable


def _is_random(node: fx.Node) -> bool:
    return _is_op(node) and torch.Tag.nondeterministic_seeded in node.target.tags


def _untouched(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose result is never written to, by way of a view either, and not random."""
    touched: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if _mutates(node) or node in touched:
            touched.add(node)
            touched.update(node.all_input_nodes)
    return {node for node in graph.nodes if node not in touched and not _is_random(node)}


def _fold(module: fx.GraphModule, fixed: set[fx.Node]) -> None:
    """Works out what depends on constants alone."""
    graph, known = module.graph, {}
    for node in list(graph.nodes):
        if node not in fixed:
            continue
        if node.op == "get_attr":
            value = getattr(module, node.target, None)
            if isinstance(value, Tensor):
                known[node] = value.detach()
        elif node.op == "call_function" and all(parent in known for parent in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
            if all(leaf.numel() <= _MAX_FOLDED for leaf in tensors):
                known[node] = value
    number = 0
    for node, value in known.items():
        used_by_others = any(user not in known for user in node.users)
        if node.op != "call_function" or not used_by_others or not isinstance(value, Tensor):
            continue
        while hasattr(module, f"_folded{number}"):
            number += 1
        module.register_buffer(f"_folded{number}", value.contiguous(), persistent=False)
        with graph.inserting_before(node):
            constant = graph.get_attr(f"_folded{number}")
        constant.meta = {"val": value}
        node.replace_all_uses_with(constant, lambda user: user not in known)
        fixed.add(constant)
    graph.eliminate_dead_code()


def _drop_zeros(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Sums with zeros that change neither shape nor dtype."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or node not in fixed:
            continue
        for zeros, other in (node.args, node.args[::-1]):
            if not (isinstance(zeros, fx.Node) and zeros.target in _ZEROS and zeros in fixed):
                continue
            if _shape(node) is None or _shape(other) != _shape(node):
                continue
            if other in fixed and other.meta["val"].dtype == node.meta["val"].dtype:
                node.replace_all_uses_with(other)
                graph.erase_node(node)
                break
    graph.eliminate_dead_code()


def _drop_what_does_nothing(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Views to the shape that is there already, and detachments."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node not in fixed:
            continue
        source = node.args[0] if node.args else None
        same = _shape(node) is not None and _shape(node) == _shape(source)
        if (node.target in _SAME and same) or (node.target in _COPIES and source in fixed):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif node.target in _VIEWS and source in fixed and source.op == "call_function" and source.target in _VIEWS:
            node.target = aten.reshape.default
            node.args = (source.args[0], list(_shape(node) or node.args[1]))


def _merge_equal(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """Computes once what is computed twice from the same."""
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


def _unexpand_products(graph: fx.Graph) -> bool:
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
            call = partial(_call, graph, node.meta["val"].dtype)
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


def _add_in_products(graph: fx.Graph, fixed: set[fx.Node]) -> None:
    """`y + A @ B` in one operation."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or node not in fixed:
            continue
        for product, other in (node.args, node.args[::-1]):
            if not isinstance(product, fx.Node) or product.target is not aten.mm.default or len(product.users) > 1:
                continue
            dtypes = {part.meta["val"].dtype for part in (node, product, other) if isinstance(part, fx.Node)}
            if isinstance(other, fx.Node) and _shape(other) == _shape(product) == _shape(node) and len(dtypes) == 1:
                node.target, node.args = aten.addmm.default, (other, *product.args)
                break


def _in_place(module: fx.GraphModule, overwritten: Sequence[int]) -> fx.GraphModule:
    """A copy in which `y + A @ B` is added to y where y is itself a product that nothing else needs."""
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    graph, fixed = module.graph, _untouched(module.graph)
    bases: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.target is aten.addmm.default and not node.kwargs and node in fixed:
            base = _base(node.args[0], fixed, alone=True)
            if base is not None and _shape(node.args[0]) == _shape(node) and base.meta["val"].dtype == _dtype(node):
                node.target = aten.addmm_.default
                bases[node] = bases.get(base, base)
    results = next(iter(reversed(graph.nodes))).args[0]
    for number in overwritten:
        base = _base(results[number], fixed, alone=False)
        base = bases.get(base, base)
        if base is None or base.target is not aten.mm.default or math.prod(_shape(base)) < _KEPT_FROM:
            continue
        like, name = base.meta["val"], f"_kept{number}"
        module.register_buffer(name, torch.empty(like.shape, dtype=like.dtype, device=like.device), persistent=False)
        with graph.inserting_before(base):
            place = graph.get_attr(name)
        base.target, base.kwargs = aten.mm.out, {"out": place}
    module.recompile()
    return module


def _base(node: Any, fixed: set[fx.Node], *, alone: bool) -> fx.Node | None:
    """The product that a result is another view of; `alone`: if that is all that it is for."""
    while isinstance(node, fx.Node) and node in fixed and not (alone and len(node.users) > 1):
        if node.target in (*_PRODUCTS, aten.addmm_.default):
            return node
        if node.target not in _TURNED:
            return None
        node = node.args[0]
    return None


def _dtype(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype


def _call(graph: fx.Graph, dtype: torch.dtype, target: Any, shape: tuple[int, ...], *args: Any) -> fx.Node:
    """A new operation with the shape of its result."""
    node = graph.call_function(target, args)
    node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return node


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
        shapes = _shape(x), _shape(c)
        if shifted.kwargs or None in shapes or len(shapes[0]) != len(shapes[1]) or shapes[0] != _shape(shifted):
            continue
        if all(shapes[1][dim] == 1 for dim in dims):
            found = True
            node.args = (x, *node.args[1:])
            for user in users:
                user.args = (x, node)
    return found


def _expanded(node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """What was copied along one of two batch axes to make an operand of `bmm`, and the four axes."""
    chain = (aten.clone.default, *_VIEWS)
    while isinstance(node, fx.Node) and node.target in chain:
        node = node.args[0]
    shape = _shape(node)
    if shape is None or len(shape) != 4 or node.target is not aten.expand.default:
        return None
    return node.args[0], shape


def _padded(node: fx.Node) -> tuple[int, ...] | None:
    """Its shape with four axes."""
    shape = _shape(node)
    return None if shape is None else (1,) * (4 - len(shape)) + shape

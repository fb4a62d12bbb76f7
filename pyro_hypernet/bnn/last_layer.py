"""Which parameters a network's outputs depend on, and which layer comes last: by how the outputs are computed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pyro_hypernet.bnn.modules import copy_of

# Of the layers that an error names.
_MAX_NAMES = 8


def last_layer(net: nn.Module, pick: Callable[[Any], Any] = lambda result: result) -> list[str]:
    """Names of the parameters of the module that acts last.

    The network is traced symbolically, and the way is followed from the output back to the first parameters on it.

    Args:
        net: A network.
        pick: The outputs among what it returns.

    Returns:
        The names, in the network's order; of a tied parameter its first name.

    Raises:
        ValueError: If the network cannot be traced, or several modules share in the output.
    """
    layers = {name: module for name, module in net.named_modules() if list(module.parameters(recurse=False))}
    found = list(layers) if len(layers) == 1 else sorted(_layers_at_the_end(net, layers, pick))
    if len(found) != 1:
        _ask(f"{', '.join(map(repr, found)) or 'no layer'} may be the last", layers)
    own = {id(parameter) for parameter in layers[found[0]].parameters(recurse=False)}
    return [name for name, parameter in net.named_parameters() if id(parameter) in own]


def find_unused(net: nn.Module, names: Sequence[str], run: Callable[[dict[str, Tensor]], Tensor]) -> list[str]:
    """Names of the parameters that the outputs do not depend on.

    Args:
        net: A network.
        names: The parameters to look for.
        run: From values of parameters to the outputs.
    """
    with torch.enable_grad():
        values = {name: net.get_parameter(name).detach().clone().requires_grad_() for name in names}
        f = run(values)
    reached = _leaves(f)
    suspects = [name for name, value in values.items() if id(value) not in reached]
    if not suspects:
        return []
    with torch.no_grad():  # what has no gradient may still count, such as a threshold
        moved = values | {name: 1.5 * values[name] + 1.0 for name in suspects}
        is_same = torch.equal(f.nan_to_num(), run(moved).nan_to_num())
    return suspects if is_same else []


def _leaves(f: Tensor) -> set[int]:
    """Ids of the tensors that autograd would reach from a result."""
    found, seen, waiting = set(), set(), [f.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            found.add(id(step.variable))
        waiting += [following for following, _ in step.next_functions]
    return found


def _layers_at_the_end(net: nn.Module, layers: dict[str, nn.Module], pick: Callable[[Any], Any]) -> set[str]:
    try:
        graph = fx.Tracer().trace(copy_of(net))
        output = next(node for node in graph.nodes if node.op == "output")
        ends = [node for node in pytree.tree_leaves(pick(output.args[0])) if isinstance(node, fx.Node)]
    except Exception as error:  # whatever the user's code raises on symbols
        reason = str(error).strip().splitlines() or [type(error).__name__]
        _ask(f"it cannot be traced ({reason[0][:120]})", layers)
    in_place = [node.name for node in graph.nodes if not node.users and _is_in_place(node)]
    if in_place:
        _ask(f"it changes values in place ({', '.join(in_place)})", layers)
    seen: set[fx.Node] = set()
    return {name for end in ends for name in _walk(end, layers, seen)}


def _is_in_place(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name.endswith("_")


def _walk(node: fx.Node, layers: dict[str, nn.Module], seen: set[fx.Node]) -> Iterator[str]:
    """The layers met first on all ways back from a node."""
    if node in seen:
        return
    seen.add(node)
    met = []
    if node.op == "call_module":
        met = [name for name in layers if name == node.target or name.startswith(f"{node.target}.")]
    elif node.op == "get_attr" and node.target.rpartition(".")[0] in layers:
        met = [node.target.rpartition(".")[0]]
    yield from met
    if not met:
        for source in node.all_input_nodes:
            yield from _walk(source, layers, seen)


def _ask(why: str, layers: dict[str, nn.Module]) -> None:
    names = [repr(name) for name in layers]
    shown = ", ".join([*(["…"] if len(names) > _MAX_NAMES else []), *names[-_MAX_NAMES:]])
    raise ValueError(
        f"sites='last_layer': which layer of the network comes last cannot be told, for {why}. Name its parameters, as "
        f"in sites=['head.*']; the layers, as registered: {shown}."
    )

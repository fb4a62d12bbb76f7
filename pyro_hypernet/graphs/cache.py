"""Captured graphs by all that is fixed in them, and whether another one would pay."""

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.graphs.outside import Outside

_MAX_GRAPHS = 32
# Graphs that were never used again before more are captured only for what came often; and how often that is, as long
# as there is room and after that.
_MAX_IN_VAIN, _OFTEN, _VERY_OFTEN, _MAX_SIGHTS = 4, 4, 64, 1024
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def describe_shapes(arguments: Any) -> Any:
    """What must be equal for a graph to serve again: shapes of tensors, and all else but tensors' values.

    Args:
        arguments: A pytree.

    Returns:
        Something to hash, or None where an argument cannot be told from another.
    """
    leaves, spec = pytree.tree_flatten(arguments)
    described = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            described.append((tuple(map(int, leaf.shape)), leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, _PLAIN):
            described.append((type(leaf), leaf))
        else:
            return None
    return (tuple(described), spec)


class Cache(OrderedDict[Any, Any]):
    """From keys, which are `(*describe_shapes(...), Outside.read())`, to graphs, which count their `calls`.

    The last used comes last: whoever uses a graph calls `move_to_end`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sights: dict[Any, int] = {}
        self._has_warned = False

    def add(self, key: Any, graph: Any) -> None:
        """Adds a graph, in the place of the one that was not used for longest if they are too many."""
        self[key] = graph
        self.move_to_end(key)
        if len(self) > _MAX_GRAPHS:
            self.popitem(last=False)

    def pays(self, key: Any, outside: Outside) -> bool:
        """Whether to capture a graph: at once, but once some were in vain only for what came often."""
        in_vain = sum(graph.calls <= 1 for graph in self.values())
        if key in self or (in_vain < _MAX_IN_VAIN and len(self) < _MAX_GRAPHS):
            return True
        if len(self._sights) >= _MAX_SIGHTS:
            self._sights.clear()
        sights = self._sights[key] = self._sights.get(key, 0) + 1
        often = sights > (_OFTEN if len(self) < _MAX_GRAPHS else _VERY_OFTEN)
        if not often and not self._has_warned:
            changing = _what_differs([*self, key], outside)
            if changing:
                self._has_warned = True
                warn_caller(
                    f"The model runs uncaptured where {changing} has a new value, for a graph is made for one value: "
                    "slower, with the same results. Pass what changes as a tensor, in few shapes."
                )
        return often


def _what_differs(keys: list[Any], outside: Outside) -> str:
    """Names of the plain arguments, or of what is outside of them, that differ between keys."""
    names = set()
    for one, other in pairwise(keys):
        (leaves, spec, read), (leaves2, spec2, read2) = one, other
        names.update(repr(name) for name in outside.changed(read, read2))
        if spec == spec2:
            paths = [path for path, _ in pytree.tree_leaves_with_path(pytree.tree_unflatten(range(len(leaves)), spec))]
            names.update(
                _argument(path) for path, a, b in zip(paths, leaves, leaves2, strict=True) if a != b and path[0].idx > 0
            )
    return ", ".join(sorted(names))


def _argument(path: Any) -> str:
    key = path[1]
    return f"argument {key.key!r}" if hasattr(key, "key") else f"argument number {key.idx + 1}"

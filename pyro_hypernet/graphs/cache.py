"""Captured graphs by all that is fixed in them, and whether another one would pay."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.graphs.outside import Outside

_MAX_GRAPHS = 32
# The first keys are captured at once; another one when it makes up so many of the last misses, or once it came so often
# in all: a capture takes the time of some 25 uncaptured runs, which is then a fifth of what its key has cost.
_AT_ONCE, _RECENT, _OFTEN, _VERY_OFTEN, _MAX_SIGHTS = 2, 16, 5, 128, 1024
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
    return (tuple(described), _Structure(spec))


@dataclass(frozen=True, eq=False, slots=True)
class _Structure:
    """A TreeSpec that can be hashed, which those of some releases of torch cannot where they hold lists of keys."""

    spec: pytree.TreeSpec

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Structure) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash((self.spec.num_nodes, self.spec.num_leaves))


class Cache(OrderedDict[Any, Any]):
    """From keys, which are `(*describe_shapes(...), Outside.read())`, to graphs, which count their `calls`.

    The last used comes last: whoever uses a graph calls `move_to_end`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sights: Counter[Any] = Counter()
        self._recent: deque[Any] = deque(maxlen=_RECENT)
        self._has_warned = False

    def add(self, key: Any, graph: Any) -> None:
        """Adds a graph, in the place of the one that was not used for longest if they are too many."""
        self._sights.pop(key, None)
        self[key] = graph
        self.move_to_end(key)
        if len(self) > _MAX_GRAPHS:
            self.popitem(last=False)

    def pays(self, key: Any, outside: Outside) -> bool:
        """Whether to capture a graph: at once where there are few yet, else only for what comes often."""
        if key in self or len(self) < _AT_ONCE:
            return True
        if len(self._sights) >= _MAX_SIGHTS:
            self._sights.clear()
        self._sights[key] += 1
        self._recent.append(key)
        is_frequent = len(self) < _MAX_GRAPHS and self._recent.count(key) >= _OFTEN
        often = is_frequent or self._sights[key] > _VERY_OFTEN
        if not often and not self._has_warned and len(set(self._recent)) > _RECENT // 2:
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
        (leaves, tree, read), (leaves2, tree2, read2) = one, other
        names.update(repr(name) for name in outside.changed(read, read2))
        if tree == tree2:
            numbered = pytree.tree_unflatten(range(len(leaves)), tree.spec)
            paths = [path for path, _ in pytree.tree_leaves_with_path(numbered)]
            names.update(
                _argument(path) for path, a, b in zip(paths, leaves, leaves2, strict=True) if a != b and path[0].idx > 0
            )
    return ", ".join(sorted(names))


def _argument(path: Any) -> str:
    key = path[1]
    return f"argument {key.key!r}" if hasattr(key, "key") else f"argument number {key.idx + 1}"

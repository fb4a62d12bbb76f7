"""A model's arguments as a guide keeps them: tensors move with it, and what can be written is written to its file."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# A guide keeps its data up to this many numbers.
_MAX_DATA = 2**22
_PLAIN = (bool, int, float, str, type(None))


class ByName:
    """A model whose arguments come by name in one dict."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        return self.model(**arguments)


class Arguments(nn.Module):
    """Arguments of a model, whose tensors and arrays of numbers, however deep in lists and dicts, are buffers.

    Args:
        args: The arguments.
        persistent: Whether the tensors are part of `state_dict`.
    """

    def __init__(self, args: tuple, kwargs: Mapping[str, Any], *, persistent: bool = True) -> None:
        super().__init__()
        leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
        # Where every leaf goes, by number: what torch makes of that, a TreeSpec, warns when it is copied.
        self._places = pytree.tree_unflatten(range(len(leaves)), tree)
        self._arrays = [number for number, leaf in enumerate(leaves) if _is_array(leaf)]
        leaves = [torch.from_numpy(leaf) if _is_array(leaf) else leaf for leaf in leaves]
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"argument_{number}", leaf.detach(), persistent=persistent)

    def values(self) -> tuple[tuple, dict[str, Any]]:
        """The arguments and the keyword arguments, on the device of the guide."""

        def leaf(number: int) -> Any:
            value = self._buffers.get(f"argument_{number}", self._leaves[number])
            return value.cpu().numpy() if number in self._arrays else value

        return pytree.tree_map(leaf, self._places)

    @property
    def others(self) -> list[Any]:
        """Leaves that are neither tensors nor plain values: a file cannot hold them."""
        return [leaf for leaf in self._leaves if not isinstance(leaf, _PLAIN)]

    def can_be_kept(self) -> bool:
        """Whether a guide may build on them of its own accord: tensors and plain values, not too many numbers."""
        numbers = [buffer.numel() for buffer in self.buffers()]
        is_plain = not self.others and not self._arrays and _written(self._places) is not None
        return is_plain and len(numbers) > 0 and sum(numbers) <= _MAX_DATA

    def describe(self) -> dict[str, Any] | None:
        """Plain values for a file, to which the buffers belong; None where it cannot hold all."""
        tree = _written(self._places)
        return None if self.others or tree is None else {"tree": tree, "leaves": self._leaves, "arrays": self._arrays}

    def are(self, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        """Whether these are the same: the same tensors in memory, other values equal."""
        leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
        own = pytree.tree_leaves(self.values())
        return tree == pytree.tree_structure(self._places) and all(map(_is_same, leaves, own))


def recall(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[tuple, dict[str, Any]]:
    """The arguments that `Arguments.describe` described, and whose buffers these tensors are, by name."""
    leaves = [tensors.get(f"argument_{number}", leaf) for number, leaf in enumerate(described["leaves"])]
    for number in described["arrays"]:
        leaves[number] = leaves[number].numpy()
    return pytree.tree_unflatten(leaves, pytree.treespec_loads(described["tree"]))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf" and leaf.flags.writeable


def _is_same(one: Any, other: Any) -> bool:
    if _is_array(one) and _is_array(other):
        one, other = torch.from_numpy(one), torch.from_numpy(other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        is_alike = one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
        return is_alike and one.data_ptr() == other.data_ptr()
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


def _written(places: Any) -> str | None:
    try:
        return pytree.treespec_dumps(pytree.tree_structure(places))
    except (NotImplementedError, TypeError, ValueError):  # a container that only its own program knows
        return None

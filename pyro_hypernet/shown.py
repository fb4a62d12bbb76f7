"""Results as they are shown at a prompt: figures rounded, tensors by their shapes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

# Figures of more digits before the point are written out.
_MOST = 1e15


class Shown:
    """A dataclass with `repr=False` that is shown by its fields, as one line that can be read."""

    def __repr__(self) -> str:
        told = (f"{field.name}={_spell(getattr(self, field.name))}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({', '.join(told)})"


def _spell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < _MOST else f"{value:.4g}"
    if isinstance(value, torch.Tensor):
        return _spell(value.item()) if value.dim() == 0 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_spell(key)}: {_spell(entry)}" for key, entry in value.items()) + "}"
    if type(value) in (tuple, list):
        start, end = ("(", ",)" if len(value) == 1 else ")") if isinstance(value, tuple) else "[]"
        return start + ", ".join(map(_spell, value)) + end
    return repr(value)

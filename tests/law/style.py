"""A style of model: a Pyro model with its data, as a user would write it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.seeds import seed

Arguments = tuple[tuple, dict[str, Any]]

# What is warned of where draws are taken one after the other.
LOOPS = ("The model cannot be vmapped",)


@dataclass(frozen=True)
class Style:
    """A model and what it is called with.

    Attributes:
        model: The Pyro model.
        args: Its arguments, data included.
        kwargs: Its keyword arguments, data included.
        at: From a number of rows to arguments that predict so many, without data; None where the rows are fixed.
        is_function: Whether its density is the same at every run; else there is no rejection.
        warns: Beginnings of warnings of ours that are due.
        broadcasts: Whether it broadcasts over an axis of draws to the left, as Pyro's vectorised particles ask.
        has_pyros_density: Whether its density is Pyro's. With `obs_mask` ours has the prior of what stands for unseen
            data at all places, Pyro's at the unseen ones.
        served: The model that guides serve, where it is not `model` itself.
    """

    model: Callable[..., Any]
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    at: Callable[[int], Arguments] | None = None
    served: Callable[..., Any] | None = None
    is_function: bool = True
    warns: tuple[str, ...] = ()
    broadcasts: bool = True
    has_pyros_density: bool = True

    @property
    def guided(self) -> Callable[..., Any]:
        """The model that guides are made for."""
        return self.served or self.model

    @property
    def has_known_loss(self) -> bool:
        """Whether losses of Pyro's are minus the log weights of ours."""
        return self.is_function and self.has_pyros_density


def normal(*shape: int, stream: int = 1) -> Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed(stream)))


def uniform(*shape: int, stream: int = 2) -> Tensor:
    """Uniform numbers in (0, 1), the same at every call."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed(stream)))


def at_inputs(width: int | None = None) -> Callable[[int], Arguments]:
    """Arguments `(x,)` of so many rows, of `width` columns; a vector for None."""
    return lambda rows: ((normal(rows) if width is None else normal(rows, width),), {})

"""The axes of a picture, new or given, their legends, and the only import of matplotlib."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch


def import_matplotlib() -> ModuleType:
    """Matplotlib with its pyplot.

    Raises:
        ImportError: If it is not installed, naming the extra.
    """
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "pyro_hypernet[plot]".') from error
    return matplotlib


def new_axes(
    count: int, size: tuple[float, float] | None = None, *, columns: int = 4, is_on_screen: bool = True
) -> Any:
    """Axes of a new figure, so many in a row at most, an array of shape `(count,)`.

    Its size is in inches; pyplot, which may show it, knows of a figure that is on the screen.
    """
    columns = min(count, columns)
    size = size or ((6.0, 4.0) if count == 1 else (2.6 * columns, 2.3 * -(-count // columns)))
    make = import_matplotlib().pyplot.figure if is_on_screen else import_matplotlib().figure.Figure
    axes = make(figsize=size, layout="constrained").subplots(-(-count // columns), columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def axes_for(axes: Any, names: Sequence[str]) -> Any:
    """One of the given axes for every name, or new ones where none are given.

    Raises:
        ValueError: If there are too few.
    """
    if axes is None:
        return new_axes(len(names))
    flat = np.asarray(axes, dtype=object).flatten()
    if len(flat) < len(names):
        raise ValueError(f"axes must hold {len(names)} axes, one for each of {list(names)}; got {len(flat)}.")
    return flat[: len(names)]


def add_legend(ax: Any, *, above: bool = False) -> None:
    """A legend of the axes, or above them on their figure; names of sites and columns are no formulas."""
    if above:
        entries = ax.get_legend_handles_labels()
        legend = ax.figure.legend(*entries, loc="outside upper center", ncols=2, frameon=False)
    else:
        legend = ax.legend()
    for text in legend.get_texts():
        text.set_parse_math(False)


def to_numpy(values: Any) -> np.ndarray:
    """Numbers as matplotlib takes them, whatever their device and dtype."""
    return torch.as_tensor(values).detach().cpu().double().numpy()

"""Pictures of calibration: ranks of simulation-based calibration with their bands, reliability of classifiers."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band
from pyro_hypernet.calibration.sbc import Calibration
from pyro_hypernet.evaluation.metrics import calibration_bins, ece

_MOST = 12


def plot_sbc(
    found: Calibration, entries: Sequence[str] | None = None, *, axes: Any = None, coverage: float = 0.95
) -> Any:
    """The empirical distribution of ranks less the diagonal, with a band that holds everywhere at once.

    A line that rises above the band first and falls below it later (an S) means too narrow, the reverse too wide; one
    to one side of it, shifted.

    Args:
        found: What `sbc` returned.
        entries: Names of entries; None for the first 12.
        axes: A sequence of as many matplotlib axes; None for new ones.
        coverage: Of the band, in every panel by itself.

    Returns:
        The array of axes, one for each entry.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If an entry is unknown or there are too few axes.

    Source: Säilynoja, Bürkner and Vehtari 2022, figure 3.
    """
    names = list(found.ranks)[:_MOST] if entries is None else list(entries)
    unknown = [name for name in names if name not in found.ranks]
    if unknown:
        raise ValueError(f"No entry is named {unknown}; there are {list(found.ranks)}.")
    axes = _axes(axes, len(names))
    points, lower, upper = ecdf_band(len(next(iter(found.ranks.values()))), coverage=coverage)
    for ax, name in zip(axes, names, strict=False):
        ax.fill_between(
            _numpy(points), _numpy(lower - points), _numpy(upper - points), step="mid", alpha=0.25, color="C0"
        )
        inside = found.shapes[name] == "uniform"
        ax.step(
            _numpy(points),
            _numpy(ecdf(found.ranks[name], points) - points),
            where="mid",
            color="C0" if inside else "C3",
        )
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_title(name if inside else f"{name}: {found.shapes[name]}", fontsize="small")
        ax.set_xlabel("rank")
    axes[0].set_ylabel("ECDF less diagonal")
    return axes


def reliability(probabilities: Tensor, labels: Tensor, *, ax: Any = None, num_bins: int = 10, label: str = "") -> Any:
    """A reliability diagram: accuracy against confidence of the most probable class, and how many data stand behind.

    Args:
        probabilities: Class probabilities, shape `(N, C)`, or those of the positive class, shape `(N,)`.
        labels: Classes 0 to C − 1, shape `(N,)`.
        ax: Matplotlib axes; None for new ones.
        num_bins: Bins of equal width.
        label: Name in the legend, to which the expected calibration error is added.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Source: DeGroot and Fienberg 1983; Guo et al. 2017.
    """
    ax = _axes(None, 1)[0] if ax is None else ax
    confidence, accuracy, counts = calibration_bins(probabilities, labels, num_bins=num_bins)
    error = float(ece(probabilities, labels, num_bins=num_bins))
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    spread = (accuracy * (1 - accuracy) / counts).sqrt()
    (line,) = ax.plot(_numpy(confidence), _numpy(accuracy), marker="o", label=f"{label} ECE {error:.3f}".strip())
    low, high = (accuracy - 2 * spread).clamp(0, 1), (accuracy + 2 * spread).clamp(0, 1)
    ax.fill_between(_numpy(confidence), _numpy(low), _numpy(high), alpha=0.2, linewidth=0, color=line.get_color())
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    ax.legend()
    return ax


def _axes(axes: Any, count: int) -> list[Any]:
    if axes is None:
        columns = min(count, 4)
        rows = -(-count // columns)
        size = (6.0, 4.0) if count == 1 else (2.8 * columns, 2.4 * rows)
        figure, made = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for unused in made.flat[count:]:
            figure.delaxes(unused)
        return list(made.flat[:count])
    flat = list(getattr(axes, "flat", axes))
    if len(flat) < count:
        raise ValueError(f"axes must hold {count} axes, one for each entry; got {len(flat)}.")
    return flat[:count]


def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "pyro_hypernet[plot]".') from error
    return matplotlib.pyplot


def _numpy(values: Tensor) -> Any:
    return torch.as_tensor(values).detach().cpu().numpy()

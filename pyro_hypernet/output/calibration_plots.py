"""Pictures of calibration: ranks of simulation-based calibration with their bands, reliability of classifiers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band
from pyro_hypernet.calibration.sbc import Calibration
from pyro_hypernet.evaluation.metrics import calibration_bins, ece
from pyro_hypernet.output.axes import axes_for, to_numpy
from pyro_hypernet.output.plots import calibration_curve

_MOST_ENTRIES = 12


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
    names = list(found.ranks)[:_MOST_ENTRIES] if entries is None else list(entries)
    unknown = [name for name in names if name not in found.ranks]
    if unknown:
        raise ValueError(f"No entry is named {unknown}; there are {list(found.ranks)}.")
    axes = axes_for(axes, names)
    points, lower, upper = ecdf_band(len(next(iter(found.ranks.values()))), coverage=coverage)
    at, low, high = to_numpy(points), to_numpy(lower - points), to_numpy(upper - points)
    for ax, name in zip(axes, names, strict=True):
        shape, excess = found.shapes[name], ecdf(found.ranks[name], points) - points
        ax.fill_between(at, low, high, step="mid", alpha=0.25, color="C0")
        ax.step(at, to_numpy(excess), where="mid", color="C0" if shape == "uniform" else "C3")
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_title(name if shape == "uniform" else f"{name}: {shape}", fontsize="small", parse_math=False)
        ax.set_xlabel("rank")
    axes[0].set_ylabel("ECDF less diagonal")
    return axes


def reliability(
    probabilities: Tensor,
    labels: Tensor,
    *,
    ax: Any = None,
    num_bins: int = 10,
    label: str = "",
    color: str | None = None,
) -> Any:
    """A reliability diagram: accuracy against confidence of the most probable class, give or take two standard errors.

    Args:
        probabilities: Class probabilities, shape `(N, C)`, or those of the positive class, shape `(N,)`.
        labels: Classes 0 to C − 1, shape `(N,)`.
        ax: Matplotlib axes; None for new ones.
        num_bins: Bins of equal width.
        label: Name in the legend, to which the expected calibration error is added.
        color: A matplotlib colour.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Source: DeGroot and Fienberg 1983; Guo et al. 2017.
    """
    confidence, accuracy, counts = calibration_bins(probabilities, labels, num_bins=num_bins)
    error = float(ece(probabilities, labels, num_bins=num_bins))
    ax = calibration_curve(confidence, accuracy, ax=ax, label=f"{label} ECE {error:.3f}".strip(), color=color)
    spread = 2 * (accuracy * (1 - accuracy) / counts).sqrt()
    low, high = (accuracy - spread).clamp(0, 1), (accuracy + spread).clamp(0, 1)
    color = ax.lines[-1].get_color()
    ax.fill_between(to_numpy(confidence), to_numpy(low), to_numpy(high), alpha=0.2, linewidth=0, color=color)
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    return ax

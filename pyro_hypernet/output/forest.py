"""The forest: every distance of a comparison with its interval, beside the noise floor."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_hypernet.evaluation.compare import CANONICAL_SPACE, FUNCTION, HEADINGS, NOISE_FLOOR, Comparison
from pyro_hypernet.output.axes import add_legend, new_axes

_MOST_PLACES = 24
# What a distance is where there is no difference.
_SAME = {"w1_over_sd": 0.0, "sd_ratio": 1.0, "mmd_squared": 0.0, "agreement": 1.0, "total_variation": 0.0}
_FLOOR_COLOR = "0.82"
UP_TO_SYMMETRY = " (up to symmetry)"


def forest(
    comparison: Comparison,
    *,
    quantity: str = "w1_over_sd",
    places: Sequence[str] | None = None,
    colors: Mapping[str, str] | None = None,
    ax: Any = None,
) -> Any:
    """Draws every posterior's distance from the reference as a point with its interval, place by place.

    Grey shows the noise floor, the range of the reference's distance from itself: what reaches into it cannot be told
    from the reference. The dotted line is where there is no difference.

    Args:
        comparison: What `compare` returned.
        quantity: "w1_over_sd", "sd_ratio", "mmd_squared", "agreement" or "total_variation".
        places: "function" and names of sites, with " (up to symmetry)" behind for canonical weights; None for all that
            have the quantity, 24 at most.
        colors: From the name of a posterior to a matplotlib colour; None for those of the style, in order.
        ax: Matplotlib axes; None for new ones.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the quantity or a place is unknown.
    """
    if quantity not in _SAME:
        raise ValueError(f"quantity must be one of {', '.join(_SAME)}; got {quantity!r}.")
    found = {(place_of(row), row["name"]): row for row in comparison.rows if math.isfinite(row.get(quantity, math.nan))}
    known = list(dict.fromkeys(place for place, _ in found))
    unknown = [place for place in places or () if place not in known]
    if unknown or not known:
        raise ValueError(f"places names {unknown}; {quantity!r} is known in {known}.")
    chosen = known[:_MOST_PLACES] if places is None else list(places)
    names = [name for name in comparison.names if name != NOISE_FLOOR]
    colors = {name: f"C{order}" for order, name in enumerate(names)} | dict(colors or {})
    is_own = ax is None
    ax = new_axes(1, forest_size(len(chosen), len(names)))[0] if is_own else ax

    def columns(name: str) -> np.ndarray:
        return np.array([_ends(found.get((place, name), {}), quantity) for place in chosen]).T

    at, (_, low, high) = np.arange(len(chosen)), columns(NOISE_FLOOR)
    ax.barh(at, high - low, 0.9, low, color=_FLOOR_COLOR, label=NOISE_FLOOR, zorder=0)
    for order, name in enumerate(names):
        values, low, high = columns(name)
        y = at + (order - (len(names) - 1) / 2) * 0.7 / max(len(names), 2)
        ax.hlines(y, low, high, color=colors[name], linewidth=2)
        ax.plot(values, y, "o", color=colors[name], markersize=5, label=name)
    ax.axvline(_SAME[quantity], linestyle=":", color="0.4", linewidth=1)
    labels = ["function space" if place == FUNCTION else place for place in chosen]
    ax.set_yticks(at, labels, parse_math=False)
    ax.set_ylim(len(chosen) - 0.5, -0.5)
    ax.set_xlabel(HEADINGS[quantity] + " from the reference")
    add_legend(ax, above=is_own)
    return ax


def forest_size(num_places: int, num_posteriors: int) -> tuple[float, float]:
    """Width and height in inches of a figure with room for all."""
    return 5.2, 1.1 + 0.16 * num_places * (1 + num_posteriors)


def place_of(row: Mapping[str, Any]) -> str:
    """The place of a row of a comparison, as `forest` names it."""
    return row["where"] + (UP_TO_SYMMETRY if row.get("space") == CANONICAL_SPACE else "")


def _ends(row: Mapping[str, Any], quantity: str) -> tuple[float, float, float]:
    """A distance and the ends of its interval, the distance itself where there is none; NaN where there is no row."""
    value = row.get(quantity, math.nan)
    low, high = row.get(f"{quantity}_low", math.nan), row.get(f"{quantity}_high", math.nan)
    return (value, value, value) if math.isnan(low) or math.isnan(high) else (value, low, high)

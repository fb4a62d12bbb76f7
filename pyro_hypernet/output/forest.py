"""The forest: every distance of a comparison with its interval, beside the noise floor."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_hypernet.evaluation.comparison import CANONICAL_SPACE, FUNCTION, HEADINGS, NOISE_FLOOR, Comparison
from pyro_hypernet.output.plots import new_axes

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
    found = _by_place(comparison, quantity)
    unknown = [place for place in places or () if place not in found]
    if unknown or not found:
        raise ValueError(f"places names {unknown}; {quantity!r} is known in {list(found)}.")
    chosen = {place: found[place] for place in (list(found)[:_MOST_PLACES] if places is None else places)}
    names = [name for name in comparison.names if name != NOISE_FLOOR]
    colors = {name: f"C{order}" for order, name in enumerate(names)} | dict(colors or {})
    is_own = ax is None
    ax = new_axes(1, (5.2, 1.1 + 0.16 * len(chosen) * (1 + len(names))))[0] if is_own else ax
    for number, (_, rows) in enumerate(chosen.items()):
        _draw_floor(ax, number, rows.get(NOISE_FLOOR), quantity)
        for order, name in enumerate(names):
            if name in rows:
                shift = (order - (len(names) - 1) / 2) * 0.7 / max(len(names), 2)
                _draw_point(ax, number + shift, rows[name], quantity, colors[name], name if number == 0 else None)
    ax.axvline(_SAME[quantity], linestyle=":", color="0.4", linewidth=1)
    ax.set_yticks(range(len(chosen)), [_label(place) for place in chosen], parse_math=False)
    ax.set_ylim(len(chosen) - 0.5, -0.5)
    ax.set_xlabel(HEADINGS[quantity] + " from the reference")
    _add_legend(ax, is_own=is_own)
    return ax


def _by_place(comparison: Comparison, quantity: str) -> dict[str, dict[str, dict[str, Any]]]:
    """From "function" or a site to the rows of all posteriors, by name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in comparison.rows:
        if math.isfinite(row.get(quantity, math.nan)):
            found.setdefault(place_of(row), {})[row["name"]] = row
    return found


def place_of(row: Mapping[str, Any]) -> str:
    """The place of a row of a comparison, as `forest` names it."""
    return row["where"] + (UP_TO_SYMMETRY if row.get("space") == CANONICAL_SPACE else "")


def _draw_floor(ax: Any, number: int, row: dict[str, Any] | None, quantity: str) -> None:
    if row is not None:
        low, high = _interval(row, quantity)
        span = max(high - low, 1e-9)
        label = "noise floor" if number == 0 else None
        ax.barh(number, span, left=low, height=0.9, color=_FLOOR_COLOR, label=label, zorder=0)


def _draw_point(ax: Any, y: float, row: dict[str, Any], quantity: str, color: str, label: str | None) -> None:
    ax.plot(_interval(row, quantity), (y, y), color=color, linewidth=2, solid_capstyle="round")
    ax.plot([row[quantity]], [y], "o", color=color, markersize=5, label=label)


def _interval(row: dict[str, Any], quantity: str) -> tuple[float, float]:
    value = row[quantity]
    low, high = row.get(f"{quantity}_low", math.nan), row.get(f"{quantity}_high", math.nan)
    return (value, value) if math.isnan(low) or math.isnan(high) else (low, high)


def _add_legend(ax: Any, *, is_own: bool) -> None:
    """Above the axes of a figure of our own, within axes that were given; names are no formulas."""
    handles, labels = ax.get_legend_handles_labels()
    options = {"loc": "outside upper center", "ncols": 2, "frameon": False}
    legend = ax.figure.legend(handles, labels, **options) if is_own else ax.legend()
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label(place: str) -> str:
    return "function space" if place == FUNCTION else place

"""A report's pictures as SVG, drawn from the numbers of its figures, with the words for those who cannot see them."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pyro_hypernet.evaluation.comparison import FUNCTION, HEADINGS, NOISE_FLOOR, Comparison
from pyro_hypernet.output.figures import Figure
from pyro_hypernet.output.forest import UP_TO_SYMMETRY, forest, place_of
from pyro_hypernet.output.plots import new_axes

_GOOD, _BAD = 0.5, 0.7
_MOST_PLACES = 10
_DATA_COLOR = "0.25"
_Colors = dict[str, str]
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "pyro_hypernet"}


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Attributes:
        title: Its heading.
        svg: The picture.
        alt: What it shows, for those who do not see it.
        caption: How to read it.
    """

    title: str
    svg: bytes
    alt: str
    caption: str


def draw_all(figures: Mapping[str, Figure], comparison: Comparison | None) -> list[Picture]:
    """Draws every figure that is there.

    Args:
        figures: From the name of a figure to its numbers.
        comparison: For the forest, or None.

    Returns:
        The pictures, in the order in which to read them.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a figure lacks numbers.
    """
    pyplot = _matplotlib().pyplot
    pictures, open_before = [], set(pyplot.get_fignums())
    try:
        for name, draw in _PICTURES.items():
            if figures.get(name):
                pictures.append(draw(figures[name], _colors(figures, comparison)))
            if name == "check" and comparison is not None:
                pictures.append(_forest(comparison, _colors(figures, comparison)))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"The numbers of figure {name!r} are not complete: {error!r}.") from error
    finally:
        for number in set(pyplot.get_fignums()) - open_before:  # what was begun when an error came
            pyplot.close(number)
    return pictures


def _band(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.6))[0]
    for name, line in figure["lines"].items():
        color = colors[name]
        ax.plot(figure["x"], _floats(line["median"]), color=color, label=name)
        ax.fill_between(figure["x"], _floats(line["low"]), _floats(line["high"]), color=color, alpha=0.22, linewidth=0)
    if "data" in figure:
        ax.plot(*(_floats(values) for values in figure["data"]), ".", color=_DATA_COLOR, markersize=3.5, label="data")
    _label(ax, figure["label"], figure["output"])
    names = _listed(figure["lines"])
    return Picture(
        "The function and its uncertainty",
        _svg(ax),
        f"Line plot of {figure['output']} against {figure['label']}: medians and 90 % bands of {names}.",
        "Lines are medians, bands hold 90 % of the draws. Bands that lie on each other say that the posteriors agree; "
        "the band should widen where there are no data.",
    )


def _calibration(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.8))[0]
    ax.plot([0, 1], [0, 1], ":", color="0.4", linewidth=1)
    for name, line in figure["lines"].items():
        ax.plot(
            _floats(line["expected"]), _floats(line["observed"]), "o-", markersize=4, color=colors[name], label=name
        )
    classes = figure["kind"] == "classes"
    data = "held-out data" if figure["held_out"] else "training data"
    if classes:
        _label(ax, "confidence", f"accuracy on {data}")
    else:
        _label(ax, "level of the predictive interval", f"share of {data} inside")
    first, line = next(iter(figure["lines"].items()))
    worst = max((abs(o - e) for e, o in zip(*_pairs(line), strict=True)), default=math.nan)
    figures = f"expected calibration error {line['ece']:.3f}" if classes else f"worst gap {worst:.2f}"
    reading = f"{first}: {figures}, on {data}"
    return Picture(
        "Reliability" if classes else "Calibration",
        _svg(ax),
        f"Calibration curves of {_listed(figure['lines'])} beside the diagonal; {reading}.",
        "On the diagonal, what is announced comes true. Below it the predictions are too sure of themselves, above it "
        f"too careful. {reading}.",
    )


def _check(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.4))[0]
    edges = figure["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    width = (edges[1] - edges[0]) * (0.7 if figure["discrete"] else 1.0)
    low, high = _floats(figure["low"]), _floats(figure["high"])
    ax.bar(middles, figure["observed"], width, color="C0", alpha=0.45, label="data")
    errors = [[m - a for m, a in zip(figure["median"], low, strict=True)]]
    errors += [[b - m for m, b in zip(figure["median"], high, strict=True)]]
    ax.errorbar(
        middles, figure["median"], errors, fmt="o", color="C3", markersize=3, linewidth=1.2, label="sampled anew"
    )
    if figure["discrete"]:
        ax.set_xticks(middles)
    _label(ax, figure["site"], "number of data")
    outside = sum(not a <= o <= b for a, o, b in zip(low, figure["observed"], high, strict=True))
    return Picture(
        "Do data sampled anew look like the data?",
        _svg(ax),
        f"Histogram of {figure['site']} with the counts of data sampled anew; {outside} of {len(middles)} bins of "
        "the data lie outside of their 90 % range.",
        f"Points and bars give median and 90 % range of the counts in replicated data. {outside} of {len(middles)} "
        f"bins of the data lie outside; one in ten or fewer would be usual.",
    )


def _marginals(figure: Figure, colors: _Colors) -> Picture:
    rows = -(-len(figure) // 3)
    axes = _axes(len(figure), (5.2, 0.6 + 1.5 * rows))
    for ax, (coordinate, histogram) in zip(axes, figure.items(), strict=True):
        for name, densities in histogram["densities"].items():
            ax.stairs(_floats(densities), histogram["edges"], color=colors[name], label=name)
        _label(ax, coordinate, "", legend=False)
        ax.set_yticks([])
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(labelsize="small")
    names = next(iter(figure.values()))["densities"]
    if len(names) > 1:
        _legend_above(axes[0])
    return Picture(
        "Marginals of single weights",
        _svg(axes[0]),
        f"Histograms of {len(figure)} weights, {_listed(figure)}, under {_listed(names)}.",
        "The first entry of each site. Hidden units of a network may change places, so weights of two good posteriors "
        "need not agree; functions must.",
    )


def _trace(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.0))[0]
    elbo = _floats(figure["elbo"])
    ax.plot(figure["step"], elbo, linewidth=1)
    kept = sorted(value for value in elbo[len(elbo) // 20 :] if math.isfinite(value))
    if kept and kept[-1] > kept[0]:
        bottom = kept[len(kept) // 50]
        ax.set_ylim(bottom - 0.1 * (kept[-1] - bottom), kept[-1] + 0.1 * (kept[-1] - bottom))
    _label(ax, "step", "ELBO (nats)")
    last = f"{elbo[-1]:.2f}"
    return Picture(
        "The bound while training",
        _svg(ax),
        f"Line plot of the ELBO over {figure['step'][-1]} steps, ending near {last} nats.",
        f"Higher is better. A curve still rising at its right end asks for more steps. It ends near {last} nats.",
    )


def _weights(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.0))[0]
    ax.plot(figure["fraction"], figure["fraction"], ":", color="0.4", linewidth=1, label="all weights equal")
    ax.plot(figure["fraction"], figure["share"], label="this guide")
    ax.set_xscale("log")
    _label(ax, "largest weights, as a share of the draws", "share of the total weight")
    khat = float(figure["khat"])
    held = figure["share"][min(range(len(figure["fraction"])), key=lambda i: abs(figure["fraction"][i] - 0.01))]
    return Picture(
        f"Importance weights: k-hat {khat:.2f}",
        _svg(ax),
        f"The share of the total importance weight held by the largest weights; 1 % of the draws hold {100 * held:.0f} "
        f"%. k-hat is {khat:.2f}.",
        f"1 % of the draws hold {100 * held:.0f} % of the weight. A good guide stays near the dotted line; k-hat below "
        f"{_GOOD} is good, above {_BAD} the guide misses mass or is too narrow.",
    )


def _loo(figure: Figure, colors: _Colors) -> Picture:
    ax = _axes(1, (5.2, 3.0))[0]
    shapes = [float(shape) for shape in figure["khat"]]
    ax.plot(range(len(shapes)), shapes, ".", markersize=4)
    for level, color in ((_GOOD, "C1"), (_BAD, "C3")):
        ax.axhline(level, linestyle="--", linewidth=1, color=color)
    _label(ax, "datum", "k-hat of leaving it out")
    bad = sum(shape > _BAD for shape in shapes)
    source, reading = figure.get("source", "unknown"), f"{bad} of {len(shapes)} data are above {_BAD}"
    reading += f": there the figure is not to be believed. {_LOO_REMEDIES[source]}" if bad else "."
    if "elpd" in figure:
        spelt = f"{float(figure['elpd']):.1f} ± {float(figure['error']):.1f}"
        reading += f" All together their expected log predictive density is {spelt} nats."
    return Picture(
        "Influence of single data",
        _svg(ax),
        f"k-hat of leaving out each of {len(shapes)} data; {bad} are above {_BAD}, the largest is {max(shapes):.2f}.",
        f"{_LOO_SOURCES[source]} {reading}",
    )


# What the shapes of leaving out are worth, by where the draws come from, and what to do where they are high.
_LOO_SOURCES = {
    "guide": "Draws of the guide, weighted by the posterior without the datum over the guide's density: corrected for "
    "the guide not being the posterior, as far as k-hat of these weights says.",
    "posterior": "PSIS-LOO as usual: the draws are taken for draws of the posterior.",
    "moved": "PSIS-LOO as usual, of draws whose density is not known: they are taken for draws of the posterior, which "
    "they are not quite, and low shapes do not show that.",
    "unknown": "The draws are taken for draws of the posterior; for those of a guide this is not right.",
}
_LOO_REMEDIES = {
    "guide": "The datum decides much, or the guide is far from the posterior there: see its own k-hat. Draws of refine "
    "or nuts tell one from the other.",
    "posterior": "Look at these rows for outliers.",
    "moved": "Look at these rows for outliers.",
    "unknown": "Look at these rows for outliers.",
}


def _forest(comparison: Comparison, colors: _Colors) -> Picture:
    with _matplotlib().rc_context(_STYLE):
        ax = forest(comparison, colors=colors, places=_places(comparison))
    names = [name for name in comparison.names if name != NOISE_FLOOR]
    spelt = ", ".join(f"{name} {comparison.row(name)['w1_over_sd']:.2f}" for name in names)
    floor = f"{comparison.row(NOISE_FLOOR, FUNCTION)['w1_over_sd']:.2f}"
    return Picture(
        "Distance from the reference",
        _svg(ax),
        f"Forest plot of {HEADINGS['w1_over_sd']} from the reference; in function space {spelt}, noise floor {floor}.",
        "Points are distances in standard deviations, bars their bootstrap intervals. What reaches into the grey noise "
        "floor cannot be told from the reference. Judge networks in function space.",
    )


def _places(comparison: Comparison) -> list[str]:
    """Function space and the first sites, up to symmetry where that is known."""
    found = list(dict.fromkeys(place_of(row) for row in comparison.rows if math.isfinite(row["w1_over_sd"])))
    return [place for place in found if place + UP_TO_SYMMETRY not in found][:_MOST_PLACES]


_PICTURES: dict[str, Callable[[Figure, _Colors], Picture]] = {
    "band": _band,
    "calibration": _calibration,
    "check": _check,
    "marginals": _marginals,
    "trace": _trace,
    "weights": _weights,
    "loo": _loo,
}


def _axes(count: int, size: tuple[float, float] | None = None) -> Any:
    with _matplotlib().rc_context(_STYLE):
        return new_axes(count, size, most_columns=3)


def _svg(ax: Any) -> bytes:
    """The figure of these axes as SVG, its text as outlines, so that it looks the same everywhere; then closed."""
    buffer = io.BytesIO()
    with _matplotlib().rc_context(_STYLE):
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    _matplotlib().pyplot.close(ax.figure)
    return buffer.getvalue()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError("A report's pictures need matplotlib: pip install 'pyro_hypernet[plot]'.") from error
    return matplotlib


def _label(ax: Any, x: str, y: str, *, legend: bool = True) -> None:
    """Labels as they stand: names of a user's columns may hold dollar signs, which are no formulas here."""
    ax.set_xlabel(x, parse_math=False)
    ax.set_ylabel(y, parse_math=False)
    if legend and len(ax.get_legend_handles_labels()[1]) > 1:
        _legend_above(ax)


def _legend_above(ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    legend = ax.figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colors(figures: Mapping[str, Figure], comparison: Comparison | None) -> _Colors:
    """One colour for every posterior, the same in all pictures."""
    names = list(next(iter(figures.get("marginals", {}).values()), {}).get("densities", ()))
    for key in ("band", "calibration"):
        names += figures.get(key, {}).get("lines", ())
    names += [] if comparison is None else [name for name in comparison.names if name != NOISE_FLOOR]
    return {name: f"C{order % 10}" for order, name in enumerate(dict.fromkeys(names))}


def _listed(names: Any) -> str:
    *most, last = [str(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def _pairs(line: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return _floats(line["expected"]), _floats(line["observed"])


def _floats(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]

"""The pictures of a report: plots as SVG, each with the readings that the page's words are made of."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.compare import Comparison
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.metrics import coverage, ece
from pyro_hypernet.model.quantiles import quantiles_of
from pyro_hypernet.output.axes import add_legend, import_matplotlib, new_axes, to_numpy
from pyro_hypernet.output.forest import UP_TO_SYMMETRY, forest, forest_size, place_of
from pyro_hypernet.output.plots import (
    calibration_curve,
    elbo_trace,
    marginals,
    predictive_band,
    reliability,
    spell_entry,
)

Picture = dict[str, Any]
_LEVEL = 0.9
_GOOD_KHAT = 0.5
_WIDTH = 5.2
_MOST_DATA, _MOST_MARGINALS, _MOST_CLASSES, _MOST_PLACES = 400, 9, 20, 10
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "pyro_hypernet",
    "text.parse_math": False,  # names of a user's columns may hold dollar signs
}


@dataclass(frozen=True)
class Band:
    """A line through input space along which a report shows the function.

    Attributes:
        label: What varies along it.
        positions: Where on it, ascending, shape `(G,)`.
        args: The model's arguments there, without observations: usually inputs of shape `(G, d)`.
        site: The deterministic site to show.
        output: Name of what is shown.
        column: Which output, where the site has several.
        kind: "identity", or "sigmoid" or "softmax" to show a probability.
        data: Positions and values to show as points, or None.
    """

    label: str
    positions: Tensor
    args: tuple
    site: str = "f"
    output: str = "network output"
    column: int = 0
    kind: str = "identity"
    data: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Show:
    """What the pictures of a report show.

    Attributes:
        name: The posterior's name in them.
        beside: From a name to other posteriors to show beside this one, such as the reference.
        held_out: All arguments with data that the posterior has not seen, for the calibration; None to judge it by the
            data of training, and say so.
        band: A line through input space along which to show the function.
        num_samples: Draws of every posterior behind pictures and checks.

    Raises:
        ValueError: If `name` is also a name in `beside`.
    """

    name: str = "this posterior"
    beside: Mapping[str, Any] = field(default_factory=dict)
    held_out: tuple | None = None
    band: Band | None = None
    num_samples: int = 1000

    def __post_init__(self) -> None:
        if self.name in (self.beside or {}):
            raise ValueError(f"name must differ from the names in beside; got {self.name!r} in both.")


def style() -> AbstractContextManager[None]:
    """Matplotlib's default style with a few changes, in which pictures come out the same every time."""
    return import_matplotlib().style.context(["default", _STYLE])


def draw_band(functions: Mapping[str, Tensor], band: Band, colors: Mapping[str, str]) -> Picture:
    """Median and 90 % interval along a line, of draws of the function by posterior, shape `(S, G)` or `(S, G, C)`."""
    (ax,) = _axes(3.6)
    for name, f in functions.items():
        f = f.reshape(*f.shape[:2], -1)
        f = {"identity": f, "sigmoid": f.sigmoid(), "softmax": f.softmax(-1)}[band.kind][..., band.column]
        predictive_band(band.positions, f, ax=ax, levels=(_LEVEL,), label=name, color=colors[name])
    if band.data is not None:
        ax.plot(*(to_numpy(values.flatten()[:_MOST_DATA]) for values in band.data), "k.", markersize=3.5, label="data")
    svg = _svg(ax, band.label, band.output)
    return {"svg": svg, "label": band.label, "output": band.output, "names": _listed(functions)}


def draw_calibration(
    replicated: Mapping[str, Tensor], observed: Tensor, colors: Mapping[str, str], *, held_out: bool
) -> Picture:
    """Announced against observed frequencies, of draws of the observed site by posterior, shape `(S, *shape)`.

    Of classes where the data are classes, whose probabilities are frequencies among the draws; else of intervals.
    """
    (ax,), data, classes = _axes(3.8), "held-out data" if held_out else "training data", _count_classes(observed)
    draw = draw_intervals if classes is None else _draw_classes
    readings = [draw(ax, y, observed, name, colors[name]) for name, y in replicated.items()]
    what, value = readings[0].rsplit(" ", 1)
    reading = f"{next(iter(replicated))}: {readings[0]}, on {data}"
    words = {"names": _listed(replicated), "reading": reading, "what": f"{what}, on {data}", "value": value}
    if classes is None:
        svg = _svg(ax, "level of the predictive interval", f"share of {data} inside")
        return {"title": "Calibration", "svg": svg, **words}
    return {"title": "Reliability", "svg": _svg(ax, "confidence", f"accuracy on {data}"), **words}


def draw_intervals(ax: Any, y: Tensor, observed: Tensor, name: str, color: str | None = None) -> str:
    """How often data lie in their predictive intervals, from replicates `(S, *shape)`; returns the reading."""
    levels = torch.linspace(0.1, 0.9, 9)
    inside = torch.tensor([float(coverage(y, observed.to(y), level=float(level))) for level in levels])
    calibration_curve(levels, inside, ax=ax, label=name, color=color)
    return f"worst gap {float((levels - inside).abs().max()):.2f}"


def _draw_classes(ax: Any, y: Tensor, observed: Tensor, name: str, color: str) -> str:
    classes = range(_count_classes(observed) or 0)
    probabilities = torch.stack([(y == k).double().mean(0) for k in classes], -1).flatten(0, -2)
    labels = observed.flatten().long()
    reliability(probabilities, labels, ax=ax, label=name, color=color)
    return f"expected calibration error {float(ece(probabilities, labels, num_bins=10)):.3f}"


def draw_check(replicated: Tensor, observed: Tensor, site: str) -> Picture:
    """A posterior predictive check: how many data fall into every bin, and how many of data sampled anew."""
    edges = _bins_of(observed)
    counts = torch.histogram(observed.double().flatten().cpu(), edges).hist
    made = torch.stack([torch.histogram(one, edges).hist for one in replicated.double().flatten(1).cpu()])
    low, middle, high = quantiles_of(made, [(1 - _LEVEL) / 2, 0.5, (1 + _LEVEL) / 2])
    (ax,), middles, is_discrete = (
        _axes(3.4),
        to_numpy(edges[:-1] + edges.diff() / 2),
        _count_classes(observed) is not None,
    )
    width = float(edges[1] - edges[0]) * (0.7 if is_discrete else 1.0)
    ax.bar(middles, to_numpy(counts), width, color="C0", alpha=0.45, label="data")
    marks = {"fmt": "o", "color": "C3", "markersize": 3, "linewidth": 1.2, "label": "sampled anew"}
    ax.errorbar(middles, to_numpy(middle), to_numpy(torch.stack([middle - low, high - middle])), **marks)
    if is_discrete:
        ax.set_xticks(middles)
    outside = int(((counts < low) | (counts > high)).sum())
    return {"svg": _svg(ax, site, "number of data"), "site": site, "outside": outside, "bins": len(counts)}


def draw_forest(comparison: Comparison, colors: Mapping[str, str]) -> Picture:
    """Distances in function space and of the first sites, up to symmetry where that is known."""
    found = list(dict.fromkeys(place_of(row) for row in comparison.rows if math.isfinite(row["w1_over_sd"])))
    places = [place for place in found if place + UP_TO_SYMMETRY not in found][:_MOST_PLACES]
    (ax,) = _axes(forest_size(len(places), len(comparison.names) - 1)[1])
    forest(comparison, colors=colors, places=places, ax=ax)
    distances = [f"{name} {comparison.row(name)['w1_over_sd']:.2f}" for name in comparison.names]
    return {"svg": _svg(ax), "distances": ", ".join(distances)}


def draw_marginals(posteriors: Mapping[str, Mapping[str, Tensor]], colors: Mapping[str, str]) -> Picture:
    """Histograms of the first entry of each of the first nine sites."""
    sites = list(next(iter(posteriors.values())).items())[:_MOST_MARGINALS]
    entries = [spell_entry(site, [0] * (value.dim() - 1)) for site, value in sites]
    axes = _axes(0.6 + 1.5 * -(-len(entries) // 3), len(entries))
    for ax in marginals(posteriors, entries, axes=axes, num_bins=30, colors=colors):
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(labelsize="small")
    return {"svg": _svg(axes[0]), "count": len(entries), "weights": _listed(entries), "names": _listed(posteriors)}


def draw_trace(losses: Sequence[float] | Tensor) -> Picture:
    """The bound over the steps, of minus the bound at every step in nats."""
    ax = elbo_trace(losses, ax=_axes(3.0)[0])
    return {"svg": _svg(ax), "steps": len(losses), "last": f"{ax.lines[0].get_ydata()[-1]:.2f}"}


def draw_weights(log_weights: Tensor, khat: float) -> Picture:
    """How unevenly importance weights, in nats, are spread: the share of the total held by the largest of them."""
    shares = log_weights.double().softmax(0).sort(descending=True).values.cumsum(0)
    total = len(shares)
    ranks = torch.logspace(0, math.log10(total), 60).round().long().unique().clamp(1, total)
    (ax,), fraction = _axes(3.0), to_numpy(ranks / total)
    ax.plot(fraction, fraction, ":", color="0.4", linewidth=1, label="all weights equal")
    ax.plot(fraction, to_numpy(shares[ranks - 1]), label="this guide")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    return {
        "svg": _svg(ax, "largest weights, as a share of the draws", "share of the total weight"),
        "khat": f"{khat:.2f}",
        "limits": [_GOOD_KHAT, BELIEVABLE_KHAT],
        "held": f"{100 * float(shares[max(round(total / 100), 1) - 1]):.0f}",
    }


def draw_loo(pointwise: Tensor, khat: Tensor, source: str) -> Picture:
    """The Pareto shapes of leaving data out, and their log densities given the others in nats, both of shape `(N,)`."""
    (ax,) = _axes(3.0)
    ax.plot(to_numpy(khat), ".", markersize=4)
    for level, color in ((_GOOD_KHAT, "C1"), (BELIEVABLE_KHAT, "C3")):
        ax.axhline(level, linestyle="--", linewidth=1, color=color)
    error = float(pointwise.std()) * math.sqrt(len(pointwise)) if len(pointwise) > 1 else math.nan
    return {
        "svg": _svg(ax, "datum", "k-hat of leaving it out"),
        "source": source,
        "count": len(khat),
        "limit": BELIEVABLE_KHAT,
        "bad": int((khat > BELIEVABLE_KHAT).sum()),
        "largest": f"{float(khat.max()):.2f}",
        "elpd": f"{float(pointwise.sum()):.1f} ± {error:.1f}",
        "mean": f"{float(pointwise.mean()):.2f}",
    }


def _count_classes(observed: Tensor) -> int | None:
    """The number of classes where data are whole numbers from 0 up, 20 at most; None where they are not."""
    y = observed.double()
    is_classes = bool((y == y.round()).all()) and float(y.min()) >= 0 and float(y.max()) < _MOST_CLASSES
    return max(2, int(y.max()) + 1) if is_classes else None


def _bins_of(observed: Tensor) -> Tensor:
    """Edges of bins: one for each class; else with a margin, and fewer where each would hold only a handful."""
    low, high = float(observed.min()), float(observed.max())
    if _count_classes(observed) is not None:
        return torch.arange(low - 0.5, high + 1.0, dtype=torch.float64)
    margin, count = 0.15 * (high - low) or 1.0, max(12, min(30, round(2 * observed.numel() ** (1 / 3))))
    return torch.linspace(low - margin, high + margin, count + 1, dtype=torch.float64)


def _axes(height: float, count: int = 1) -> Any:
    return new_axes(count, (_WIDTH, height), columns=3, is_on_screen=False)


def _svg(ax: Any, x_label: str | None = None, y_label: str | None = None) -> str:
    """The figure of these axes, its text as outlines, so that it looks the same everywhere."""
    if x_label is not None:
        ax.set(xlabel=x_label, ylabel=y_label)
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    if len(ax.get_legend_handles_labels()[1]) > 1:
        add_legend(ax, above=True)
    buffer = io.StringIO()
    ax.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last

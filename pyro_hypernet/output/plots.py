"""Pictures of posteriors and of calibration: each function draws on the axes that it is given, or on new ones.

All take `ax`, matplotlib axes, or where they draw several panels `axes`, a sequence of as many, None for new ones, and
return them, in an array where there are several; `label`, the name in the legend; and `color`, a matplotlib colour.
Without matplotlib they raise an ImportError that names the extra to install.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band
from pyro_hypernet.calibration.sbc import Calibration
from pyro_hypernet.evaluation.metrics import calibration_bins, ece
from pyro_hypernet.model.quantiles import quantiles_of
from pyro_hypernet.output.axes import add_legend, axes_for, new_axes, to_numpy

_MOST_PANELS, _MOST_POINTS = 12, 500


def predictive_band(
    x: Tensor,
    draws: Tensor,
    *,
    ax: Any = None,
    levels: Sequence[float] = (0.5, 0.9),
    data: tuple[Tensor, Tensor] | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Any:
    """Median and central intervals of a function of one input.

    Args:
        x: Inputs in any order, shape `(N,)` or `(N, 1)`.
        draws: Draws of the function, or of observations, shape `(S, N)` or `(S, N, 1)`.
        levels: Probabilities of the intervals.
        data: Inputs and targets to show as points.

    Raises:
        ValueError: If there is more than one input or output, or sizes differ.
    """
    size = x.numel()
    if x.shape not in {(size,), (size, 1)} or draws.shape[1:] not in {(size,), (size, 1)}:
        raise ValueError(
            "predictive_band draws one input against one output: x must have shape (N,) and draws (S, N); got "
            f"{tuple(x.shape)} and {tuple(draws.shape)}."
        )
    ax = new_axes(1)[0] if ax is None else ax
    order = x.flatten().argsort()
    at, values = to_numpy(x.flatten()[order]), draws.reshape(-1, size)[:, order]
    (line,) = ax.plot(at, to_numpy(quantiles_of(values, [0.5])[0]), color=color, label=label)
    for level in levels:
        lower, upper = quantiles_of(values, [(1 - level) / 2, (1 + level) / 2])
        ax.fill_between(at, to_numpy(lower), to_numpy(upper), color=line.get_color(), alpha=0.25, linewidth=0)
    if data is not None:
        ax.plot(*(to_numpy(values.flatten()) for values in data), "k.", markersize=4)
    if label is not None:
        add_legend(ax)
    return ax


def marginals(
    draws: Mapping[str, Mapping[str, Tensor]],
    sites: Sequence[str] | None = None,
    *,
    axes: Any = None,
    num_bins: int = 40,
    colors: Mapping[str, str] | None = None,
) -> Any:
    """Histograms of single coordinates of the posterior, of several posteriors over each other.

    Args:
        draws: From the name of a posterior to its dict of samples, site to `(S, *shape)`. The first says which sites
            there are; another is left out where it lacks one.
        sites: Names of sites, or of single entries such as "weight[0,1]"; None for all. At most 12 coordinates.
        num_bins: Number of bins, over all but the outermost 0.2 % of the draws.
        colors: From the name of a posterior to a matplotlib colour; None for those of the style.

    Raises:
        ValueError: If a site is unknown, there are too many coordinates, or too few axes.
    """
    places = _places(next(iter(draws.values())), sites)
    axes = axes_for(axes, list(places))
    for ax, (label, (site, place)) in zip(axes, places.items(), strict=True):
        columns = {name: p[site].reshape(len(p[site]), -1)[:, place] for name, p in draws.items() if site in p}
        bounds = quantiles_of(
            torch.cat([column.double().cpu() for column in columns.values()]), [0.001, 0.999]
        ).tolist()
        for name, column in columns.items():
            look = {"histtype": "step", "label": name, "color": (colors or {}).get(name)}
            ax.hist(to_numpy(column), num_bins, range=bounds, density=True, **look)
        ax.set_xlabel(label, parse_math=False)
        ax.set_yticks([])
    add_legend(axes[0])
    return axes


def elbo_trace(losses: Mapping[str, Sequence[float]] | Sequence[float], *, ax: Any = None, skip: float = 0.05) -> Any:
    """The ELBO over the steps of training, at most 500 points, each the mean of as many steps as that takes.

    Args:
        losses: Losses in nats, the negative ELBOs, as `fit` returns them, NaN for a skipped step; or such, by name.
        skip: The share of first steps that does not set the scale of the vertical axis.
    """
    ax = new_axes(1)[0] if ax is None else ax
    named = losses if isinstance(losses, Mapping) else {None: losses}
    shown = []
    for name, values in named.items():
        windows = torch.as_tensor(values, dtype=torch.float64).flatten().split(-(-len(values) // _MOST_POINTS) or 1)
        steps = torch.tensor([len(window) for window in windows]).cumsum(0)
        elbo = -torch.stack([window.nanmean() for window in windows])
        ax.plot(to_numpy(steps), to_numpy(elbo), linewidth=1, label=name)
        shown.append(elbo[int(skip * len(elbo)) :])
    pooled = torch.cat(shown)
    low, high = quantiles_of(pooled[pooled.isfinite()], [0.02, 1.0]).tolist() if pooled.isfinite().any() else (0.0, 0.0)
    if low < high:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel("step")
    ax.set_ylabel("ELBO (nats)")
    if isinstance(losses, Mapping):
        add_legend(ax)
    return ax


def calibration_curve(
    expected: Tensor, observed: Tensor, *, ax: Any = None, label: str | None = None, color: str | None = None
) -> Any:
    """Observed frequencies against the probabilities that were announced, beside the diagonal.

    Args:
        expected: Probabilities, shape `(B,)`: confidences from `metrics.calibration_bins`, or levels of intervals.
        observed: Frequencies, shape `(B,)`: accuracies from there, or `metrics.coverage` at these levels.

    Raises:
        ValueError: If the shapes differ.
    """
    expected, observed = torch.as_tensor(expected), torch.as_tensor(observed)
    if expected.shape != observed.shape or expected.dim() != 1:
        raise ValueError(
            f"expected and observed must both have shape (B,); got {tuple(expected.shape)} and {tuple(observed.shape)}."
        )
    ax = new_axes(1)[0] if ax is None else ax
    ax.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    ax.plot(to_numpy(expected), to_numpy(observed), "o-", label=label, color=color, markersize=4)
    ax.set_xlabel("expected")
    ax.set_ylabel("observed")
    if label is not None:
        add_legend(ax)
    return ax


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
        num_bins: Bins of equal width.
        label: To which the expected calibration error is added.

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


def plot_sbc(
    found: Calibration, entries: Sequence[str] | None = None, *, axes: Any = None, coverage: float = 0.95
) -> Any:
    """The empirical distribution of ranks less the diagonal, with a band that holds everywhere at once.

    A line that rises above the band first and falls below it later (an S) means too narrow, the reverse too wide; one
    to one side of it, shifted.

    Args:
        found: What `sbc` returned.
        entries: Names of entries; None for the first 12.
        coverage: Of the band, in every panel by itself.

    Raises:
        ValueError: If an entry is unknown or there are too few axes.

    Source: Säilynoja, Bürkner and Vehtari 2022, figure 3.
    """
    names = list(found.ranks)[:_MOST_PANELS] if entries is None else list(entries)
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


def _places(samples: Mapping[str, Tensor], sites: Sequence[str] | None) -> dict[str, tuple[str, int]]:
    """From the name of a coordinate to its site and its place in the flattened site."""
    places = {}
    for entry in samples if sites is None else sites:
        site, _, index = (entry, "", "") if entry in samples else entry.removesuffix("]").rpartition("[")
        if site not in samples:
            raise ValueError(f"sites names {entry!r}; the samples hold {list(samples)}.")
        shape = samples[site].shape[1:]
        if not index:
            places |= {spell_entry(site, at): (site, place) for place, at in enumerate(np.ndindex(*shape))}
            continue
        try:
            places[entry] = (site, int(np.ravel_multi_index([int(i) for i in index.split(",")], shape)))
        except ValueError:
            raise ValueError(f"sites names {entry!r}; the entries of {site!r} have shape {tuple(shape)}.") from None
    if not 0 < len(places) <= _MOST_PANELS:
        raise ValueError(
            f"{len(places)} coordinates to draw, and at most {_MOST_PANELS} find room: choose some with sites=, "
            'single entries as in "weight[0,1]".'
        )
    return places


def spell_entry(site: str, index: Sequence[int]) -> str:
    """The name of an entry of a site, such as "weight[0,1]"; of a scalar site the site's."""
    return f"{site}[{','.join(map(str, index))}]" if len(index) else site

"""Pictures of posteriors; every function draws on the axes it is given, or on new ones, and returns them."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.metrics import quantiles

_MOST_COORDINATES = 12


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
        ax: Matplotlib axes; None for new ones.
        levels: Probabilities of the intervals.
        data: Inputs and targets to show as points.
        label: Name in the legend.
        color: A matplotlib colour.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
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
    at, values = _numpy(x.flatten()[order]), draws.reshape(-1, size)[:, order]
    (line,) = ax.plot(at, _numpy(quantiles(values, [0.5])[0]), color=color, label=label)
    for level in levels:
        lower, upper = quantiles(values, [(1 - level) / 2, (1 + level) / 2])
        ax.fill_between(at, _numpy(lower), _numpy(upper), color=line.get_color(), alpha=0.25, linewidth=0)
    if data is not None:
        ax.plot(*(_numpy(values.flatten()) for values in data), "k.", markersize=4)
    if label is not None:
        ax.legend()
    return ax


def marginals(
    draws: Mapping[str, Mapping[str, Tensor]],
    sites: Sequence[str] | None = None,
    *,
    axes: Any = None,
    num_bins: int = 40,
) -> Any:
    """Histograms of single coordinates of the posterior, of several posteriors over each other.

    Args:
        draws: From the name of a posterior to its dict of samples, site to `(S, *shape)`.
        sites: Names of sites, or of single entries such as "weight[0,1]"; None for all. At most 12 coordinates.
        axes: A sequence of as many matplotlib axes; None for new ones.
        num_bins: Number of bins.

    Returns:
        The array of axes, one for each coordinate.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a site is unknown, there are too many coordinates, or too few axes.
    """
    columns = {name: _coordinates(samples, sites) for name, samples in draws.items()}
    labels = list(next(iter(columns.values())))
    axes = new_axes(len(labels)) if axes is None else _enough_axes(axes, len(labels))
    for ax, label in zip(axes, labels, strict=False):
        pooled = torch.cat([values[label] for values in columns.values()])
        bounds = (float(pooled.min()), float(pooled.max()))
        for name, values in columns.items():
            ax.hist(_numpy(values[label]), num_bins, range=bounds, density=True, histtype="step", label=name)
        ax.set_xlabel(label)
        ax.set_yticks([])
    axes[0].legend()
    return axes


def pairs(
    draws: Mapping[str, Mapping[str, Tensor]],
    sites: Sequence[str] | None = None,
    *,
    axes: Any = None,
    num_points: int = 500,
) -> Any:
    """Every coordinate against every other one, of several posteriors over each other; marginals on the diagonal.

    Args:
        draws: From the name of a posterior to its dict of samples, site to `(S, *shape)`.
        sites: Names of sites, or of single entries such as "weight[0,1]"; None for all. At most 12 coordinates.
        axes: An array of matplotlib axes of shape `(K, K)`; None for new ones.
        num_points: The most points of one posterior in a panel.

    Returns:
        The array of axes, shape `(K, K)`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a site is unknown, there are too many coordinates, or the axes have another shape.
    """
    columns = {name: _coordinates(samples, sites) for name, samples in draws.items()}
    labels = list(next(iter(columns.values())))
    if axes is None:
        side = 1.0 + 1.8 * len(labels)
        _, axes = _pyplot().subplots(len(labels), len(labels), figsize=(side, side), squeeze=False)
    if getattr(axes, "shape", None) != (len(labels), len(labels)):
        raise ValueError(f"axes must be an array of shape {(len(labels),) * 2}; got {getattr(axes, 'shape', None)}.")
    for row, below in enumerate(labels):
        for column, left in enumerate(labels):
            ax = axes[row, column]
            for name, values in columns.items():
                if row == column:
                    ax.hist(_numpy(values[left]), 40, density=True, histtype="step", label=name)
                else:
                    x, y = values[left][:num_points], values[below][:num_points]
                    ax.plot(_numpy(x), _numpy(y), ".", markersize=2, alpha=0.5)
            ax.tick_params(labelsize="small")
        axes[row, 0].set_ylabel(below)
        axes[-1, row].set_xlabel(below)
    axes[0, 0].legend()
    return axes


def elbo_trace(losses: Mapping[str, Sequence[float]] | Sequence[float], *, ax: Any = None, skip: float = 0.05) -> Any:
    """The ELBO over the steps of training.

    Args:
        losses: Losses in nats, the negative ELBOs, as `fit` returns them; or such, by name.
        ax: Matplotlib axes; None for new ones.
        skip: The share of first steps that does not set the scale of the vertical axis.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    ax = new_axes(1)[0] if ax is None else ax
    named = losses if isinstance(losses, Mapping) else {None: losses}
    shown = []
    for name, values in named.items():
        elbo = -torch.as_tensor(values, dtype=torch.float64).flatten()
        ax.plot(_numpy(elbo), linewidth=0.8, label=name)
        kept = elbo[int(skip * len(elbo)) :]
        shown.append(kept[kept.isfinite()])
    pooled = torch.cat(shown)
    if len(pooled) and float(pooled.min()) < float(pooled.max()):
        margin = 0.05 * float(pooled.max() - pooled.min())
        ax.set_ylim(float(pooled.min()) - margin, float(pooled.max()) + margin)
    ax.set_xlabel("step")
    ax.set_ylabel("ELBO (nats)")
    if isinstance(losses, Mapping):
        ax.legend()
    return ax


def calibration_curve(
    expected: Tensor, observed: Tensor, *, ax: Any = None, label: str | None = None, color: str | None = None
) -> Any:
    """Observed frequencies against the probabilities that were announced, beside the diagonal.

    Args:
        expected: Probabilities, shape `(B,)`: confidences from `metrics.calibration_bins`, or levels of intervals.
        observed: Frequencies, shape `(B,)`: accuracies from there, or `metrics.coverage` at these levels.
        ax: Matplotlib axes; None for new ones.
        label: Name in the legend.
        color: A matplotlib colour.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes differ.
    """
    expected, observed = torch.as_tensor(expected), torch.as_tensor(observed)
    if expected.shape != observed.shape or expected.dim() != 1:
        raise ValueError(
            f"expected and observed must both have shape (B,); got {tuple(expected.shape)} and {tuple(observed.shape)}."
        )
    ax = new_axes(1)[0] if ax is None else ax
    ax.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
    ax.plot(_numpy(expected), _numpy(observed), "o-", label=label, color=color)
    ax.set_xlabel("expected")
    ax.set_ylabel("observed")
    if label is not None:
        ax.legend()
    return ax


def _coordinates(samples: Mapping[str, Tensor], sites: Sequence[str] | None) -> dict[str, Tensor]:
    """From the name of a coordinate to its draws, shape `(S,)`."""
    chosen = {}
    for entry in samples if sites is None else sites:
        name, _, index = entry.rstrip("]").partition("[")
        if name not in samples:
            raise ValueError(f"sites names {name!r}; the samples hold {list(samples)}.")
        value = samples[name]
        if index:
            chosen[entry] = value[(slice(None), *(int(i) for i in index.split(",")))]
        elif value.dim() == 1:
            chosen[name] = value
        else:
            for flat, multi in enumerate(
                torch.cartesian_prod(*map(torch.arange, value.shape[1:])).reshape(-1, value.dim() - 1).tolist()
            ):
                chosen[f"{name}[{','.join(map(str, multi))}]"] = value.flatten(1)[:, flat]
    if not 0 < len(chosen) <= _MOST_COORDINATES:
        raise ValueError(
            f"{len(chosen)} coordinates to draw, and at most {_MOST_COORDINATES} find room: choose some with sites=, "
            'single entries as in "weight[0,1]".'
        )
    return chosen


def new_axes(count: int, size: tuple[float, float] | None = None, *, most_columns: int = 4) -> Any:
    """Axes of a new figure.

    Args:
        count: Number of axes.
        size: Width and height of the figure in inches; None for what suits the count.
        most_columns: Axes in a row.

    Returns:
        An array of matplotlib axes, shape `(count,)`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    columns = min(count, most_columns)
    rows = -(-count // columns)
    size = size or ((6.0, 4.0) if count == 1 else (2.6 * columns, 2.2 * rows))
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for unused in axes.flat[count:]:
        figure.delaxes(unused)
    return axes.flatten()[:count]


def _enough_axes(axes: Any, count: int) -> list[Any]:
    flat = list(getattr(axes, "flat", axes))
    if len(flat) < count:
        raise ValueError(f"axes must hold {count} axes, one for each coordinate; got {len(flat)}.")
    return flat[:count]


def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "pyro_hypernet[plot]".') from error
    return matplotlib.pyplot


def _numpy(values: Tensor) -> Any:
    return values.detach().cpu().numpy()

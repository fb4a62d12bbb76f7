"""The numbers behind a report's pictures, as plain lists that a JSON file holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.importance import finite_log_weights
from pyro_hypernet.evaluation.loo import leave_out
from pyro_hypernet.evaluation.metrics import calibration_bins, coverage, ece, quantiles
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.traces import map_in_chunks, observed_nodes, pointwise_log_prob
from pyro_hypernet.vectorize import Model

_LEVEL = 0.9
_MOST_POINTS, _MOST_DATA, _MOST_MARGINALS, _MOST_CLASSES = 500, 400, 9, 20
_NUM_BINS = 30

Figure = dict[str, Any]


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


def trace_figure(losses: Sequence[float] | Tensor) -> Figure:
    """The bound over the steps, averaged over windows: "step" and "elbo", 500 entries at most.

    Args:
        losses: Minus the bound at every step, in nats; NaN where a step was skipped.
    """
    elbo = -torch.as_tensor(losses, dtype=torch.float64).flatten()
    window = max(1, -(-len(elbo) // _MOST_POINTS))
    parts = elbo.split(window)
    return {
        "step": [min((i + 1) * window, len(elbo)) for i in range(len(parts))],
        "elbo": _numbers(torch.stack([part.nanmean() for part in parts])),
    }


def band_figure(model: Model, posteriors: Mapping[str, Any], band: Band, *, num_samples: int) -> Figure:
    """Median and 90 % interval of the function along a line, for every posterior.

    Args:
        model: The Pyro model.
        posteriors: From a name to anything that `draws` knows.
        band: The line.
        num_samples: Draws of every posterior.
    """
    lines = {}
    for name, posterior in posteriors.items():
        f = predict(model, posterior, *band.args, num_samples=num_samples, return_sites=[band.site])[band.site]
        f = f.reshape(*f.shape[:2], -1)
        f = f.sigmoid() if band.kind == "sigmoid" else f.softmax(-1) if band.kind == "softmax" else f
        low, middle, high = quantiles(f[..., band.column], [(1 - _LEVEL) / 2, 0.5, (1 + _LEVEL) / 2])
        lines[name] = {"low": _numbers(low), "median": _numbers(middle), "high": _numbers(high)}
    figure = {"label": band.label, "output": band.output, "x": _numbers(band.positions), "lines": lines}
    if band.data is not None:
        figure["data"] = [_numbers(value[:_MOST_DATA]) for value in band.data]
    return figure


def marginals_figure(posteriors: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Histograms of the first entry of each of the first nine sites.

    Args:
        posteriors: From a name to a dict of samples.

    Returns:
        A dict from the name of a coordinate to "edges", shape `(B + 1,)`, and "densities" by posterior, `(B,)` each.
    """
    figure = {}
    for site, value in list(next(iter(posteriors.values())).items())[:_MOST_MARGINALS]:
        columns = {name: p[site].double().cpu().flatten(1)[:, 0] for name, p in _with_axis(posteriors, site).items()}
        pooled = torch.cat(list(columns.values()))
        low, high = quantiles(pooled, [0.001, 0.999]).tolist()
        edges = torch.linspace(low, max(high, low + 1e-9), _NUM_BINS + 1, dtype=torch.float64)
        densities = {n: _numbers(torch.histogram(column, edges, density=True).hist) for n, column in columns.items()}
        entry = f"[{','.join('0' * (value.dim() - 1))}]" if value.dim() > 1 else ""
        figure[site + entry] = {"edges": _numbers(edges), "densities": densities}
    return figure


def check_figure(replicated: Tensor, observed: Tensor, site: str) -> Figure:
    """A posterior predictive check: how many data fall into every bin, and how many in data sampled anew.

    Args:
        replicated: Draws of the observed site, shape `(S, *shape)`.
        observed: The data, shape `shape`.
        site: Its name.

    Returns:
        "edges", "observed" counts, "low", "median" and "high" of the counts in replicated data.
    """
    y, replicated = observed.double().flatten().cpu(), replicated.double().flatten(1).cpu()
    if classes_of(observed) is not None:
        edges = torch.arange(float(y.min()) - 0.5, float(y.max()) + 1.0, dtype=torch.float64)
    else:
        low, high = float(y.min()), float(y.max())
        margin = 0.15 * (high - low) or 1.0
        edges = torch.linspace(low - margin, high + margin, _bins_for(len(y)) + 1, dtype=torch.float64)
    counts = torch.stack([torch.histogram(row, edges).hist for row in replicated])
    low, middle, high = quantiles(counts, [(1 - _LEVEL) / 2, 0.5, (1 + _LEVEL) / 2])
    return {
        "site": site,
        "discrete": classes_of(observed) is not None,
        "edges": _numbers(edges),
        "observed": _numbers(torch.histogram(y, edges).hist),
        "low": _numbers(low),
        "median": _numbers(middle),
        "high": _numbers(high),
    }


def calibration_figure(replicated: Mapping[str, Tensor], observed: Tensor, *, held_out: bool) -> Figure:
    """Announced against observed frequencies: of classes where the data are classes, else of central intervals.

    Args:
        replicated: From the name of a posterior to its draws of the observed site, shape `(S, *shape)`; class
            probabilities are frequencies among them.
        observed: The data, shape `shape`.
        held_out: Whether the posterior has not seen these data.

    Returns:
        "kind", "classes" or "intervals"; "held_out"; and "lines", by posterior "expected" and "observed", and "ece" for
        classes.
    """
    classes, lines = classes_of(observed), {}
    levels = torch.linspace(0.1, 0.9, 9)
    for name, y in replicated.items():
        if classes is None:
            inside = torch.stack([coverage(y, observed.to(y), level=float(level)) for level in levels])
            lines[name] = {"expected": _numbers(levels), "observed": _numbers(inside)}
        else:
            probabilities = torch.stack([(y == k).double().mean(0) for k in range(classes)], -1).flatten(0, -2)
            labels = observed.flatten().long()
            expected, accuracy, _ = calibration_bins(probabilities, labels, num_bins=10)
            lines[name] = {
                "expected": _numbers(expected),
                "observed": _numbers(accuracy),
                "ece": float(ece(probabilities, labels)),
            }
    return {"kind": "intervals" if classes is None else "classes", "held_out": held_out, "lines": lines}


def weights_figure(log_weights: Tensor, khat: float) -> Figure:
    """How unevenly importance weights are spread: the share of the total held by the largest of them.

    Args:
        log_weights: In nats, shape `(S,)`.
        khat: Their Pareto shape.

    Returns:
        "fraction" of the draws, "share" of the weight that these hold, and "khat".
    """
    shares = log_weights.double().softmax(0).sort(descending=True).values.cumsum(0)
    total = len(shares)
    index = torch.logspace(0, math.log10(total), 60).round().long().unique().clamp(1, total) - 1
    return {"khat": float(khat), "fraction": _numbers((index + 1) / total), "share": _numbers(shares[index])}


def loo_figure(
    model: Model,
    samples: Mapping[str, Tensor],
    args: tuple,
    kwargs: dict,
    *,
    log_weights: Tensor | None = None,
    source: str = "posterior",
) -> Figure:
    """The Pareto shape of leaving every datum out, and what that gives for the predictive density; the first 400 data.

    Args:
        model: The Pyro model.
        samples: A dict from site to draws of shape `(S, *shape)`.
        args: The model's arguments, data included.
        kwargs: Its keyword arguments.
        log_weights: `log p − log q` of draws of a guide in nats, shape `(S,)`, which correct for the guide not being
            the posterior, see `evaluation.loo`; None for other draws, taken for the posterior's.
        source: What these are: "posterior" or "moved".

    Returns:
        "khat", one for every datum; "elpd" and "error" of all of them together, in nats; "source", "guide" where there
        are weights.

    Source: Vehtari, Gelman and Gabry 2017, section 2; with weights Magnusson et al. 2019, arXiv 1904.10679, equation 6.
    """

    def collect(trace: Trace) -> Tensor:
        nodes = observed_nodes(trace, samples).values()
        return torch.cat([pointwise_log_prob(node).flatten() for node in nodes])[:_MOST_DATA]

    likelihood = map_in_chunks(model, samples, args, kwargs, collect=collect).T
    weights = None if log_weights is None else finite_log_weights(log_weights)
    pointwise, khat = leave_out(likelihood, weights)
    error = float(pointwise.std()) * math.sqrt(len(pointwise)) if len(pointwise) > 1 else math.nan
    return {
        "khat": [round(shape, 4) if math.isfinite(shape) else str(shape) for shape in khat.tolist()],
        "elpd": float(pointwise.sum()),
        "error": error,
        "source": source if log_weights is None else "guide",
    }


def classes_of(observed: Tensor) -> int | None:
    """The number of classes where data are whole numbers from 0 up, 20 at most; None where they are not."""
    y = observed.double()
    is_classes = bool((y == y.round()).all()) and float(y.min()) >= 0 and float(y.max()) < _MOST_CLASSES
    return max(2, int(y.max()) + 1) if is_classes and bool(y.isfinite().all()) else None


def _with_axis(posteriors: Mapping[str, Mapping[str, Tensor]], site: str) -> dict[str, dict[str, Tensor]]:
    """The posteriors that hold a site, its values of at least two axes."""
    return {name: {site: p[site].reshape(len(p[site]), -1)} for name, p in posteriors.items() if site in p}


def _bins_for(count: int) -> int:
    """Bins of a histogram of so many data: fewer where each would hold only a handful."""
    return max(12, min(_NUM_BINS, round(2 * count ** (1 / 3))))


def _numbers(values: Tensor) -> list[float | None]:
    """Six digits of every number, None where it is not finite."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.detach().double().flatten().tolist()]

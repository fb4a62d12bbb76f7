"""Posteriors against a reference: in function space, where predictions live, and site by site; and the table of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.bootstrap import (
    ResampledTarget,
    block_of,
    class_replicates,
    interval,
    resampled_counts,
    shuffled_blocks,
)
from pyro_hypernet.evaluation.distances import (
    median_bandwidth,
    mmd_replicates,
    mmd_squared,
    sd_ratio,
    wasserstein_over_sd,
)
from pyro_hypernet.evaluation.draws import draws, is_guide, run_by
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.evaluation.metrics import agreement, total_variation
from pyro_hypernet.evaluation.symmetric import symmetries_of
from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.traces import class_probabilities, deterministic_nodes, predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound, bind_guide

NOISE_FLOOR = "noise floor"
FUNCTION = "function"
FUNCTION_SPACE, WEIGHT_SPACE, CANONICAL_SPACE = "function", "weights", "weights up to symmetry"

HEADINGS = {
    "name": "",
    "elbo": "ELBO",
    "elbo_error": "± se",
    "w1_over_sd": "W1/sd",
    "sd_ratio": "sd ratio",
    "mmd_squared": "MMD²",
    "agreement": "agreement",
    "total_variation": "TV",
    "seconds": "seconds",
}
_SITE_TITLES = {WEIGHT_SPACE: "W1/sd by site", CANONICAL_SPACE: "W1/sd up to symmetry"}
_NUM_SPLITS = 40
_LEVEL = 0.95
_FUNCTIONS = (FUNCTION_SPACE, FUNCTION)
# From a space and a place in it, "function" or a site, to the distances there by name.
_Distances = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Distances of posteriors from a reference, and the reference's distance from itself.

    Attributes:
        rows: Dicts, one for every posterior, `space` and `where`; the rows named "noise floor" hold one half of the
            reference against the other, averaged over random splits: nothing can be told apart below them. The keys are
            "name"; "space": "function", "weights", or "weights up to symmetry"; "where": "function", or the name of a
            latent site; "w1_over_sd", Wasserstein distance of the marginals in sds of the reference; "sd_ratio", below
            1 for too narrow. In the function rows also "mmd_squared"; for classifiers "agreement" and
            "total_variation" of the class probabilities; for guides "elbo" and "elbo_error" in nats; "seconds" by
            `with_seconds`. Every distance `d` comes with `d + "_low"` and `d + "_high"`: its bootstrap interval, and
            for the noise floor the range of that share of the splits. "within_floor" tells whether the interval of
            "w1_over_sd" reaches down into the noise floor's.
        level: Probability of the intervals; 0 where there are none.
    """

    rows: tuple[dict[str, Any], ...]
    level: float = 0.0

    def row(self, name: str, where: str = FUNCTION, *, canonical: bool = False) -> dict[str, Any]:
        """The row of one posterior.

        Args:
            name: Its name, or "noise floor".
            where: "function" or a site's name.
            canonical: Whether a site's weights are to be those up to symmetry.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            matches = (row["name"], row["where"]) == (name, where)
            if matches and (row.get("space") == CANONICAL_SPACE) == canonical:
                return row
        known = sorted({(row["name"], row["where"]) for row in self.rows})
        raise KeyError(f"No row for {name!r} in {where!r}{' up to symmetry' if canonical else ''}; there are {known}.")

    def with_seconds(self, seconds: Mapping[str, float]) -> "Comparison":
        """The same table with what fits took, from the name of a posterior to seconds.

        Raises:
            ValueError: If a name is unknown.
        """
        names = [name for name in self.names if name != NOISE_FLOOR]
        unknown = set(seconds) - set(names)
        if unknown:
            raise ValueError(f"seconds names {sorted(unknown)}; the posteriors are {names}.")
        took = {name: {"seconds": float(value)} for name, value in seconds.items()}
        rows = [row | took.get(row["name"], {}) if row["where"] == FUNCTION else row for row in self.rows]
        return replace(self, rows=tuple(rows))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the posteriors in order, the noise floor last."""
        return tuple(dict.fromkeys(row["name"] for row in self.rows))

    def tables(self, *, intervals: bool = False) -> list[list[list[str]]]:
        """Function space with all columns, then W1/sd of every latent site, then up to symmetry where that was asked.

        Args:
            intervals: Whether every distance is followed by its interval.

        Returns:
            Tables of cells, the headings in the first line of each.
        """
        in_functions = [row for row in self.rows if row["where"] == FUNCTION]
        columns = [key for key in HEADINGS if any(key in row for row in in_functions)]
        first = [[HEADINGS[key] for key in columns]]
        first += [[_spell_entry(row, key, intervals) for key in columns] for row in in_functions]
        spaces = dict.fromkeys(row.get("space", WEIGHT_SPACE) for row in self.rows if row["where"] != FUNCTION)
        return [first, *(self._site_table(space, intervals) for space in spaces)]

    def to_string(self, *, intervals: bool = False) -> str:
        """The tables, aligned.

        Args:
            intervals: Whether every distance is followed by its interval.
        """
        return "\n\n".join(align(table) for table in self.tables(intervals=intervals))

    def __str__(self) -> str:
        return self.to_string()

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame, one column for every key.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas, or use .rows.") from error
        return pandas.DataFrame(list(self.rows))

    def _site_table(self, space: str, intervals: bool) -> list[list[str]]:
        rows = [row for row in self.rows if row["where"] != FUNCTION and row.get("space", WEIGHT_SPACE) == space]
        found = {(row["name"], row["where"]): row for row in rows}
        sites = list(dict.fromkeys(row["where"] for row in rows))
        lines = [
            [name, *(_spell_entry(found.get((name, site), {}), "w1_over_sd", intervals) for site in sites)]
            for name in self.names
        ]
        return [[_SITE_TITLES[space], *sites], *lines]


def compare(
    posteriors: Mapping[str, Any],
    reference: Any,
    model: Model,
    *args: Any,
    train_args: tuple | None = None,
    num_samples: int = 1000,
    function_site: str = "f",
    canonical: bool = False,
    num_bootstrap: int = 200,
    **kwargs: Any,
) -> Comparison:
    """Holds posteriors against reference draws, each beside the reference's own noise floor.

    Judge networks by the function rows: weights of equal networks differ by permutations and signs of hidden units,
    which `canonical=True` takes out. Every distance has a 95 % bootstrap interval, draws of Markov chains resampled in
    blocks as long as their autocorrelation.

    Args:
        posteriors: From a name to a guide, a result of `nuts` or `refine`, a Pyro or NumPyro `MCMC`, ArviZ's
            InferenceData, or a dict from site to draws `(S, *shape)`, torch, NumPy or JAX.
        reference: Any of these.
        model: The Pyro model.
        args: Its arguments at the inputs to compare at, without observations: `x_new`.
        train_args: All arguments as in training, for the ELBO of guides and for `canonical`; None for no ELBO.
        num_samples: Number of draws from every posterior and, at most, from the reference.
        function_site: The `pyro.deterministic` site to compare. In a model without it, the mean of its observed site;
            class probabilities of a classifier.
        canonical: Whether to compare the weights also up to the network's symmetries: every draw's hidden units sorted.
        num_bootstrap: Replicates behind the intervals; 0 for no intervals.
        kwargs: The model's keyword arguments at the inputs to compare at.

    Returns:
        The table, as rows; `to_dataframe()` for pandas, `output.forest.forest` for a picture, `with_seconds` to put
        beside it what the fits took.

    Raises:
        TypeError: If a posterior is of no known kind.
        ValueError: If there is nothing to compare, the samples do not fit the model, `canonical` lacks `train_args`,
            or the reference has fewer than four draws.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("f", slope * x)
        >>> wide, narrow = {"slope": torch.randn(500)}, {"slope": torch.zeros(500)}
        >>> table = compare({"narrow": narrow}, wide, model, torch.ones(3))
        >>> table.row("narrow")["w1_over_sd"] > 5 * table.row("noise floor")["w1_over_sd"]
        True
    """
    _check(posteriors, canonical, train_args, num_bootstrap)
    with torch.no_grad():
        symmetries = _symmetries(model, train_args) if canonical else None
        options = (Bound(model, args, kwargs), num_samples, function_site, symmetries)
        target = _view(reference, *options)
        if target.num_draws < 4:
            raise ValueError(f"The reference must have at least four draws, to be split; got {target.num_draws}.")
        bandwidth = median_bandwidth(target.function)
        found = {NOISE_FLOOR: _noise_floor(target, bandwidth, num_bootstrap > 0)}
        bootstrap = _Bootstrap(target, bandwidth, found[NOISE_FLOOR], num_bootstrap) if num_bootstrap else None
        for name, posterior in posteriors.items():
            view = _view(posterior, *options)
            found[name] = own = _distances(view, target)
            distance = mmd_squared(view.function, target.function, bandwidth=bandwidth)
            own[_FUNCTIONS]["mmd_squared"] = float(distance)
            if bootstrap is not None:
                bootstrap.add_intervals(own, view)
            if train_args is not None and is_guide(posterior):
                own[_FUNCTIONS]["elbo"], own[_FUNCTIONS]["elbo_error"] = elbo(model, posterior, *train_args)
    rows = [
        {"name": name, "space": space, "where": where, **values}
        for name in (*posteriors, NOISE_FLOOR)
        for (space, where), values in found[name].items()
    ]
    return Comparison(tuple(rows), _LEVEL if num_bootstrap else 0.0)


def _check(posteriors: Mapping[str, Any], canonical: bool, train_args: tuple | None, num: int) -> None:
    if not posteriors or NOISE_FLOOR in posteriors:
        raise ValueError(f"posteriors must name at least one posterior, none {NOISE_FLOOR!r}; got {list(posteriors)}.")
    if canonical and train_args is None:
        raise ValueError("canonical=True needs the model's arguments with data, to try its symmetries: train_args=.")
    if num < 0:
        raise ValueError(f"num_bootstrap must be 0 or more; got {num}.")


def _symmetries(model: Model, train_args: tuple) -> tuple[Symmetries, Layout]:
    with torch.random.fork_rng(devices=[]):
        target = bind_guide(model, None, train_args, {})
    return symmetries_of(target), target.layout


@dataclass(frozen=True)
class _View:
    """One posterior as draws.

    Attributes:
        values: From a space and a place in it to values of shape `(S, ...)`, those of the function first.
        probabilities: Of classes, shape `(S, N, C)` or `(S, N)`, where there are any.
        block: Neighbouring draws to be resampled together: 1 for independent ones.
    """

    values: dict[tuple[str, str], Tensor]
    probabilities: Tensor | None
    block: int

    @property
    def function(self) -> Tensor:
        return self.values[_FUNCTIONS]

    @property
    def num_draws(self) -> int:
        return len(self.function)

    def take(self, index: Tensor) -> "_View":
        values = {key: value[index.to(value.device)] for key, value in self.values.items()}
        probabilities = None if self.probabilities is None else self.probabilities[index.to(self.function.device)]
        return _View(values, probabilities, self.block)


def _view(
    posterior: Any,
    bound: Bound,
    num_samples: int,
    function_site: str,
    symmetries: tuple[Symmetries, Layout] | None,
) -> _View:
    samples = draws(posterior, *bound.args, num_samples=num_samples, **bound.kwargs)
    bound = Bound(run_by(bound.model, posterior), bound.args, bound.kwargs)
    values = bound.map(samples, lambda trace: _compared_values(trace, samples, function_site))
    probabilities = values.get("probabilities")
    function = values.get("function", probabilities)
    found = {_FUNCTIONS: function} | {(WEIGHT_SPACE, name): value for name, value in samples.items()}
    if symmetries is not None and symmetries[0].groups:
        group, layout = symmetries
        w = group.to(next(iter(samples.values())).device).canonicalise(layout.unconstrain(samples)[0])[0]
        moved = {name for units in group.groups for name, _ in units.axes}
        found |= {(CANONICAL_SPACE, n): value for n, value in layout.constrain(w)[0].items() if n in moved}
    return _View(found, probabilities, block_of(posterior, len(function)))


def _compared_values(trace: Trace, samples: Mapping[str, Tensor], function_site: str) -> dict[str, Tensor]:
    """The function and, for a classifier, the class probabilities, `(N, C)` or `(N,)`, of one draw."""
    named = deterministic_nodes(trace).get(function_site)
    observed = next(iter(predictive_nodes(trace, samples).values()), None)
    if named is None and observed is None:
        raise ValueError(
            f"The model has neither a deterministic site {function_site!r} nor an observed one: nothing to compare in "
            "function space. Write pyro.deterministic, or name such a site with function_site=."
        )
    values = {} if named is None else {"function": named["value"]}
    probabilities = None if observed is None else class_probabilities(observed["fn"])
    if probabilities is not None:
        values["probabilities"] = probabilities
    elif named is None:
        values["function"] = observed["fn"].mean
    return values


def _distances(view: _View, target: _View) -> _Distances:
    """All distances but MMD²."""
    found = {}
    for key, theirs in target.values.items():
        if key in view.values:
            ours = view.values[key]
            distance, ratio = wasserstein_over_sd(ours, theirs), sd_ratio(ours, theirs)
            found[key] = {"w1_over_sd": float(distance), "sd_ratio": float(ratio)}
    if view.probabilities is not None and target.probabilities is not None:
        means = view.probabilities.mean(0), target.probabilities.mean(0)
        found[_FUNCTIONS]["agreement"] = float(agreement(*means))
        found[_FUNCTIONS]["total_variation"] = float(total_variation(*means))
    return found


class _Bootstrap:
    """Intervals of all distances, the reference resampled once for all posteriors."""

    def __init__(self, target: _View, bandwidth: Tensor, floor: _Distances, num_replicates: int) -> None:
        self._target, self._bandwidth, self._floor = target, bandwidth, floor
        self._counts = resampled_counts(target.num_draws, num_replicates, block=target.block)
        self._marginals = {key: ResampledTarget(value, self._counts) for key, value in target.values.items()}

    def add_intervals(self, found: _Distances, view: _View) -> None:
        """Puts the interval of every distance of one posterior beside it."""
        counts = resampled_counts(view.num_draws, len(self._counts), block=view.block)
        for key, values in found.items():
            replicates = self._marginals[key].replicates(view.values[key], counts)
            if key == _FUNCTIONS:
                replicates |= self._function_replicates(view, counts)
            for quantity, spread in replicates.items():
                ends = interval(quantity, values[quantity], spread, level=_LEVEL)
                values[f"{quantity}_low"], values[f"{quantity}_high"] = ends
            values["within_floor"] = values["w1_over_sd_low"] <= self._floor[key]["w1_over_sd_high"]

    def _function_replicates(self, view: _View, counts: Tensor) -> dict[str, Tensor]:
        target, given = self._target, (counts, self._counts)
        found = {"mmd_squared": mmd_replicates(view.function, target.function, *given, bandwidth=self._bandwidth)}
        if view.probabilities is None or target.probabilities is None:
            return found
        return found | class_replicates(view.probabilities, target.probabilities, *given)


def _noise_floor(target: _View, bandwidth: Tensor, with_intervals: bool) -> _Distances:
    """Distances of one half of the reference from the other, averaged over random splits that keep blocks whole."""
    half = target.num_draws // 2
    orders = [shuffled_blocks(target.num_draws, target.block) for _ in range(_NUM_SPLITS)]
    splits = [_distances(target.take(order[:half]), target.take(order[half : 2 * half])) for order in orders]
    first, second = (
        torch.zeros(_NUM_SPLITS, target.num_draws).scatter_(1, torch.stack([o[part] for o in orders]), 1.0)
        for part in (slice(half), slice(half, 2 * half))
    )
    apart = mmd_replicates(target.function, target.function, first, second, bandwidth=bandwidth)
    for split, distance in zip(splits, apart.tolist(), strict=True):
        split[_FUNCTIONS]["mmd_squared"] = distance
    ends = {"low": (1 - _LEVEL) / 2, "high": (1 + _LEVEL) / 2} if with_intervals else {}
    floor = {}
    for key, first in splits[0].items():
        spread = {what: torch.tensor([split[key][what] for split in splits], dtype=torch.float64) for what in first}
        floor[key] = {what: float(values.nanmean()) for what, values in spread.items()}
        for what, values in spread.items():
            floor[key] |= {f"{what}_{end}": float(values.nanquantile(share)) for end, share in ends.items()}
    return floor


def _spell_entry(row: dict[str, Any], key: str, intervals: bool) -> str:
    text = _spell(row.get(key))
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    return f"{text} [{_spell(low)}, {_spell(high)}]" if intervals and not math.isnan(low) else text


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def align(table: Sequence[Sequence[str]]) -> str:
    """Joins cells into lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for name, *rest in table]
    return "\n".join(line.rstrip() for line in lines)

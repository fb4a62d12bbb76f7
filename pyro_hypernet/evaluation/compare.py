"""Posteriors against a reference: in function space, where predictions live, and site by site."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.bootstrap import (
    ResampledTarget,
    block_of,
    class_replicates,
    interval,
    mmd_replicates,
    resampled_counts,
    shuffled_blocks,
)
from pyro_hypernet.evaluation.comparison import (
    CANONICAL_SPACE,
    FUNCTION,
    FUNCTION_SPACE,
    NOISE_FLOOR,
    WEIGHT_SPACE,
    Comparison,
)
from pyro_hypernet.evaluation.distances import median_bandwidth, mmd_squared, sd_ratio, wasserstein_over_sd
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.evaluation.metrics import agreement, total_variation
from pyro_hypernet.evaluation.symmetric import symmetries_of
from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.traces import class_probabilities, deterministic_nodes, map_in_chunks, predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.target import bind_guide

_NUM_SPLITS = 40
_LEVEL = 0.95


@torch.no_grad()
def compare(
    posteriors: Mapping[str, Any],
    reference: Any,
    model: Model,
    *args: Any,
    train_args: tuple | None = None,
    num_samples: int = 1000,
    function_site: str = "f",
    seconds: Mapping[str, float] | None = None,
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
        seconds: From a name to what its fit took, to stand in the table.
        canonical: Whether to compare the weights also up to the network's symmetries: every draw's hidden units sorted.
        num_bootstrap: Replicates behind the intervals; 0 for no intervals.
        kwargs: The model's keyword arguments at the inputs to compare at.

    Returns:
        The table, as rows; `to_dataframe()` for pandas, `output.forest.forest` for a picture.

    Raises:
        TypeError: If a posterior is of no known kind.
        ValueError: If there is nothing to compare, the samples do not fit the model, a name in `seconds` is unknown,
            `canonical` lacks `train_args`, or the reference has fewer than four draws.

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
    _check(posteriors, seconds, canonical, train_args, num_bootstrap)
    symmetries = _symmetries(model, train_args) if canonical else None
    options = (model, args, kwargs, num_samples, function_site, symmetries)
    target = _view(reference, *options)
    if target.num_draws < 4:
        raise ValueError(f"The reference must have at least four draws, to be split; got {target.num_draws}.")
    bandwidth = median_bandwidth(target.function)
    floor = _noise_floor(target, bandwidth, num_bootstrap > 0)
    bootstrap = _Bootstrap(target, bandwidth, floor, num_bootstrap) if num_bootstrap else None
    rows = []
    for name, posterior in posteriors.items():
        view = _view(posterior, *options)
        own = _distances(view, target)
        own[FUNCTION_SPACE, FUNCTION]["mmd_squared"] = float(
            mmd_squared(view.function, target.function, bandwidth=bandwidth)
        )
        if bootstrap is not None:
            bootstrap.add_intervals(own, view)
        own[FUNCTION_SPACE, FUNCTION].update(_costs(name, posterior, model, train_args, seconds or {}))
        rows += [{"name": name, "space": space, "where": where, **values} for (space, where), values in own.items()]
    rows += [{"name": NOISE_FLOOR, "space": s, "where": where, **values} for (s, where), values in floor.items()]
    return Comparison(tuple(rows), _LEVEL if num_bootstrap else 0.0)


def _check(
    posteriors: Mapping[str, Any], seconds: Mapping | None, canonical: bool, train_args: tuple | None, num: int
) -> None:
    if not posteriors or NOISE_FLOOR in posteriors:
        raise ValueError(f"posteriors must name at least one posterior, none {NOISE_FLOOR!r}; got {list(posteriors)}.")
    unknown = set(seconds or ()) - set(posteriors)
    if unknown:
        raise ValueError(f"seconds names {sorted(unknown)}; the posteriors are {list(posteriors)}.")
    if canonical and train_args is None:
        raise ValueError("canonical=True needs the model's arguments with data, to try its symmetries: train_args=.")
    if num < 0:
        raise ValueError(f"num_bootstrap must be 0 or more; got {num}.")


def _symmetries(model: Model, train_args: tuple) -> tuple[Symmetries, Layout]:
    with torch.random.fork_rng(devices=[]):
        target = bind_guide(model, None, train_args, {})
    return symmetries_of(target), target.layout


_Distances = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class _View:
    """One posterior as draws: of the sites by space, of the function, of the class probabilities where there are any.

    Attributes:
        block: Neighbouring draws to be resampled together: 1 for independent ones.
    """

    sites: dict[tuple[str, str], Tensor]
    function: Tensor
    probabilities: Tensor | None
    block: int

    @property
    def num_draws(self) -> int:
        return self.function.shape[0]

    def take(self, index: Tensor) -> "_View":
        sites = {key: value[index.to(value.device)] for key, value in self.sites.items()}
        index = index.to(self.function.device)
        probabilities = None if self.probabilities is None else self.probabilities[index]
        return _View(sites, self.function[index], probabilities, self.block)


def _view(
    posterior: Any,
    model: Model,
    args: tuple,
    kwargs: dict,
    num_samples: int,
    function_site: str,
    symmetries: tuple[Symmetries, Layout] | None,
) -> _View:
    samples = draws(posterior, *args, num_samples=num_samples, **kwargs)

    def collect(trace: Trace) -> dict[str, Tensor]:
        return _compared_values(trace, samples, function_site)

    values = map_in_chunks(model, samples, args, kwargs, collect=collect)
    probabilities = values.get("probabilities")
    sites = {(WEIGHT_SPACE, name): value for name, value in samples.items()}
    if symmetries is not None and symmetries[0].groups:
        group, layout = symmetries
        w = group.to(next(iter(samples.values())).device).canonicalise(layout.unconstrain(samples)[0])[0]
        moved = {name for units in group.groups for name, _ in units.axes}
        sites |= {(CANONICAL_SPACE, n): value for n, value in layout.constrain(w)[0].items() if n in moved}
    function = values.get("function", probabilities)
    return _View(sites, function, probabilities, block_of(posterior, len(function)))


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
    """From (space, "function" or a site) to its distances, but for MMD²."""
    function = _marginal_distances(view.function, target.function)
    if view.probabilities is not None and target.probabilities is not None:
        ours, theirs = view.probabilities.mean(0), target.probabilities.mean(0)
        function["agreement"] = float(agreement(ours, theirs))
        function["total_variation"] = float(total_variation(ours, theirs))
    shared = [key for key in target.sites if key in view.sites]
    by_site = {key: _marginal_distances(view.sites[key], target.sites[key]) for key in shared}
    return {(FUNCTION_SPACE, FUNCTION): function, **by_site}


def _marginal_distances(values: Tensor, target: Tensor) -> dict[str, float]:
    return {
        "w1_over_sd": float(wasserstein_over_sd(values, target)),
        "sd_ratio": float(sd_ratio(values, target)),
    }


class _Bootstrap:
    """Intervals of all distances, the reference resampled once for all posteriors."""

    def __init__(self, target: _View, bandwidth: Tensor, floor: _Distances, num_replicates: int) -> None:
        self._target = target
        self._bandwidth = bandwidth
        self._floor = floor
        self._counts = resampled_counts(target.num_draws, num_replicates, block=target.block)
        values = {(FUNCTION_SPACE, FUNCTION): target.function, **target.sites}
        self._marginals = {key: ResampledTarget(value, self._counts) for key, value in values.items()}

    def add_intervals(self, found: _Distances, view: _View) -> None:
        """Puts the interval of every distance of one posterior beside it."""
        counts = resampled_counts(view.num_draws, len(self._counts), block=view.block)
        for key, values in found.items():
            ours = view.function if key[1] == FUNCTION else view.sites[key]
            replicates = self._marginals[key].replicates(ours, counts)
            if key[1] == FUNCTION:
                replicates |= self._function_replicates(view, counts, "agreement" in values)
            for quantity, spread in replicates.items():
                ends = interval(quantity, values[quantity], spread, level=_LEVEL)
                values[f"{quantity}_low"], values[f"{quantity}_high"] = ends
            values["within_floor"] = values["w1_over_sd_low"] <= self._floor[key]["w1_over_sd_high"]

    def _function_replicates(self, view: _View, counts: Tensor, has_classes: bool) -> dict[str, Tensor]:
        target, given = self._target, (counts, self._counts)
        distances = mmd_replicates(view.function, target.function, *given, bandwidth=self._bandwidth)
        classes = class_replicates(view.probabilities, target.probabilities, *given) if has_classes else {}
        return {"mmd_squared": distances, **classes}


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
        split[FUNCTION_SPACE, FUNCTION]["mmd_squared"] = distance
    floor = {}
    for where, first in splits[0].items():
        values = {key: torch.tensor([split[where][key] for split in splits], dtype=torch.float64) for key in first}
        floor[where] = {key: float(value.nanmean()) for key, value in values.items()}
        if with_intervals:
            for key, value in values.items():
                low, high = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
                floor[where] |= {
                    f"{key}_low": float(value.nanquantile(low)),
                    f"{key}_high": float(value.nanquantile(high)),
                }
    return floor


def _costs(
    name: str, posterior: Any, model: Model, train_args: tuple | None, seconds: Mapping[str, float]
) -> dict[str, float]:
    """ELBO of a guide and the seconds of a fit, where they are known."""
    costs = {}
    if train_args is not None and is_guide(posterior):
        costs["elbo"], costs["elbo_error"] = elbo(model, posterior, *train_args)
    if name in seconds:
        costs["seconds"] = float(seconds[name])
    return costs

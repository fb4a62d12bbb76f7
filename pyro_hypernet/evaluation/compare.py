"""Posteriors against a reference: in function space, where predictions live, and site by site."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.diagnostics import elbo
from pyro_hypernet.evaluation.distances import median_bandwidth, mmd_squared, sd_ratio, wasserstein_over_sd
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.evaluation.metrics import agreement, total_variation
from pyro_hypernet.evaluation.predict import deterministic_nodes, map_in_chunks, predictive_nodes
from pyro_hypernet.vectorize import Model

NOISE_FLOOR = "noise floor"
FUNCTION = "function"
_NUM_SPLITS = 10
_WRAPPERS = (
    torch.distributions.Independent,
    pyro.distributions.MaskedDistribution,
    pyro.distributions.ExpandedDistribution,
)

_HEADINGS = {
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


@dataclass(frozen=True)
class Comparison:
    """Distances of posteriors from a reference, and the reference's distance from itself.

    Attributes:
        rows: Dicts, one for every posterior and every `where`: "function", or the name of a latent site; the rows named
            "noise floor" hold one half of the reference against the other, averaged over random splits: nothing can be
            told apart below them. The keys are "name"; "where"; "w1_over_sd", Wasserstein distance of the marginals in
            sds of the reference; "sd_ratio", below 1 for too narrow. In the function rows also "mmd_squared";
            for classifiers "agreement" and "total_variation" of the class probabilities; for guides "elbo" and
            "elbo_error" in nats; "seconds" where they were given.
    """

    rows: tuple[dict[str, Any], ...]

    def row(self, name: str, where: str = FUNCTION) -> dict[str, Any]:
        """The row of one posterior.

        Args:
            name: Its name, or "noise floor".
            where: "function" or a site's name.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            if (row["name"], row["where"]) == (name, where):
                return row
        known = sorted({(row["name"], row["where"]) for row in self.rows})
        raise KeyError(f"No row for {name!r} in {where!r}; there are {known}.")

    def to_string(self) -> str:
        """Two aligned tables: function space with all columns, then W1/sd of every latent site."""
        in_functions = [row for row in self.rows if row["where"] == FUNCTION]
        columns = [key for key in _HEADINGS if any(key in row for row in in_functions)]
        table = [
            [_HEADINGS[key] for key in columns],
            *([_spell(row.get(key)) for key in columns] for row in in_functions),
        ]
        names = [row["name"] for row in in_functions]
        sites = list(dict.fromkeys(row["where"] for row in self.rows if row["where"] != FUNCTION))
        values = [[_spell(self.row(name, site)["w1_over_sd"]) for site in sites] for name in names]
        by_site = [["W1/sd by site", *sites], *([name, *row] for name, row in zip(names, values, strict=True))]
        return _align(table) + ("\n\n" + _align(by_site) if sites else "")

    def __str__(self) -> str:
        return self.to_string()

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas, or use .rows.") from error
        return pandas.DataFrame(list(self.rows))


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
    **kwargs: Any,
) -> Comparison:
    """Holds posteriors against reference draws, each beside the reference's own noise floor.

    Judge networks by the function rows: weights of equal networks differ by permutations and signs of hidden units.

    Args:
        posteriors: From a name to a guide, a result of `nuts`, or a dict of samples.
        reference: A result of `nuts` or a dict of samples.
        model: The Pyro model.
        args: Its arguments at the inputs to compare at, without observations: `x_new`.
        train_args: All arguments as in training, for the ELBO of guides; None for no ELBO.
        num_samples: Number of draws from every posterior and, at most, from the reference.
        function_site: The `pyro.deterministic` site to compare. In a model without it, the mean of its observed site;
            class probabilities of a classifier.
        seconds: From a name to what its fit took, to stand in the table.
        kwargs: The model's keyword arguments at the inputs to compare at.

    Returns:
        The table, as rows.

    Raises:
        TypeError: If a posterior is of no known kind.
        ValueError: If there is nothing to compare, the samples do not fit the model, a name in `seconds` is unknown,
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
    if not posteriors or NOISE_FLOOR in posteriors:
        raise ValueError(f"posteriors must name at least one posterior, none {NOISE_FLOOR!r}; got {list(posteriors)}.")
    unknown = set(seconds or ()) - set(posteriors)
    if unknown:
        raise ValueError(f"seconds names {sorted(unknown)}; the posteriors are {list(posteriors)}.")
    target = _view(reference, model, args, kwargs, num_samples, function_site)
    if target.num_draws < 4:
        raise ValueError(f"The reference must have at least four draws, to be split; got {target.num_draws}.")
    bandwidth = median_bandwidth(target.function)
    rows = []
    for name, posterior in posteriors.items():
        view = _view(posterior, model, args, kwargs, num_samples, function_site)
        own = _distances(view, target, bandwidth)
        own[FUNCTION].update(_costs(name, posterior, model, train_args, seconds or {}))
        rows += [{"name": name, "where": where, **values} for where, values in own.items()]
    rows += [{"name": NOISE_FLOOR, "where": w, **values} for w, values in _noise_floor(target, bandwidth).items()]
    return Comparison(tuple(rows))


@dataclass(frozen=True)
class _View:
    """One posterior as draws: of the sites, of the function, of the class probabilities where there are classes."""

    sites: dict[str, Tensor]
    function: Tensor
    probabilities: Tensor | None

    @property
    def num_draws(self) -> int:
        return self.function.shape[0]

    def take(self, index: Tensor) -> "_View":
        sites = {name: value[index.to(value.device)] for name, value in self.sites.items()}
        index = index.to(self.function.device)
        return _View(sites, self.function[index], None if self.probabilities is None else self.probabilities[index])


def _view(posterior: Any, model: Model, args: tuple, kwargs: dict, num_samples: int, function_site: str) -> _View:
    samples = draws(posterior, *args, num_samples=num_samples, **kwargs)

    def collect(trace: Trace) -> dict[str, Tensor]:
        return _function_values(trace, samples, function_site)

    values = map_in_chunks(model, samples, args, kwargs, collect=collect)
    probabilities = values.get("probabilities")
    return _View(samples, values.get("function", probabilities), probabilities)


def _function_values(trace: Trace, samples: Mapping[str, Tensor], function_site: str) -> dict[str, Tensor]:
    """The function and, for a classifier, the class probabilities, `(N, C)` or `(N,)`, of one draw."""
    named = deterministic_nodes(trace).get(function_site)
    observed = next(iter(predictive_nodes(trace, samples).values()), None)
    if named is None and observed is None:
        raise ValueError(
            f"The model has neither a deterministic site {function_site!r} nor an observed one: nothing to compare in "
            "function space. Write pyro.deterministic, or name such a site with function_site=."
        )
    values = {} if named is None else {"function": named["value"]}
    probabilities = None if observed is None else _class_probabilities(observed["fn"])
    if probabilities is not None:
        values["probabilities"] = probabilities
    elif named is None:
        values["function"] = observed["fn"].mean
    return values


def _class_probabilities(fn: Any) -> Tensor | None:
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Bernoulli):
        return fn.probs.flatten()
    if isinstance(fn, (torch.distributions.Categorical, torch.distributions.OneHotCategorical)):
        return fn.probs.reshape(-1, fn.probs.shape[-1])
    return None


def _distances(view: _View, target: _View, bandwidth: Tensor) -> dict[str, dict[str, float]]:
    """From "function" and every site to its distances."""
    function = {
        **_marginal_distances(view.function, target.function),
        "mmd_squared": float(mmd_squared(view.function, target.function, bandwidth=bandwidth)),
    }
    if view.probabilities is not None and target.probabilities is not None:
        ours, theirs = view.probabilities.mean(0), target.probabilities.mean(0)
        function["agreement"] = float(agreement(ours, theirs))
        function["total_variation"] = float(total_variation(ours, theirs))
    shared = [name for name in target.sites if name in view.sites]
    return {FUNCTION: function, **{n: _marginal_distances(view.sites[n], target.sites[n]) for n in shared}}


def _marginal_distances(values: Tensor, target: Tensor) -> dict[str, float]:
    return {
        "w1_over_sd": float(wasserstein_over_sd(values, target)),
        "sd_ratio": float(sd_ratio(values, target)),
    }


def _noise_floor(target: _View, bandwidth: Tensor) -> dict[str, dict[str, float]]:
    """Distances of one half of the reference from the other, averaged over random splits."""
    half = target.num_draws // 2
    splits = []
    for _ in range(_NUM_SPLITS):
        order = torch.randperm(target.num_draws)
        splits.append(_distances(target.take(order[:half]), target.take(order[half : 2 * half]), bandwidth))
    return {
        where: {key: math.fsum(split[where][key] for split in splits) / _NUM_SPLITS for key in first}
        for where, first in splits[0].items()
    }


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


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _align(table: list[list[str]]) -> str:
    """Joins cells into lines, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in table)
    ]
    return "\n".join(line.rstrip() for line in lines)

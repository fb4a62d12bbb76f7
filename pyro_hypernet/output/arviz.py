"""A posterior and all that belongs to it as ArviZ's InferenceData (0.x) or DataTree (1.x)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.evaluation.predict import log_likelihood, observed_nodes, predict
from pyro_hypernet.evaluation.psis import arviz_is_split, import_module_quietly
from pyro_hypernet.layout import plate_names
from pyro_hypernet.vectorize import Model, trace_one

Groups = dict[str, dict[str, np.ndarray]]


@torch.no_grad()
def to_arviz(
    model: Model,
    posterior: Any,
    *args: Any,
    num_samples: int = 1000,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Gathers a posterior, its predictions and the data for ArviZ.

    Axes are named after the plates that they belong to. Draws of a guide are independent: one chain, for which R-hat
    and ESS say nothing; judge a guide by `khat` and `compare`.

    Args:
        model: The Pyro model.
        posterior: A guide, a result of `nuts`, whose chains and all of whose draws are kept, or a dict of samples.
        args: The model's arguments, data included. Without data there are no log_likelihood and observed_data.
        num_samples: Number of draws from a guide, and at most from a dict.
        coords: From the name of a dimension, such as a plate's, to its labels.
        dims: From a site to the names of all its axes, instead of the plates' names.
        kwargs: The model's keyword arguments.

    Returns:
        An `arviz.InferenceData`, with ArviZ 1.x an `xarray.DataTree`, with the groups posterior (dims chain, draw and
        the site's own), posterior_predictive (the observed sites sampled anew, and the deterministic ones),
        log_likelihood (nats), observed_data, and, where the chains tell, sample_stats.

    Raises:
        TypeError: If the posterior is of no known kind.
        ValueError: If the samples do not fit the model.
    """
    chains = getattr(posterior, "samples_by_chain", None)
    samples = posterior.samples if chains else draws(posterior, *args, num_samples=num_samples, **kwargs)
    num_chains = next(iter(chains.values())).shape[0] if chains else 1
    total = next(iter(samples.values())).shape[0]
    first = {name: value[0] for name, value in samples.items()}
    trace = trace_one(model, first, args, kwargs)
    predicted = predict(poutine.uncondition(model), samples, *args, num_samples=total, **kwargs)
    predicted.pop("_RETURN", None)
    groups = {"posterior": _by_chain(samples, num_chains), "posterior_predictive": _by_chain(predicted, num_chains)}
    observed = {name: node for name, node in observed_nodes(trace, samples).items() if name in predicted}
    if observed:
        likelihood = log_likelihood(model, samples, *args, num_samples=total, **kwargs)
        groups["log_likelihood"] = _by_chain({name: likelihood[name] for name in observed}, num_chains)
        groups["observed_data"] = {name: _to_numpy(node["value"]) for name, node in observed.items()}
    groups.update(_sample_stats(posterior))
    return _convert(
        {name: group for name, group in groups.items() if group}, coords, {**_plates(trace), **(dims or {})}
    )


def _convert(groups: Groups, coords: Mapping[str, Any] | None, dims: Mapping[str, Any]) -> Any:
    """The one place that knows ArviZ's two interfaces."""
    options = {"coords": dict(coords or {}), "dims": {name: list(names) for name, names in dims.items()}}
    if arviz_is_split():
        return import_module_quietly("arviz_base").from_dict(groups, sample_dims=["chain", "draw"], **options)
    return import_module_quietly("arviz").from_dict(**groups, **options)


def _by_chain(values: Mapping[str, Tensor], num_chains: int) -> dict[str, np.ndarray]:
    """From `(S, *shape)` to `(chains, draws, *shape)`."""
    return {name: _to_numpy(value.reshape((num_chains, -1, *value.shape[1:]))) for name, value in values.items()}


def _to_numpy(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.to(torch.int64).numpy() if value.dtype == torch.bool else value.numpy()


def _sample_stats(posterior: Any) -> dict[str, dict[str, np.ndarray]]:
    """Which draws diverged, where a sampler says so for every draw, shape `(chains, draws)`."""
    diverging = getattr(posterior, "diverging", None)
    return {"sample_stats": {"diverging": diverging.cpu().numpy()}} if isinstance(diverging, Tensor) else {}


def _plates(trace: Trace) -> dict[str, list[str]]:
    """Names for the axes of every site: its plates', or ArviZ's own where an axis is in no plate."""
    nodes = {n: node for n, node in trace.nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}
    return {name: _axis_names(name, node) for name, node in nodes.items()}


def _axis_names(name: str, node: dict[str, Any]) -> list[str]:
    return [plate or f"{name}_dim_{axis}" for axis, plate in enumerate(plate_names(node))]

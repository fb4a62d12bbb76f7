"""A posterior and all that belongs to it as ArviZ's InferenceData (0.x) or DataTree (1.x)."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws, draws_and_log_prob, is_guide, temperature_of
from pyro_hypernet.evaluation.predict import log_likelihood_at, predict_at
from pyro_hypernet.evaluation.psis import arviz_is_split, import_module_quietly
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.model.layout import minibatches, plate_names
from pyro_hypernet.model.tempered import at_temperature
from pyro_hypernet.model.traces import observed_nodes
from pyro_hypernet.model.vectorize import Model, Vectorized, outside_of_pyro
from pyro_hypernet.target import Bound

Groups = dict[str, dict[str, np.ndarray]]
_OWN_AXES = {"chain", "draw"}


@torch.no_grad()
def to_arviz(
    model: Model,
    posterior: Any,
    *args: Any,
    num_samples: int = 1000,
    num_prior_samples: int = 500,
    guide: JointGuide | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Gathers a posterior, its predictions, the prior's, and the data for ArviZ.

    Axes are named after the plates that they belong to; sites and plates called "chain" or "draw", as ArviZ calls its
    own axes, and plates called as a site get other names, with a warning. Draws of a guide are independent: one chain,
    for which R-hat and ESS say nothing; of a GuideMixture whose components weigh equally a chain for each, whose R-hat
    says how far these are apart, otherwise one chain of all in proportion (`GuideMixture(mixture.components)` weighs
    equally). Judge a guide by `khat` and `compare`, and leave data out by `loo`: ArviZ's own
    takes the draws for the posterior's.

    Args:
        model: The Pyro model.
        posterior: A guide; a result of `nuts`, whose chains and all of whose draws are kept; a result of `refine`; or
            whatever else `draws` knows.
        args: The model's arguments, data included. Without data there are no log_likelihood, observed_data and lp.
        num_samples: Number of draws from a guide, and at most from stored samples.
        num_prior_samples: Draws of the prior; 0 for none.
        guide: An AutoHypernet or a GuideMixture whose log q of stored draws is to stand in sample_stats.
        coords: From the name of a dimension, such as a plate's, to its labels.
        dims: From a site, or an argument of the model, to the names of all its axes, instead of the plates' names.
        kwargs: The model's keyword arguments.

    Returns:
        An `arviz.InferenceData`, with ArviZ 1.x an `xarray.DataTree`, with the groups posterior (dims chain, draw and
        the site's own); posterior_predictive (the observed sites sampled anew, and the deterministic ones);
        log_likelihood (nats); sample_stats; prior and prior_predictive, where the prior can be sampled; observed_data;
        constant_data, the model's tensor arguments that are not observed. In sample_stats, in nats and for the
        constrained values: "lp", log p(data, sites); "log_q", and for draws of a guide "log_weight", lp − log q; for
        Markov chains "diverging".

    Raises:
        TypeError: If the posterior is of no known kind.
        ValueError: If the samples do not fit the model, or a number of draws is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> data = to_arviz(model, {"slope": torch.randn(100)}, torch.ones(3), torch.ones(3))
        >>> data["log_likelihood"]["y"].dims
        ('chain', 'draw', 'data')
    """
    if num_prior_samples < 0:
        raise ValueError(f"num_prior_samples must be 0 or more; got {num_prior_samples}.")
    bound = Bound(model, args, kwargs)
    samples, log_q, num_chains = _draws(posterior, bound, num_samples)
    trace = bound.trace_first(samples)
    predicted = _predict_anew(bound, samples)
    groups = {"posterior": _by_chain(samples, num_chains), "posterior_predictive": _by_chain(predicted, num_chains)}
    observed = {name: node for name, node in observed_nodes(trace, samples).items() if name in predicted}
    if observed:
        likelihood = log_likelihood_at(bound, samples)
        groups["log_likelihood"] = _by_chain({name: likelihood[name] for name in observed}, num_chains)
        groups["observed_data"] = {name: _to_numpy(node["value"]) for name, node in observed.items()}
    temperature = temperature_of(posterior if guide is None else guide)
    stats = _densities(Bound(at_temperature(model, temperature), args, kwargs), samples, log_q, trace)
    if log_q is None and guide is not None:
        stats["log_q"] = guide.log_prob(samples)
    groups["sample_stats"] = _by_chain(stats, num_chains)
    diverging = getattr(posterior, "diverging", None)
    if isinstance(diverging, Tensor):
        groups["sample_stats"]["diverging"] = diverging.cpu().numpy()
    prior = _sample_prior(bound, samples, num_prior_samples)
    if prior:
        groups["prior"] = _by_chain(prior, 1)
        groups["prior_predictive"] = _by_chain(_predict_anew(bound, prior), 1)
    constants = _constants(bound, trace)
    groups["constant_data"] = {name: _to_numpy(value) for name, value in constants.items()}
    names = {**_plates(trace), **_axes_of_constants(constants, trace), **(dims or {})}
    groups = {name: group for name, group in groups.items() if group}
    data = _convert(*_without_collisions(groups, coords or {}, names))
    if temperature != 1:
        data["posterior"].attrs["temperature"] = temperature
    if isinstance(posterior, GuideMixture):
        data["posterior"].attrs["component_weights"] = posterior.log_weights.exp().tolist()
    return data


def _draws(posterior: Any, bound: Bound, num_samples: int) -> tuple[dict[str, Tensor], Tensor | None, int]:
    """Draws of shape `(S, *shape)`, log q of them where they come from a guide with a density, and the chains."""
    chains = getattr(posterior, "samples_by_chain", None)
    if chains:
        return posterior.samples, None, next(iter(chains.values())).shape[0]
    if isinstance(posterior, GuideMixture) and bool((posterior.log_weights == posterior.log_weights[0]).all()):
        w, log_q, _ = posterior.sample_strata(num_samples)
        values, log_det = posterior.layout.constrain(w)
        return values, log_q - log_det, len(posterior.components)
    if is_guide(posterior):
        try:
            return (*draws_and_log_prob(posterior, *bound.args, num_samples=num_samples, **bound.kwargs), 1)
        except TypeError:  # a point estimate, which has no density; anything else fails again below
            pass
    return draws(posterior, *bound.args, num_samples=num_samples, **bound.kwargs), None, 1


def _predict_anew(bound: Bound, samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """The observed sites sampled again and the deterministic ones, `(S, *shape)`."""
    predicted = predict_at(bound.anew(), samples)
    predicted.pop("_RETURN", None)
    return predicted


def _densities(bound: Bound, samples: dict[str, Tensor], log_q: Tensor | None, trace: Trace) -> dict[str, Tensor]:
    """log p, log q and their difference for every draw, shape `(S,)`, as far as they are known."""
    known = {} if log_q is None else {"log_q": log_q}
    if any(name not in samples and not site_is_subsample(node) for name, node in trace.iter_stochastic_nodes()):
        return known  # some site is neither drawn nor observed: this run of the model has no density of the draws
    if minibatches(trace):
        return known  # of other data for every draw: noise, by which no two draws compare

    def collect(one: Trace) -> Tensor:
        one.compute_log_prob()
        return torch.stack([node["log_prob_sum"] for node in one.nodes.values() if "log_prob_sum" in node]).sum()

    known["lp"] = bound.map(samples, collect)
    return {**known, "log_weight": known["lp"] - log_q} if log_q is not None else known


def _sample_prior(bound: Bound, samples: dict[str, Tensor], num_samples: int) -> dict[str, Tensor]:
    """Draws of the same sites from the prior; none where it is improper."""

    def one(_: Tensor, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        trace = Bound(bound.model, args, kwargs).trace({})
        return {name: trace.nodes[name]["value"] for name in samples}

    if not num_samples:
        return {}
    with outside_of_pyro(), warnings.catch_warnings():
        # Dirichlets and their like are drawn one by one, which once is no harm.
        warnings.filterwarnings("ignore", "The model cannot be vmapped", UserWarning)
        try:
            run = Vectorized(one, mode="eager", randomness="different")
            return run(torch.zeros(num_samples), bound.args, bound.kwargs)
        except NotImplementedError:
            return {}


def _constants(bound: Bound, trace: Trace) -> dict[str, Tensor]:
    """The model's tensor arguments that no site observes, by name."""
    sites = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}
    return {
        name.replace("number ", "argument_"): value
        for name, value in bound.arguments.items()
        if isinstance(value, Tensor) and name not in sites and not any(value is other for other in sites.values())
    }


def _axes_of_constants(constants: Mapping[str, Tensor], trace: Trace) -> dict[str, list[str]]:
    """The first axis is a plate's where just one plate has its length."""
    frames = {frame.name: frame.size for node in trace.nodes.values() for frame in node.get("cond_indep_stack", ())}
    names = {}
    for name, value in constants.items():
        plates = [plate for plate, size in frames.items() if value.dim() and size == value.shape[0]]
        rest = [f"{name}_dim_{axis}" for axis in range(value.dim())]
        names[name] = [*plates, *rest[1:]] if len(plates) == 1 else rest
    return names


def _without_collisions(
    groups: Groups, coords: Mapping[str, Any], dims: Mapping[str, Sequence[str]]
) -> tuple[Groups, dict[str, Any], dict[str, list[str]]]:
    """Other names for sites called as ArviZ calls its own axes, and for axes called as these or as a site."""
    axes = {axis for names in dims.values() for axis in names} | set(coords)
    sites = {name for group in groups.values() for name in group}
    clashing = axes & _OWN_AXES
    for key, group in groups.items():
        used = {axis for name in group for axis in dims.get(name, ())}
        # Data along an axis of their own name are its labels.
        labels = {name for name in group if key.endswith("_data") and list(dims.get(name, ())) == [name]}
        clashing |= used & set(group) - labels
    taken = {*sites, *axes, *_OWN_AXES}
    new_sites = {name: _free(name, "site", taken) for name in sites & _OWN_AXES}
    new_axes = {axis: _free(axis, "axis", taken) for axis in clashing}
    if new_sites or new_axes:
        spelt = ", ".join(
            f"{old!r} to {new!r}" for names in (new_sites, new_axes) for old, new in sorted(names.items())
        )
        warnings.warn(
            f"Names that ArviZ cannot hold beside each other were changed: {spelt}. Give others in the model, or to "
            "axes by dims=.",
            stacklevel=3,
        )
    groups = {key: {new_sites.get(n, n): value for n, value in group.items()} for key, group in groups.items()}
    coords = {new_axes.get(axis, axis): labels for axis, labels in coords.items()}
    return groups, coords, {new_sites.get(n, n): [new_axes.get(a, a) for a in names] for n, names in dims.items()}


def _free(name: str, suffix: str, taken: set[str]) -> str:
    new = f"{name}_{suffix}"
    while new in taken:
        new += "_"
    return new


def _convert(groups: Groups, coords: Mapping[str, Any], dims: Mapping[str, Any]) -> Any:
    """The one place that knows ArviZ's two interfaces."""
    options = {"coords": dict(coords), "dims": {name: list(names) for name, names in dims.items()}}
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


def _plates(trace: Trace) -> dict[str, list[str]]:
    """Names for the axes of every site: its plates', or ArviZ's own where an axis is in no plate."""
    nodes = {n: node for n, node in trace.nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}
    return {
        name: [plate or f"{name}_dim_{axis}" for axis, plate in enumerate(plate_names(node))]
        for name, node in nodes.items()
    }

"""What a posterior predicts: the model run once for every draw, vectorised, in chunks that fit in memory."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.evaluation.draws import draws, run_by
from pyro_hypernet.model.chunks import MAX_BYTES
from pyro_hypernet.model.traces import deterministic_nodes, observed_nodes, pointwise_log_prob, predictive_nodes
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.target import Bound
from pyro_hypernet.train.notices import recall, warn_of_bad_numbers


@torch.no_grad()
def predict(
    model: Model,
    posterior: Any,
    *args: Any,
    num_samples: int = 1000,
    return_sites: Iterable[str] | None = None,
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    **kwargs: Any,
) -> dict[str, Any]:
    """Runs the model once for every draw of a posterior.

    The model may be written for one draw: it is vmapped. As in Pyro's Predictive, a site that gets data stays at its
    data; leave the data out, or pass None for them, to predict. The caller's `pyro.set_rng_seed` decides the draws.

    Args:
        model: A Pyro model.
        posterior: A guide, a result of `nuts`, or a dict of samples; see `draws`.
        args: The model's arguments, such as new inputs.
        num_samples: Number of draws S; stored samples may hold fewer.
        return_sites: Names of the sites to return, latent ones allowed; None for all that are not latent.
        batch_size: Draws run at once; None for as many as fit into `max_bytes`.
        max_bytes: Memory for the intermediate results of one chunk, in bytes.
        kwargs: The model's keyword arguments.

    Returns:
        A dict from site (sampled, observed or deterministic) to values of shape `(S, *shape)`. Where the model returns
        tensors, "_RETURN" holds these too, as in Pyro's Predictive: of a network of `bayesianize` "f" once more.

    Raises:
        ValueError: If the samples do not fit the model, or a name in `return_sites` is not one of its sites.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     f = pyro.deterministic("f", slope * x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(f, 0.1), obs=y)
        >>> predicted = predict(model, {"slope": torch.randn(100)}, torch.linspace(0, 1, 20))
        >>> predicted["f"].shape, predicted["y"].shape
        (torch.Size([100, 20]), torch.Size([100, 20]))
    """
    recall(posterior)
    samples = draws(posterior, *args, num_samples=num_samples, **kwargs)
    options = {"batch_size": batch_size, "max_bytes": max_bytes}
    return predict_at(Bound(run_by(model, posterior), args, kwargs), samples, return_sites=return_sites, **options)


@torch.no_grad()
def predict_at(
    bound: Bound,
    samples: Mapping[str, Tensor],
    *,
    return_sites: Iterable[str] | None = None,
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """`predict` at all of given draws, of a model that is bound to its arguments."""
    wanted = None if return_sites is None else tuple(return_sites)

    def collect(trace: Trace) -> dict[str, Any]:
        return _select(_predicted(trace, samples), samples, wanted)

    result = bound.map(samples, collect, batch_size=batch_size, max_bytes=max_bytes)
    warn_of_bad_numbers(result)
    return {**result, **{name: samples[name] for name in wanted or () if name in samples}}


@torch.no_grad()
def log_likelihood(
    model: Model,
    posterior: Any,
    *args: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Log likelihood of every datum under every draw.

    Args: As those of `predict`, data included.

    Returns:
        A dict from observed site to log densities in nats, shape `(S, *batch_shape)`: one per datum, without plate
        scales, zero where masked.

    Raises:
        ValueError: If no site is observed, or NaN among the data makes densities NaN.
    """
    samples = draws(posterior, *args, num_samples=num_samples, **kwargs)
    bound = Bound(run_by(model, posterior), args, kwargs)
    return log_likelihood_at(bound, samples, batch_size=batch_size, max_bytes=max_bytes)


@torch.no_grad()
def log_likelihood_at(
    bound: Bound, samples: Mapping[str, Tensor], *, batch_size: int | None = None, max_bytes: int = MAX_BYTES
) -> dict[str, Tensor]:
    """`log_likelihood` at all of given draws, of a model that is bound to its arguments."""

    def collect(trace: Trace) -> dict[str, Tensor]:
        nodes = observed_nodes(trace, samples)
        if not nodes:
            raise ValueError("The model observes nothing: pass its data to log_likelihood, as to the guide's training.")
        return {name: pointwise_log_prob(node) for name, node in nodes.items()}

    found = bound.map(samples, collect, batch_size=batch_size, max_bytes=max_bytes)
    if any(bool(value.isnan().any()) for value in found.values()):
        bound.raise_for_nan()
    return found


def _predicted(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, Any]:
    nodes = {**predictive_nodes(trace, samples), **deterministic_nodes(trace)}
    values = {name: node["value"] for name, node in trace.nodes.items() if name in nodes}
    returned = trace.nodes["_RETURN"]["value"]
    leaves = pytree.tree_leaves(returned)
    if leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
        values["_RETURN"] = returned
    return values


def _select(values: dict[str, Any], samples: Mapping[str, Tensor], wanted: tuple[str, ...] | None) -> dict[str, Any]:
    if wanted is None:
        return values
    unknown = [name for name in wanted if name not in values and name not in samples]
    if unknown:
        raise ValueError(f"return_sites names {unknown}; the model has {[*samples, *values]}.")
    return {name: values[name] for name in wanted if name in values}

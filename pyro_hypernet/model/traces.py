"""A trace of the model: which of its sites hold data, and what it computes."""

from collections.abc import Container, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

_WRAPPERS = (
    torch.distributions.Independent,
    pyro.distributions.MaskedDistribution,
    pyro.distributions.ExpandedDistribution,
)


def observed_nodes(trace: Trace, latent: Container[str]) -> dict[str, dict[str, Any]]:
    """The nodes, by name, that hold data, of a trace conditioned on one draw of these latent sites."""
    return {name: node for name, node in _data_nodes(trace, latent).items() if node["is_observed"]}


def predictive_nodes(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The nodes, by name, that model data, given or not, of a trace conditioned on one draw; no `pyro.factor`."""
    return {name: node for name, node in _data_nodes(trace, samples).items() if not isinstance(node["fn"], Unit)}


def deterministic_nodes(trace: Trace) -> dict[str, dict[str, Any]]:
    """The `pyro.deterministic` sites of a trace, a dict from name to node."""
    return {name: node for name, node in trace.nodes.items() if (node.get("infer") or {}).get("_deterministic")}


def pointwise_log_prob(node: dict[str, Any]) -> Tensor:
    """Log density of every datum of an observed node, in nats: without plate scales, zero where masked."""
    return scale_and_mask(node["fn"].log_prob(node["value"]), 1.0, node["mask"])


def functions_of(trace: Trace, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model computes from one draw: where populations and chains are compared, for weights have symmetries.

    Returns:
        Deterministic sites and the means of sites that model data, all of floating point; empty where no mean is known.
    """
    values = {name: node["value"] for name, node in deterministic_nodes(trace).items()}
    values |= {name: _mean_of(node["fn"]) for name, node in predictive_nodes(trace, samples).items()}
    return {name: value for name, value in values.items() if value is not None and value.is_floating_point()}


def _mean_of(fn: Any) -> Tensor | None:
    """The mean of a distribution, or of what it wraps where it has none itself, or None; probabilities count as one."""
    inner = fn
    while hasattr(inner, "base_dist") and not hasattr(inner, "probs"):
        inner = inner.base_dist
    probs = getattr(inner, "probs", None)
    if isinstance(probs, Tensor):
        return probs
    for distribution in (fn, inner):
        try:
            return distribution.mean
        except (AttributeError, NotImplementedError):
            continue
    return None


def class_probabilities(fn: Any) -> Tensor | None:
    """Of a distribution over classes, shape `(N, C)`, or `(N,)` of the positive one; None of any other distribution."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Bernoulli):
        return fn.probs.flatten()
    if isinstance(fn, (torch.distributions.Categorical, torch.distributions.OneHotCategorical)):
        return fn.probs.reshape(-1, fn.probs.shape[-1])
    return None


def _data_nodes(trace: Trace, latent: Container[str]) -> dict[str, dict[str, Any]]:
    """Sample sites that are neither latent nor deterministic nor subsampling."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and name not in latent
        and not site_is_subsample(node)
        and not node["infer"].get("_deterministic")
    }

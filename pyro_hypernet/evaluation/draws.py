"""Draws from anything that stands for a posterior: guides, Markov chains, dicts of samples."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, AutoGuide, AutoNormal
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.single_run import Model, trace_outside
from pyro_hypernet.train.estimate import flat_normal

# Draws in one pass of a guide's density at given points.
_CHUNK = 2048


@torch.no_grad()
def draws(posterior: Any, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, Tensor]:
    """Draws from a posterior, whatever kind it is of.

    Args:
        posterior: An AutoHypernet or a GuideMixture, any other Pyro guide (an AutoGuide in one vectorised pass where
            Pyro can, others run once per draw), a result of `nuts` or anything else with `.samples`, a Pyro or NumPyro
            `MCMC` object, ArviZ's InferenceData, or a dict from site to samples of shape `(S, *shape)`, tensors or
            other arrays.
        args: The model's arguments; only guides that are functions of them look at these.
        num_samples: Number of draws S. Of stored samples at most this many are taken, at random and without
            replacement, in their order; all where there are fewer.
        kwargs: The model's keyword arguments.

    Returns:
        A dict from site to draws of shape `(S, *shape)`, without gradient and without Pyro's singleton plate axes.

    Raises:
        TypeError: If `posterior` is none of these.
        ValueError: If `num_samples` is not positive, or the dict is empty or ragged.
        RuntimeError: If a guide has not seen its model yet.

    Example:
        >>> draws({"w": torch.randn(500, 3)}, num_samples=100)["w"].shape
        torch.Size([100, 3])
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
    stored = _stored(posterior)
    if stored is not None:
        return _subset(stored, num_samples)
    _check_guide(posterior)
    if isinstance(posterior, JointGuide):
        return posterior.sample_posterior(num_samples)
    if isinstance(posterior, AutoContinuous):
        w = posterior.get_posterior(*args, **kwargs).sample((num_samples,))
        return Layout.from_trace(posterior.prototype_trace).constrain(w)[0]
    return _run_guide(posterior, args, kwargs, num_samples)[0]


def run_by(model: Model, posterior: Any) -> Model:
    """The model by which draws of a posterior are run: the given one, but for components with models of their own."""
    return posterior.model_of_draws(model) if isinstance(posterior, GuideMixture) else model


@torch.no_grad()
def draws_and_log_prob(guide: Any, *args: Any, num_samples: int = 1000, **kwargs: Any) -> tuple[dict, Tensor]:
    """Draws from a guide with their densities; arguments as those of `draws`.

    Returns:
        A dict from site to draws of shape `(S, *shape)`, and log q of these constrained values, Jacobians included, in
        nats, shape `(S,)`.

    Raises:
        TypeError: If `guide` is no guide, or a point estimate, which has no density.
        RuntimeError: If the guide has not seen its model yet.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
    check_has_density(guide)
    if not isinstance(guide, AutoContinuous):
        return _run_guide(guide, args, kwargs, num_samples, with_density=True)
    if isinstance(guide, JointGuide):
        layout = guide.layout
        w, log_q = guide.sample_and_log_prob(num_samples)
    else:
        layout, posterior = Layout.from_trace(guide.prototype_trace), guide.get_posterior(*args, **kwargs)
        if isinstance(getattr(posterior, "base_dist", posterior), dist.Delta):
            _raise_for_point(guide)
        w = posterior.sample((num_samples,))
        log_q = posterior.log_prob(w)
    values, log_det = layout.constrain(w)
    return values, log_q - log_det


@torch.no_grad()
def log_density_of(guide: Any, samples: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor | None:
    """log q of draws from anywhere.

    Args:
        guide: An AutoHypernet, a GuideMixture, an AutoNormal, or another of Pyro's AutoContinuous guides.
        samples: A dict from every latent site to draws of shape `(S, *shape)`.

    Returns:
        Log densities of the constrained values in nats, double precision, shape `(S,)`; None for guides of other
        kinds, whose density at a given point nobody knows.
    """
    if isinstance(guide, JointGuide):
        parts = [guide.log_prob(chunk) for chunk in _chunks(samples)]
        return torch.cat(parts).double()
    if not isinstance(guide, AutoContinuous) and type(guide) is not AutoNormal:
        return None
    w, log_det = Layout.from_trace(guide.prototype_trace).unconstrain(samples)
    posterior = flat_normal(guide) if isinstance(guide, AutoNormal) else guide.get_posterior(*args, **kwargs)
    return (posterior.log_prob(w) - log_det).double()


def check_has_density(guide: Any) -> None:
    """Raises a TypeError for what is no guide, and a RuntimeError for a guide that has not seen its model yet."""
    if _stored(guide) is not None:
        raise TypeError(
            f"A guide with a density is needed here; got {type(guide).__name__}, stored samples, whose density is not "
            "known."
        )
    _check_guide(guide)


def is_guide(posterior: Any) -> bool:
    """Whether a posterior can be sampled for ever and has a density, unlike stored samples."""
    return _stored(posterior) is None and callable(posterior)


def temperature_of(posterior: Any) -> float:
    """The temperature that a guide, or a result with one, stands for; 1 for what knows of none."""
    return 1.0 if isinstance(posterior, Mapping) else getattr(posterior, "temperature", 1.0)


def _stored(posterior: Any) -> dict[str, Tensor] | None:
    """The samples that a posterior holds, or None where it is a guide."""
    if isinstance(posterior, Mapping) and not _is_arviz(posterior):
        samples = posterior
    elif isinstance(getattr(posterior, "samples", None), Mapping):
        samples = posterior.samples
    elif callable(getattr(posterior, "get_samples", None)):
        samples = posterior.get_samples()
    elif _is_arviz(posterior):
        group = posterior.posterior
        samples = {name: group[name].values for name in group.data_vars}
        samples = {name: value.reshape((-1, *value.shape[2:])) for name, value in samples.items()}
    else:
        return None
    if not samples:
        raise ValueError("A dict of samples must hold at least one site; got an empty one.")
    samples = {name: _as_tensor(name, value) for name, value in samples.items()}
    sizes = {name: tuple(value.shape[:1]) for name, value in samples.items()}
    if len(set(sizes.values())) > 1 or () in sizes.values() or (0,) in sizes.values():
        raise ValueError(f"Samples of all sites must share a first axis, the draws; got lengths {sizes}.")
    return dict(samples)


def _is_arviz(posterior: Any) -> bool:
    """Whether this is ArviZ's InferenceData or DataTree: something with a group of posterior variables."""
    return hasattr(getattr(posterior, "posterior", None), "data_vars")


def _as_tensor(name: str, value: Any) -> Tensor:
    """Draws of one site; floats of other libraries, NumPy's and JAX's, come in torch's default precision."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__array__"):
        raise TypeError(f"Samples of site {name!r} must be a torch.Tensor or an array; got {type(value).__name__}.")
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _subset(samples: dict[str, Tensor], num_samples: int) -> dict[str, Tensor]:
    size = next(iter(samples.values())).shape[0]
    if size <= num_samples:
        return {name: value.detach() for name, value in samples.items()}
    index = torch.randperm(size)[:num_samples].sort().values
    return {name: value.detach()[index.to(value.device)] for name, value in samples.items()}


def _check_guide(guide: Any) -> None:
    if not callable(guide):
        raise TypeError(
            "posterior must be a guide, a result of nuts, or a dict from site to samples of shape (S, *shape); got "
            f"{type(guide).__name__}."
        )
    unset = isinstance(guide, AutoGuide) and not isinstance(guide, JointGuide) and guide.prototype_trace is None
    if unset:
        raise RuntimeError(
            f"The guide {type(guide).__name__} has not seen its model yet: train it, or call it once with the model's "
            "arguments."
        )


def _run_guide(guide: Any, args: tuple, kwargs: dict, num_samples: int, *, with_density: bool = False) -> tuple:
    if type(guide) is AutoNormal:
        trace = _vectorized_trace(guide, args, kwargs, num_samples)
        shapes = {site.name: site.shape for site in Layout.from_trace(guide.prototype_trace).sites}
        values = {name: trace.nodes[name]["value"].reshape((num_samples, *shape)) for name, shape in shapes.items()}
        return values, _log_prob(trace, (num_samples, -1)) if with_density else None
    rows, log_q = [], []
    for _ in range(num_samples):
        trace = trace_outside(guide, args, kwargs)
        rows.append(_latents(guide, trace))
        if with_density:
            log_q.append(_log_prob(trace, (1, -1))[0])
    if with_density and all(isinstance(node["fn"], dist.Delta) for _, node in trace.iter_stochastic_nodes()):
        _raise_for_point(guide)
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return values, torch.stack(log_q) if with_density else None


def _vectorized_trace(guide: AutoNormal, args: tuple, kwargs: dict, num_samples: int) -> Trace:
    """Runs a mean-field guide once for all draws, inside a plate to the left of every batch axis of the model."""
    depth = max(len(node["fn"].batch_shape) for _, node in guide.prototype_trace.iter_stochastic_nodes())

    def in_plate(*args: Any, **kwargs: Any) -> None:
        with pyro.plate("_draws_of_the_guide", num_samples, dim=-1 - depth):
            guide(*args, **kwargs)

    return trace_outside(in_plate, args, kwargs)


def _latents(guide: Any, trace: Trace) -> dict[str, Tensor]:
    values = {
        name: node["value"]
        for name, node in trace.iter_stochastic_nodes()
        if not site_is_subsample(node) and not node["infer"].get("is_auxiliary")
    }
    if not values:
        raise TypeError(f"posterior {type(guide).__name__} ran without a single pyro.sample statement: not a guide.")
    return values


def _log_prob(trace: Trace, shape: tuple[int, int]) -> Tensor:
    """Sum over sites of the log density, draws on the first of the two axes of `shape`."""
    trace.compute_log_prob()
    nodes = [node for _, node in trace.iter_stochastic_nodes() if not site_is_subsample(node)]
    return sum(node["unscaled_log_prob"].reshape(shape).sum(-1) for node in nodes)


def _chunks(samples: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    pieces = {name: value.split(_CHUNK) for name, value in samples.items()}
    return (dict(zip(pieces, parts, strict=True)) for parts in zip(*pieces.values(), strict=True))


def _raise_for_point(guide: Any) -> None:
    raise TypeError(f"{type(guide).__name__} is a point estimate and has no density: it has no ELBO and no k-hat.")

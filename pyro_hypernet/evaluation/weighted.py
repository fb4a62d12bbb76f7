"""Draws of a guide with both densities, and the guide's density at draws from elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from torch import Tensor

from pyro_hypernet.density import NUM_LOOKS, LogJoint, trace_prior
from pyro_hypernet.evaluation.draws import draws, draws_and_log_prob, is_guide
from pyro_hypernet.evaluation.predict import MAX_BYTES, count_bytes
from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.layout import Layout
from pyro_hypernet.safeguards import refuse_minibatches, refuse_random_density
from pyro_hypernet.vectorize import Model, outside_of_pyro, trace_one

# Draws in one pass of the captured density.
_CHUNK = 2048


@dataclass(frozen=True)
class WeightedDraws:
    """Draws with the two densities that make importance weights of them.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`.
        log_p: log p(data, draw) in nats, shape `(S,)`, double precision, without Jacobians of supports.
        log_q: log q(draw) in nats, likewise.
    """

    samples: dict[str, Tensor] = field(repr=False)
    log_p: Tensor = field(repr=False)
    log_q: Tensor = field(repr=False)

    @property
    def log_weights(self) -> Tensor:
        """`log p − log q` in nats, shape `(S,)`."""
        return self.log_p - self.log_q

    def take(self, index: Tensor) -> "WeightedDraws":
        """The draws of these numbers, shape `(R,)`, repeated ones repeated."""
        samples = {name: value[index] for name, value in self.samples.items()}
        return WeightedDraws(samples, self.log_p[index], self.log_q[index])


@torch.no_grad()
def refuse_noise(model: Model, posterior: Any, args: tuple, kwargs: Mapping[str, Any], what: str) -> None:
    """Raises where the density is another at every call, as of minibatches: noise by which no draw can be weighed.

    Args:
        model: The Pyro model.
        posterior: A guide or draws for it, to run it at one draw.
        args: The model's arguments.
        kwargs: Its keyword arguments.
        what: What needs a density, for the message.

    Raises:
        ValueError: Naming the plate, or the sites.
    """
    with outside_of_pyro(), torch.random.fork_rng(devices=[]):
        few = draws(posterior, *args, num_samples=NUM_LOOKS, **kwargs)
        try:
            trace = trace_one(model, {name: value[0] for name, value in few.items()}, args, dict(kwargs))
        except Exception:  # a model that raises at this draw, where it has no density: not what is asked here
            return
        refuse_minibatches(trace, what)
        layout = layout_of(model, args, kwargs, posterior)
        w = layout.unconstrain({name: few[name] for name in layout.names})[0][:NUM_LOOKS]
        refuse_random_density(LogJoint(model, layout), w, what, args, dict(kwargs))


@torch.no_grad()
def weighted_draws(
    model: Model,
    guide: Any,
    *args: Any,
    num_samples: int = 10_000,
    max_bytes: int = MAX_BYTES,
    what: str = "the weight of a draw",
    **kwargs: Any,
) -> WeightedDraws:
    """Independent draws from a guide with log p and log q.

    Args:
        model: The Pyro model.
        guide: An AutoHypernet or any other Pyro guide with a density.
        args: The model's arguments, data included.
        num_samples: Number of draws S.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        what: What the weights are for, to be named where the model draws minibatches.
        kwargs: The model's keyword arguments.

    Raises:
        TypeError: If `guide` is no guide or a point estimate.
        ValueError: If the guide's sites are not the model's latent sites, or the model draws minibatches.
    """
    if is_guide(guide):
        refuse_noise(model, guide, args, kwargs, what)
    samples, log_q = draws_and_log_prob(guide, *args, num_samples=num_samples, **kwargs)
    log_p = _log_joint(model, layout_of(model, args, kwargs, guide), samples, args, kwargs, max_bytes)
    return WeightedDraws(samples, log_p, log_q.double())


@torch.no_grad()
def log_joint_of(
    model: Model, samples: Mapping[str, Tensor], *args: Any, max_bytes: int = MAX_BYTES, **kwargs: Any
) -> Tensor:
    """log p(data, draw) of draws from anywhere.

    Args:
        model: The Pyro model.
        samples: A dict from every latent site to draws of shape `(S, *shape)`.
        args: The model's arguments, data included.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.
        kwargs: The model's keyword arguments.

    Returns:
        Log densities of the constrained values in nats, double precision, shape `(S,)`.
    """
    return _log_joint(model, layout_of(model, args, kwargs), samples, args, kwargs, max_bytes)


def _log_joint(
    model: Model, layout: Layout, samples: Mapping[str, Tensor], args: tuple, kwargs: Mapping[str, Any], max_bytes: int
) -> Tensor:
    w, log_det = layout.unconstrain(samples)
    log_joint = LogJoint(model, layout, mode="eager")  # run a few times: a capture would not pay
    size = max(1, int(max_bytes // max(1, count_bytes(lambda: log_joint.site_log_probs(w[0], *args, **kwargs)))))
    with outside_of_pyro(), pyro.validation_enabled(False):
        log_p = torch.cat([log_joint(chunk, *args, **kwargs) for chunk in w.split(min(size, _CHUNK))])
    return (log_p - log_det).double()


@torch.no_grad()
def log_density_of(guide: Any, samples: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor | None:
    """log q of draws from anywhere.

    Args:
        guide: An AutoHypernet, an AutoNormal, or another of Pyro's AutoContinuous guides.
        samples: A dict from every latent site to draws of shape `(S, *shape)`.
        args: The model's arguments.
        kwargs: Its keyword arguments.

    Returns:
        Log densities of the constrained values in nats, double precision, shape `(S,)`; None for guides of other
        kinds, whose density at a given point nobody knows.
    """
    if isinstance(guide, AutoHypernet):
        parts = [guide.log_prob(chunk) for chunk in _chunks(samples)]
        return torch.cat(parts).double()
    if not isinstance(guide, AutoContinuous) and type(guide) is not AutoNormal:
        return None
    w, log_det = Layout.from_trace(guide.prototype_trace).unconstrain(samples)
    if isinstance(guide, AutoContinuous):
        return (guide.get_posterior(*args, **kwargs).log_prob(w) - log_det).double()
    sites = [name for name, _ in guide.prototype_trace.iter_stochastic_nodes()]
    pairs = [guide._get_loc_and_scale(name) for name in sites]
    loc, scale = (torch.cat([value.reshape(-1) for value in values]) for values in zip(*pairs, strict=True))
    return (torch.distributions.Normal(loc, scale).log_prob(w).sum(-1) - log_det).double()


def finite_log_weights(log_weights: Tensor) -> Tensor:
    """Log weights with −inf, weight zero, where they are not a number or +inf.

    Args:
        log_weights: In nats, shape `(S,)`.

    Raises:
        ValueError: If none is finite.
    """
    result = log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    if not bool(result.isfinite().any()):
        raise ValueError("No draw of the guide has a finite density: train it, or check the data for NaN.")
    return result


def layout_of(model: Model, args: tuple, kwargs: Mapping[str, Any], guide: Any = None) -> Layout:
    """The model's latent sites: those that a guide has noted, or those of one run of the model.

    Args:
        model: The Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        guide: A guide for it; one that knows the sites spares the run, which an improper prior does not allow.
    """
    if isinstance(guide, AutoHypernet):
        return guide.layout
    if isinstance(guide, (AutoContinuous, AutoNormal)) and guide.prototype_trace is not None:
        return Layout.from_trace(guide.prototype_trace)
    return Layout.from_trace(trace_prior(model, args, kwargs))


def _chunks(samples: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    total = next(iter(samples.values())).shape[0]
    count = math.ceil(total / _CHUNK)
    return [{name: value[i * _CHUNK : (i + 1) * _CHUNK] for name, value in samples.items()} for i in range(count)]

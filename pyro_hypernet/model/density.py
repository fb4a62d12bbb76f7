"""The log joint density of a Pyro model and its arguments, as a batched function of the flat weight vector."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.culprits import is_numerical
from pyro_hypernet.model.batched import grad_and_value
from pyro_hypernet.model.called import blaming_arguments
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.single_run import Model, outside_of_pyro, trace_aside, trace_one, trace_outside
from pyro_hypernet.model.vectorize import MODES, Vectorized

# Runs of a model that may raise at draws of its prior.
_ATTEMPTS = 100
# Weights at which a density is tried twice; and how far two of the same runs may differ, relative.
NUM_LOOKS, _ROUNDING = 8, 1e-5


class LogJoint:
    """log p(data, w) of a Pyro model, for a whole batch of flat unconstrained weight vectors at once.

    The model is written for one draw and vmapped. With `mode="graph"` that run is captured once as a graph of tensor
    operations and used again while the shapes of all arguments stay the same; new values (the next minibatch) do not
    capture again, and neither do updates of `pyro.param`s. Other Python numbers, as arguments or globals, capture a
    graph of their own; a model that reads what changes unseen, such as a clock, runs uncaptured once a graph is found
    to differ from it. A model that cannot be vmapped (`.item()`,
    `if` on a value) runs in a loop, after one warning that names the line. Weights at which the model raises an error,
    such as a covariance without a Cholesky factor, have density zero, after one warning. All methods take, after the
    weights, the model's arguments and keyword arguments.

    Args:
        model: A Pyro model without discrete latent sites.
        mode: "graph", "eager" (vmapped, not captured) or "loop".

    Raises:
        ValueError: If the mode is unknown.
    """

    def __init__(self, model: Model, layout: Layout, *, mode: str = "graph") -> None:
        self.model = model
        self.layout = layout
        self._value = Vectorized(self._value_of_one, mode=mode, failed=lambda w, _: zero_density(w))
        self._grad_and_value = Vectorized(
            self._grad_and_value_of_one, mode=mode, differentiable=False, failed=lambda w, _: (0 * w, zero_density(w))
        )
        self._parts = Vectorized(self._parts_of_one, mode=mode, failed=lambda w, _: torch.stack([zero_density(w)] * 2))

    def of(self, model: Model, *, mode: str = "graph") -> "LogJoint":
        """The density of another form of the model, such as a tempered one, at the same sites."""
        return density_of(model, self.layout, mode=mode)

    @property
    def mode(self) -> str:
        """How the density runs now: "graph", "eager" or "loop"."""
        used = {self._value.mode, self._grad_and_value.mode}
        return next(mode for mode in reversed(MODES) if mode in used)

    @property
    def num_failed(self) -> int:
        """At how many weights so far the model raised an error, so that they count as of density zero."""
        return sum(run.num_failed for run in (self._value, self._grad_and_value, self._parts))

    def __call__(self, w: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p(data, w), log determinant of the map to the supports included, in nats, `(...)`, at `w` of `(..., D)`.

        Raises:
            ValueError: If `w` has another length, or the model other sites or shapes than the layout.
        """
        return self._value(self._flat(w), args, kwargs).reshape(w.shape[:-1])

    def value_and_grad(self, w: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The density and its gradient, shape `(..., D)`, part of the captured graph, both detached."""
        with torch.no_grad():
            grad, value = self._grad_and_value(self._flat(w.detach()), args, kwargs)
        return value.reshape(w.shape[:-1]), grad.reshape(w.shape)

    def bind_value_and_grad(self, *args: Any, **kwargs: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`value_and_grad` of weights `(S, D)` while arguments and parameters stay: less to do at every call."""
        run = self._grad_and_value.bind(args, kwargs)

        def value_and_grad(w: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                grad, value = run(w)
            return value, grad

        return value_and_grad

    def parts(self, w: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Log prior, log determinant included, and log likelihood, in nats, shape `(..., 2)`, at `w` of `(..., D)`."""
        return self._parts(self._flat(w), args, kwargs).reshape((*w.shape[:-1], 2))

    def log_prob(self, samples: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """log p(data, sites) of constrained values `(..., *shape)`, without Jacobians, in nats, shape `(...)`."""
        w, log_det = self.layout.unconstrain(samples)
        return self(w, *args, **kwargs) - log_det

    def params(self, w: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The leaves of the model's own learnable parameters, by name, found by a run at any `w` of shape `(D,)`."""
        values = self.layout.constrain(w.detach())[0]
        nodes = trace_aside(self.model, values, args, kwargs).nodes
        params = {name: node["value"] for name, node in nodes.items() if node["type"] == "param"}
        return {name: v.unconstrained() if hasattr(v, "unconstrained") else v for name, v in params.items()}

    def trace(self, w: Tensor, *args: Any, **kwargs: Any) -> Trace:
        """One run of the model at a draw `w` of shape `(D,)`, with the log density of every sample site, in nats."""
        with pyro.validation_enabled(False), blaming_arguments(self.model, args, kwargs):
            trace = self._trace(self.layout.constrain(w)[0], args, kwargs)
            trace.compute_log_prob()
        return trace

    def site_log_probs(self, w: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The log density of every sample site, observed ones too, in nats, at one draw `w` of shape `(D,)`."""
        nodes = self.trace(w, *args, **kwargs).nodes
        return {name: node["log_prob_sum"] for name, node in nodes.items() if "log_prob_sum" in node}

    def random_sites(self, w: Tensor, *args: Any, **kwargs: Any) -> list[str]:
        """The sites whose log density is another at every call, or that come and go; empty where the density is one.

        Each of some weights, `(S, D)`, for at one of them two runs may agree by chance, is tried twice, by the model as
        it stands, so that the arithmetic is the same to the last digit; weights without density, for want of a Cholesky
        factor or the like, say nothing. No random number of the caller's is used up.
        """
        with torch.no_grad(), outside_of_pyro(), torch.random.fork_rng([w.device] if w.is_cuda else []):
            for row in w:
                try:
                    first, second = (self.site_log_probs(row, *args, **kwargs) for _ in range(2))
                except Exception as error:
                    if is_numerical(error):
                        continue
                    raise
                both = first.keys() & second.keys()
                changed = [name for name in first if name in both and not _is_same(first[name], second[name])]
                if changed or len(first) != len(second):
                    return changed or sorted(first.keys() ^ second.keys())
        return []

    def sample_prior(self, num_samples: int, *args: Any, **kwargs: Any) -> Tensor:
        """Unconstrained draws of all latent sites from the prior, shape `(S, D)`."""

        def one(_: Tensor, args: tuple, kwargs: dict) -> dict[str, Tensor]:
            latents = _Latents(self.layout.names)
            try:
                with latents:
                    self.model(*args, **kwargs)
            except _Enough:
                pass
            return {name: latents.values[name] for name in self.layout.names}

        with torch.no_grad(), outside_of_pyro(), warnings.catch_warnings():
            # Dirichlets and their like are drawn one by one, which once is no harm.
            warnings.filterwarnings("ignore", "The model cannot be vmapped", UserWarning)
            draws = Vectorized(one, mode="eager", randomness="different")(torch.zeros(num_samples), args, kwargs)
            return self.layout.unconstrain(draws)[0]

    def _flat(self, w: Tensor) -> Tensor:
        if w.shape[-1:] != (self.layout.dim,):
            raise ValueError(f"w must have shape (..., {self.layout.dim}); got {tuple(w.shape)}.")
        return w.reshape(-1, self.layout.dim)

    def _value_of_one(self, w: Tensor, args: tuple, kwargs: dict) -> Tensor:
        values, log_det = self.layout.constrain(w)
        with blaming_arguments(self.model, args, kwargs):
            return self._trace(values, args, kwargs).log_prob_sum() + log_det

    def _parts_of_one(self, w: Tensor, args: tuple, kwargs: dict) -> Tensor:
        values, log_det = self.layout.constrain(w)
        with blaming_arguments(self.model, args, kwargs):
            return torch.stack(split_density(self._trace(values, args, kwargs), self.layout, log_det))

    def _grad_and_value_of_one(self, w: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        return grad_and_value(self._value_of_one)(w, args, kwargs)

    def _trace(self, values: Mapping[str, Tensor], args: tuple, kwargs: dict) -> Trace:
        trace = trace_one(self.model, values, args, kwargs)
        _check_sites(self.layout, trace)
        return trace


def density_of(model: Model, sites: Any, *, mode: str = "graph") -> LogJoint:
    """The density of a model, made here alone.

    Args:
        sites: A guide that has noted the latent sites, a run of the model, or their layout.
        mode: As of `LogJoint`.
    """
    if hasattr(sites, "density"):  # our guides keep that of their own model
        return sites.density(model, mode=mode)
    sites = getattr(sites, "prototype_trace", sites)
    return LogJoint(model, sites if isinstance(sites, Layout) else Layout.from_trace(sites), mode=mode)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Up to what a GPU's order of summation changes."""
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


def zero_density(w: Tensor) -> Tensor:
    """The log density −inf, shape `()`, that stands for weights `w` at which the model raises an error."""
    return w.new_full((), -math.inf)


def split_density(trace: Trace, layout: Layout, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """Log prior, the `log_det` of the map to the supports included, and log likelihood of a conditioned trace."""
    trace.compute_log_prob()
    log_prior, log_likelihood = log_det, torch.zeros_like(log_det)
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if name in layout.names:
            log_prior = log_prior + node["log_prob_sum"]
        else:
            log_likelihood = log_likelihood + node["log_prob_sum"]
    return log_prior, log_likelihood


def map_model(
    model: Model,
    samples: Mapping[str, Tensor],
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    collect: Callable[[Trace], Any],
    randomness: str = "different",
) -> Any:
    """Runs the model once for every draw, conditioned on it, and collects something from every trace.

    Args:
        model: A Pyro model; observed sites left without data are sampled.
        samples: A dict from site to values of shape `(S, *shape)`.
        collect: From a trace to a tensor, or a dict or tuple of tensors.
        randomness: "different" or "same" random numbers for the sites that are sampled.

    Returns:
        What `collect` returns, every tensor with a leading axis S; NaN for draws at which a matrix of the model's has
        no factor or inverse.
    """

    def one(values: dict[str, Tensor], args: tuple, kwargs: dict) -> Any:
        return collect(trace_one(model, values, args, kwargs))

    return Vectorized(one, mode="eager", randomness=randomness, failed=_no_numbers)(dict(samples), args, kwargs)


def _no_numbers(_: Any, result: Any) -> Any:
    """NaN for all that a model computed from a draw at which a matrix has no factor; None if it computed nothing."""

    def nothing(value: Tensor) -> Tensor:
        return torch.full_like(value, math.nan) if value.is_floating_point() else torch.zeros_like(value)

    return None if result is None else pytree.tree_map(nothing, result)


class _Enough(Exception):
    """All latent sites have been drawn; caught where `_Latents` is entered."""


class _Latents(Messenger):
    """Notes the latent sites and ends the run with the last of them: what the data cost is not paid."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.missing = set(names)
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.missing:
            self.missing.remove(msg["name"])
            self.values[msg["name"]] = msg["value"]
            if not self.missing:
                raise _Enough


def trace_prior(model: Model, args: tuple = (), kwargs: dict | None = None) -> Trace:
    """Runs the model as it stands, and again where it raises at what it drew, as for want of a Cholesky factor.

    Nothing of the trace is differentiable or seen by handlers outside.
    """
    with torch.no_grad():
        for number in range(_ATTEMPTS):
            try:
                return trace_outside(model, args, kwargs or {})
            except Exception as error:
                if number == _ATTEMPTS - 1 or not is_numerical(error):
                    raise


def _check_sites(layout: Layout, trace: Trace) -> None:
    """Raises where a conditioned trace does not have just the layout's sites, with their shapes."""
    for name, node in trace.iter_stochastic_nodes():
        if not site_is_subsample(node):
            remedy = (
                "sum it out with TraceEnum_ELBO, which AutoHypernet works with"
                if node["fn"].support.is_discrete
                else "a model's sites must not change between calls"
            )
            raise ValueError(f"Latent site {name!r} is not among the guide's sites {list(layout.names)}: {remedy}.")
    for site in layout.sites:
        if site.name not in trace.nodes:
            raise ValueError(
                f"Latent site {site.name!r} is missing from this run of the model, which has {list(trace.nodes)}: "
                "a model's sites must not change between calls."
            )
        fn = trace.nodes[site.name]["fn"]
        if fn.batch_shape + fn.event_shape != site.shape:
            raise ValueError(
                f"Latent site {site.name!r} had shape {tuple(site.shape)} and now has "
                f"{tuple(fn.batch_shape + fn.event_shape)}: a model's sites and shapes must not change between calls."
            )

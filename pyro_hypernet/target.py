"""A model bound to its arguments: the density that samplers move through, its likelihood to a power."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.graphs.run import tensors_in
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.guide.own_models import refuse_own_models
from pyro_hypernet.model.called import name_arguments
from pyro_hypernet.model.chunks import MAX_BYTES, Chunked, count_bytes
from pyro_hypernet.model.density import (
    NUM_LOOKS,
    LogJoint,
    density_of,
    map_model,
    split_density,
    trace_prior,
    zero_density,
)
from pyro_hypernet.model.starts import trace_start
from pyro_hypernet.model.tempered import at_temperature
from pyro_hypernet.model.traces import functions_of
from pyro_hypernet.model.validate import (
    raise_for_nan,
    refuse_local_latents,
    refuse_minibatches,
    refuse_random_density,
)
from pyro_hypernet.model.vectorize import Model, Vectorized, grad_and_value, outside_of_pyro, trace_one

# Rows are evaluated in chunks, so that intermediate results stay in the processor's caches and fit into memory:
# at most so many rows, and about so many numbers of the largest argument for all rows together.
_MAX_ROWS, _LEAST_ROWS = 256, 8
# A thread takes at least so many of them.
_ROWS_OF_A_THREAD = 16
_MAX_NUMBERS = 2**23
# Draws in one pass of `log_density`.
_CHUNK = 2048


class State(NamedTuple):
    """Points with their densities at one power of the likelihood.

    Attributes:
        w: Coordinates, shape `(S, m)`.
        log_prior: In nats, shape `(S,)`.
        log_likelihood: In nats, shape `(S,)`.
        gradient: Of log prior + beta × log likelihood, shape `(S, m)`.
    """

    w: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    gradient: Tensor


class Bound:
    """A model with its arguments, which need not hold data: what it computes at given draws.

    Args:
        model: The Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, model: Model, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)

    def anew(self) -> "Bound":
        """The same with its observed sites sampled like the others."""
        return Bound(poutine.uncondition(self.model), self.args, self.kwargs)

    def trace(self, values: Mapping[str, Tensor]) -> Trace:
        """One run of the model, conditioned on a value of some or all latent sites, as its caller's handlers see it."""
        return trace_one(self.model, dict(values), self.args, self.kwargs)

    def trace_prior(self) -> Trace:
        """One run of the model as it stands, its latents drawn from the prior."""
        return trace_prior(self.model, self.args, self.kwargs)

    def trace_first(self, samples: Mapping[str, Tensor]) -> Trace:
        """`trace` at the first of draws of shape `(S, *shape)`."""
        return self.trace({name: value[0] for name, value in samples.items()})

    def map(
        self,
        samples: Mapping[str, Tensor],
        collect: Callable[[Trace], Any],
        *,
        batch_size: int | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> Any:
        """What `collect` finds in the trace of every draw; see `Chunked`."""
        run = Chunked(self.model, samples, collect, batch_size=batch_size, max_bytes=max_bytes)
        return run(self.args, self.kwargs)

    def functions(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model computes from draws: deterministic sites and the means of observed ones.

        Where populations and chains are compared, for weights have symmetries.

        Args:
            samples: A dict from latent site to draws of shape `(S, *shape)`.

        Returns:
            A dict from site to values of shape `(S, ...)`, all of floating point; empty where no mean is known.
        """
        with torch.no_grad():
            return map_model(self.model, samples, self.args, self.kwargs, collect=lambda t: functions_of(t, samples))

    def raise_for_nan(self) -> None:
        """Raises a ValueError that names the first argument with NaN in it, if there is one."""
        raise_for_nan(self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name."""
        return name_arguments(self.model, self.args, self.kwargs)


class Target(Bound, ABC):
    """log prior + beta × log likelihood of coordinates x, from which weights are completed.

    Args:
        log_joint: The density of all weights, for what needs no power of the likelihood.
        max_rows: Rows to evaluate at once; None for as many as suit the size of the data.
        point: Any unconstrained weights, shape `(D,)`; None where none is at hand.

    Attributes:
        num_rows: Gradients evaluated so far, of one draw each.
        num_threads: Threads that evaluate parts of the rows at once.
    """

    def __init__(
        self,
        log_joint: LogJoint,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        max_rows: int | None = None,
        point: Tensor | None = None,
    ) -> None:
        super().__init__(log_joint.model, args, kwargs)
        self.log_joint, self.layout = log_joint, log_joint.layout
        self.max_rows = max_rows or _rows_for((args, self.kwargs))
        self.point = point
        self.num_rows, self.num_threads = 0, 1
        self._run = Vectorized(self._of_one, differentiable=False, failed=_no_density)

    def __call__(self, x: Tensor, beta: float = 1.0) -> State:
        """Densities and gradient at coordinates of shape `(S, m)`, all rows at one power of the likelihood."""
        self.num_rows += len(x)
        parts = [(part, x.new_full((len(part),), beta)) for part in x.split(self._rows_of_a_part(len(x)))]
        with torch.no_grad():
            found = self._run.map(parts, self.args, self.kwargs, num_threads=self.num_threads)
        gradient, (_, densities) = torch.utils._pytree.tree_map(lambda *values: torch.cat(values), *found)
        return State(x, *densities, gradient)

    def _rows_of_a_part(self, number: int) -> int:
        """Equal shares of so many rows, of at most as many as suit the caches, a few for every thread if there are."""
        threads = max(1, min(self.num_threads, number // _ROWS_OF_A_THREAD))
        return math.ceil(number / (threads * math.ceil(number / threads / self.max_rows)))

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number m of coordinates."""

    @property
    @abstractmethod
    def collapsed(self) -> tuple[str, ...]:
        """Names of the sites that are integrated out."""

    @abstractmethod
    def coordinates(self, w: Tensor) -> Tensor:
        """Coordinates of shape `(S, m)` of weights of shape `(S, D)`, what is integrated out being left out."""

    @abstractmethod
    def complete(self, x: Tensor) -> Tensor:
        """Weights of shape `(S, D)` for coordinates of shape `(S, m)`, at the whole likelihood."""

    @abstractmethod
    def parts_of_one(self, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
        """For one draw, all of shape `()`: log prior, log likelihood, and what is differentiated in place of that.

        Args:
            x: Coordinates, shape `(m,)`.
        """

    def log_prob(self, w: Tensor) -> Tensor:
        """log p(data, w) of weights of shape `(S, D)`, Jacobians of the supports included, in nats, shape `(S,)`."""
        return self.log_joint(w, *self.args, **self.kwargs)

    def parts(self, w: Tensor) -> Tensor:
        """log prior, Jacobians included, and log likelihood of weights of shape `(S, D)`, in nats, shape `(S, 2)`."""
        return self.log_joint.parts(w, *self.args, **self.kwargs)

    def log_density(self, samples: Mapping[str, Tensor], *, max_bytes: int = MAX_BYTES) -> Tensor:
        """log p(data, draw) of draws from anywhere.

        Args:
            samples: A dict from every latent site to draws of shape `(S, *shape)`.
            max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.

        Returns:
            Log densities of the constrained values in nats, without Jacobians, double precision, shape `(S,)`.
        """
        w, log_det = self.layout.unconstrain(samples)
        needed = count_bytes(lambda: self.log_joint.site_log_probs(w[0], *self.args, **self.kwargs))
        size = max(1, int(max_bytes // max(1, needed)))
        with torch.no_grad(), outside_of_pyro(), pyro.validation_enabled(False):
            log_p = torch.cat([self.log_prob(chunk) for chunk in w.split(min(size, _CHUNK))])
        return (log_p - log_det).double()

    def value_and_grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and its gradient, shape `(..., D)`, both detached."""
        return self.log_joint.value_and_grad(w, *self.args, **self.kwargs)

    def bind_value_and_grad(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The same for weights of shape `(S, D)`, with less to do at every call; the model must not change."""
        return self.log_joint.bind_value_and_grad(*self.args, **self.kwargs)

    def sample_prior(self, num_samples: int) -> Tensor:
        """Coordinates of draws of the prior, shape `(S, m)`."""
        return self.coordinates(self.log_joint.sample_prior(num_samples, *self.args, **self.kwargs))

    def samples(self, x: Tensor) -> dict[str, Tensor]:
        """The values of all sites for coordinates of shape `(S, m)`."""
        return self.layout.constrain(self.complete(x))[0]

    def refuse_random(self, w: Tensor, what: str) -> None:
        """Raises a ValueError where the density at the same weights, shape `(S, D)`, is another at every call."""
        refuse_random_density(self.log_joint, w, what, self.args, self.kwargs)

    def _of_one(self, draw: tuple[Tensor, Tensor], args: tuple, kwargs: dict) -> tuple:
        return grad_and_value(self._tempered_of_one, has_aux=True)(*draw, args, kwargs)

    def _tempered_of_one(self, x: Tensor, beta: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple]:
        log_prior, log_likelihood, differentiated = self.parts_of_one(x, args, kwargs)
        return log_prior + beta * differentiated, (log_prior.detach(), log_likelihood.detach())


class Whole(Target):
    """The density over all weights: the coordinates are the flat unconstrained weights themselves."""

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def collapsed(self) -> tuple[str, ...]:
        return ()

    def coordinates(self, w: Tensor) -> Tensor:
        return w

    def complete(self, x: Tensor) -> Tensor:
        return x

    def parts_of_one(self, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
        values, log_det = self.layout.constrain(x)
        trace = trace_one(self.model, values, args, kwargs)
        log_prior, log_likelihood = split_density(trace, self.layout, log_det)
        return log_prior, log_likelihood, log_likelihood


def bind(model: Model, args: tuple, kwargs: Mapping[str, Any], what: str, *, draws_prior: bool = False) -> Whole:
    """The model with its arguments, for a sampler: looked at by one run, and refused where it is no density.

    Args:
        what: Which sampler asks, for the messages.
        draws_prior: Whether it starts from draws of the prior.

    Raises:
        RuntimeError: If the model has no latent site.
        ValueError: If there have to be draws of the prior and it has none, a latent lies in a subsampled plate, or a
            plate draws minibatches.
    """
    try:
        trace = (trace_prior if draws_prior else trace_start)(model, args, dict(kwargs))
    except NotImplementedError as error:
        if not draws_prior:
            raise
        raise ValueError(
            f"The model's prior cannot be sampled, and {what} starts from draws of it: give every latent site a proper "
            "prior, or use nuts."
        ) from error
    refuse_local_latents(trace)
    refuse_minibatches(trace, what)
    log_joint = density_of(model, trace)
    layout = log_joint.layout
    if not layout.sites:
        raise RuntimeError(f"The model has no latent site: there is nothing for {what} to do.")
    point = layout.unconstrain({name: trace.nodes[name]["value"] for name in layout.names})[0]
    return Whole(log_joint, args, kwargs, point=point)


def bind_guide(model: Model, guide: Any, args: tuple, kwargs: Mapping[str, Any], *, mode: str = "graph") -> Whole:
    """The model with its arguments and the latent sites that a guide for it has noted, which spares a run of the model.

    The density is what the guide was fitted to: at its temperature, where that is not 1.

    Args:
        model: The Pyro model, which may have an improper prior.
        guide: A guide for it; of one that has not noted the sites, or of stored samples, the model is run once.
        mode: How the density runs: "graph", or "eager" where it runs a few times, so that a capture would not pay.
    """
    if isinstance(guide, GuideMixture):
        refuse_own_models(guide.has_own_models)
    is_known = isinstance(guide, (AutoContinuous, AutoNormal)) and guide.prototype_trace is not None
    known = guide if is_known or isinstance(guide, JointGuide) else trace_start(model, args, dict(kwargs))
    log_joint = density_of(model, known, mode=mode)
    if isinstance(guide, JointGuide) and guide.temperature != 1:
        log_joint = log_joint.of(at_temperature(model, guide.temperature), mode=mode)
    return Whole(log_joint, args, kwargs)


def looks(target: Target) -> Tensor:
    """A few draws of the prior to try the density at, shape `(NUM_LOOKS, D)`; no random number is used up."""
    with outside_of_pyro(seed=0):
        return target.log_joint.sample_prior(NUM_LOOKS, *target.args, **target.kwargs)


def _no_density(draw: tuple[Tensor, Tensor], _: tuple | None) -> tuple:
    """What stands for a draw at which the model raises an error."""
    nothing = zero_density(draw[0])
    return torch.zeros_like(draw[0]), (nothing, (nothing, nothing))


def _rows_for(arguments: Any) -> int:
    largest = max((tensor.numel() for tensor in tensors_in(arguments)), default=1)
    return max(_LEAST_ROWS, min(_MAX_ROWS, _MAX_NUMBERS // max(1, largest)))

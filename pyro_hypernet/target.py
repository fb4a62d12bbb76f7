"""A model bound to its arguments: the density that samplers move through, its likelihood to a power."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.density import NUM_LOOKS, LogJoint, map_model, sample_prior, split_density, trace_prior, zero_density
from pyro_hypernet.layout import Layout
from pyro_hypernet.safeguards import (
    name_arguments,
    raise_for_nan,
    refuse_local_latents,
    refuse_minibatches,
    refuse_random_density,
)
from pyro_hypernet.vectorize import Model, Vectorized, grad_and_value, outside_of_pyro, trace_one

# Rows are evaluated in chunks, so that intermediate results stay in the processor's caches and fit into memory:
# at most so many rows, and about so many numbers of the largest argument for all rows together.
_MAX_ROWS, _LEAST_ROWS = 256, 8
_MAX_NUMBERS = 2**23


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


class Target(ABC):
    """log prior + beta × log likelihood of coordinates x, from which weights are completed.

    Args:
        model: The Pyro model.
        layout: Its latent sites.
        args: The model's arguments, data included.
        kwargs: Its keyword arguments.
        max_rows: Rows to evaluate at once; None for as many as suit the size of the data.
        point: Any unconstrained weights, shape `(D,)`; None where none is at hand.

    Attributes:
        log_joint: The density of all weights, for what needs no power of the likelihood.
        num_rows: Gradients evaluated so far, of one draw each.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        max_rows: int | None = None,
        point: Tensor | None = None,
    ) -> None:
        self.model, self.layout, self.args, self.kwargs = model, layout, args, dict(kwargs)
        self.log_joint = LogJoint(model, layout)
        self.max_rows = max_rows or _rows_for((args, self.kwargs))
        self.point = point
        self.num_rows = 0
        self._run = Vectorized(self._of_one, differentiable=False, failed=_no_density)

    def __call__(self, x: Tensor, beta: float = 1.0) -> State:
        """Densities and gradient at coordinates of shape `(S, m)`, all rows at one power of the likelihood."""
        self.num_rows += len(x)
        rows = math.ceil(len(x) / math.ceil(len(x) / self.max_rows))
        parts = [self._evaluate(part, x.new_full((len(part),), beta)) for part in x.split(rows)]
        return State(x, *(torch.cat(values) for values in zip(*parts, strict=True)))

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
    def parts_of_one(self, x: Tensor, beta: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """For one draw: what to differentiate, and log prior and log likelihood, which are not differentiated.

        Args:
            x: Coordinates, shape `(m,)`.
            beta: The power of the likelihood, shape `()`.
            args: The model's arguments.
            kwargs: Its keyword arguments.
        """

    def log_prob(self, w: Tensor) -> Tensor:
        """log p(data, w) of weights of shape `(S, D)`, Jacobians of the supports included, in nats, shape `(S,)`."""
        return self.log_joint(w, *self.args, **self.kwargs)

    def value_and_grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob` and its gradient, shape `(..., D)`, both detached."""
        return self.log_joint.value_and_grad(w, *self.args, **self.kwargs)

    def bind_value_and_grad(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The same for weights of shape `(S, D)`, with less to do at every call; the model must not change."""
        return self.log_joint.bind_value_and_grad(*self.args, **self.kwargs)

    def sample_prior(self, num_samples: int) -> Tensor:
        """Coordinates of draws of the prior, shape `(S, m)`."""
        return self.coordinates(sample_prior(self.model, self.layout, num_samples, self.args, self.kwargs))

    def samples(self, x: Tensor) -> dict[str, Tensor]:
        """The values of all sites for coordinates of shape `(S, m)`."""
        return self.layout.constrain(self.complete(x))[0]

    def functions(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model computes from draws: deterministic sites and the means of observed ones.

        Where populations and chains are compared, for weights have symmetries.

        Args:
            samples: A dict from latent site to draws of shape `(S, *shape)`.

        Returns:
            A dict from site to values of shape `(S, ...)`, all of floating point; empty where no mean is known.
        """

        def collect(trace: Trace) -> dict[str, Tensor]:
            values = {}
            for name, node in trace.nodes.items():
                if node["type"] != "sample" or name in samples:
                    continue
                value = node["value"] if node["infer"].get("_deterministic", False) else None
                if value is None and node["is_observed"]:
                    value = mean_of(node["fn"])
                if value is not None and value.is_floating_point():
                    values[name] = value
            return values

        with torch.no_grad():
            return map_model(self.model, samples, self.args, self.kwargs, collect=collect)

    def raise_for_nan(self) -> None:
        """Raises a ValueError that names the first argument with NaN in it, if there is one."""
        raise_for_nan(name_arguments(self.model, self.args, self.kwargs))

    def refuse_random(self, w: Tensor, what: str) -> None:
        """Raises a ValueError where the density at the same weights, shape `(S, D)`, is another at every call."""
        refuse_random_density(self.log_joint, w, what, self.args, self.kwargs)

    def _evaluate(self, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            gradient, (_, (log_prior, log_likelihood)) = self._run((x, beta), self.args, self.kwargs)
        return log_prior, log_likelihood, gradient

    def _of_one(self, draw: tuple[Tensor, Tensor], args: tuple, kwargs: dict) -> tuple:
        function = grad_and_value(self.parts_of_one, has_aux=True)
        return function(*draw, args, kwargs)


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

    def parts_of_one(self, x: Tensor, beta: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        values, log_det = self.layout.constrain(x)
        trace = trace_one(self.model, values, args, kwargs)
        log_prior, log_likelihood = split_density(trace, self.layout, log_det)
        return log_prior + beta * log_likelihood, (log_prior.detach(), log_likelihood.detach())


def bind(model: Model, args: tuple, kwargs: Mapping[str, Any], what: str) -> Whole:
    """The model with its arguments, for a sampler: looked at by one run, and refused where it is no density.

    Args:
        model: The Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        what: Which sampler asks, for the messages.

    Raises:
        NotImplementedError: If the prior cannot be sampled.
        RuntimeError: If the model has no latent site.
        ValueError: If a latent lies in a subsampled plate, or a plate draws minibatches.
    """
    trace = trace_prior(model, args, dict(kwargs))
    refuse_local_latents(trace)
    refuse_minibatches(trace, what)
    layout = Layout.from_trace(trace)
    if not layout.sites:
        raise RuntimeError(f"The model has no latent site: there is nothing for {what} to do.")
    point = layout.unconstrain({name: trace.nodes[name]["value"] for name in layout.names})[0]
    return Whole(model, layout, args, kwargs, point=point)


def looks(target: Target) -> Tensor:
    """A few draws of the prior to try the density at, shape `(NUM_LOOKS, D)`; no random number is used up."""
    with outside_of_pyro(seed=0):
        return sample_prior(target.model, target.layout, NUM_LOOKS, target.args, target.kwargs)


def mean_of(fn: Any) -> Tensor | None:
    """What a distribution says of its mean: probabilities where it, or what it wraps, has them: classes count as such.

    Args:
        fn: A distribution.

    Returns:
        The mean, that of what it wraps where it has none itself, or None.
    """
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


def _no_density(draw: tuple[Tensor, Tensor], _: tuple | None) -> tuple:
    """What stands for a draw at which the model raises an error."""
    nothing = zero_density(draw[0])
    return torch.zeros_like(draw[0]), (nothing, (nothing, nothing))


def _rows_for(arguments: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    largest = max((tensor.numel() for tensor in tensors), default=1)
    return max(_LEAST_ROWS, min(_MAX_ROWS, _MAX_NUMBERS // max(1, largest)))

"""Modes of a posterior by gradient ascent from many draws of the prior at once: starts for guides."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_hypernet.model.density import LogJoint, density_of, trace_prior
from pyro_hypernet.model.single_run import Model, outside_of_pyro

# A point further below the best than this many nats, and half a nat per weight, is no mode worth a component.
_DEPTH = 10.0


def find_modes(
    log_joint: LogJoint,
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    num_modes: int = 1,
    num_starts: int = 64,
    num_steps: int = 300,
    learning_rate: float = 0.05,
) -> Tensor:
    """Climbs the unconstrained log joint from draws of the prior and picks high points that are far from each other.

    Args:
        num_modes: How many points to return.
        num_starts: Draws of the prior to start from, all climbed at once.
        num_steps: Steps of Adam, its step size falling to zero.
        learning_rate: The first step size, in units of the prior draws' spread.

    Returns:
        Unconstrained weights, the best first, shape `(num_modes, D)`; nearly equal ones where there are fewer modes.

    Raises:
        RuntimeError: If the prior cannot be sampled.
    """
    kwargs = kwargs or {}
    with outside_of_pyro(), pyro.validation_enabled(False):
        w = log_joint.sample_prior(num_starts, *args, **kwargs)
        spread = spread_of(w)
        evaluate = partial(_evaluate, log_joint, args, kwargs)
        w = climb(evaluate, w, spread, num_steps=num_steps, learning_rate=learning_rate)
        height = evaluate(w)[0].nan_to_num(nan=-torch.inf)
    good = height >= height.max() - _DEPTH - log_joint.layout.dim / 2
    w, height = w[good], height[good]
    chosen = [int(height.argmax())]
    while len(chosen) < num_modes:
        distance = torch.cdist(w / spread, w[chosen] / spread).min(1).values
        chosen.append(int(distance.argmax()))
    return w[chosen]


def spread_of(w: Tensor) -> Tensor:
    """Standard deviations of draws of the prior, `(S, D)`, as units of steps, `(D,)`: neither zero nor endless."""
    return w.std(0).nan_to_num(nan=1.0).clamp(1e-3, 1e3)


def climb(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    w: Tensor,
    spread: Tensor,
    *,
    num_steps: int,
    learning_rate: float = 0.05,
    until: float = math.inf,
) -> Tensor:
    """Where Adam comes from some weights, its step size falling to zero.

    Args:
        evaluate: From weights of shape `(S, D)` to log densities, `(S,)`, and their gradients, `(S, D)`.
        w: The weights, shape `(S, D)`.
        spread: Units of the step size, shape `(D,)`.
        num_steps: Steps.
        learning_rate: The first step size.
        until: By `time.perf_counter`: no further steps then.
    """
    first = second = torch.zeros_like(w)
    for step in range(1, num_steps + 1):
        if time.perf_counter() > until:
            break
        slope = (evaluate(w)[1] * spread).nan_to_num(0.0, 0.0, 0.0)
        first, second = first.lerp(slope, 0.1), second.lerp(slope**2, 0.01)
        move = first / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        w = w + learning_rate * (1 - (step - 1) / num_steps) * spread * move
    return w


def _evaluate(log_joint: LogJoint, args: tuple, kwargs: dict, w: Tensor) -> tuple[Tensor, Tensor]:
    return log_joint.value_and_grad(w, *args, **kwargs)


def init_to_map(model: Model, *args: Any, **options: Any) -> Callable[..., Any]:
    """An `init_loc_fn` that starts every site at the best mode found from draws of the prior.

    Args:
        model: The Pyro model.
        args: Its arguments.
        options: Of `find_modes`: `num_starts`, `num_steps`, `learning_rate`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_hypernet import AutoHypernet
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     pyro.sample("y", dist.Normal(mean, 0.1), obs=y)
        >>> y = torch.tensor(7.0)
        >>> guide = AutoHypernet(model, init_loc_fn=init_to_map(model, y)).setup(y)
        >>> bool((guide.median()["mean"] - 7).abs() < 0.1)
        True
    """
    log_joint = density_of(model, trace_prior(model, args))
    with outside_of_pyro(), torch.no_grad():
        values = log_joint.layout.constrain(find_modes(log_joint, args, **options)[0])[0]
    return init_to_value(values=values)

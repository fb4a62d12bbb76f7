"""Priors over a network's parameters: by fan-in, by number, by name, by function, with scales that are random too."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_hypernet.bnn.shrinkage import Ard, Horseshoe, Scaled
from pyro_hypernet.options import check_numbers


@dataclass(frozen=True, kw_only=True)
class FanIn:
    """Independent normal priors that keep the outputs of every layer on one scale.

    Weights of two or more axes: `Normal(0, gain / sqrt(fan_in))`, where fan_in counts the weights into one output unit
    or channel; under weight norm their scales g: `Normal(0, gain)`, which gives the weights into a unit the same mean
    squared norm. Biases, and all that is added, `(C, 1, 1)` or `(1, T, E)`: `Normal(0, bias_scale)`. Weights of
    normalisation layers, other parameters of one axis, or of shape `(C, 1, 1)`, named "weight", and those named
    "gamma", "gain" or "scale" with values near one: `Normal(1, norm_scale)`, for zero would silence their layer.

    Args:
        gain: Standard deviation of a unit's input, bias apart, where the unit's inputs have mean square one.
        bias_scale: Standard deviation of biases.
        norm_scale: Standard deviation of normalisation layers' weights.

    Raises:
        ValueError: If one of them is not positive.
    """

    gain: float = 1.0
    bias_scale: float = 1.0
    norm_scale: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self)
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive; got {value!r}.")


fan_in = FanIn
Rule = FanIn | Ard | Horseshoe
PRIORS: dict[str, Callable[[], Rule]] = {"fan_in": FanIn, "ard": Ard, "horseshoe": Horseshoe}
Prior = str | float | Rule | TorchDistributionMixin | Mapping[str, Any] | Callable[[str, Tensor], Any]


@dataclass(frozen=True)
class RandomTensor:
    """One random tensor of a network.

    Attributes:
        name: Name of its sample statement.
        parameter: Name of the parameter that it makes.
        value: The network's own value: the parameter, or the norms of its directions; shape `shape`.
        kind: "weight", "scale" (the g of weight norm), "norm" (a normalisation layer's weight) or "bias".
        fan_in: The number of weights into one output unit.
        axis: The parameter's axis of output units.
    """

    name: str
    parameter: str
    value: Tensor
    kind: str
    fan_in: int
    axis: int


def check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raises unless every pattern matches a name.

    Args:
        option: The option that holds the patterns, for the message.
        patterns: fnmatch patterns.
        names: The names there are.

    Raises:
        ValueError: If there is no pattern, or one that matches nothing.
    """
    if not patterns:
        raise ValueError(f"{option} holds no pattern; the names are {', '.join(names)}.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"Pattern {pattern!r} in {option} matches no parameter; the names are {', '.join(names)}.")


def assign_priors(prior: Prior, random: Sequence[RandomTensor]) -> dict[str, TorchDistributionMixin | Scaled]:
    """The prior of every random tensor, as one event of its shape, or with scales at sites of their own.

    Args:
        prior: As in `bayesianize`.
        random: The random tensors.

    Raises:
        ValueError: If a tensor has no prior, or one that does not fit its shape, dtype or device.
    """
    if isinstance(prior, Mapping):
        check_patterns("prior", list(prior), [site.name for site in random])
    return {site.name: _expand(_prior(prior, site), site) for site in random}


def _prior(prior: Prior, site: RandomTensor) -> TorchDistributionMixin | Scaled:
    """The prior of one site, not yet expanded to its shape."""
    if isinstance(prior, Mapping):
        for pattern, entry in prior.items():
            if fnmatchcase(site.name, pattern):
                return _prior(entry, site)
        raise ValueError(
            f"Parameter {site.name!r} matches none of the patterns in prior, {', '.join(prior)}: add one, or '*' at "
            "the end."
        )
    if isinstance(prior, str):
        if prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, or a number, dict or function; got {prior!r}.")
        prior = PRIORS[prior]()
    if isinstance(prior, (Ard, Horseshoe)):
        if site.kind in ("weight", "scale"):
            return prior.scaled(site.name, site.value, site.axis, 1 if site.kind == "scale" else site.fan_in)
        prior = FanIn()
    if isinstance(prior, FanIn):
        return _normal(site, _scale(prior, site))
    if isinstance(prior, (int, float)) and not isinstance(prior, bool):
        if not 0 < prior < math.inf:
            raise ValueError(f"A prior's scale must be positive; got {prior!r} for {site.name!r}.")
        return _normal(site, prior)
    if isinstance(prior, TorchDistributionMixin):
        return prior
    if callable(prior):
        return _prior(prior(site.name, site.value.clone()), site)
    raise ValueError(f"The prior of {site.name!r} must be a distribution, a number or fan_in(); got {prior!r}.")


def _scale(prior: FanIn, site: RandomTensor) -> float:
    scales = {"bias": prior.bias_scale, "norm": prior.norm_scale, "scale": prior.gain}
    return scales[site.kind] if site.kind in scales else prior.gain / math.sqrt(site.fan_in)


def _normal(site: RandomTensor, scale: float) -> TorchDistributionMixin:
    centre = 1.0 if site.kind == "norm" else 0.0
    return dist.Normal(site.value.new_tensor(centre), site.value.new_tensor(scale))


def _expand(prior: TorchDistributionMixin | Scaled, site: RandomTensor) -> TorchDistributionMixin | Scaled:
    """The prior as one event of the site's shape, which one with random scales has."""
    if isinstance(prior, Scaled):
        return prior
    shape, batch_dim = site.value.shape, site.value.dim() - prior.event_dim
    try:
        expanded = prior.expand(shape[:batch_dim]).to_event(batch_dim)
    except (RuntimeError, ValueError):
        expanded = None
    if expanded is None or batch_dim < 0 or expanded.event_shape != shape:
        raise ValueError(
            f"The prior of {site.name!r} has shape {tuple(prior.shape())}, which does not expand to the parameter's, "
            f"{tuple(shape)}."
        )
    with torch.random.fork_rng(devices=[]):
        draw = expanded.sample()
    if draw.dtype != site.value.dtype or draw.device != site.value.device:
        raise ValueError(
            f"The prior of {site.name!r} draws {draw.dtype} on {draw.device}; the parameter is {site.value.dtype} on "
            f"{site.value.device}: make the prior of such tensors."
        )
    return expanded

"""Priors that let data decide which weights count: normal weights times scales that are random as well."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_hypernet.options import check_numbers

GROUPS = ("input", "output", "weight")


@dataclass(frozen=True)
class Scaled:
    """One tensor of weights `z * scale`, where z is standard normal and the scale is made of sites of their own.

    The scale of a group is `local`, or `global * local`, or, for the regularised horseshoe, s c / sqrt(c² + s²) with
    s = `global * local` and c² = `slab`. Weights stand apart from their scales (are not centred), for where data say
    little of a weight its sd is its scale, a funnel; `z` and the log scales are then independent.

    Attributes:
        shape: The shape of the weights.
        axis: The axis that counts groups; None where every weight has a scale of its own.
        priors: Priors of "z", "local" and, maybe, "global" and "slab". A weight's name and these are names of sites.
        centres: Values in the middle of the priors of all but "z".
    """

    shape: torch.Size
    axis: int | None
    priors: Mapping[str, TorchDistributionMixin]
    centres: Mapping[str, Tensor]

    def names(self, name: str) -> dict[str, str]:
        """From each part to its site, of the weights of that name."""
        return {part: f"{name}.{part}" for part in self.priors}

    def sample(self, name: str) -> Tensor:
        """The weights, shape `shape`, from sample statements."""
        sites = self.names(name)
        return self.weights({part: pyro.sample(sites[part], prior) for part, prior in self.priors.items()})

    def weights(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weights, shape `(..., *shape)`, that parts of shape `(..., *part)` make."""
        return parts["z"] * self._scale(parts)

    def start(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """A dict from site to value that makes `value` the weights, all scales at their centres."""
        parts = {**self.centres, "z": value / self._scale(self.centres)}
        return {site: parts[part] for part, site in self.names(name).items()}

    def _scale(self, parts: Mapping[str, Tensor]) -> Tensor:
        """What z is multiplied by, of a shape that broadcasts to `(..., *shape)`."""
        dim = len(self.shape)
        scale = parts["local"]
        if self.axis is not None:
            groups = [self.shape[axis] if axis == self.axis else 1 for axis in range(dim)]
            scale = scale.reshape(*scale.shape[:-1], *groups)
        present = [part for part in ("global", "slab") if part in parts]
        whole = {part: parts[part].reshape(*parts[part].shape, *[1] * dim) for part in present}
        if "global" in whole:
            scale = whole["global"] * scale
        return scale / (1 + scale**2 / whole["slab"]).sqrt() if "slab" in whole else scale


@dataclass(frozen=True, kw_only=True)
class Ard:
    """Automatic relevance determination: a scale for every input or output unit of a layer, half-Cauchy.

    Weights `Normal(0, s_k)` with `s_k ~ HalfCauchy(gain / sqrt(fan_in))`: the scale of a unit that the data have no use
    for goes to zero, and all its weights with it. By input, the first layer tells which inputs count, later ones which
    hidden units. Sites: "<name>.z", standard normal, and "<name>.local", the scales; the weights are their product.
    Biases and weights of normalisation layers: as with `fan_in()`.

    Args:
        per: "input", "output" or "weight": what has a scale of its own. Rows of an embedding, words, are its "output".
        gain: As of `fan_in`; the median of scales is that of its standard deviations.

    Raises:
        ValueError: If the choice is unknown or the gain not positive.

    Source: MacKay 1994 and Neal 1996 for the idea; Gelman 2006 for half-Cauchy scales.
    """

    per: str = "input"
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(self.per, gain=self.gain)

    def scaled(self, name: str, value: Tensor, axis: int, fan_in: int) -> Scaled:
        """The prior of a tensor of weights."""
        return _scaled(name, value, axis, self.per, local=self.gain / math.sqrt(fan_in))


@dataclass(frozen=True, kw_only=True)
class Horseshoe:
    """The regularised horseshoe: most weights next to zero, a few as large as they need be.

    Weights `Normal(0, s c / sqrt(c² + s²))` with `s = global * local`, `local ~ HalfCauchy(1)` for every group,
    `global ~ HalfCauchy(global_scale)` for a layer, and `c² ~ InverseGamma(slab_df / 2, slab_df / 2 * slab_scale²)`,
    which bounds the largest. Sites: "<name>.z", standard normal, "<name>.local", "<name>.global", "<name>.slab".
    Biases and weights of normalisation layers: as with `fan_in()`.

    Args:
        per: "weight", "input" or "output": what has a local scale of its own. Rows of an embedding are its "output".
        global_scale: The scale of weights that do not count. In a linear model in which p of D inputs are expected to
            count, `p / (D - p) * sigma / sqrt(N)`.
        slab_scale: The scale of weights that count.
        slab_df: Degrees of freedom of the slab, a Student t.

    Raises:
        ValueError: If the choice is unknown or a number not positive.

    Source: Piironen and Vehtari 2017, section 3, equations 2.8 and 3.12.
    """

    per: str = "weight"
    global_scale: float = 0.1
    slab_scale: float = 1.0
    slab_df: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(self.per, global_scale=self.global_scale, slab_scale=self.slab_scale, slab_df=self.slab_df)

    def scaled(self, name: str, value: Tensor, axis: int, fan_in: int) -> Scaled:
        """The prior of a tensor of weights."""
        centres = {"global": value.new_tensor(self.global_scale), "slab": value.new_tensor(self.slab_scale**2)}
        half = value.new_tensor(self.slab_df / 2)
        slab = dist.InverseGamma(half, half * centres["slab"])
        priors = {"global": dist.HalfCauchy(centres["global"]), "slab": slab}
        scaled = _scaled(name, value, axis, self.per, local=1.0)
        return replace(scaled, priors={**scaled.priors, **priors}, centres={**scaled.centres, **centres})


ard, horseshoe = Ard, Horseshoe


def _check(per: str, **positive: float) -> None:
    if per not in GROUPS:
        raise ValueError(f"per must be one of {', '.join(GROUPS)}; got {per!r}.")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive; got {value!r}.")


def _scaled(name: str, value: Tensor, axis: int, per: str, *, local: float) -> Scaled:
    """Half-Cauchy scales of groups; `axis` is that of output units."""
    if per == "input" and value.dim() < 2:
        raise ValueError(f"{name!r} has no axis of inputs, its shape is {tuple(value.shape)}: give per='output'.")
    counted = None if per == "weight" or value.dim() < 2 else axis if per == "output" else 1 - axis
    shape = value.shape if counted is None else value.shape[counted : counted + 1]
    standard = dist.Normal(value.new_tensor(0.0), value.new_tensor(1.0)).expand(value.shape).to_event(value.dim())
    centre = value.new_full(shape, local)
    scales = dist.HalfCauchy(centre).to_event(centre.dim())
    return Scaled(value.shape, counted, {"z": standard, "local": scales}, {"local": centre})

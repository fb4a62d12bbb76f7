"""What a fit has to know of a model beforehand, found by running it on a batch."""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.graphs.run import same_random_numbers, tensors_in
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import minibatches
from pyro_hypernet.model.single_run import Model, outside_of_pyro, trace_outside
from pyro_hypernet.model.traces import observed_nodes


@dataclass(frozen=True)
class Traits:
    """The likelihood of a model on one batch.

    Attributes:
        scales: How often the data of every observed site count; NaN where some of them count more than others. Factors
            are left out: what they scale is their author's business.
        noise: Why the density is another at every call, at the same weights and arguments; "" where it is not.
        is_discrete: Whether the likelihood is a probability and the prior a density, so that no bound on the log
            evidence exceeds zero.
    """

    scales: dict[str, float]
    noise: str
    is_discrete: bool

    @property
    def unscaled(self) -> list[str]:
        """Sites whose data count once, as often as they are given."""
        return [name for name, scale in self.scales.items() if scale == 1]

    @property
    def is_unscaled(self) -> bool:
        """Whether no data count more often than they are given, or less."""
        return bool(self.scales) and len(self.unscaled) == len(self.scales)


def find_traits(log_joint: LogJoint, w: Tensor, batch: tuple) -> Traits:
    """Runs a model at the first of some weights, shape `(S, D)`, where it runs; no random number is used up."""
    names, (w, first) = log_joint.layout.names, _first_run(log_joint, w, batch)
    noise = next((f"plate {f.name!r} draws {f.size} of {f.full_size} data" for f in minibatches(first)), "")
    if not noise and (random := log_joint.random_sites(w, *batch)):
        noise = f"the model draws at random by itself: the log density of {random[0]!r} is another at the same weights"
    observed = observed_nodes(first, names)
    data = {name: node for name, node in observed.items() if not isinstance(_innermost(node["fn"]), dist.Unit)}
    has_density = all(_is_density(first.nodes[name]) for name in names)
    is_discrete = bool(data) and len(data) == len(observed) and all(map(_is_probability, data.values()))
    return Traits({name: _scale(node) for name, node in data.items()}, noise, is_discrete and has_density)


def find_error(model: Model, guide: AutoHypernet, batch: tuple) -> Exception | None:
    """What the model itself raises on a batch, run plainly and with Pyro's validation, or None."""
    conditioned = poutine.condition(model, data=guide.layout.constrain(guide.looks(2)[0])[0])
    with same_random_numbers(tensors_in(batch)), torch.no_grad(), pyro.validation_enabled(True):
        try:
            trace_outside(conditioned, batch, {}).compute_log_prob()
        except Exception as error:
            return error
    return None


def _first_run(log_joint: LogJoint, w: Tensor, batch: tuple) -> tuple[Tensor, Trace]:
    """The weights where the model ran, with the next, and the run."""
    with same_random_numbers(tensors_in(batch)), torch.no_grad(), outside_of_pyro():
        for number in range(len(w) - 1):
            with suppress(Exception):
                return w[number : number + 2], log_joint.trace(w[number], *batch)
        return w[-1:], log_joint.trace(w[-1], *batch)


def _scale(node: dict[str, Any]) -> float:
    scale = torch.as_tensor(node["scale"]).double()
    return float(scale.mean()) if bool((scale == scale.mean()).all()) else math.nan


def _is_density(node: dict[str, Any]) -> bool:
    """Whether a latent site's prior integrates to one."""
    is_whole = _scale(node) == 1 and node["mask"] is None
    return is_whole and not isinstance(_innermost(node["fn"]), dist.ImproperUniform)


def _is_probability(node: dict[str, Any]) -> bool:
    try:
        return bool(node["fn"].support.is_discrete)
    except (NotImplementedError, AttributeError):  # distributions that do not know their support
        return False


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn

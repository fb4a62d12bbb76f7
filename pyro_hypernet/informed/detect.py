"""What a guide finds out about its model before it is built: symmetries, linear weights, widths of the prior."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.informed.linear_block import FLAGS, LinearBlock, find_linear_block
from pyro_hypernet.informed.symmetries import Symmetries, find_symmetries
from pyro_hypernet.model.arguments import Arguments, recall
from pyro_hypernet.model.density import NUM_LOOKS, LogJoint
from pyro_hypernet.model.layout import Layout, minibatches
from pyro_hypernet.model.vectorize import Model, outside_of_pyro, trace_one

_NUM_DRAWS = 256
_LEAST_WIDTH, _GREATEST_WIDTH = 1e-3, 1e3


@dataclass(frozen=True)
class Knowledge:
    """What is known of a model beyond its sites.

    Attributes:
        symmetries: Permutations and flips that leave its density unchanged.
        linear_block: The weights to which its observations answer linearly, or None.
        targets: What stands for the data in `GaussianConditional` at the start, shape `(n,)`, or empty.
        log_precisions: Likewise, shape `(n,)`.
        width: The prior's standard deviation of every unconstrained weight, shape `(D,)`.
        args: The arguments that it was learnt with.
        kwargs: The keyword arguments.
        is_whole: Whether the Gaussian of linear weights is the posterior of all weights, so that no network has
            anything to learn, and would only be shaken.
    """

    symmetries: Symmetries
    linear_block: LinearBlock | None
    targets: Tensor
    log_precisions: Tensor
    width: Tensor
    args: tuple
    kwargs: dict[str, Any]
    is_whole: bool = False

    def __bool__(self) -> bool:
        return bool(self.symmetries.groups) or self.linear_block is not None

    def __str__(self) -> str:
        block = ", ".join(self.linear_block.block) if self.linear_block else ""
        linear = f"found: {block}: drawn from a normal distribution given all other weights." if block else ""
        return "\n".join(part for part in (linear, str(self.symmetries)) if part)

    def describe(self) -> dict[str, Any]:
        """Names and plain values for a file; tensors are with the guide's own."""
        return {
            "symmetries": self.symmetries.describe(),
            "block": self.linear_block.block if self.linear_block else (),
            **{name: bool(self.linear_block and getattr(self.linear_block, name)) for name in FLAGS},
            "is_whole": self.is_whole,
            "arguments": Arguments(self.args, self.kwargs).describe(),
        }

    @classmethod
    def from_description(
        cls, model: Model, layout: Layout, described: dict[str, Any], tensors: dict[str, Tensor]
    ) -> "Knowledge":
        """What `describe` described, with the tensors of the guide's map by their last name."""
        args, kwargs = recall(described["arguments"], tensors)
        block = tuple(described["block"])
        flags = {name: described.get(name, False) for name in FLAGS}
        linear_block = LinearBlock(model, layout, block, **flags) if block else None
        empty = torch.zeros(0)
        return cls(
            Symmetries.from_description(layout, described["symmetries"]),
            linear_block,
            tensors["targets"] if linear_block else empty,
            tensors["log_precisions"] if linear_block else empty,
            empty,
            args,
            kwargs,
            is_whole=described.get("is_whole", False),
        )


def detect(log_joint: LogJoint, trace: Trace, loc: Tensor, args: tuple, kwargs: dict) -> Knowledge | None:
    """Runs the model at a few draws of its prior and finds out what can be used.

    Args:
        log_joint: The model's density, run eagerly.
        trace: One run of the model.
        loc: Any unconstrained weights, shape `(D,)`; fixes dtype and device.

    Returns:
        None if the model's prior cannot be sampled, its density cannot be vmapped, it has learnable parameters of its
        own, draws minibatches or discrete sites by itself, or its arguments cannot be kept.
    """
    if not Arguments(args, kwargs).can_be_kept() or minibatches(trace):
        return None
    model, layout = log_joint.model, log_joint.layout
    with outside_of_pyro(), torch.no_grad(), pyro.validation_enabled(False):
        if log_joint.params(loc, *args, **kwargs) or not _can_be_vmapped(log_joint, loc, args, kwargs):
            return None
        draws = _prior_draws(log_joint, loc, args, kwargs)
        if draws is None:
            return None
        good = draws[draws.isfinite().all(-1)]
        points = good[log_joint(good[:16], *args, **kwargs).isfinite().nonzero().flatten()] if len(good) >= 16 else good
        if len(points) < 4 or log_joint.mode == "loop" or log_joint.random_sites(points[:NUM_LOOKS], *args, **kwargs):
            return None
        linear_block = find_linear_block(model, layout, points, args, kwargs, may_nest=True)
        block = linear_block.block if linear_block else ()
        # Prior and likelihood by themselves: beside much data a change of the prior would be lost in rounding.
        symmetries = find_symmetries(lambda w: log_joint.parts(w, *args, **kwargs), layout, points, no_keys_in=block)
        start = linear_block.start(points[0], args, kwargs) if linear_block else (loc.new_zeros(0), loc.new_zeros(0))
        is_whole = linear_block is not None and linear_block.is_exact and len(linear_block.index) == layout.dim
        is_whole = is_whole and not _stands_for_more(trace_one(model, layout.constrain(loc)[0], args, kwargs))
    return Knowledge(symmetries, linear_block, *start, _width(good), args, dict(kwargs), is_whole)


def prior_width(log_joint: LogJoint, loc: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
    """The prior's standard deviation of every unconstrained weight, shape `(D,)`; None if it cannot be sampled."""
    draws = _prior_draws(log_joint, loc, args, kwargs)
    return None if draws is None else _width(draws[draws.isfinite().all(-1)])


def _prior_draws(log_joint: LogJoint, loc: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
    try:
        with outside_of_pyro(seed=0):
            return log_joint.sample_prior(_NUM_DRAWS, *args, **kwargs).to(loc)
    except (NotImplementedError, RuntimeError):  # an improper prior
        return None


def _width(draws: Tensor) -> Tensor:
    """From the quartiles, for a prior may have no variance."""
    quartiles = draws.quantile(torch.tensor([0.25, 0.75]).to(draws), dim=0)
    return ((quartiles[1] - quartiles[0]) / 1.349).clamp(_LEAST_WIDTH, _GREATEST_WIDTH)


def _can_be_vmapped(log_joint: LogJoint, loc: Tensor, args: tuple, kwargs: dict) -> bool:
    """Whether the density can be vmapped, as it cannot where a blocked discrete site draws."""
    try:
        torch.func.vmap(lambda w: log_joint._value_of_one(w, args, kwargs), randomness="error")(loc[None])
    except Exception:  # the trouble, if it is one, is reported where the density is needed
        return False
    return True


def _stands_for_more(trace: Trace) -> bool:
    """Whether data count more than once, as those of a minibatch do: other data will then have another posterior."""
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample" and node["is_observed"]]
    return any(bool((torch.as_tensor(node["scale"]) > 1).any()) for node in nodes)

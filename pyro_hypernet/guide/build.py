"""What a guide is made of, found out by one run of its model: where it starts, what is known, its map and its noise."""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.guide.flow import Flow
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.informed.detect import Knowledge, detect, prior_width
from pyro_hypernet.informed.structures import informed, resolve_structure
from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.maps.hypernets import resolve_hypernet
from pyro_hypernet.model.announce import stored_names
from pyro_hypernet.model.called import name_arguments
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout, is_periodic, within_period
from pyro_hypernet.model.modes import find_modes
from pyro_hypernet.model.supports import stable
from pyro_hypernet.model.validate import (
    check_start,
    refuse_dependent_supports,
    refuse_local_latents,
    refuse_vanished_priors,
)
from pyro_hypernet.model.vectorize import Model

# Of every unconstrained weight at the start, where no structure knows better.
DEFAULT_SCALE = 0.1


def read_layout(trace: Trace) -> Layout:
    """The latent sites of a run, into which stable supports are put: Pyro maps draws by the priors' own.

    Periodic sites stay on the real line, as in the model: the guide's transform for Pyro ends in their period.

    Raises:
        ValueError: If a site lies inside a subsampled plate.
    """
    refuse_local_latents(trace)
    trace.nodes["_RETURN"]["value"] = None  # it may hold all that the model computed on its way
    layout = Layout.from_trace(trace)
    for site in layout.sites:
        node = trace.nodes[site.name]
        fn, support = node["fn"], stable(site.support)
        if is_periodic(node):
            node["value"] = within_period(node["value"])
        elif support is not site.support:
            node["fn"] = dist.ImproperUniform(support, fn.batch_shape, fn.event_shape)
    return layout


@dataclass(frozen=True)
class FirstRun:
    """A model that was run once, at the point where its guide starts.

    Attributes:
        log_joint: The model's density, run eagerly.
        started: The model, its sites at the start.
        trace: The run.
        loc: The start, shape `(D,)`; fixes dtype and device.
    """

    log_joint: LogJoint
    started: Model
    trace: Trace
    loc: Tensor
    args: tuple
    kwargs: dict[str, Any]

    def check(self) -> dict[str, bool]:
        """Refuses a model for which no guide can be made.

        Returns:
            Names of the model's own parameters in Pyro's store, and of each whether `announce` chose it.

        Raises:
            ValueError: If the density at the start is not finite, a prior has vanished, or supports are not fixed.
        """
        model, layout, args, kwargs = self.log_joint.model, self.log_joint.layout, self.args, self.kwargs
        log_joint = self.log_joint.of(self.started)
        check_start(log_joint, self.loc, name_arguments(model, args, kwargs), args, kwargs)
        refuse_vanished_priors(model, layout, self.trace, args, kwargs)
        with torch.random.fork_rng(devices=[]):  # for a file: the prototype hides them
            names = stored_names(log_joint.params(self.loc, *args, **kwargs))
        refuse_dependent_supports(model, layout, self.loc, args, kwargs)
        return names

    def find_knowledge(self, plan: Plan, *, has_default_start: bool) -> Knowledge | None:
        """What the structure will build in, if it is one that builds anything in, and there is anything."""
        if not plan.may_be_informed(self.log_joint.layout.dim, has_default_start=has_default_start):
            return None
        with torch.no_grad(), pyro.validation_enabled(False):
            return detect(self.log_joint, self.trace, self.loc, self.args, self.kwargs) or None

    def find_width(self, plan: Plan) -> Tensor | None:
        """The prior's width, shape `(D,)`, for components, whose modes may be anywhere in it; None for the usual."""
        if plan.num_components == 1 or plan.init_scale is not None:
            return None
        with torch.no_grad(), pyro.validation_enabled(False):
            return prior_width(self.log_joint, self.loc, self.args, self.kwargs)

    def width_around_network(self, share: float) -> Tensor:
        """A share of the prior's standard deviations, shape `(D,)`: a network's values are no draw of the prior."""
        widths = []
        for site in self.log_joint.layout.sites:
            width = torch.full(site.unconstrained_shape, DEFAULT_SCALE).to(self.loc)
            if site.is_unconstrained:
                scale = _standard_deviation(self.trace.nodes[site.name]["fn"]).expand(site.shape).to(self.loc)
                width = torch.where(scale.isfinite(), share * scale, width)
            widths.append(width.flatten())
        return torch.cat(widths)

    @torch.no_grad()
    def spread(self, flow: Flow) -> None:
        """Starts every component of the noise at a mode of its own, as far as there are several."""
        log_joint = self.log_joint.of(self.log_joint.model)
        modes = find_modes(log_joint, self.args, self.kwargs, num_modes=flow.noise.num_components)
        flow.noise.locs.copy_(flow.bijection.inverse_and_log_det(modes.to(flow.origin))[0])


def _standard_deviation(fn: dist.Distribution) -> Tensor:
    """Of a prior; infinite or not a number where it has none, or where torch does not know it."""
    try:
        return fn.stddev
    except NotImplementedError:
        return torch.tensor(torch.nan)


def make_map(
    plan: Plan, layout: Layout, loc: Tensor, *, knowledge: Knowledge | None, width: Tensor | None
) -> Bijection:
    """The map of a plan in which nothing is "auto".

    At the start its centre is `loc`, shape `(D,)`, its standard deviations are `width`, shape `(D,)`, or the plan's.
    """
    hypernet, structure = resolve_hypernet(plan.hypernet), resolve_structure(plan.structure)
    if not knowledge:
        scale = torch.full_like(loc, plan.init_scale or DEFAULT_SCALE)
        return structure(layout, hypernet, loc, scale if width is None else width.to(loc))
    width = knowledge.width if len(knowledge.width) else torch.ones(layout.dim, device="cpu")
    scale = torch.full_like(loc, plan.init_scale) if plan.init_scale else width.to(loc)
    return informed(layout, hypernet, loc, scale, knowledge=knowledge)

"""The latent sites of a model, in a fixed order, as one flat vector of unconstrained weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_hypernet.model.supports import transform_to

# What is taken for the support of a site whose density repeats itself.
PERIOD = constraints.interval(-math.pi, math.pi)
# A log density that changes less, in nats, says nothing of a period.
_FLAT = 1e-3


@dataclass(frozen=True)
class Site:
    """One latent `pyro.sample` statement and its place in the flat vector.

    Attributes:
        name: Name of the sample statement.
        shape: Shape of one value, as the model sees it.
        unconstrained_shape: Shape of the same value in unconstrained space; it differs for simplices or correlations.
        event_dim: How many trailing axes of `shape` belong to one event.
        support: The support of the prior, which fixes the map to unconstrained space.
        start: Index of the first of this site's coordinates in the flat vector.
        plates: For every axis of `shape` the name of its plate, or None.
    """

    name: str
    shape: torch.Size
    unconstrained_shape: torch.Size
    event_dim: int
    support: constraints.Constraint
    start: int
    plates: tuple[str | None, ...] = ()

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.unconstrained_shape)

    @property
    def slice(self) -> slice:
        """This site's coordinates in the flat vector."""
        return slice(self.start, self.start + self.size)

    @property
    def transform(self) -> Transform:
        """The bijection from unconstrained values to the support."""
        return transform_to(self.support)

    @property
    def is_unconstrained(self) -> bool:
        """Whether the support is the whole real space, so that `transform` is the identity."""
        return _is_real(self.support)


@dataclass(frozen=True)
class Layout:
    """All latent sites in a fixed order: how a vector `w` of shape `(..., D)` reads as a dict of site values.

    Attributes:
        sites: The sites, in the order of the model's trace.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("weight", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        >>> layout = Layout.from_trace(pyro.poutine.trace(model).get_trace())
        >>> layout.dim
        7
        >>> values, log_det = layout.constrain(torch.zeros(5, 7))
        >>> values["weight"].shape, log_det.shape
        (torch.Size([5, 2, 3]), torch.Size([5]))
    """

    sites: tuple[Site, ...]

    @classmethod
    def from_trace(cls, trace: Trace) -> "Layout":
        """Reads the latent sites of a trace of the model; observed and subsampling sites are passed over.

        Raises:
            ValueError: If a site is discrete or has a support without a map to unconstrained space.
        """
        sites, start = [], 0
        for name, node in trace.iter_stochastic_nodes():
            if site_is_subsample(node):
                continue
            fn, value, support = node["fn"], node["value"].detach(), node["fn"].support
            if is_periodic(node):
                value, support = within_period(value), PERIOD
                support = constraints.independent(support, fn.event_dim) if fn.event_dim else support
            with helpful_support_errors(node):
                unconstrained = biject_to(support).inv(value)
            site = Site(
                name=name,
                shape=node["value"].shape,
                unconstrained_shape=unconstrained.shape,
                event_dim=node["fn"].event_dim,
                support=support,
                start=start,
                plates=plate_names(node),
            )
            sites.append(site)
            start += site.size
        return cls(tuple(sites))

    @property
    def dim(self) -> int:
        """Length D of the flat vector."""
        return sum(site.size for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites, in order."""
        return tuple(site.name for site in self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"No latent site is named {name!r}; the sites are {', '.join(self.names)}.")

    def unpack(self, w: Tensor) -> dict[str, Tensor]:
        """Splits `w`, shape `(..., D)`, into unconstrained values of shape `(..., *unconstrained_shape)`."""
        batch_shape = w.shape[:-1]
        return {site.name: w[..., site.slice].reshape(batch_shape + site.unconstrained_shape) for site in self.sites}

    def constrain(self, w: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Values on the supports, `(..., *shape)` by site, at `w` of `(..., D)`, and the log determinant in nats."""
        values, log_det = {}, w.new_zeros(w.shape[:-1])
        for name, unconstrained in self.unpack(w).items():
            transform = self[name].transform
            values[name] = transform(unconstrained)
            if not self[name].is_unconstrained:
                log_det = log_det + _log_det(transform, unconstrained, values[name], w.dim() - 1)
        return values, log_det

    def unconstrain(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Inverse of `constrain`: vectors `(..., D)` of a dict of values, and the log determinant of `constrain` there.

        Raises:
            ValueError: If a site is missing, unknown, or of another shape.
        """
        batch_shape = self.batch_shape(values)
        parts, log_det = [], 0.0
        for site in self.sites:
            value, transform = values[site.name], site.transform
            unconstrained = transform.inv(value)
            parts.append(unconstrained.reshape((*batch_shape, site.size)))
            if not site.is_unconstrained:
                log_det = log_det + _log_det(transform, unconstrained, value, len(batch_shape))
        w = torch.cat(parts, dim=-1)
        return w, w.new_zeros(batch_shape) + log_det

    def batch_shape(self, values: Mapping[str, Tensor]) -> torch.Size:
        """The leading axes common to all values of a dict of samples; errors as of `unconstrain`."""
        missing = [name for name in self.names if name not in values]
        unknown = [name for name in values if name not in self.names]
        if missing or unknown:
            raise ValueError(
                f"Samples must hold exactly the latent sites {list(self.names)}; missing {missing}, unknown {unknown}."
            )
        batch_shapes = {}
        for site in self.sites:
            shape = values[site.name].shape
            cut = len(shape) - len(site.shape)
            if cut < 0 or shape[cut:] != site.shape:
                raise ValueError(
                    f"Samples of site {site.name!r} must have shape (..., {_spell(site.shape)}); got {tuple(shape)}."
                )
            batch_shapes[site.name] = shape[:cut]
        if len(set(batch_shapes.values())) > 1:
            spelt = {name: tuple(shape) for name, shape in batch_shapes.items()}
            raise ValueError(f"Samples of all sites must share their leading axes; got {spelt}.")
        return next(iter(batch_shapes.values()))

    def check(self, other: "Layout", source: str) -> None:
        """Raises a ValueError that names the first difference, unless `other` has the same sites, in the same order.

        Args:
            other: The layout to hold against this one.
            source: Where it comes from, for the message.
        """
        mine, theirs = [_signature(site) for site in self.sites], [_signature(site) for site in other.sites]
        if mine != theirs:
            first = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), (mine, theirs))
            raise ValueError(
                f"The latent sites changed: expected {first[0]}; {source} has {first[1]}. "
                "A guide serves one model whose sites and shapes never change; make a new guide for another model."
            )


def is_periodic(node: dict[str, Any]) -> bool:
    """Whether a site's prior repeats itself along the real line, as von Mises' does; found by trying.

    Pyro gives such a variable the whole real line, where its density has no integral: a posterior would have no
    evidence, and a guide spread over ever more periods would be ever better. NUTS walks from period to period, which
    does not matter to it, and a Gaussian guide stays in one. All is well on (−π, π), where the density integrates to
    one: that is taken for the support.
    """
    fn, x = node["fn"], node["value"].detach()
    if not _is_real(fn.support):
        return False
    with torch.no_grad():
        here, *others = (float(fn.log_prob(x + step).sum()) for step in (0, 1, 0.37, 2 * math.pi, 10 * math.pi))
    aside, around = (max(abs(here - other) for other in part) for part in (others[:2], others[2:]))
    return aside > _FLAT and around <= 0.01 * aside


def within_period(value: Tensor) -> Tensor:
    """Angles as such between −π and π."""
    return (value + math.pi) % (2 * math.pi) - math.pi


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def plate_names(node: dict[str, Any]) -> tuple[str | None, ...]:
    """The plate of every axis of a site's value, or None where an axis is in no plate."""
    shape = node["value"].shape
    names: list[str | None] = [None] * len(shape)
    batch_dim = len(shape) - node["fn"].event_dim
    for frame in node["cond_indep_stack"]:
        axis = None if frame.dim is None else batch_dim + frame.dim
        if axis is not None and 0 <= axis < batch_dim and shape[axis] == frame.size:
            names[axis] = frame.name
    return tuple(names)


def minibatch_plates(node: dict[str, Any]) -> list[Any]:
    """The plates around a site that draw a minibatch, as Pyro's frames with `name`, `size` and `full_size`."""
    frames = node.get("cond_indep_stack", ())
    return [frame for frame in frames if frame.full_size is not None and frame.full_size != frame.size]


def minibatches(trace: Trace) -> list[Any]:
    """All `minibatch_plates` of a trace."""
    return [frame for node in trace.nodes.values() for frame in minibatch_plates(node)]


def _log_det(transform: Transform, x: Tensor, y: Tensor, batch_dim: int) -> Tensor:
    """Log determinant summed over all but the first `batch_dim` axes."""
    log_det = transform.log_abs_det_jacobian(x, y)
    return log_det.reshape((*log_det.shape[:batch_dim], -1)).sum(-1)


def _signature(site: Site) -> str:
    return f"{site.name!r} of shape ({_spell(site.shape)}) on {site.support!r}"


def _spell(shape: torch.Size) -> str:
    return ", ".join(str(size) for size in shape)

"""The bound of a mean field with weights drawn anew for every datum, wherever a network's layers allow for it."""

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_hypernet.bnn.local import OUTPUTS, Local
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.maps.bijection import Bijection, Blocks, Chain
from pyro_hypernet.maps.bounds import Bounded
from pyro_hypernet.maps.coordinates import Steer
from pyro_hypernet.maps.linear import Affine, Identity
from pyro_hypernet.model.density import LogJoint, zero_density
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.single_run import trace_aside, trace_one
from pyro_hypernet.model.split import is_scaled
from pyro_hypernet.model.traces import observed_nodes
from pyro_hypernet.model.vectorize import Vectorized
from pyro_hypernet.train.estimate import Estimate, VectorizedGuide, flat_normal

_PLAIN = (Chain, Blocks, Steer, Identity, Bounded, Affine)


class LocalBound:
    """log p(data, w) − log q(w) of a mean field, in which data have weights of their own and the prior is integrated.

    A layer that is called once, with one row for every datum, draws its outputs, whose distribution is normal given its
    inputs (local reparametrisation); a convolution, or a layer applied to every position of a datum, multiplies one
    draw's distance from the mean by random signs of its inputs and outputs, other ones for every datum (flipout). All
    other weights are drawn once for all data of a particle. Of normal priors of such sites the divergence is worked
    out instead of drawn. The expectation is that of the ordinary bound.

    Args:
        log_joint: The density, of a model with a network of `bayesianize` in it.
        guide: The mean field, to be refused where it is none.
        w: Weights at which the model runs, shape `(D,)`.
        args: Its arguments.
        kwargs: Its keyword arguments.
        mode: As of `LogJoint`.

    Raises:
        ValueError: If there is no such network, it has no such layer, or the guide is another.

    Source: Kingma, Salimans and Welling 2015, arXiv 1506.02557; Wen et al. 2018, arXiv 1803.04386.
    """

    def __init__(
        self,
        log_joint: LogJoint,
        guide: VectorizedGuide,
        w: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        mode: str,
    ) -> None:
        _mean_field(guide)
        self.model, self.layout, self._local = log_joint.model, log_joint.layout, Local()
        values = self.layout.constrain(w)[0]
        with self._local.looking():
            trace = trace_aside(self.model, values, args, kwargs, seed=0)
        if not self._local.sites:
            found = "no layer of the network" if self._local.has_network else "no network of bayesianize in the model"
            raise ValueError(
                f'draws="local" needs layers of torch, nn.Linear or nn.Conv1d to nn.Conv3d, that are called once, with '
                f"the data along the first axis of their inputs, and whose random weights nothing else reads; {found} "
                'suits. Use draws="split", which works with any model whose data are rows, or draws="batch".'
            )
        observed = {*observed_nodes(trace, self.layout.names)}
        if observed != {"y"}:  # not the network's own likelihood alone
            is_scaled(log_joint, w, args, kwargs, 'draws="local"')
        self._integrated = frozenset(
            name for name in self.layout.names if _is_normal(trace.nodes[name], self.layout, name)
        )
        needs_no_draw = {name for name in self._integrated if self._local.sites.get(name) == OUTPUTS}
        self._drawn = [site.name not in needs_no_draw for site in self.layout.sites]
        self._run = Vectorized(self._of_one, mode=mode, randomness="different", failed=lambda w, _: zero_density(w))

    @property
    def mode(self) -> str:
        """How the model runs now, as of `LogJoint`."""
        return self._run.mode

    def estimate(
        self,
        guide: VectorizedGuide,
        num_particles: int,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        is_path: bool,
        share: slice | None = None,
        skip: int = 0,
    ) -> Estimate:
        """The bound and a surrogate for its gradient.

        Args:
            guide: The mean field.
            num_particles: Draws of what is drawn for all data.
            args: The model's arguments.
            kwargs: Its keyword arguments.
            is_path: Whether gradients of what is not integrated go without the score.
            share: Which of the draws are evaluated; None for all.
            skip: So many random numbers are passed over, for a process that is not to draw what others do.
        """
        loc, scale, bounds = _mean_field(guide)
        eps = self._noise(num_particles, loc)
        eps = eps if share is None else eps[share]
        if skip:
            torch.randn(skip, device=loc.device)
        u = loc + scale * eps
        w, log_det = u, torch.zeros_like(u[:, 0])
        for bound in bounds:
            w, part = bound.forward_and_log_det(w)
            log_det = log_det + part
        fixed = (loc.detach(), scale.detach()) if is_path else (loc, scale)
        log_q = self._log_q(u, *fixed) - log_det
        value = self._run(w, ((loc, scale), *args), kwargs)
        surrogate = -(value - log_q).mean()
        rest = w.detach(), value.detach(), log_q.detach()
        return Estimate(surrogate.detach(), surrogate, *rest, torch.zeros_like(surrogate.detach()))

    def _noise(self, num_particles: int, like: Tensor) -> Tensor:
        """Standard normal numbers for what is drawn, zeros elsewhere, shape `(K, D)`."""
        count = sum(site.size for site, is_drawn in zip(self.layout.sites, self._drawn, strict=True) if is_drawn)
        noise, parts, at = torch.randn(num_particles, count, dtype=like.dtype, device=like.device), [], 0
        for site, is_drawn in zip(self.layout.sites, self._drawn, strict=True):
            parts.append(noise[:, at : at + site.size] if is_drawn else noise.new_zeros(num_particles, site.size))
            at += site.size * is_drawn
        return torch.cat(parts, 1)

    def _log_q(self, u: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Of all sites that are not integrated, before bounds, shape `(K,)`."""
        total = torch.zeros_like(u[:, 0])
        for site in self.layout.sites:
            if site.name not in self._integrated:
                mean, sd, value = (part[..., site.slice] for part in (loc, scale, u))
                total = total + (-(((value - mean) / sd) ** 2) / 2 - sd.log() - math.log(2 * math.pi) / 2).sum(-1)
        return total

    def _of_one(self, w: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Log likelihood and prior, or what stands for that, of one draw, shape `()`."""
        (loc, scale), *rest = args
        locs, scales = (_by_site(self.layout, flat) for flat in (loc, scale))
        values, log_det = self.layout.constrain(w)
        with self._local.at(locs, scales):
            trace = trace_one(self.model, values, tuple(rest), kwargs)
        trace.compute_log_prob(lambda name, node: name not in self._integrated)
        total = log_det
        for name, node in trace.nodes.items():
            if name in self._integrated:
                total = total - _divergence(locs[name], scales[name], _innermost(node["fn"]))
            elif node["type"] == "sample" and not site_is_subsample(node):
                total = total + node["log_prob_sum"]
        return total


def _mean_field(guide: Any) -> tuple[Tensor, Tensor, list[Bounded]]:
    """Means and standard deviations of all unconstrained weights, shape `(D,)`, and bounds that draws go through.

    Raises:
        ValueError: If the guide is none.
    """
    if isinstance(guide, AutoNormal):
        normal = flat_normal(guide).base_dist
        return normal.loc, normal.scale, []
    if isinstance(guide, AutoDiagonalNormal):
        loc, scale = guide._loc_scale()
        return loc, scale, []
    parts = list(guide.bijection.modules()) if isinstance(guide, AutoHypernet) else []
    parts = [part for part in parts if isinstance(part, Bijection)]
    affine = [part for part in parts if isinstance(part, Affine)]
    is_plain = len(affine) == 1 and all(type(part) in _PLAIN for part in parts)
    if not is_plain or guide.plan.num_components > 1 or guide.rejection is not None:
        raise ValueError(
            f'draws="local" needs a guide of independent normal weights, AutoHypernet(model, "identity", "full"); got '
            f'{_spell(guide)}. Make such a guide, or use draws="split", which works with any.'
        )
    guide._announce_parameters()
    loc, log_scale = affine[0].loc_and_log_scale()
    return loc, log_scale.exp(), [part for part in parts if isinstance(part, Bounded)]


def _spell(guide: Any) -> str:
    if not isinstance(guide, AutoHypernet):
        return type(guide).__name__
    plan = guide.plan
    return f"hypernet={plan.hypernet!r}, structure={plan.structure!r}, num_components={plan.num_components}"


def _by_site(layout: Layout, flat: Tensor) -> Mapping[str, Tensor]:
    return {site.name: flat[site.slice].reshape(site.shape) for site in layout.sites if site.is_unconstrained}


def _is_normal(node: dict[str, Any], layout: Layout, name: str) -> bool:
    """Whether a site's prior is independent and normal, and counts once."""
    counts = node["mask"] is None and isinstance(node["scale"], (int, float)) and node["scale"] == 1
    return type(_innermost(node["fn"])) is dist.Normal and counts and layout[name].is_unconstrained


def _innermost(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _divergence(loc: Tensor, scale: Tensor, prior: dist.Normal) -> Tensor:
    """The Kullback-Leibler divergence of independent normal weights from their prior, in nats, shape `()`."""
    ratio, away = scale / prior.scale, (loc - prior.loc) / prior.scale
    return ((ratio**2 + away**2 - 1) / 2 - ratio.log()).sum()

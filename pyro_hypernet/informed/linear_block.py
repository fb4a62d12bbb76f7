"""The weights that a model's observations answer to linearly, such as a network's last layer, found by trying."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions import MaskedDistribution
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_hypernet.model.layout import Layout, Site
from pyro_hypernet.model.single_run import trace_aside
from pyro_hypernet.model.vectorize import Model, Vectorized, outside_of_pyro, trace_one

FLAGS = ("is_sharp", "is_exact", "is_constant", "is_level", "is_nested")
MAX_BLOCK, MAX_NUMBERS = 256, 2**18
_TOLERANCE = 1e-4
# Priors with a location and a scale; the Gaussian that stands for one that is not normal is learnt.
_PRIORS = (td.Normal, td.StudentT, td.Laplace, td.Cauchy)
_MASKED = -30.0


@dataclass(frozen=True)
class Linearised:
    """What a model observes at some weights, around zero in the block.

    Attributes:
        offset: Locations of all observed sites with the block at zero, shape `(..., n)`.
        jacobian: Their derivative by the block's weights, shape `(..., n, B)`, or `(1, n, B)` where it is constant.
        log_precision: Of every observation, shape `(..., n)`; zero where its distribution has no scale.
        prior_loc: Prior locations of the block, shape `(..., B)`, with the block at zero.
        prior_scale: Prior scales of the block, shape `(..., B)`.
        prior_jacobian: The derivative of the prior locations by the block's weights, shape `(..., B, B)`; None where
            no prior location depends on another weight of the block.
    """

    offset: Tensor
    jacobian: Tensor
    log_precision: Tensor
    prior_loc: Tensor
    prior_scale: Tensor
    prior_jacobian: Tensor | None = None


@dataclass(eq=False, repr=False)
class LinearBlock:
    """A block of weights in which the locations of a model's observations are affine, and how they depend on it.

    Attributes:
        layout: Its latent sites.
        block: Names of the sites in the block.
        is_sharp: Whether the observations have scales of their own, which may be small: sums over them then need
            float64.
        is_exact: Whether likelihood and priors are all normal, so that least squares give the conditional posterior.
        is_constant: Whether the derivative is the same at all weights, as in a linear regression: it is then worked out
            once for all rows.
        is_level: Whether all observations have the same precision, whatever it is at some weights.
        is_nested: Whether prior locations of the block depend on other weights of it, as those of groups do on their
            common mean.
        index: The block's flat coordinates, shape `(B,)`.
    """

    model: Model
    layout: Layout
    block: tuple[str, ...]
    _: KW_ONLY
    is_sharp: bool = False
    is_exact: bool = False
    is_constant: bool = False
    is_level: bool = False
    is_nested: bool = False

    def __post_init__(self) -> None:
        sites = [self.layout[name] for name in self.block]
        self.index = torch.cat([torch.arange(s.start, s.start + s.size, device="cpu") for s in sites])
        self._run = Vectorized(self.answer_of_one)
        self._run_without = Vectorized(self._offset_of_one)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LinearBlock":
        return self  # nothing in it changes, and a copy would have a model of its own

    def __reduce__(self) -> tuple[Any, ...]:
        flags = {name: getattr(self, name) for name in FLAGS}
        return partial(LinearBlock, **flags), (self.model, self.layout, self.block)

    def __call__(self, w: Tensor, args: tuple, kwargs: dict) -> Linearised:
        """The answer at weights of shape `(S, D)`, whatever they hold in the block."""
        with outside_of_pyro():
            if not self.is_constant:
                return Linearised(*self._run(w, args, kwargs))
            with torch.no_grad():
                _, jacobian, _, _, _, *nested = self._run(w[:1], args, kwargs)
            offset, *rest = self._run_without(w, args, kwargs)
            return Linearised(offset, jacobian.detach(), *rest, *(part.detach() for part in nested))

    def start(self, w: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        """Pseudo-targets and their log precisions, relative to the answer's, both of shape `(n,)`.

        Where the likelihood is normal these are the data and zeros, which is exact; elsewhere one step of iteratively
        reweighted least squares from zero.
        """
        values = self.layout.constrain(w)[0]
        trace = trace_aside(self.model, values, args, kwargs)
        pairs = [_family(fn).start(fn, node["value"]) for _, node, fn in _observed(trace, self.layout)]
        targets, log_precisions = ([part.reshape(-1) for part in parts] for parts in zip(*pairs, strict=True))
        return torch.cat(targets), torch.cat(log_precisions)

    def _offset_of_one(self, w: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
        zeros = {name: w.new_zeros(self.layout[name].shape) for name in self.block}
        return self.observe({**self.layout.constrain(w)[0], **zeros}, args, kwargs)

    def answer_of_one(self, w: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
        """The fields of a Linearised at one weight vector of shape `(D,)`, to be vmapped and differentiated."""
        values = self.layout.constrain(w)[0]
        sizes = [self.layout[name].size for name in self.block]

        def at(block: Tensor) -> tuple[Tensor, ...]:
            # Only the block changes: what does not depend on it, such as hidden units, is worked out once.
            parts = zip(self.block, block.split(sizes), strict=True)
            changed = {name: part.view(self.layout[name].shape) for name, part in parts}
            return self.observe({**values, **changed}, args, kwargs)

        offset, log_precision, loc, scale = at(w.new_zeros(len(self.index)))
        units = torch.eye(len(self.index), dtype=w.dtype, device=w.device)
        if not self.is_nested:
            rows = torch.func.vmap(lambda unit: at(unit)[0])(units)
            return offset, (rows - offset).mT, log_precision, loc, scale
        rows, locs = torch.func.vmap(lambda unit: at(unit)[::2])(units)
        return offset, (rows - offset).mT, log_precision, loc, scale, (locs - loc).mT

    def observe(self, values: dict[str, Tensor], args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Locations and log precisions of the observations, shape `(n,)`; prior locations and scales, shape `(B,)`."""
        trace = trace_one(self.model, values, args, kwargs)
        locations, log_precisions = [], []
        for _, node, fn in _observed(trace, self.layout):
            location = _family(fn).location(fn)
            log_precision = -2 * fn.scale.log() if hasattr(fn, "scale") else torch.zeros_like(location)
            num_events = location.dim() - len(node["fn"].batch_shape)
            log_precision = log_precision.expand(location.shape) + _log(node["scale"], location, num_events)
            if node["mask"] is not None:
                mask = torch.as_tensor(node["mask"], device=location.device)
                mask = mask if location.dim() == mask.dim() or not mask.dim() else mask[..., None]
                log_precision = torch.where(mask, log_precision, torch.full_like(log_precision, _MASKED))
            locations.append(location.reshape(-1))
            log_precisions.append(log_precision.reshape(-1))
        if not locations:
            raise ValueError(
                "The model has no observation in this run, though it had some when the guide was made, and draws of "
                'the structure "informed" need them: a model must observe the same sites whenever it gets the same '
                "arguments."
            )
        locs, scales = [], []
        for name in self.block:
            fn = _plain(trace.nodes[name]["fn"])
            locs.append(fn.loc.expand(self.layout[name].shape).reshape(-1))
            scales.append(fn.scale.expand(self.layout[name].shape).reshape(-1))
        return torch.cat(locations), torch.cat(log_precisions), torch.cat(locs), torch.cat(scales)


def find_linear_block(
    model: Model, layout: Layout, points: Tensor, args: tuple, kwargs: dict, *, may_nest: bool = False
) -> LinearBlock | None:
    """Finds the greatest block of sites, from the last to the first, in which observed locations are affine, if any.

    Sites qualify if their prior has a location and a scale that do not depend on the block, and if the observations'
    own scales do not either. Observations qualify if they are normal, log-normal, Student, Laplace, Bernoulli,
    binomial, categorical or Poisson.

    Args:
        points: At least four points at which to try, shape `(P, D)`.
        may_nest: Whether prior locations may be affine in the block too, as in hierarchies of normals.
    """
    found = None
    with outside_of_pyro(), torch.no_grad():
        values = layout.constrain(points[0])[0]
        trace = trace_one(model, values, args, kwargs)
        if not _observed(trace, layout):
            return None
        for site in reversed(layout.sites):
            sites = (site.name, *(found.block if found else ()))
            is_known = isinstance(_plain(trace.nodes[site.name]["fn"]), _PRIORS) and site.is_unconstrained
            if is_known and sum(layout[name].size for name in sites) <= MAX_BLOCK:
                candidate = LinearBlock(model, layout, sites, is_nested=may_nest)
                if _is_affine(candidate, site, points, args, kwargs):
                    found = candidate
        if found is None:
            return None
        is_sharp = bool((found.observe(values, args, kwargs)[1] > 0).any())
        is_exact = _is_normal(trace, layout, found.block)
        answer = found(points[:3], args, kwargs)
        derivatives, own = [answer.jacobian], answer.log_precision
        is_nested = may_nest and bool((answer.prior_jacobian.abs() > _TOLERANCE).any())
        if is_nested:
            derivatives.append(answer.prior_jacobian)
        is_constant = all(torch.allclose(d, d[:1].expand_as(d), rtol=_TOLERANCE) for d in derivatives)
    return replace(
        found,
        is_sharp=is_sharp,
        is_exact=is_exact,
        is_constant=is_constant,
        is_level=bool((own == own[:, :1]).all()),
        is_nested=is_nested,
    )


def _is_affine(candidate: LinearBlock, site: Site, points: Tensor, args: tuple, kwargs: dict) -> bool:
    """Whether what is observed is affine in the block, and depends on its last addition, the site."""
    layout = candidate.layout
    new, every = torch.zeros(layout.dim, device=points.device), torch.zeros(layout.dim, device=points.device)
    new[site.slice] = 1
    for name in candidate.block:
        every[layout[name].slice] = 1
    base = points[0] * (1 - every)
    one, two = points[1] * every, points[2] * every
    changes = [0 * one, one, two, one + two, 2 * one, -one, points[3] * new]
    trials = torch.stack([base + change for change in changes])

    def observe(w: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
        return candidate.observe(layout.constrain(w)[0], args, kwargs)

    f, log_precision, loc, scale = Vectorized(observe, mode="eager")(trials, args, kwargs)
    size = len(candidate.index)
    if f.shape[1] * size > MAX_NUMBERS or not all(bool(part.isfinite().all()) for part in (f, loc, scale)):
        return False
    held, affine = ((log_precision, scale), (f, loc)) if candidate.is_nested else ((log_precision, loc, scale), (f,))
    is_steady = all(torch.allclose(part, part[:1].expand_as(part), rtol=1e-4) for part in held)
    depends = any(float((f[6] - f[0]).abs().max()) > _rounding(f) for f in affine)
    return is_steady and depends and not any(map(_bends, affine))


def _bends(f: Tensor) -> bool:
    """Whether something is not affine, by its values of shape `(7, n)` at the changes that `_is_affine` makes."""
    zero, at_one, at_two, at_both, at_double, at_minus, _ = f
    # Sums, multiples and, lest |b| or relu(b) pass, the opposite.
    bends = (at_both - at_one - at_two + zero, at_double - 2 * at_one + zero, at_one + at_minus - 2 * zero)
    return max(float(bend.abs().max()) for bend in bends) > _rounding(f)


def _rounding(f: Tensor) -> float:
    return _TOLERANCE * (1e-6 + float(f.abs().max()))


def _is_normal(trace: Trace, layout: Layout, block: tuple[str, ...]) -> bool:
    """Whether every observation and every prior of the block is normal, and none is masked."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or site_is_subsample(node) or (name in layout.names and name not in block):
            continue
        if node["is_observed"] and isinstance(_plain(node["fn"]), dist.Delta):
            continue  # pyro.deterministic
        if not isinstance(_plain(node["fn"]), (td.Normal, td.LogNormal)) or node["mask"] is not None:
            return False
    return True


@dataclass(frozen=True)
class _Family:
    """A kind of likelihood: its location, in which a linear model is linear, and where to start a Gaussian for it."""

    location: Callable[[Any], Tensor]
    start: Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def _as_observed(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.to(fn.loc).expand(fn.batch_shape)
    return y, torch.zeros_like(y)


def _as_logged(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return _as_observed(fn, y.log())


def _from_counts(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    count = getattr(fn, "total_count", torch.ones_like(fn.logits)).to(fn.logits).expand(fn.batch_shape)
    return (y.to(count) - count / 2) / (count / 4).clamp(min=1e-3), (count / 4).clamp(min=1e-3).log()


def _from_class(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    share = 1 / fn.logits.shape[-1]
    hot = torch.nn.functional.one_hot(y.long(), fn.logits.shape[-1]).to(fn.logits)
    target = (hot - share) / (share * (1 - share))
    return target, torch.full_like(target, share * (1 - share)).log()


def _from_rate(fn: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.to(fn.rate).expand(fn.batch_shape) + 0.5
    return y.log(), y.log()


_FAMILIES: dict[type, _Family] = {
    td.LogNormal: _Family(lambda fn: fn.loc, _as_logged),
    td.Normal: _Family(lambda fn: fn.loc, _as_observed),
    td.StudentT: _Family(lambda fn: fn.loc, _as_observed),
    td.Laplace: _Family(lambda fn: fn.loc, _as_observed),
    td.Bernoulli: _Family(lambda fn: fn.logits, _from_counts),
    td.Binomial: _Family(lambda fn: fn.logits, _from_counts),
    # Torch normalises logits, which is not linear; centred they are again what the model gave, but for a constant.
    td.Categorical: _Family(lambda fn: fn.logits - fn.logits.mean(-1, keepdim=True), _from_class),
    td.Poisson: _Family(lambda fn: fn.rate.log(), _from_rate),
}


def _family(fn: Any) -> _Family | None:
    return next((family for kind, family in _FAMILIES.items() if isinstance(fn, kind)), None)


def _plain(fn: Any) -> Any:
    while isinstance(fn, (td.Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _observed(trace: Trace, layout: Layout) -> list[tuple[str, dict, Any]]:
    """The observed sites whose likelihood is of a known kind."""
    found = []
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name not in layout.names and not site_is_subsample(node):
            fn = _plain(node["fn"])
            if node["is_observed"] and _family(fn) is not None and node["value"].shape == fn.batch_shape:
                found.append((name, node, fn))
    return found


def _log(scale: Any, like: Tensor, num_events: int) -> Tensor:
    scale = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
    return scale.log().reshape(scale.shape + (1,) * num_events if scale.dim() else ())

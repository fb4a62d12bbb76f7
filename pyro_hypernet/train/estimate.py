"""One estimate of the bound on the evidence, whose gradient is total or by paths alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from torch import Tensor

from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.model.density import LogJoint

VectorizedGuide = AutoContinuous | AutoNormal
# Draws with a density from the guide: the particles, shape `(K, D)`, their log q in nats, and the shares of q that they
# stand for, which sum to one, both of shape `(K,)`.
Particles = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Estimate:
    """One Monte Carlo estimate of the bound.

    Attributes:
        loss: Minus the bound in nats, shape `()`, detached.
        surrogate: A scalar whose gradient estimates that of the loss.
        w: The particles, shape `(K, D)`, detached.
        log_p: log p(data, w) of every particle in nats, shape `(K,)`, detached.
        log_q: log q(w) of every particle in nats, shape `(K,)`, detached.
        discrepancy: How far log q by the map's inverse, through which path gradients go, is from `log_q`, which the
            map itself gives: the greatest over particles, in units of `sqrt(D / 2)` nats, shape `()`; 0 without path
            gradients. Above MAX_DISCREPANCY rounding has the upper hand.
    """

    loss: Tensor
    surrogate: Tensor
    w: Tensor
    log_p: Tensor
    log_q: Tensor
    discrepancy: Tensor

    def numbers(self, gradients: Sequence[Tensor]) -> Tensor:
        """The loss, the discrepancy and the norm of the whole gradient, given in parts, shape `(3,)`."""
        norms = [torch.linalg.vector_norm(gradient).double() for gradient in gradients]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        return torch.stack([self.loss.double(), self.discrepancy.double(), norm])


def path_estimate(
    particles: Particles,
    log_prob: Callable[[Tensor], Tensor],
    log_joint: LogJoint,
    args: tuple,
    kwargs: dict,
    *,
    bound: str,
    is_learnt: bool,
) -> Estimate:
    """Without the score of q, whose mean is zero: by differentiable particles, and log q by the map's inverse.

    Where the model has parameters of its own, `is_learnt`, the surrogate's gradient by them counts too; log p is
    differentiated once, by both.

    Source: Roeder et al. 2017 ("sticking the landing"); Tucker et al. 2019 (DReG), for the importance weighted bound.
    """
    w, log_q, weights = particles
    leaf = w.detach().requires_grad_()
    by_inverse = log_prob(leaf)
    (score_q,) = torch.autograd.grad(by_inverse.sum(), leaf)
    if is_learnt:
        # By the weights and by the parameters at once: the surrogate goes through log p itself.
        through = w.view_as(w)
        log_p = log_joint(through, *args, **kwargs)
        value = log_p.detach()
    else:
        value, score_p = log_joint.value_and_grad(leaf, *args, **kwargs)
    log_weights = value - log_q.detach()
    share = _shares(log_weights, weights.detach(), bound)
    squared = share if bound == "elbo" else share**2 / (weights.detach() * len(w))
    if is_learnt:
        if bound != "elbo" and through.requires_grad:
            through.register_hook(lambda gradient: gradient * (share / (weights.detach() * len(w)))[:, None])
        surrogate = (squared[:, None] * score_q * w).sum() - (share * log_p).sum()
    else:
        surrogate = -(squared[:, None] * (score_p - score_q) * w).sum()
    if weights.requires_grad:  # of a mixture: better components gain weight
        surrogate = surrogate - reduce(log_weights, weights, bound)
    loss = -reduce(log_weights, weights.detach(), bound)
    discrepancy = _discrepancy(log_q.detach(), by_inverse.detach(), w.shape[-1])
    return Estimate(loss, surrogate, leaf.detach(), value, log_q.detach(), discrepancy)


def total_estimate(
    particles: Particles, log_joint: LogJoint, args: tuple, kwargs: dict, *, bound: str, is_learnt: bool
) -> Estimate:
    """The gradient of log p − log q as it stands; arguments as of `path_estimate`."""
    w, log_q, weights = particles
    if is_learnt:
        log_p = log_joint(w, *args, **kwargs)
        value = log_p.detach()
    else:
        value, score = log_joint.value_and_grad(w, *args, **kwargs)
        linear = (score * w).sum(-1)
        log_p = value + (linear - linear.detach())
    surrogate = -reduce(log_p - log_q, weights, bound)
    loss = -reduce(value - log_q.detach(), weights.detach(), bound)
    return Estimate(loss, surrogate, w.detach(), value, log_q.detach(), torch.zeros_like(loss))


def densities(
    guide: VectorizedGuide, args: tuple, kwargs: dict, share: slice | None = None
) -> tuple[Callable[[int], Particles], Callable[[Tensor], Tensor]]:
    """How to draw with a density from the guide, and how to score given weights, in nats."""
    if isinstance(guide, JointGuide):
        sample = guide.sample_strata if share is None else partial(guide.sample_strata, share=share)
        return sample, guide.unconstrained_log_prob
    with guide._pyro_context:  # PyroParams of Pyro's guides announce themselves only in their module's context
        posterior = flat_normal(guide) if isinstance(guide, AutoNormal) else guide.get_posterior(*args, **kwargs)

    def sample(num_samples: int) -> Particles:
        w = posterior.rsample((num_samples,))
        log_q = posterior.log_prob(w)
        return w, log_q, torch.full_like(log_q, 1 / num_samples)

    return sample, posterior.log_prob


def flat_normal(guide: AutoNormal) -> dist.TorchDistribution:
    """The mean field of AutoNormal, site by site, as one normal over all unconstrained weights."""
    locs_and_scales = [guide._get_loc_and_scale(name) for name, _ in guide.prototype_trace.iter_stochastic_nodes()]
    loc, scale = (torch.cat([value.reshape(-1) for value in values]) for values in zip(*locs_and_scales, strict=True))
    return dist.Normal(loc, scale).to_event(1)


def _discrepancy(log_q: Tensor, by_inverse: Tensor, dim: int) -> Tensor:
    """See `Estimate`; where the map itself gives no number, the inverse is not to blame."""
    gap = (by_inverse - log_q).abs().nan_to_num(nan=math.inf, posinf=math.inf) / math.sqrt(dim / 2)
    return torch.where(log_q.isfinite(), gap, torch.zeros_like(gap)).max()


def reduce(log_weights: Tensor, weights: Tensor, bound: str) -> Tensor:
    """The bound in nats, shape `()`, from log p − log q of particles and the shares of q that they stand for."""
    if bound == "elbo":
        return (weights * log_weights).sum()
    return (log_weights + weights.log()).logsumexp(0)


def _shares(log_weights: Tensor, weights: Tensor, bound: str) -> Tensor:
    """Each particle's share in the bound's gradient, shape `(K,)`, summing to one."""
    return weights if bound == "elbo" else (log_weights + weights.log()).softmax(0)

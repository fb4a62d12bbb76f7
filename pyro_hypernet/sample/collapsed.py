"""The posterior with the weights integrated out to which normal observations answer linearly, such as a last layer."""

import math
from typing import Any

import torch
from pyro import validation_enabled
from torch import Tensor

from pyro_hypernet.informed.conditional import GaussianConditional
from pyro_hypernet.informed.linear_block import LinearBlock, Linearised, find_linear_block
from pyro_hypernet.model.density import split_density
from pyro_hypernet.model.vectorize import trace_one
from pyro_hypernet.target import Target, Whole

_NUM_POINTS = 16
# About so many numbers in the derivatives of one chunk of rows.
_MAX_NUMBERS = 2**20


class _Collapsed(Target):
    """p(data | a) and its prior, where the weights are a and a block b that is integrated out.

    Given a, observations and prior are jointly normal in b, with conditional mean m(a) and precision P(a), so that
    `log p(data | a) = log p(data, m(a) | a) + B/2 log 2π − 1/2 log |P(a)|`. Its gradient needs no derivative of m or of
    a Cholesky factor: m is where the first term is greatest, and `d log |P| = tr(P⁻¹ dP)`.

    Args:
        whole: The density over all weights.
        linear_block: How the observations depend on b; its `is_exact` must hold.
    """

    def __init__(self, whole: Whole, linear_block: LinearBlock) -> None:
        layout, args, kwargs = whole.layout, whole.args, whole.kwargs
        point = whole.sample_prior(1)
        targets, log_precisions = linear_block.start(point[0], args, kwargs)
        max_rows = max(16, min(256, _MAX_NUMBERS // (len(targets) * (len(linear_block.index) + 1))))
        super().__init__(whole.log_joint, args, kwargs, max_rows=max_rows)
        self.linear_block = linear_block
        self.conditional = GaussianConditional(linear_block, targets, log_precisions, args, kwargs)
        is_free = torch.ones(layout.dim, dtype=torch.bool, device=point.device)
        is_free[linear_block.index.to(point.device)] = False
        self.free, self.index = is_free.nonzero().flatten(), (~is_free).nonzero().flatten()

    @property
    def dim(self) -> int:
        return len(self.free)

    @property
    def collapsed(self) -> tuple[str, ...]:
        return self.linear_block.block

    def coordinates(self, w: Tensor) -> Tensor:
        return w[:, self.free]

    def complete(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), self.layout.dim, dtype=x.dtype, device=x.device)
        with torch.no_grad(), validation_enabled(False):
            return self.conditional.forward_and_log_det(noise.index_copy(1, self.free, x))[0]

    def parts_of_one(self, x: Tensor, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
        w = x.new_zeros(self.layout.dim).index_copy(0, self.free, x)
        answer = self.linear_block.answer_of_one(w, args, kwargs)
        mean, factor = self._mean_and_factor(answer)
        values, log_det = self.layout.constrain(w)
        sizes = [self.layout[name].size for name in self.linear_block.block]
        for name, part in zip(self.linear_block.block, mean.to(w).split(sizes), strict=True):
            values[name] = part.view(self.layout[name].shape)
        trace = trace_one(self.model, values, args, kwargs)
        log_prior, log_likelihood = split_density(trace, self.layout, log_det)
        of_block = sum(trace.nodes[name]["log_prob_sum"] for name in self.linear_block.block)
        at_mean = log_likelihood + of_block
        log_volume = len(mean) / 2 * math.log(2 * math.pi) - factor.diagonal().log().sum()
        slope = at_mean - _trace_of_product(torch.cholesky_inverse(factor).to(w), answer) / 2
        return log_prior - of_block, (at_mean.double() + log_volume).to(w), slope

    def _mean_and_factor(self, answer: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Mean of the block, shape `(B,)`, and Cholesky factor of its precision, of one draw; NaN where none exists."""
        centre, factor, is_one = self.conditional.solve(Linearised(*(part.detach()[None] for part in answer)))
        mean = torch.linalg.solve_triangular(factor.mT, centre, upper=True)
        return mean[0, :, 0], torch.where(is_one[0], factor[0], torch.nan)


def collapse(whole: Whole) -> Target:
    """The density with its linear block integrated out where that is exact, else as it is.

    Args:
        whole: The density over all weights.

    Raises:
        NotImplementedError: If the prior cannot be sampled.
    """
    linear_block = _find_exact_block(whole)
    if linear_block is not None:
        target = _Collapsed(whole, linear_block)
        if _is_exact(target):
            return target
    return whole


def _find_exact_block(whole: Whole) -> LinearBlock | None:
    """The block, or None where there is none, or where the model cannot be vmapped."""
    with torch.no_grad(), validation_enabled(False):
        draws = whole.sample_prior(_NUM_POINTS)
        points = draws[whole.log_prob(draws).isfinite()]
        if whole.log_joint.mode == "loop" or len(points) < 4:
            return None
        linear_block = find_linear_block(whole.model, whole.layout, points, whole.args, whole.kwargs)
    return linear_block if linear_block is not None and linear_block.is_exact else None


def _is_exact(target: _Collapsed) -> bool:
    """Whether p(data, a, b) / p(b | data, a) is the same at two values of b, which is what integrating out assumes."""
    a = target.sample_prior(_NUM_POINTS)
    with torch.no_grad(), validation_enabled(False):
        values = [_log_ratio(target, a) for _ in range(2)]
    return all(bool(v.isfinite().all()) for v in values) and torch.allclose(*values, rtol=1e-4, atol=1e-2)


def _log_ratio(target: _Collapsed, a: Tensor) -> Tensor:
    noise = torch.randn(len(a), target.layout.dim, dtype=a.dtype, device=a.device)
    w, log_det = target.conditional.forward_and_log_det(noise.index_copy(1, target.free, a))
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(noise[:, target.index]).sum(-1) - log_det
    return target.log_prob(w) - log_q


def _trace_of_product(covariance: Tensor, answer: tuple[Any, ...]) -> Tensor:
    """tr(C P) for the precision P that an answer implies, differentiable by the answer, for one draw."""
    _, jacobian, log_precision, _, prior_scale = answer
    leverage = ((jacobian @ covariance.detach()) * jacobian).sum(-1)
    return (log_precision.exp() * leverage).sum() + (covariance.detach().diagonal() * prior_scale**-2).sum()

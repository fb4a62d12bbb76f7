"""Rejection: of a guide's draws those are kept that the posterior wants, and the density stays exact."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_hypernet.guide.base import Base
from pyro_hypernet.model.arguments import Arguments

# Proposals are made in batches of these sizes, so that few graphs are captured.
SMALL_BATCH, BATCH = 64, 1024
_MAX_PROPOSALS_PER_DRAW = 100_000


class Rejection(nn.Module):
    """What turns noise into noise that the posterior wants: a threshold, a rate, and the data to judge by.

    A proposal `eps` of the base is kept with probability `a(eps) = min(1, W(eps) / c)`, where
    `W = p(data, w) / q(w)` at `w = T(eps)` is its importance weight. The density of what is kept is the base's
    times `a(eps) / Z`, where Z is the share that is kept.

    Source: Grover et al. 2018, "Variational rejection sampling", arXiv 1804.01712; as a base of a flow: Stimper et al.
    2022, arXiv 2110.15828, who learn `a`.

    Args:
        log_threshold: log c in nats, shape `()`.
        log_rate: log Z, shape `()`.
        rate_error: Standard error of log Z, in nats.
        arguments: The model's arguments, data included.
        is_shared: Whether these belong to another part of the guide, which moves and saves them.
    """

    def __init__(
        self, log_threshold: Tensor, log_rate: Tensor, rate_error: float, arguments: Arguments, *, is_shared: bool
    ) -> None:
        super().__init__()
        # Not part of the state: thresholds hold for one state of the parameters only. `save` writes them.
        self.register_buffer("log_threshold", log_threshold.detach().double(), persistent=False)
        self.register_buffer("log_rate", log_rate.detach().double(), persistent=False)
        self.rate_error = rate_error
        self.is_shared = is_shared
        self._arguments = (arguments,)  # in a tuple it is no module of this one
        if not is_shared:
            self.add_module("own", arguments)

    @property
    def rate(self) -> float:
        """Z, the share of proposals that are kept, in (0, 1]."""
        return math.exp(self.log_rate.item())

    @property
    def arguments(self) -> Arguments:
        """The model's arguments."""
        return self._arguments[0]

    def log_acceptance(self, log_weights: Tensor) -> Tensor:
        """log a, at most zero, from log W of shape `(...)`; −inf where log W is not a number."""
        return (log_weights.double() - self.log_threshold).clamp(max=0.0).nan_to_num(nan=-math.inf, neginf=-math.inf)


class Rejected(Base):
    """A base of which only those draws are kept that the posterior wants.

    Args:
        proposals: The base that is drawn from.
        rejection: Threshold and rate.
        log_weight: From proposals `(S, D)` and the model's arguments and keyword arguments to log W, `(S,)`.
    """

    def __init__(self, proposals: Base, rejection: Rejection, log_weight: Callable[..., Tensor]) -> None:
        super().__init__()
        self.proposals, self.rejection = proposals, rejection
        self.log_weight = partial(log_weight, rejection.arguments.values())

    def distribution(self) -> dist.TorchDistribution:
        return _Kept(self.proposals.distribution(), self.log_weight, self.rejection)

    def log_prob(self, eps: Tensor) -> Tensor:
        with torch.no_grad():  # piecewise: where a draw is always kept, the gradient is the proposals'
            change = self.distribution().log_change(eps)
        return self.proposals.log_prob(eps) + change

    def place(self, noise: Tensor) -> Tensor:
        eps = self.proposals.place(noise)
        log_weights = torch.cat([self.log_weight(part) for part in eps.split(BATCH)])
        accept = self.rejection.log_acceptance(log_weights).exp()
        # Systematic: the kept are spread evenly over the sum of probabilities, from a start of one half.
        total = accept.cumsum(0) + 0.5
        kept = total.floor() > (total - accept).floor()
        return eps[kept if bool(kept.any()) else accept == accept.max()]


class _Kept(dist.TorchDistribution):
    """A base distribution of which only some draws are kept.

    Args:
        base: The distribution of proposals, of vectors of length D.
        log_weight: From proposals `(S, D)` to log W, `(S,)`.
        rejection: Threshold and rate.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own interface
    support = constraints.real_vector
    has_rsample = True  # gradients go through the map; which proposals are kept is held fixed

    def __init__(
        self, base: dist.TorchDistribution, log_weight: Callable[[Tensor], Tensor], rejection: Rejection
    ) -> None:
        self.base = base
        self.log_weight = log_weight
        self.rejection = rejection
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Rejected":
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self._draw(shape.numel()).reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value) + self.log_change(value)

    def log_change(self, value: Tensor) -> Tensor:
        """What the log density of points of shape `(..., D)` gains, in nats, shape `(...)`."""
        flat = value.reshape(-1, value.shape[-1])
        log_accept = self.rejection.log_acceptance(torch.cat([self._weigh(part) for part in flat.split(BATCH)]))
        return (log_accept - self.rejection.log_rate).reshape(value.shape[:-1]).to(value.dtype)

    @torch.no_grad()
    def _draw(self, number: int) -> Tensor:
        size = SMALL_BATCH if number / self.rejection.rate <= 4 * SMALL_BATCH else BATCH
        kept, missing = [], number
        for _ in range(1 + number * _MAX_PROPOSALS_PER_DRAW // size):
            proposals = self.base.sample((size,))
            log_accept = self.rejection.log_acceptance(self._weigh(proposals))
            good = proposals[torch.rand_like(log_accept).log() < log_accept][:missing]
            kept.append(good)
            missing -= len(good)
            if missing == 0:
                return torch.cat(kept)
        raise RuntimeError(
            f"Of {_MAX_PROPOSALS_PER_DRAW} proposals per draw too few were kept: the data of the fit have changed. "
            "Fit again, or drop the rejection with guide.reject(None)."
        )

    def _weigh(self, proposals: Tensor) -> Tensor:
        """log W, padded to one of two batch sizes so that its graphs are captured once."""
        count = len(proposals)
        size = SMALL_BATCH if count <= SMALL_BATCH else BATCH
        padded = torch.cat([proposals, proposals[:1].expand(size - count, -1)]) if count < size else proposals
        return self.log_weight(padded)[:count]


@dataclass(frozen=True)
class Choice:
    """A rate of rejection, and what it buys.

    Attributes:
        log_threshold: log c in nats.
        log_rate: log Z, below zero.
        rate_error: Standard error of log Z.
        elbo: The bound of the guide with rejection, in nats.
        log_evidence: What the same weights say of the log evidence, in nats; it is at least `elbo`.
    """

    log_threshold: float
    log_rate: float
    rate_error: float
    elbo: float
    log_evidence: float


def choose(log_weights: Tensor, rates: tuple[float, ...], *, gap: float) -> Choice:
    """The greatest of some rates whose bound comes within `gap` nats of the log evidence; the least where none does.

    Args:
        log_weights: log W of proposals, shape `(S,)`, in nats; −inf or NaN where a proposal is worthless.
        rates: Shares of proposals to keep, in (0, 1).
        gap: In nats.
    """
    log_weights = log_weights.double().nan_to_num(nan=-math.inf, neginf=-math.inf)
    log_evidence = float(log_weights.logsumexp(0)) - math.log(len(log_weights))
    for rate in sorted(rates, reverse=True):
        log_c = _threshold(log_weights, rate)
        log_accept = (log_weights - log_c).clamp(max=0.0)
        accept = log_accept.exp()
        log_rate = float(accept.mean().log())
        kept = accept > 0
        # Under the kept draws log p − log q is log W − log a + log Z.
        bound = float((accept[kept] * (log_weights - log_accept)[kept]).sum() / accept.sum()) + log_rate
        error = float(accept.std() / accept.mean()) / math.sqrt(len(accept))
        best = Choice(log_c, log_rate, error, bound, log_evidence)
        if log_evidence - bound <= gap:
            break
    return best


def _threshold(log_weights: Tensor, rate: float) -> float:
    """The log c at which the mean of min(1, W / c) is `rate`, by bisection."""
    finite = log_weights[log_weights.isfinite()]
    if len(finite) == 0:
        raise ValueError("No proposal of the guide has a finite weight: nothing can be chosen among them. Fit first.")
    low, high = float(finite.min()) - 1.0, float(finite.max()) - math.log(rate) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if float((log_weights - middle).clamp(max=0.0).exp().mean()) > rate:
            low = middle
        else:
            high = middle
    return high

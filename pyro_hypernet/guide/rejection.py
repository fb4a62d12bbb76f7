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
from pyro_hypernet.shown import Shown

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
        log_threshold: log c in nats, a number or of shape `()`.
        log_rate: log Z, likewise.
        rate_error: Standard error of log Z, in nats.
        arguments: The model's arguments, data included.
        is_shared: Whether these belong to another part of the guide, which moves and saves them.
    """

    def __init__(
        self,
        log_threshold: Tensor | float,
        log_rate: Tensor | float,
        rate_error: float,
        arguments: Arguments,
        *,
        is_shared: bool,
    ) -> None:
        super().__init__()
        # Not part of the state: thresholds hold for one state of the parameters only. `save` writes them.
        for name, number in {"log_threshold": log_threshold, "log_rate": log_rate}.items():
            self.register_buffer(name, torch.as_tensor(number, dtype=torch.float64), persistent=False)
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


class Rejected(dist.TorchDistribution, Base):
    """A base of which only those draws are kept that the posterior wants.

    Gradients go through the map; which proposals are kept is held fixed.

    Args:
        proposals: The base that is drawn from.
        rejection: Threshold and rate.
        weigh: From the model's arguments and proposals `(S, D)` to log W, `(S,)`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own interface
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, proposals: Base, rejection: Rejection, weigh: Callable[..., Tensor]) -> None:
        self.proposals, self.rejection = proposals, rejection
        self._weigh = partial(weigh, rejection.arguments.values())
        super().__init__(torch.Size(), proposals.distribution().event_shape, validate_args=False)

    @property
    def rate(self) -> float:
        return self.rejection.rate

    def distribution(self) -> dist.TorchDistribution:
        return self

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self._draw(shape.numel()).reshape(shape + self.event_shape)

    def log_prob(self, eps: Tensor) -> Tensor:
        flat = eps.reshape(-1, eps.shape[-1])
        with torch.no_grad():  # piecewise: where a draw is always kept, the gradient is the proposals'
            log_accept = torch.cat([self._log_acceptance(part) for part in flat.split(BATCH)])
            change = (log_accept - self.rejection.log_rate).reshape(eps.shape[:-1]).to(eps.dtype)
        return self.proposals.log_prob(eps) + change

    def place(self, noise: Tensor) -> Tensor:
        eps = self.proposals.place(noise)
        accept = torch.cat([self._log_acceptance(part) for part in eps.split(BATCH)]).exp()
        # Systematic: the kept are spread evenly over the sum of probabilities, from a start of one half.
        total = accept.cumsum(0) + 0.5
        kept = total.floor() > (total - accept).floor()
        return eps[kept if bool(kept.any()) else accept == accept.max()]

    @torch.no_grad()
    def _draw(self, number: int) -> Tensor:
        base = self.proposals.distribution()
        size = SMALL_BATCH if number / self.rate <= 4 * SMALL_BATCH else BATCH
        kept, missing = [], number
        for _ in range(1 + number * _MAX_PROPOSALS_PER_DRAW // size):
            proposals = base.sample((size,))
            log_accept = self._log_acceptance(proposals)
            good = proposals[torch.rand_like(log_accept).log() < log_accept][:missing]
            kept.append(good)
            missing -= len(good)
            if missing == 0:
                return torch.cat(kept)
        raise RuntimeError(
            f"Of {_MAX_PROPOSALS_PER_DRAW} proposals per draw too few were kept: the data of the fit have changed. "
            "Fit again, or drop the rejection with guide.reject(None)."
        )

    def _log_acceptance(self, proposals: Tensor) -> Tensor:
        """Shape `(S,)`; padded to one of two batch sizes so that the graphs of the weights are captured once."""
        count = len(proposals)
        size = SMALL_BATCH if count <= SMALL_BATCH else BATCH
        padded = torch.cat([proposals, proposals[:1].expand(size - count, -1)]) if count < size else proposals
        return self.rejection.log_acceptance(self._weigh(padded)[:count])


@dataclass(frozen=True, repr=False)
class Choice(Shown):
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


def choose_rate(log_weights: Tensor, rates: tuple[float, ...], *, gap: float) -> Choice:
    """The greatest of some rates whose bound comes within `gap` nats of the log evidence; the least where none does.

    Args:
        log_weights: log W of proposals, shape `(S,)`, in nats; −inf or NaN where a proposal is worthless.
        rates: Shares of proposals to keep, in (0, 1).
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

"""What a fit has reached, by fresh draws: the parameters that it kept, held against those that it started from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_hypernet.graphs.run import same_random_numbers
from pyro_hypernet.train.optimiser import swap
from pyro_hypernet.train.step import Step
from pyro_hypernet.train.training import Trainer

# One in so many steps is made once more, and these at least; up to one in twenty where minibatches make noise: all
# those of a pass, and of a model that draws them itself so many.
_SHARE, _LEAST, _PASS_SHARE = 100, 4, 20
# The start is measured where its first estimate is not further below, in standard errors of it.
_STANDARD_ERRORS = 5.0
# Of the draws: where so many count, their weights show the evidence, and what is missing to it.
_EFFECTIVE = 0.5


@dataclass(frozen=True)
class _Measured:
    """Bounds in nats, look by look, NaN where not possible, shape `(L,)`; and the log weights behind them, `(L, K)`."""

    bounds: Tensor
    log_weights: Tensor

    @property
    def bound(self) -> float:
        """The mean bound; NaN where none is finite."""
        return float(self.bounds.nanmean())

    @property
    def gap(self) -> float:
        """What the bound lacks of the evidence that the same weights show, in nats."""
        flat = self.log_weights.flatten()
        return float(flat.logsumexp(0) - math.log(len(flat)) - flat.mean())

    @property
    def effective(self) -> float:
        """The share of the draws that count."""
        shares = self.log_weights.flatten().softmax(0)
        return 1 / float((shares**2).sum()) / len(shares)

    @property
    def variance(self) -> float:
        """Of a log weight around its look's mean: all batches aside, in nats squared."""
        return float(self.log_weights.var(1, correction=0).nanmean())


def verify(trainer: Trainer, start: list[Tensor] | None, num_steps: int, reached: float) -> float:
    """Measures the bound afresh, and goes back to the start where that is better.

    The same noise and batches serve both, and no random number of the caller's is used up. Where the evidence is the
    same for both and their weights are even enough to show it, the smaller distance from it wins, which tells exact
    guides from nearly exact ones; else the greater bound.

    Args:
        trainer: What evaluates steps; its parameters are those kept.
        start: The parameters at the start, or None to stay with those kept; the others of both end here.
        num_steps: The steps made.
        reached: The bound in nats that training has seen.

    Returns:
        The bound in nats; `reached` where no estimate is finite.
    """
    looks = trainer.looks(_count(trainer, num_steps))
    vectors = trainer.parameters.vectors
    with same_random_numbers(vectors):
        seed = int(torch.randint(2**62, (1,)))  # not the noise of what is drawn next
    kept = _measure(looks, vectors, seed, trainer.least_loss)
    if start is None:
        return kept.bound if math.isfinite(kept.bound) else reached
    swap(vectors, start)
    first = _measure(looks[:_LEAST], vectors, seed, trainer.least_loss)
    if _may_win(first, kept):
        first = _measure(looks, vectors, seed, trainer.least_loss)
        if _is_better(first, kept, trainer):
            return first.bound
    swap(vectors, start)
    return kept.bound if math.isfinite(kept.bound) else reached


def _count(trainer: Trainer, num_steps: int) -> int:
    """How many estimates: whole passes over the minibatches where they are short."""
    least, length = max(_LEAST, num_steps // _SHARE), trainer.batches.length
    if trainer.batches.is_fixed:
        return max(_LEAST, num_steps // _PASS_SHARE) if trainer.traits.noise else least
    if length is not None and length <= max(_LEAST, num_steps // _PASS_SHARE):
        return length * math.ceil(least / length)
    return 2 * least


def _may_win(first: _Measured, kept: _Measured) -> bool:
    """Whether a few estimates at the start leave it possible that it was better."""
    bounds = kept.bounds[: len(first.bounds)]
    difference = float((first.bounds - bounds).nanmean())
    if math.isnan(difference):
        return math.isnan(kept.bound) and math.isfinite(first.bound)
    error = math.sqrt((first.variance + kept.variance) / first.log_weights.numel())
    return difference >= -_STANDARD_ERRORS * error


def _is_better(first: _Measured, kept: _Measured, trainer: Trainer) -> bool:
    if math.isnan(kept.bound) or not bool(first.log_weights.isfinite().all()):
        return math.isnan(kept.bound) and math.isfinite(first.bound)
    if trainer.has_one_target and min(first.effective, kept.effective) > _EFFECTIVE:
        return first.gap <= kept.gap
    return first.bound >= kept.bound


def _measure(looks: list[Callable[[], Step]], vectors: list[Tensor], seed: int, least_loss: float) -> _Measured:
    bounds, log_weights = [], []
    with same_random_numbers(vectors):
        torch.manual_seed(seed)
        for look in looks:
            step = look()
            bounds.append(-step.loss if math.isfinite(step.loss) and step.loss >= least_loss else math.nan)
            log_weights.append((step.particles[1] - step.particles[2]).double())
            del step  # its gradients, before the next look makes others
    return _Measured(torch.tensor(bounds, dtype=torch.float64), torch.stack(log_weights))

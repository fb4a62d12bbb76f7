"""The log evidence, between two figures: from a guide's own draws below, from draws of the posterior above."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_hypernet.sample.tempering import log_mean_exp
from pyro_hypernet.shown import Shown


@dataclass(frozen=True, repr=False)
class Bracket(Shown):
    """Two figures around the log evidence.

    Attributes:
        lower: In nats; a lower bound in expectation, whatever the guide.
        lower_error: Its standard error, by the delta method; too small where k-hat is above 0.7.
        upper: In nats; an upper bound in expectation if the draws of the posterior are exact ones. Draws of
            `refine` or of a Markov chain are nearly so: then it is an estimate from above and no bound. NaN without.
        upper_error: Its standard error, to which the guide's draws add theirs: every particle but one is one of them.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float

    @property
    def width(self) -> float:
        """`upper − lower` in nats: how much the guide can at most lack; NaN without an upper figure."""
        return self.upper - self.lower


def evidence_bracket(
    log_weights: Tensor, posterior_log_weights: Tensor | None = None, *, num_particles: int | None = None
) -> Bracket:
    """A lower and an upper figure for the log evidence.

    Lower: `E log mean_k w_k <= log Z` with K draws of q (Burda et al. 2016). Upper: `E log mean_k w_k >= log Z` where
    one of the K draws comes from the posterior and the others from q; for K = 1 that is `E_p[log p − log q] =
    log Z + KL(p || q)`. Both close in on log Z as K grows. CUBO (Dieng et al. 2017), `log E_q[w²] / 2`, is left out: it
    is a bound, but its estimate from draws is biased to below and so bounds nothing.

    Args:
        log_weights: `log p − log q` of S independent draws of the guide, in nats, shape `(S,)`.
        posterior_log_weights: The same at R draws of the posterior, shape `(R,)`; None for no upper figure.
        num_particles: K; None for all S draws at once in the lower figure, and S / 10 or 100 in the upper one.

    Raises:
        ValueError: If `num_particles` is out of its range.

    Source: Burda, Grosse and Salakhutdinov 2016; upper bound: Grosse, Ghahramani and Adams 2015 (BDMC), in this form
        Brekelmans et al. 2022, arXiv 2303.06992, section 3.

    Example:
        >>> exact = torch.full((100,), -3.0)
        >>> bracket = evidence_bracket(exact, exact[:10])
        >>> round(bracket.lower, 6), round(bracket.upper, 6)
        (-3.0, -3.0)
    """
    size = len(log_weights)
    lower = float(_lower_bound(log_weights, size if num_particles is None else num_particles))
    shares = log_weights.softmax(0)
    lower_error = float(((shares**2).sum() - 1 / size).clamp(min=0).sqrt())
    if posterior_log_weights is None or not len(posterior_log_weights):
        return Bracket(lower, lower_error, math.nan, math.nan)
    k = max(1, min(100, size // 10)) if num_particles is None else num_particles
    values = _with_one_exact(log_weights, posterior_log_weights, k)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Bracket(lower, lower_error, float(values.mean()), math.hypot(error, (k - 1) / k * lower_error))


def _with_one_exact(log_weights: Tensor, exact: Tensor, num_particles: int) -> Tensor:
    """`log mean_k w_k` for every draw of the posterior, together with draws of q taken at random, shape `(R,)`."""
    others = torch.randint(len(log_weights), (len(exact), num_particles - 1), device=log_weights.device)
    groups = torch.cat([exact[:, None].to(log_weights), log_weights[others]], dim=1)
    return log_mean_exp(groups)


def _lower_bound(log_weights: Tensor, num_particles: int) -> Tensor:
    """`E log mean_k w_k` in nats, a scalar; a remainder of S over K is left out."""
    if not 1 <= num_particles <= len(log_weights):
        raise ValueError(f"num_particles must lie between 1 and {len(log_weights)}, the draws; got {num_particles}.")
    groups = log_weights[: len(log_weights) // num_particles * num_particles].reshape(-1, num_particles)
    return log_mean_exp(groups).mean()

"""Whether a guide covers a posterior of which draws are at hand."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.sample.tempering import log_mean_exp
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Target

# Weights above this quantile of the guide's own are such as it practically never draws.
_QUANTILE = 0.995


@dataclass(frozen=True, repr=False)
class Coverage(Shown):
    """A guide q held against draws of the posterior p.

    Attributes:
        lower: Mean of log p(data, w) − log q(w) over draws of q, in nats: the ELBO, log evidence − KL(q ‖ p).
        upper: The same mean over draws of p: log evidence + KL(p ‖ q); huge where q misses a part of p.
        log_evidence: By importance weights of q's draws, in nats; too small where q misses a part of p.
        missed: Share of p's draws whose weight exceeds what q's own draws reach (their 99.5 % quantile, that much
            taken off): .5 where q has one of two equal modes, 0 where q = p.
    """

    lower: float
    upper: float
    log_evidence: float
    missed: float


def cover(target: Target, guide: JointGuide, samples: dict[str, Tensor], *, num_samples: int) -> Coverage:
    """Holds a guide against draws of the posterior.

    Args:
        target: The model with its arguments.
        guide: A trained guide of the same model.
        samples: A dict from site to draws of the posterior, shape `(S, *shape)`.
        num_samples: Draws of the guide.
    """
    with torch.no_grad():
        guide.setup(*target.args, **target.kwargs)
        w, log_q = guide.sample_and_log_prob(num_samples)
        own = (target.log_prob(w) - log_q).double()
        true = target.log_density(samples) - guide.log_prob(samples).double()
    limit = own.quantile(_QUANTILE)
    beyond = float((true > limit).double().mean())
    return Coverage(
        lower=float(own.mean()),
        upper=float(true.mean()),
        log_evidence=float(log_mean_exp(own)),
        missed=max(0.0, (beyond - (1 - _QUANTILE)) / _QUANTILE),
    )

"""Importance resampling: draws of a guide kept in proportion to their weights."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.evidence import evidence_bracket
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT, finite_log_weights, weighted_draws
from pyro_hypernet.evaluation.psis import smoothed
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.sample.tempering import effective_sample_size, resample_systematically
from pyro_hypernet.shown import Shown


@dataclass(frozen=True, repr=False)
class Resampled(Shown):
    """Draws of a guide, resampled.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted.
        log_evidence: Log of the mean weight in nats: a lower bound on log p(data) in expectation.
        log_evidence_error: Its standard error; too small where k-hat is above 0.7.
        ess: Effective number of the proposals, `(Σ w)² / Σ w²`.
        khat: Pareto shape of the weights' tail; above 0.7 the draws are not to be believed. NaN where
            `smooth=False`.
        num_distinct: How many of the draws differ.
        num_proposals: Draws of the guide behind them.
    """

    samples: dict[str, Tensor] = field(repr=False)
    log_evidence: float
    log_evidence_error: float
    ess: float
    khat: float
    num_distinct: int
    num_proposals: int


@torch.no_grad()
def resample(
    model: Model,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    num_proposals: int | None = None,
    smooth: bool = True,
    replacement: bool = True,
    **kwargs: Any,
) -> Resampled:
    """Corrects a guide by drawing many times from it and keeping draws in proportion to `p / q`.

    Args:
        model: The Pyro model.
        guide: A trained guide with a density: an AutoHypernet or any other Pyro guide of all latent sites.
        args: The model's arguments, data included.
        num_samples: Draws to keep S.
        num_proposals: Draws of the guide; None for `10 * num_samples`.
        smooth: Whether the largest weights are replaced by those of a fitted Pareto tail (PSIS), which tames them.
        replacement: With: systematic resampling, unbiased, draws may repeat. Without: no draw twice, so towards the
            guide where few draws have most of the weight (Gelman et al.); needs `num_samples <= num_proposals`.
        kwargs: The model's keyword arguments.

    Returns:
        Draws and what says whether to believe them. A warning says so where k-hat is above 0.7.

    Raises:
        TypeError: If the guide is none or a point estimate.
        ValueError: If a number is out of range, or no draw has a finite density.

    Source: Rubin 1987 (sampling importance resampling); Vehtari et al. 2024 (smoothing); without replacement: Gelman
        et al., Bayesian Data Analysis, 2013, section 10.4, drawn here by the Gumbel top-k trick.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_hypernet.guide.auto_hypernet import AutoHypernet
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoHypernet(model, init_scale=1.0).setup(torch.ones(3))
        >>> resample(model, guide, torch.ones(3), num_samples=50).samples["mean"].shape
        torch.Size([50])
    """
    num_proposals = 10 * num_samples if num_proposals is None else num_proposals
    if num_samples < 1 or num_proposals < 5 or (not replacement and num_samples > num_proposals):
        raise ValueError(
            "num_samples must be positive, num_proposals at least 5 and, without replacement, at least num_samples; "
            f"got {num_samples} and {num_proposals}."
        )
    proposals = weighted_draws(model, guide, *args, num_samples=num_proposals, what="resample", **kwargs)
    log_weights = finite_log_weights(proposals.log_weights)
    shares, khat = log_weights.log_softmax(0), math.nan
    if smooth and float(log_weights.max() - log_weights.min()) > 0:
        shares, khat = smoothed(log_weights)
        shares = shares.to(log_weights.device)
    index = choose(shares, num_samples, replacement=replacement)
    if khat > BELIEVABLE_KHAT:
        warnings.warn(
            f"Resampling cannot correct this guide: k-hat of its weights is {khat:.2f}, above {BELIEVABLE_KHAT}. "
            "Train longer, use a richer guide, or refine(model, *args).",
            stacklevel=3,
        )
    evidence = evidence_bracket(log_weights)
    return Resampled(
        samples=proposals.take(index).samples,
        log_evidence=evidence.lower,
        log_evidence_error=evidence.lower_error,
        ess=float(effective_sample_size(log_weights)),
        khat=khat,
        num_distinct=len(index.unique()),
        num_proposals=num_proposals,
    )


def choose(log_shares: Tensor, num_samples: int, *, replacement: bool = True) -> Tensor:
    """Numbers of the R draws to keep, shape `(R,)`, in random order, by log weights in nats, up to a constant, `(S,)`.

    With replacement by systematic resampling, without by the Gumbel top-k trick.
    """
    if not replacement:
        gumbel = -torch.log(-torch.log(torch.rand_like(log_shares)))
        return (log_shares + gumbel).topk(num_samples).indices
    index = resample_systematically(log_shares[None], num_samples)
    return index[torch.randperm(num_samples, device=index.device)]

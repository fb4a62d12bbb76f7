"""A sign that the data leave open: the posterior is a mixture of two known Gaussians."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.problem import Problem

PRIOR_SD, NOISE, POSITIVE = 2.0, 0.5, 0.7


def model(y: Tensor) -> None:
    """`z ~ N(0, 2² I)`; y is `z + noise` with probability 0.7, else `-z + noise`."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), y.new_tensor(PRIOR_SD)).to_event(1))
    parts = dist.Normal(torch.stack([z, -z]), y.new_tensor(NOISE)).to_event(1)
    weights = dist.Categorical(probs=y.new_tensor([POSITIVE, 1 - POSITIVE]))
    pyro.sample("y", dist.MixtureSameFamily(weights, parts), obs=y)


def two_modes() -> Problem:
    """Two modes, almost 8 of their sds apart per coordinate, with masses 0.7 and 0.3."""
    y = torch.tensor([2.0, 2.0])
    shrink = PRIOR_SD**2 / (PRIOR_SD**2 + NOISE**2)
    mode, variance = shrink * y, shrink * NOISE**2
    mean = (2 * POSITIVE - 1) * mode
    covariance = variance * torch.eye(2).to(y) + torch.outer(mode, mode) - torch.outer(mean, mean)
    evidence = dist.Normal(0.0, math.hypot(PRIOR_SD, NOISE)).log_prob(y).sum()
    return Problem(
        name="two-modes",
        description="Two separate modes of known place, width and mass.",
        model=model,
        args=(y,),
        truth={
            "mean": {"z": mean},
            "sd": {"z": covariance.diagonal().sqrt()},
            "covariance": {"z": covariance},
            "log_evidence": float(evidence),
            "modes": [{"z": mode}, {"z": -mode}],
            "masses": [POSITIVE, 1 - POSITIVE],
        },
    )

"""Densities without data: the prior is the target, so the log evidence is zero."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.problem import Problem

FUNNEL_SD, BANANA_SD = 3.0, 0.3


def gaussian(loc: Tensor, scale_tril: Tensor) -> None:
    """`z ~ N(loc, L Lᵀ)`."""
    pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))


def correlated_gaussian() -> Problem:
    """Five coordinates with correlations 0.9 to the power of their distance and scales from 0.1 to 10."""
    index = torch.arange(5, dtype=torch.float64)
    scale = torch.logspace(-1, 1, 5, dtype=torch.float64)
    covariance = 0.9 ** (index[:, None] - index).abs() * scale[:, None] * scale
    dtype = torch.get_default_dtype()
    loc = torch.linspace(-1, 1, 5, dtype=dtype)
    return Problem(
        name="correlated-gaussian",
        description="A strongly correlated Gaussian with scales over two decades.",
        model=gaussian,
        args=(loc, torch.linalg.cholesky(covariance).to(dtype)),
        truth={
            "mean": {"z": loc},
            "sd": {"z": scale.to(dtype)},
            "covariance": {"z": covariance.to(dtype)},
            "log_evidence": 0.0,
        },
    )


def funnel_model(loc: Tensor) -> None:
    """`v ~ N(0, 3²)`, `x ~ N(loc, exp(v) I)`."""
    v = pyro.sample("v", dist.Normal(loc.new_zeros(()), loc.new_tensor(FUNNEL_SD)))
    pyro.sample("x", dist.Normal(loc, (v / 2).exp()).to_event(1))


def funnel() -> Problem:
    """Neal's funnel with ten coordinates."""
    loc = torch.zeros(9)
    sd = math.exp(FUNNEL_SD**2 / 4)
    return Problem(
        name="funnel",
        description="Neal's funnel: the scale of nine coordinates is the tenth.",
        model=funnel_model,
        args=(loc,),
        truth={
            "mean": {"v": loc.new_zeros(()), "x": loc},
            "sd": {"v": loc.new_tensor(FUNNEL_SD), "x": loc.new_full((9,), sd)},
            "log_evidence": 0.0,
        },
    )


def banana_model(loc: Tensor) -> None:
    """`a ~ N(loc, 1)`, `b ~ N(a², 0.3²)`."""
    a = pyro.sample("a", dist.Normal(loc, loc.new_tensor(1.0)))
    pyro.sample("b", dist.Normal(a**2, loc.new_tensor(BANANA_SD)))


def banana() -> Problem:
    """A Gaussian bent along a parabola."""
    loc = torch.zeros(())
    return Problem(
        name="banana",
        description="A thin curved sheet, as posteriors of networks are.",
        model=banana_model,
        args=(loc,),
        truth={
            "mean": {"a": loc, "b": loc + 1},
            "sd": {"a": loc + 1, "b": loc + math.sqrt(2 + BANANA_SD**2)},
            "log_evidence": 0.0,
        },
    )

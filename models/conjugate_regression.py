"""Linear regression with known noise: posterior and evidence in closed form."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.problem import Problem

PRIOR_SD, NOISE = 1.5, 0.5


def model(x: Tensor, y: Tensor | None = None) -> Tensor:
    """`w ~ N(0, 1.5² I)`, `y ~ N(x w, 0.5²)`; returns the mean, shape `(N,)`."""
    prior = dist.Normal(x.new_zeros(x.shape[1]), x.new_tensor(PRIOR_SD)).to_event(1)
    f = pyro.deterministic("f", x @ pyro.sample("w", prior), event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, f.new_tensor(NOISE)), obs=y)
    return f


def exact(x: Tensor, y: Tensor) -> dict:
    """The posterior's moments and the evidence.

    Args:
        x: Inputs, shape `(N, d)`.
        y: Targets, shape `(N,)`.

    Returns:
        As in `Problem.truth`.
    """
    x64, y64 = x.double(), y.double()
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    covariance = torch.linalg.inv(x64.T @ x64 / NOISE**2 + eye / PRIOR_SD**2)
    mean = covariance @ x64.T @ y64 / NOISE**2
    marginal = NOISE**2 * torch.eye(len(x), dtype=torch.float64) + PRIOR_SD**2 * x64 @ x64.T
    evidence = dist.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), marginal).log_prob(y64)
    return {
        "mean": {"w": mean.to(x.dtype)},
        "sd": {"w": covariance.diagonal().sqrt().to(x.dtype)},
        "covariance": {"w": covariance.to(x.dtype)},
        "log_evidence": float(evidence),
    }


def conjugate_regression() -> Problem:
    """Four correlated inputs, 40 data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.9 * x[:, 0] + 0.4 * x[:, 1]
    w = torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    y = x @ w + NOISE * torch.randn(40, generator=generator, dtype=torch.float64)
    x, y = x.to(torch.get_default_dtype()), y.to(torch.get_default_dtype())
    return Problem(
        name="conjugate-regression",
        description="Linear regression whose posterior and evidence are known in closed form.",
        model=model,
        args=(x, y),
        truth=exact(x, y),
        x_test=torch.randn(20, 4, generator=generator, dtype=torch.float64).to(x),
    )

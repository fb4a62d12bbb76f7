"""y = a b x: two weights of which the data see only the product, the smallest network with symmetric modes."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.problem import Problem

NOISE = 0.3


def model(x: Tensor, y: Tensor | None = None) -> Tensor:
    """`a, b ~ N(0, 1)`, `y ~ N(a b x, 0.3²)`; returns the mean, shape `(N,)`."""
    a, b = (pyro.sample(name, dist.Normal(x.new_zeros(()), x.new_ones(()))) for name in ("a", "b"))
    f = pyro.deterministic("f", a * b * x, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, f.new_tensor(NOISE)), obs=y)
    return f


def exact(x: Tensor, y: Tensor, *, points: int = 801, limit: float = 7.0) -> dict:
    """Moments and evidence by the trapezoidal rule on a square, exact to rounding for so smooth a density.

    Args:
        x: Inputs, shape `(N,)`.
        y: Targets, shape `(N,)`.
        points: Of the grid, along each axis.
        limit: The square is `[-limit, limit]²`.

    Returns:
        As in `Problem.truth`; the modes too, which lie on a = b for data of positive slope.
    """
    x64, y64 = x.double(), y.double()
    grid = torch.linspace(-limit, limit, points, dtype=torch.float64)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    sxx, sxy, syy = x64 @ x64, x64 @ y64, y64 @ y64
    log_prior = -0.5 * (a**2 + b**2) - math.log(2 * math.pi)
    residual = syy - 2 * a * b * sxy + (a * b) ** 2 * sxx
    log_joint = log_prior - 0.5 * residual / NOISE**2 - len(x) * math.log(NOISE * math.sqrt(2 * math.pi))
    log_evidence = log_joint.flatten().logsumexp(0) + 2 * (grid[1] - grid[0]).log()
    weights = (log_joint - log_joint.flatten().logsumexp(0)).exp()
    sd = (weights * a**2).sum().sqrt().to(x.dtype)
    top = (sxy / sxx - NOISE**2 / sxx).sqrt().to(x.dtype)
    zero = x.new_zeros(())
    return {
        "mean": {"a": zero, "b": zero},
        "sd": {"a": sd, "b": sd},
        "log_evidence": float(log_evidence),
        "modes": [{"a": top, "b": top}, {"a": -top, "b": -top}],
    }


def abx() -> Problem:
    """Ten data of slope 1.5."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 10)
    noise = torch.randn(10, generator=generator, dtype=torch.float64)
    y = 1.5 * x + NOISE * noise.to(x)
    return Problem(
        name="abx",
        description="Two modes on opposite branches of the hyperbola a b = slope.",
        model=model,
        args=(x, y),
        truth=exact(x, y),
        init_values={"a": x.new_ones(()), "b": x.new_ones(())},
        x_test=torch.linspace(-2, 2, 41),
    )

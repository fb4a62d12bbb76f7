"""Small tanh networks on made data: a regression with a gap, two classes, many useless inputs."""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from models.problem import Problem
from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.bnn.priors import fan_in


def tanh_network(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between, the same at every call, without touching torch's global generator.

    Args:
        widths: Inputs, hidden layers and outputs.
    """
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for fan, width in pairwise(widths):
        linear = skip_init(nn.Linear, fan, width)
        nn.init.normal_(linear.weight, std=1 / math.sqrt(fan), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def gap() -> Problem:
    """50 data in two clusters; between them the posterior should be wide."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 1, generator=generator, dtype=torch.float64)
    x = torch.where(torch.arange(50)[:, None] < 25, -1.5 + x, 0.5 + x)
    y = torch.sin(2 * x[:, 0]) + 0.3 * x[:, 0] + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)
    dtype = torch.get_default_dtype()
    return Problem(
        name="gap",
        description="1-D regression whose uncertainty should widen between two clusters of data.",
        model=bayesianize(tanh_network(1, 20, 1), Gaussian(sigma=0.1), prior=fan_in(gain=1.5)),
        args=(x.to(dtype), y.to(dtype)),
        x_test=torch.linspace(-2.5, 2.5, 101)[:, None],
    )


def two_class() -> Problem:
    """Two interleaved half circles, 100 data."""
    x, y = half_circles(100, seed=0)
    x_test, y_test = half_circles(200, seed=1)
    return Problem(
        name="two-class",
        description="Two half circles: a curved boundary that tanh units can draw in many ways.",
        model=bayesianize(tanh_network(2, 10, 1), "bernoulli", prior=fan_in(gain=1.5)),
        args=(x, y),
        x_test=x_test,
        y_test=y_test,
    )


def half_circles(num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles with noise of sd 0.15.

    Args:
        num: Number of data N.
        seed: Of the noise.

    Returns:
        Inputs, shape `(N, 2)`, and classes 0.0 and 1.0, shape `(N,)`.
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num, dtype=torch.float64) % 2
    angle = math.pi * torch.rand(num, generator=generator, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=-1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=-1)
    x = torch.where(y[:, None] == 0, upper, lower) - y.new_tensor([0.5, 0.25])
    x = x + 0.15 * torch.randn(num, 2, generator=generator, dtype=torch.float64)
    dtype = torch.get_default_dtype()
    return x.to(dtype), y.to(dtype)


def ard_model(x: Tensor, y: Tensor | None = None, *, hidden: int = 8) -> Tensor:
    """A tanh network with automatic relevance determination: every input has a scale of its own, and it is learnt.

    `scale_i ~ HalfCauchy(1)`, `W0_ij ~ N(0, scale_i²)`, `b0 ~ N(0, 1)`, `W1 ~ N(0, 1.5² / hidden)`, `b1 ~ N(0, 1)`,
    `sigma ~ LogNormal(-1.5, 0.75)`.

    Args:
        x: Inputs, shape `(N, d)`.
        y: Targets, shape `(N,)`, or None to sample them.
        hidden: Number of hidden units.

    Returns:
        The network's outputs, shape `(N, 1)`.
    """
    one = x.new_ones(())
    scale = pyro.sample("scale", dist.HalfCauchy(x.new_ones(x.shape[1])).to_event(1))
    w0 = pyro.sample("W0", dist.Normal(0 * one, scale[:, None].expand(-1, hidden)).to_event(2))
    b0 = pyro.sample("b0", dist.Normal(x.new_zeros(hidden), one).to_event(1))
    w1 = pyro.sample("W1", dist.Normal(x.new_zeros(hidden, 1), one * 1.5 / math.sqrt(hidden)).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(x.new_zeros(1), one).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.5 * one, 0.75 * one))
    f = pyro.deterministic("f", torch.tanh(x @ w0 + b0) @ w1 + b1, event_dim=2)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f.squeeze(-1), sigma), obs=y)
    return f


def ard() -> Problem:
    """60 data of six inputs, of which two matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=generator, dtype=torch.float64)
    y = torch.sin(1.5 * x[:, 0]) + 0.5 * x[:, 1]
    y = y + 0.2 * torch.randn(160, generator=generator, dtype=torch.float64)
    dtype = torch.get_default_dtype()
    x, y = x.to(dtype), y.to(dtype)
    return Problem(
        name="ard",
        description="A hierarchical network: four of six inputs are useless and their scales should shrink.",
        model=ard_model,
        args=(x[:60], y[:60]),
        x_test=x[60:],
        y_test=y[60:],
    )

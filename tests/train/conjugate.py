"""Bayesian linear regression with known noise: posterior and evidence in closed form, in float64."""

import pyro
import pyro.distributions as dist
import torch

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from tests.seeds import seed

NOISE = 0.5


def regression(x, y=None):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    f = pyro.deterministic("f", x @ weight, event_dim=1)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, NOISE), obs=y)


def make_data(num=20, dim=3):
    """Correlated inputs, so that the posterior is far from the mean field."""
    generator = torch.Generator().manual_seed(seed(2))
    x = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    x[:, 1] += 2 * x[:, 0]
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    return x, x.sum(-1) + NOISE * noise


def exact_posterior(x, y):
    precision = torch.eye(x.shape[1], dtype=x.dtype) + x.mT @ x / NOISE**2
    return dist.MultivariateNormal(torch.linalg.solve(precision, x.mT @ y / NOISE**2), precision_matrix=precision)


def exact_evidence(x, y):
    covariance = NOISE**2 * torch.eye(len(y), dtype=x.dtype) + x @ x.mT
    return float(dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def affine_of(guide):
    """Location and scale matrix of a guide with hypernet "linear" and structure "full", with their gradients."""
    steer, affine = guide.bijection.bijections
    weight = steer.hypernet.bijections[-1].weight
    unit = torch.eye(len(affine.loc), dtype=affine.loc.dtype) + weight.tril(-1)
    return affine.loc, affine.log_scale.exp()[:, None] * unit


@torch.no_grad()
def set_exactly(guide, posterior):
    """Sets such a guide, or one whose triangular layer follows layers that are still the identity, to a Gaussian."""
    steer, affine = guide.bijection.bijections
    scale = posterior.scale_tril.diagonal()
    affine.loc.copy_(posterior.loc)
    affine.log_scale.copy_(scale.log())
    steer.hypernet.bijections[-1].weight.copy_((posterior.scale_tril / scale[:, None]).tril(-1))


def exact_guide(x, y):
    guide = AutoHypernet(regression, "linear").setup(x, y)
    set_exactly(guide, exact_posterior(x, y))
    return guide

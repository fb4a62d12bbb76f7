"""A model whose posterior and evidence are known, and Gaussian guides of a given width for it."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

from tests.small_models import one_weight

Y = torch.tensor([0.5, 1.0, -0.3, 2.0])
POSTERIOR_MEAN = float(Y.sum() / (len(Y) + 1))
POSTERIOR_SD = (len(Y) + 1) ** -0.5
LOG_EVIDENCE = float(
    dist.MultivariateNormal(torch.zeros(len(Y)), torch.eye(len(Y)) + torch.ones(len(Y), len(Y))).log_prob(Y)
)


def guide_of_width(ratio, make=AutoDiagonalNormal):
    """A guide centred at the posterior's mean with `ratio` times its standard deviation."""
    guide = make(one_weight)
    guide(Y)
    loc, scale = (guide.locs.mean, guide.scales.mean) if make is AutoNormal else (guide.loc, guide.scale)
    with torch.no_grad():
        loc.fill_(POSTERIOR_MEAN)
    owner, name = (guide.scales, "mean") if make is AutoNormal else (guide, "scale")
    setattr(owner, name, pyro.nn.PyroParam(torch.full_like(scale, ratio * POSTERIOR_SD), dist.constraints.positive))
    return guide


def kl_of_width(ratio):
    """Its Kullback-Leibler divergence to the posterior, in nats."""
    return (ratio**2 - 1) / 2 - math.log(ratio)


def line(x, y=None):
    """Regression through the origin, the function named "f"."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    f = pyro.deterministic("f", slope * x, event_dim=1)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, 0.5), obs=y)

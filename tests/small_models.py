"""Small Pyro models for the tests of the core, one for every trait that a guide must bear."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from tests.seeds import seed


def linear(x, y=None):
    """Function model: a slope, a noise, a plate over the data."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(torch.zeros(()), 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ slope, noise), obs=y)


def linear_data(num=30, dim=2):
    generator = torch.Generator().manual_seed(seed(1))
    x = torch.randn(num, dim, generator=generator)
    return x, x.sum(-1) + 0.3 * torch.randn(num, generator=generator)


class Network(PyroModule):
    """PyroModule[nn.Linear] with PyroSample weights: what fails in Pyro with vectorised particles."""

    def __init__(self, width=4):
        super().__init__()
        self.first = PyroModule[nn.Linear](2, width)
        self.last = PyroModule[nn.Linear](width, 1)
        for layer in (self.first, self.last):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim())
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y=None):
        f = pyro.deterministic("f", self.last(torch.tanh(self.first(x))).squeeze(-1), event_dim=1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def supports():
    """One site on every support that must work."""
    pyro.sample("positive", dist.Gamma(torch.tensor(2.0), 1.0))
    pyro.sample("bounded", dist.Uniform(torch.tensor(-1.0), 3.0))
    pyro.sample("unit", dist.Beta(torch.tensor(2.0), 2.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    pyro.sample("ordered", dist.TransformedDistribution(base, ordered))
    pyro.sample("cholesky", dist.LKJCholesky(3, torch.tensor(2.0)))
    pyro.sample("correlation", dist.LKJ(3, torch.tensor(2.0)))
    with pyro.plate("groups", 2):
        pyro.sample("grouped", dist.LogNormal(torch.zeros(2), 1.0))


def nested_plates(y=None):
    """Global latents inside nested plates that are not subsampled."""
    with pyro.plate("outer", 3, dim=-2):
        outer = pyro.sample("outer_mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("inner", 2, dim=-1):
            inner = pyro.sample("inner_mean", dist.Normal(outer, 1.0))
            return pyro.sample("y", dist.Normal(inner, 0.5), obs=y)


def subsampled(y, batch=5):
    """A global latent, the likelihood in a subsampled plate."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(y), subsample_size=batch) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def one_weight(y):
    """A single latent number."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def with_param(y):
    """A latent and a learnt parameter of the model's own."""
    noise = pyro.param("noise", lambda: torch.tensor(2.0), constraint=dist.constraints.positive)
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)


def with_switch(y):
    """A discrete latent beside continuous ones."""
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(means[switch.long()], 0.5), obs=y)

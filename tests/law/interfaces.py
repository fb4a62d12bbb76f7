"""Styles of how a model is written and called: arguments of every kind, modules, parameters, callables."""

from functools import partial

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import constraints

from tests.law.style import Style, at_inputs, normal
from tests.seeds import seed

X, Y = normal(8), 2 * normal(8) + 0.3 * normal(8, stream=3)


def line(x, y=None, *, scale=0.5):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(bias + slope * x, scale), obs=y)


def no_arguments():
    line(X, Y)


def only_keywords(*, x, y=None):
    return line(x, y)


def of_dict(batch):
    return line(batch["x"], batch.get("y"))


def of_tuple(batch):
    return line(*batch)


def of_numpy(x, y=None):
    return line(torch.as_tensor(x), None if y is None else torch.as_tensor(y))


def of_number(x, y=None, degree=1):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(degree + 1), 1.0).to_event(1))
    powers = torch.stack([x**i for i in range(degree + 1)], -1)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(powers @ weights, 0.5), obs=y)


def of_function(x, y=None, link=torch.tanh):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(link(slope * x), 0.5), obs=y)


def of_double(x, y=None):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), x.new_ones(())))
    noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), x.new_ones(())))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def learnt_noise(x, y=None):
    noise = pyro.param("learnt_noise", lambda: torch.tensor(1.0), constraint=constraints.positive)
    return line(x, y, scale=noise)


class Registered:
    """`pyro.module` in the model: a feature network that is learnt, a head that is drawn."""

    def __init__(self):
        torch.manual_seed(seed())
        self.features = nn.Sequential(nn.Linear(2, 3), nn.Tanh())

    def __call__(self, x, y=None):
        pyro.module("features", self.features)
        head = pyro.sample("head", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(self.features(x) @ head, 0.5), obs=y)


class Network(PyroModule):
    """PyroModule[nn.Linear] with PyroSample weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = PyroModule[nn.Linear](2, 3), PyroModule[nn.Linear](3, 1)
        for layer in (self.first, self.last):
            for name, value in list(layer.named_parameters()):
                setattr(layer, name, PyroSample(dist.Normal(torch.zeros(value.shape), 1.0).to_event(value.dim())))

    def forward(self, x, y=None):
        f = self.last(torch.tanh(self.first(x))).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.3), obs=y)


class Relevance(PyroModule):
    """A network whose inputs have half-Cauchy scales, and a learnt bias."""

    def __init__(self):
        super().__init__()
        self.scale = PyroSample(dist.HalfCauchy(torch.ones(3)).to_event(1))
        self.weight = PyroSample(dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
        torch.manual_seed(seed())
        self.last = PyroModule[nn.Linear](4, 1)
        self.last.weight = PyroSample(dist.Normal(torch.zeros(1, 4), 1.0).to_event(2))

    def forward(self, x, y=None):
        f = self.last(torch.tanh(x @ (self.weight * self.scale).mT)).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def gaussian_process():
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0), 1.0))
    kernel.variance = PyroSample(dist.LogNormal(torch.tensor(0.0), 1.0))
    return gp.models.GPRegression(X, Y, kernel, noise=torch.tensor(0.3), jitter=1e-4)


def kernel_by_hand(x, y):
    """A covariance whose Cholesky factor may fail."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    amplitude = pyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    covariance = amplitude**2 * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-2 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


class Logarithm(torch.autograd.Function):
    """An old-style function of the user's own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.log()

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.saved_tensors[0]


def own_function(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(Logarithm.apply(rate), 0.5), obs=y)


class Method:
    """A bound method as the model."""

    def __init__(self, scale):
        self.scale = scale

    def model(self, x, y=None):
        return line(x, y, scale=self.scale)


def at_keywords(rows):
    return (), {"x": normal(rows)}


def closure():
    scale = 0.5

    def model(x, y=None):
        return line(x, y, scale=scale)

    return Style(model, (X, Y), at=at_inputs())


INTERFACES = {
    "no arguments": lambda: Style(no_arguments),
    "only keywords": lambda: Style(only_keywords, (), {"x": X, "y": Y}, at_keywords),
    "dict": lambda: Style(of_dict, ({"x": X, "y": Y},), at=lambda rows: (({"x": normal(rows)},), {})),
    "tuple": lambda: Style(of_tuple, ((X, Y),), at=lambda rows: (((normal(rows),),), {})),
    "numpy": lambda: Style(of_numpy, (X.numpy(), Y.numpy()), at=lambda rows: ((np.asarray(normal(rows)),), {})),
    "number": lambda: Style(of_number, (X, Y, 2), at=lambda rows: ((normal(rows), None, 2), {}), broadcasts=False),
    "function": lambda: Style(of_function, (X, Y, torch.sin), at=lambda rows: ((normal(rows), None, torch.sin), {})),
    "partial": lambda: Style(partial(line, scale=0.3), (X, Y), at=at_inputs()),
    "method": lambda: Style(Method(0.5).model, (X, Y), at=at_inputs()),
    "closure": closure,
    "conditioned": lambda: Style(poutine.condition(line, {"y": Y}), (X,)),
    "double": lambda: Style(of_double, (X.double(), Y.double()), at=lambda rows: ((normal(rows).double(),), {})),
    "param": lambda: Style(learnt_noise, (X, Y), at=at_inputs()),
    "pyro.module": lambda: Style(Registered(), (normal(8, 2), Y), at=at_inputs(2), broadcasts=False),
    "PyroModule": lambda: Style(Network(), (normal(8, 2), Y), at=at_inputs(2), broadcasts=False),
    "ard": lambda: Style(Relevance(), (normal(8, 3), Y), at=at_inputs(3), broadcasts=False),
    "gp module": lambda: Style(gaussian_process().model, broadcasts=False),
    "gp by hand": lambda: Style(kernel_by_hand, (X, Y), broadcasts=False),
    "autograd function": lambda: Style(own_function, (Y,), warns=("The model cannot be vmapped",)),
}

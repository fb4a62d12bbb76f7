"""Models with learnt parameters of their own, each made anew, from other random numbers, at every call.

As a program, `python -m tests.train.learnt_models FOLDER`: reads back the guide of each from `FOLDER/<name>`, and
writes its predictions to `FOLDER/predictions`.
"""

import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from pyro_hypernet import bayesianize, load, predict
from tests.seeds import seed

X = torch.linspace(-1, 1, 15).reshape(5, 3)
Y = X.sum(-1)
ARGS = (X, Y)


def network(norm=False):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 1))
    if norm:
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2.0)
    return net


def frozen():
    net = network(norm=True)
    net[0].requires_grad_(False)
    return net


def observe(f, y):
    with pyro.plate("data", len(f)):
        pyro.deterministic("f", f)
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def params(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    shift = pyro.param("shift", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.rand(3) + 0.1, constraint=constraints.positive)
    share = pyro.param("share", torch.ones(3) / 3, constraint=constraints.simplex)
    bounds = constraints.interval(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    observe((x * scale * share * pyro.param("bounded", torch.rand(3), constraint=bounds)) @ slope + shift, y)


def with_module(net, x, y=None):
    pyro.module("net", net)
    observe(net(x)[:, 0] * pyro.sample("gain", dist.Normal(1.0, 1.0)), y)


def around(net):
    def model(x, y=None):
        with_module(net, x, y)

    return model


def silent(net):
    """Its network is nothing that Pyro hears of."""

    def model(x, y=None):
        observe(sum(net(part)[:, 0] for part in (x,)) * pyro.sample("gain", dist.Normal(1.0, 1.0)), y)

    return model


class Method:
    def __init__(self):
        self.nets = {"first": network(norm=True)}

    def model(self, x, y=None):
        with_module(self.nets["first"], x, y)

    def __call__(self, x, y=None):
        self.model(x, y)


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.body = network(norm=True)
        self.head = PyroModule[nn.Linear](1, 1)
        self.head.weight = PyroSample(dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))
        self.scale = PyroParam(torch.rand(()) + 0.1, constraint=constraints.positive)
        self.shift = nn.Parameter(torch.randn(()))
        self.register_buffer("centre", torch.randn(3))

    def forward(self, x, y=None):
        observe(self.head(self.body(x - self.centre))[:, 0] * self.scale + self.shift, y)


class Holder(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = bayesianize(network(), sites="last_layer")

    def forward(self, x, y=None):
        return self.net(x, y)


def wrapped(net):
    def model(x, y=None):
        return net(x, y)

    return model


def last_layer():
    return bayesianize(network(norm=True), sites=["2.*"])


MODELS = {
    "weight norm": lambda: bayesianize(network(norm=True), parametrization="weight_norm"),
    "last layer": last_layer,
    "patterns": lambda: bayesianize(network(), sites=["*.bias"]),
    "frozen": lambda: bayesianize(frozen(), sites=["2.*"]),
    "all random, with buffers": lambda: bayesianize(network(norm=True)),
    "params": lambda: params,
    "partial": lambda: partial(with_module, network(norm=True)),
    "closure": lambda: around(network(norm=True)),
    "silent": lambda: silent(network(norm=True)),
    "method": lambda: Method().model,
    "callable": Method,
    "PyroModule": Module,
    "PyroModule around a network": Holder,
    "network in a closure": lambda: wrapped(last_layer()),
    "network in a handler": lambda: poutine.scale(last_layer(), scale=0.5),
}


def predictions(model, guide):
    pyro.set_rng_seed(seed(5))
    return predict(model, guide, X, num_samples=3, return_sites=["f"])["f"]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for number, (name, make) in enumerate(MODELS.items()):
        pyro.set_rng_seed(seed(1000 + number))  # other networks than those that were saved
        with pyro.get_param_store().scope():
            model = make()
            found[name] = predictions(model, load(folder / name, model))
    torch.save(found, folder / "predictions")

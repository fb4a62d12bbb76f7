"""Styles of networks: of every kind that `bayesianize` takes."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_hypernet import bayesianize
from pyro_hypernet.bnn.likelihoods import Gaussian
from tests.law.style import Style, normal, uniform
from tests.seeds import seed

ROWS = 10
X, Y = normal(ROWS, 3), normal(ROWS, stream=3)
LABELS = (uniform(ROWS) < 0.5).float()
CLASSES = (uniform(ROWS) * 3).long()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class HeadFirst(nn.Module):
    """The head is registered before the body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.body = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def mlp(out=1, inputs=3, nonlinearity=nn.Tanh):
    return nn.Sequential(nn.Linear(inputs, 4), nonlinearity(), nn.Linear(4, out))


def conv():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))


def norms():
    batch_norm = nn.BatchNorm1d(4)
    batch_norm.running_var.fill_(2.0)
    return nn.Sequential(nn.Linear(3, 4), batch_norm, nn.ReLU(), nn.LayerNorm(4), nn.Dropout(), nn.Linear(4, 1))


def frozen():
    net = mlp()
    net[0].requires_grad_(False)
    return net


def of_net(make, *likelihood, x=X, y=Y, **options):
    def style():
        torch.manual_seed(seed())
        rows = lambda n: ((normal(n, *x.shape[1:]),), {})  # noqa: E731
        return Style(bayesianize(make(), *likelihood, **options), (x, y), at=rows, broadcasts=False)

    return style


NETWORKS = {
    "net mlp": of_net(mlp),
    "net relu": of_net(lambda: mlp(nonlinearity=nn.ReLU)),
    "net linear": of_net(lambda: nn.Linear(3, 1)),
    "net fixed noise": of_net(mlp, Gaussian(sigma=0.3)),
    "net two outputs": of_net(lambda: mlp(2), y=normal(ROWS, 2)),
    "net weight_norm": of_net(mlp, parametrization="weight_norm"),
    "net last_layer": of_net(mlp, sites="last_layer"),
    "net head first": of_net(HeadFirst, sites="last_layer"),
    "net pattern": of_net(mlp, sites=["0.*"]),
    "net frozen": of_net(frozen),
    "net norms": of_net(norms),
    "net conv": of_net(conv, x=normal(ROWS, 1, 4, 4)),
    "net categorical": of_net(lambda: mlp(3), "categorical", y=CLASSES),
    "net bernoulli": of_net(mlp, "bernoulli", y=LABELS),
    "net heteroscedastic": of_net(lambda: mlp(2), "heteroscedastic"),
    "net poisson": of_net(mlp, "poisson", y=CLASSES.float()),
    "net attention": of_net(Attention, x=normal(ROWS, 2, 4)),
    "net transformer": of_net(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), nn.Flatten(), nn.Linear(8, 1)),
        x=normal(ROWS, 2, 4),
    ),
    "net ard": of_net(mlp, prior="ard"),
    "net horseshoe": of_net(mlp, prior="horseshoe"),
    "net prior dict": of_net(mlp, prior={"*.bias": 0.1, "*": dist.Laplace(0.0, 1.0)}),
    "net num_data": of_net(mlp, num_data=100),
}

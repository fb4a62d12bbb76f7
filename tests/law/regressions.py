"""Styles of models that predict: one likelihood each."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from tests.law.style import LOOPS, Style, at_inputs, normal, uniform
from tests.seeds import seed

ROWS = 12
X = normal(ROWS, 2)
LINE = X @ torch.tensor([1.0, -0.5]) + 0.3
NOISE = normal(ROWS, stream=3)


def line(x):
    """Two slopes and a bias, scalars that broadcast over draws to the left."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    second = pyro.sample("second", dist.Normal(0.0, 1.0))
    return first * x[:, 0] + second * x[:, 1] + pyro.sample("bias", dist.Normal(0.0, 1.0))


def linear(x, y=None):
    f = line(x)
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, noise), obs=y)


def linear_with_dim(x, y=None):
    f = line(x)
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def known_noise(x, y=None):
    """Conjugate: the default guide is exact at its start."""
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    bias = pyro.sample("bias", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(bias + slope * x, 0.5), obs=y)


def matrix_product(x, y=None):
    """Written for one draw: does not broadcast."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


def logistic(x, y=None):
    f = line(x)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def poisson(x, y=None):
    f = line(x)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson(f.exp()), obs=y)


def student(x, y=None):
    f = line(x)
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.StudentT(freedom + 1, f, scale), obs=y)


def ordinal(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    cuts = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.transforms.OrderedTransform()
    )
    cutpoints = pyro.sample("cutpoints", cuts)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.OrderedLogistic(x @ weights, cutpoints), obs=y)


def zero_inflated(x, y=None):
    f = line(x)
    gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.ZeroInflatedPoisson(f.exp(), gate=gate), obs=y)


def negative_binomial(x, y=None):
    f = line(x)
    count = pyro.sample("count", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.NegativeBinomial(count, logits=f), obs=y)


def beta(x, y=None):
    f = line(x).sigmoid()
    precision = pyro.sample("precision", dist.LogNormal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Beta(0.1 + f * precision, 0.1 + (1 - f) * precision), obs=y)


def von_mises(x, y=None):
    f = line(x)
    concentration = pyro.sample("concentration", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.VonMises(f, concentration), obs=y)


def multivariate(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(3)).to_event(1))
    correlation = pyro.sample("correlation", dist.LKJCholesky(3, torch.tensor(2.0)))
    with pyro.plate("data", len(x)):
        factor = scales.unsqueeze(-1) * correlation
        return pyro.sample("y", dist.MultivariateNormal(x @ weights, scale_tril=factor), obs=y)


def multinomial(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Multinomial(total_count=5, logits=x @ weights), obs=y)


def categorical(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Categorical(logits=x @ weights), obs=y)


def gamma(x, y=None):
    f = line(x)
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Gamma(shape, (shape.log() - f).exp()), obs=y)


def survival(x, time=None, seen=None):
    """Right-censored times: a factor for what was not seen."""
    f = line(x)
    with pyro.plate("data", len(x)):
        scale = f.clamp(-5, 5).exp()
        if time is None:
            return pyro.sample("y", dist.Exponential(1 / scale))
        with poutine.mask(mask=seen):
            pyro.sample("y", dist.Exponential(1 / scale), obs=time)
        pyro.factor("censored", torch.where(seen, torch.zeros(()), -time / scale))


def mixture(x, y=None):
    """Two lines, which of them is summed out."""
    f = line(x)
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        which = dist.Categorical(torch.stack([share, 1 - share], -1))
        means = torch.stack([f, -f], -1)
        return pyro.sample("y", dist.MixtureSameFamily(which, dist.Normal(means, 0.5)), obs=y)


def deterministic(x, y=None):
    f = pyro.deterministic("f", line(x))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(f, 0.5), obs=y)


def two_responses(x, y=None, z=None):
    f = line(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)
    with pyro.plate("others", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=f), obs=z)


def counts(rate):
    return torch.poisson(rate, generator=torch.Generator().manual_seed(seed(4)))


def regress(model, y, *, broadcasts=True, warns=(), **kwargs):
    return lambda: Style(model, (X, y), kwargs, at_inputs(2), broadcasts=broadcasts, warns=warns)


Y = LINE + 0.5 * NOISE
LABELS = (uniform(ROWS) < LINE.sigmoid()).float()
COUNTS = counts(LINE.exp())
CLASSES = (uniform(ROWS) * 3).long()
THREE = normal(ROWS, 3, stream=5)

REGRESSIONS = {
    "linear": regress(linear, Y),
    "linear, dim": regress(linear_with_dim, Y),
    "known noise": lambda: Style(known_noise, (X[:, 0], Y), at=at_inputs()),
    "one datum": lambda: Style(known_noise, (X[:1, 0], Y[:1]), at=at_inputs()),
    "matrix product": regress(matrix_product, Y, broadcasts=False),
    "logistic": regress(logistic, LABELS),
    "poisson": regress(poisson, COUNTS),
    "student": regress(student, Y),
    "ordinal": regress(ordinal, CLASSES, broadcasts=False),
    "zero-inflated": regress(zero_inflated, COUNTS),
    "negative binomial": regress(negative_binomial, COUNTS),
    "beta": regress(beta, uniform(ROWS).clamp(0.05, 0.95), warns=LOOPS),
    "von mises": regress(von_mises, Y.clamp(-3, 3), warns=LOOPS),
    "multivariate": regress(multivariate, THREE, broadcasts=False),
    "multinomial": regress(multinomial, torch.nn.functional.one_hot(CLASSES, 3).float() * 5, broadcasts=False),
    "categorical": regress(categorical, CLASSES, broadcasts=False),
    "gamma": regress(gamma, LINE.exp()),
    "survival": regress(survival, LINE.exp(), seen=LABELS.bool()),
    "mixture": regress(mixture, Y),
    "deterministic": regress(deterministic, Y, broadcasts=False),
    "two responses": regress(two_responses, Y, z=LABELS),
}

"""Styles of models with plates: hierarchies, factorisations, sequences, latents of many kinds."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch.distributions import constraints

from tests.law.style import LOOPS, Style, at_inputs, normal, uniform

SCHOOLS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(errors, y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(errors)):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        return pyro.sample("y", dist.Normal(effect, errors), obs=y)


def eight_schools_apart(errors, y=None):
    """Not centred, without a plate around the effects."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    effect = pyro.sample("effect", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    with pyro.plate("schools", len(errors)):
        return pyro.sample("y", dist.Normal(mean + spread * effect, errors), obs=y)


def nested(y=None):
    """Two levels of latents in nested plates that find their own dims."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("inner", 3):
        inner = pyro.sample("inner_mean", dist.Normal(mean, 1.0))
        with pyro.plate("outer", 2):
            both = pyro.sample("both_mean", dist.Normal(inner, 1.0))
            return pyro.sample("y", dist.Normal(both, 0.5), obs=y)


def nested_with_dim(y=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("outer", 2, dim=-2):
        outer = pyro.sample("outer_mean", dist.Normal(mean, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            inner = pyro.sample("inner_mean", dist.Normal(outer, 1.0))
            return pyro.sample("y", dist.Normal(inner, 0.5), obs=y)


def crossed(y=None):
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1)
    with rows:
        row = pyro.sample("row", dist.Normal(0.0, 1.0))
    with columns:
        column = pyro.sample("column", dist.Normal(0.0, 1.0))
    with rows, columns:
        return pyro.sample("y", dist.Normal(row + column, 0.5), obs=y)


def grouped(group, y=None):
    """Varying intercepts, indexed."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        intercept = pyro.sample("intercept", dist.Normal(mean, spread))
    with pyro.plate("data", len(group)):
        return pyro.sample("y", dist.Normal(intercept[..., group], 0.5), obs=y)


def correlated(y):
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(3)).to_event(1))
    correlation = pyro.sample("correlation", dist.LKJCholesky(3, torch.tensor(2.0)))
    factor = scales.unsqueeze(-1) * correlation
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)


def correlation_matrix():
    pyro.sample("correlation", dist.LKJ(3, torch.tensor(2.0)))


def ordered(y):
    base = dist.Normal(torch.zeros(3), 2.0).to_event(1)
    means = pyro.sample("means", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    with pyro.plate("data", len(y)):
        which = dist.Categorical(torch.ones(3) / 3)
        components = dist.Normal(means.unsqueeze(-2), 0.5)
        pyro.sample("y", dist.MixtureSameFamily(which, components), obs=y)


def simplex(y):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(shares), obs=y)


def simplex_in_plate(y):
    with pyro.plate("groups", 2, dim=-1):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(y), dim=-2), pyro.plate("groups_", 2, dim=-1):
        pyro.sample("y", dist.Categorical(shares), obs=y)


def positive(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def bounded(y):
    low = pyro.sample("low", dist.Uniform(-2.0, 0.0))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(low + share, 0.5), obs=y)


def angle(y):
    """A latent whose density is periodic on the real line."""
    direction = pyro.sample("direction", dist.VonMises(torch.tensor(0.0), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(direction.cos(), 0.5), obs=y)


def sphere(y):
    direction = pyro.sample("direction", dist.ProjectedNormal(torch.zeros(2)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(direction[..., 0], 0.5), obs=y)


def improper(y):
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def one_weight(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def horseshoe(x, y=None):
    width = x.shape[1]
    overall = pyro.sample("overall", dist.HalfCauchy(torch.tensor(0.5)))
    local = pyro.sample("local", dist.HalfCauchy(torch.ones(width)).to_event(1))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(x @ (weights * local * overall), 0.5), obs=y)


def factorisation(y):
    users = pyro.sample("users", dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
    items = pyro.sample("items", dist.Normal(torch.zeros(5, 2), 1.0).to_event(2))
    with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 5, dim=-1):
        pyro.sample("y", dist.Normal(users @ items.mT, 0.5), obs=y)


def walk(y=None):
    """A random walk by a Python loop, one latent a step."""
    drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
    state = 0.0
    for t in range(5):
        state = pyro.sample(f"state_{t}", dist.Normal(state + drift, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(state, 0.3), obs=None if y is None else y[t])


def chain(y=None):
    """An autoregression under pyro.markov."""
    memory = pyro.sample("memory", dist.Uniform(-1.0, 1.0))
    previous = 0.0
    for t in pyro.markov(range(5)):
        previous = pyro.sample(f"y_{t}", dist.Normal(memory * previous, 0.5), obs=None if y is None else y[t])


def imputed(y, missing):
    """Missing data as latents."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    filled = pyro.sample("filled", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y.index_put((missing,), filled))


def imputed_in_place(y, missing):
    """Written into a tensor that vmap cannot batch: runs in a loop."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    filled = pyro.sample("filled", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    complete = y.clone()
    complete[missing] = filled
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=complete)


def factor(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.factor("likelihood", -((y - mean.unsqueeze(-1)) ** 2).sum(-1))


def masked(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def masked_latent(y):
    """The second latent has no prior where the mask is False."""
    with pyro.plate("groups", 2), poutine.mask(mask=torch.tensor([True, False])):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean[..., :1], 1.0), obs=y)


def scaled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), poutine.scale(scale=3.0):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def partly_observed(y, seen):
    """obs_mask: the unseen half of the data become latents."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=seen)


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=4) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def subsampled_latent(y):
    with pyro.plate("data", len(y), subsample_size=4) as index:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def sequential(y):
    for i in pyro.plate("data", len(y)):
        mean = pyro.sample(f"mean_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=y[i])


def sequential_data(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=y[i])


def switched(y):
    """A discrete site beside, to be enumerated."""
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(torch.where(switch > 0, means[..., 1:], means[..., :1]), 0.5), obs=y)


def branching(y):
    """`if` on the value of a tensor: cannot be vmapped."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = 1.0 if float(mean.detach()) > -100 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


Y = normal(8, stream=6)
SEEN = uniform(8) < 0.7

HIERARCHIES = {
    "eight schools": lambda: Style(eight_schools, (ERRORS, SCHOOLS)),
    "eight schools apart": lambda: Style(eight_schools_apart, (ERRORS, SCHOOLS), broadcasts=False),
    "nested": lambda: Style(nested, (normal(2, 3),)),
    "nested, dim": lambda: Style(nested_with_dim, (normal(2, 3),)),
    "crossed": lambda: Style(crossed, (normal(3, 4),)),
    "grouped": lambda: Style(grouped, (torch.arange(8) % 3, Y), at=lambda rows: ((torch.arange(rows) % 3,), {})),
    "reparametrised": lambda: Style(
        poutine.reparam(eight_schools, {"effect": LocScaleReparam(0.0)}), (ERRORS, SCHOOLS), broadcasts=False
    ),
    "lkj cholesky": lambda: Style(correlated, (normal(8, 3),), broadcasts=False),
    "lkj": lambda: Style(correlation_matrix, broadcasts=False),
    "ordered": lambda: Style(ordered, (Y,), broadcasts=False),
    "simplex": lambda: Style(simplex, (torch.arange(8) % 3,)),
    "simplex in plate": lambda: Style(simplex_in_plate, ((torch.arange(8) % 3).reshape(4, 2),)),
    "positive": lambda: Style(positive, (Y.abs(),)),
    "bounded": lambda: Style(bounded, (Y,)),
    "angle": lambda: Style(angle, (Y,)),
    "sphere": lambda: Style(sphere, (Y,)),
    "improper": lambda: Style(improper, (Y,)),
    "one weight": lambda: Style(one_weight, (Y,)),
    "horseshoe": lambda: Style(horseshoe, (normal(8, 3), Y), at=at_inputs(3), broadcasts=False),
    "matrix factorisation": lambda: Style(factorisation, (normal(4, 5),), broadcasts=False),
    "walk": lambda: Style(walk, (Y,)),
    "chain": lambda: Style(chain, (Y,)),
    "imputed": lambda: Style(imputed, (Y, torch.tensor([0, 3])), broadcasts=False),
    "imputed in place": lambda: Style(imputed_in_place, (Y, torch.tensor([0, 3])), warns=LOOPS, broadcasts=False),
    "factor": lambda: Style(factor, (Y,)),
    "masked": lambda: Style(masked, (Y,)),
    "masked latent": lambda: Style(masked_latent, (Y,)),
    "scaled": lambda: Style(scaled, (Y,)),
    "obs_mask": lambda: Style(partly_observed, (Y, SEEN), has_pyros_density=False),
    "subsampled": lambda: Style(subsampled, (Y,), is_function=False),
    "subsampled latent": lambda: Style(subsampled_latent, (Y,)),
    "sequential plate": lambda: Style(sequential, (Y,)),
    "sequential data": lambda: Style(sequential_data, (Y[:4],), warns=(*LOOPS, "The model could not be captured")),
    "enumerated beside": lambda: Style(
        switched, (Y,), served=poutine.block(switched, hide=["switch"]), is_function=False
    ),
    "discrete": lambda: Style(switched, (Y,)),
    "branching": lambda: Style(branching, (Y,), warns=LOOPS, broadcasts=False),
}

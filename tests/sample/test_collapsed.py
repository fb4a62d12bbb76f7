"""Integrating weights out is exact: held against closed forms, and done only where it holds."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_hypernet.model.density import density_of
from pyro_hypernet.sample.collapsed import collapse
from pyro_hypernet.sample.refine import HmcKernel, refine
from pyro_hypernet.target import Whole
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")
X = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
Y = torch.sin(3 * X[:, 0])


def network(x, y, *, observe=dist.Normal, prior=dist.Normal):
    """Four tanh units; noise and the last layer's scale are learnt; the last layer is Gaussian given all others."""
    w0 = pyro.sample("w0", dist.Normal(x.new_zeros(1, 4), 2.0).to_event(2))
    sigma = pyro.sample("sigma", dist.LogNormal(x.new_tensor(-1.0), 0.5))
    tau = pyro.sample("tau", dist.LogNormal(x.new_zeros(()), 0.5))
    w1 = pyro.sample("w1", prior(x.new_zeros(4), tau).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(x.new_tensor(0.3), 1.0))
    f = pyro.deterministic("f", torch.tanh(x @ w0) @ w1 + b1, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", observe(f, sigma), obs=y)


def whole_of(model, *args):
    torch.manual_seed(seed(0))
    return Whole(density_of(model, poutine.trace(model).get_trace(*args)), args, {})


def target_of(model, *args):
    return collapse(whole_of(model, *args))


@functools.cache
def target_of_network():
    """Made once: the graphs it captures serve all tests whose rows are as many."""
    return target_of(network, X, Y)


def exact_evidence(x, target, y):
    """log p(y | a) of `network` in closed form, for one row of coordinates: a Gaussian over the data."""
    values, _ = target.layout.constrain(torch.zeros(target.layout.dim).index_copy(0, target.free, x))
    hidden = torch.tanh(X @ values["w0"])
    covariance = values["sigma"] ** 2 * torch.eye(len(X)) + values["tau"] ** 2 * hidden @ hidden.mT + 1.0
    return dist.MultivariateNormal(torch.full((len(X),), 0.3), covariance).log_prob(y)


def test_the_likelihood_without_the_block_is_that_of_the_closed_form():
    target = target_of_network()
    assert target.collapsed == ("w1", "b1")
    assert target.dim == 4 + 2
    x = target.sample_prior(10)
    expected = torch.stack([exact_evidence(row, target, Y) for row in x])
    torch.testing.assert_close(target(x, 1.0).log_likelihood, expected)


def test_logged_observations_have_their_jacobian():
    target = target_of(lambda x, y: network(x, y, observe=dist.LogNormal), X, Y.exp())
    assert target.collapsed == ("w1", "b1")
    x = target.sample_prior(5)
    expected = torch.stack([exact_evidence(row, target, Y) for row in x]) - Y.sum()
    torch.testing.assert_close(target(x, 1.0).log_likelihood, expected)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_gradient_is_that_of_the_value(beta):
    target = target_of_network()
    x = target.sample_prior(10)

    def value(x):
        state = target(x, beta)
        return state.log_prior + beta * state.log_likelihood

    gradient = target(x, beta).gradient
    for unit in torch.eye(target.dim):
        slope = (value(x + 1e-5 * unit) - value(x - 1e-5 * unit)) / 2e-5
        torch.testing.assert_close(gradient @ unit, slope, rtol=1e-5, atol=1e-6)


def test_the_block_is_drawn_from_its_conditional_posterior():
    target = target_of_network()
    row = target.sample_prior(1)[0]
    w = target.complete(row.expand(20_000, -1))
    torch.testing.assert_close(w[:, target.free], row.expand(20_000, -1))
    values = target.layout.constrain(w[0])[0]
    features = torch.cat([torch.tanh(X @ values["w0"]), torch.ones(len(X), 1)], -1)
    prior = torch.cat([torch.full((4,), float(values["tau"]) ** -2), torch.ones(1)])
    precision = features.mT @ features / values["sigma"] ** 2 + torch.diag(prior)
    pull = features.mT @ Y / values["sigma"] ** 2 + torch.tensor([0, 0, 0, 0, 0.3])
    exact = dist.MultivariateNormal(torch.linalg.solve(precision, pull), precision_matrix=precision)
    noise = (w[:, target.index] - exact.loc) @ torch.linalg.cholesky(precision)
    # Standard errors of .007 and, for covariances, .01 at most; a false alarm in 1e-5 of seeds.
    assert bool((noise.mean(0).abs() < 0.036).all())
    assert bool(((noise.mT @ noise / len(noise) - torch.eye(5)).abs() < 0.05).all())


def test_single_precision_follows_though_the_noise_is_small():
    def model(x, y):
        w0 = pyro.sample("w0", dist.Normal(x.new_zeros(1, 4), 2.0).to_event(2))
        w1 = pyro.sample("w1", dist.Normal(x.new_zeros(4), x.new_ones(())).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ w0) @ w1, x.new_tensor(0.02)), obs=y)

    double = target_of(model, X, Y)
    x = double.sample_prior(20)
    expected = double(x, 1.0).log_likelihood
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    single = target_of(model, X.float(), Y.float())
    errors = (single(x.float(), 1.0).log_likelihood.double() - expected) / expected.abs()
    assert float(errors.abs().max()) < 1e-4


@pytest.mark.parametrize(
    "model",
    [
        lambda x, y: network(x, y, observe=dist.Laplace),
        lambda x, y: network(x, y, prior=dist.Laplace),
        lambda x, y: pyro.sample("y", dist.Normal(pyro.sample("a", dist.Normal(x.sum() * 0, 1.0)) ** 2, 1.0), obs=y[0]),
    ],
    ids=["observations", "prior", "square"],
)
def test_nothing_is_integrated_out_that_is_not_normal(model):
    target = target_of(model, X, Y)
    assert isinstance(target, Whole)
    assert target.collapsed == ()


@pytest.mark.filterwarnings("ignore:refine gave up:UserWarning")
@pytest.mark.parametrize("wanted", [True, False])
def test_a_block_is_looked_for_where_it_is_wanted(wanted):
    refined = refine(network, X, Y, num_samples=64, kernel=HmcKernel(collapse=wanted), max_seconds=1e-9, progress=False)
    assert refined.collapsed == (("w1", "b1") if wanted else ())


def test_a_model_that_runs_in_a_loop_is_taken_whole():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        scale = 1.0 if mean.item() < math.inf else 2.0
        pyro.sample("y", dist.Normal(mean, scale).expand([len(y)]).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="runs in a loop"):
        assert isinstance(target_of(model, Y), Whole)


def test_chunks_of_rows_are_put_together_again(monkeypatch):
    target = target_of_network()
    x, before = target.sample_prior(29), target.num_rows
    whole = target(x, 0.5)
    monkeypatch.setattr(target, "max_rows", 10)
    for one, other in zip(whole, target(x, 0.5), strict=True):
        torch.testing.assert_close(one, other)
    assert target.num_rows == before + 2 * 29

"""Data that count more often at first: the density, when it is done, and that the posterior does not change."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.guide.plan import ANNEAL
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.tempered import TemperedModel
from pyro_hypernet.train.anneal import Annealing
from tests.fits import fit
from tests.seeds import seed
from tests.train.conjugate import make_data, regression

X, Y = make_data()


def network():
    return bayesianize(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), Gaussian(sigma=0.1))


def inputs():
    x = torch.linspace(-1, 1, 12)[:, None]
    return x, torch.sin(2 * x[:, 0])


@pytest.mark.usefixtures("double")
def test_the_likelihood_is_scaled_and_the_prior_is_not():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("factor", -mean.sum())
        with pyro.plate("data", 20, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    y, w = torch.randn(5, 2), torch.randn(7, 2)
    layout = AutoHypernet(model).setup(y).layout
    prior = dist.Normal(0.0, 3.0).log_prob(w).sum(-1)
    data = 4 * dist.Normal(w[:, None], 1.0).log_prob(y).sum((1, 2)) - w.sum(-1)
    tempered = TemperedModel(model)
    torch.testing.assert_close(LogJoint(model, layout)(w, y), prior + data)
    torch.testing.assert_close(LogJoint(tempered, layout)(w, *tempered.arguments(3.0, (y,))), prior + 3 * data)
    torch.testing.assert_close(LogJoint(tempered, layout)(w, *tempered.arguments(1.0, (y,))), prior + data)


def test_the_weight_falls_geometrically_to_one():
    assert [Annealing(8.0, 3)(step) for step in range(5)] == pytest.approx([8.0, 4.0, 2.0, 1.0, 1.0])


def test_an_untrained_network_is_annealed_and_nothing_else():
    args, model = inputs(), network()
    guide = AutoHypernet(model).setup(*args)
    assert guide.suits_annealing
    assert not AutoHypernet(regression).setup(X, Y).suits_annealing
    assert not AutoHypernet(network(), structure="full").setup(*args).suits_annealing
    options = {"num_steps": 20, "num_particles": 2, "progress": False, "rejection": None}
    losses = []
    for twin, anneal in ((guide, "auto"), (copy.deepcopy(guide), 1.0)):
        pyro.set_rng_seed(seed(1))
        losses.append(float(fit(model, twin, args, anneal=anneal, **options).losses[0]))
    assert not guide.suits_annealing
    assert abs(losses[0] - losses[1]) > 1e-3  # four times a log likelihood of tens of nats, of the same draws
    assert guide.restart(*args).suits_annealing


def test_svi_counts_as_training():
    args, model = inputs(), network()
    guide = AutoHypernet(model).setup(*args)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), VectorizedELBO(2)).step(*args)
    assert not guide.suits_annealing


@pytest.mark.parametrize("anneal", [ANNEAL, 0.2])
def test_the_posterior_stays_what_it_is(anneal):
    """A Gaussian posterior, which the linear guide can hold exactly."""
    bounds = []
    for value in (1.0, anneal):
        pyro.set_rng_seed(seed(0))
        guide = AutoHypernet(regression, "linear", "full")
        fit(regression, guide, (X, Y), num_steps=2000, num_particles=16, anneal=value, progress=False)
        bounds.append(float(elbo(regression, guide, X, Y, num_samples=4000)[0]))
    # Over 20 seeds up to .055, of training; a term that counts twice is a nat and more.
    assert abs(bounds[0] - bounds[1]) < 0.2


def test_an_annealed_window_is_never_the_best():
    """Where the log likelihood is positive, data that count five times give the greater bound."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 0.01), obs=y)

    y = 0.01 * torch.randn(30)
    pyro.set_rng_seed(seed(0))
    guide = AutoHypernet(model)
    result = fit(model, guide, (y,), num_steps=600, num_particles=8, anneal=5.0, progress=False)
    assert abs(result.elbo - float(elbo(model, guide, y, num_samples=1000)[0])) < 1.0
    assert result.losses[:100].min() < 2 * result.losses[-100:].min() < 0


def test_parameters_of_the_model_are_trained_meanwhile():
    def model(y):
        noise = pyro.param("noise", torch.tensor(2.0), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)

    pyro.clear_param_store()
    fit(model, AutoHypernet(model), (0.1 * torch.randn(30),), num_steps=300, anneal=5.0, progress=False)
    assert float(pyro.param("noise").detach()) < 1.5


@pytest.mark.parametrize("anneal", [0, -1.0, float("inf"), float("nan"), "never", True, None])
def test_another_number_is_refused(anneal):
    with pytest.raises(ValueError, match='anneal must be "auto" or a positive number'):
        fit(regression, AutoHypernet(regression), (X, Y), anneal=anneal)

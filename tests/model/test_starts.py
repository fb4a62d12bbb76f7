"""Starts of flat priors: inside of their support, where there is no draw to start from."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_hypernet import AutoHypernet, microcanonical, nuts
from pyro_hypernet.model.starts import start_of, trace_start
from tests.seeds import seed

SUPPORTS = {
    "real": (constraints.real, (), ()),
    "positive": (constraints.positive, (3,), ()),
    "simplex": (constraints.simplex, (2,), (4,)),
    "interval": (constraints.interval(2.0, 5.0), (), ()),
    "correlation": (constraints.corr_cholesky, (), (3, 3)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_flat_prior_starts_inside_its_support(name):
    fn = dist.ImproperUniform(*SUPPORTS[name])
    value = start_of({"name": "x", "fn": fn, "type": "sample", "args": (), "kwargs": {}, "is_observed": False})
    assert value.shape == fn.shape()
    assert fn.support.check(value).all()


def flat(x, y):
    slope = pyro.sample("slope", dist.ImproperUniform(constraints.real, (2,), ()).to_event(1))
    noise = pyro.sample("noise", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, noise), obs=y)


def data():
    pyro.set_rng_seed(seed())
    x = torch.randn(40, 2)
    return x, x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(40)


def test_a_proper_prior_is_drawn_from_and_a_flat_one_started():
    def model():
        pyro.sample("flat", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("proper", dist.Normal(torch.zeros(1000), 1.0).to_event(1))

    pyro.set_rng_seed(seed())
    nodes = trace_start(model).nodes
    assert nodes["flat"]["value"] == 1


def test_a_guide_starts_there():
    guide = AutoHypernet(flat, init_scale=0.1).setup(*data())
    assert guide.median()["noise"] == 1


@pytest.mark.parametrize("run", ["nuts", "stored"])
def test_flat_priors_have_the_posterior_of_least_squares(run):
    """Means of slopes within .1 of the least squares estimate, their posterior's centre.

    The sds are .08, so that a mean of 200 draws that are worth 50 errs by .011: nine errors.
    """
    x, y = data()
    least_squares = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    if run == "nuts":
        samples = nuts(flat, x, y, num_samples=200, warmup_steps=200, num_chains=1, progress=False).samples
    else:
        starts = {"slope": least_squares + 0.05 * torch.randn(8, 2), "noise": 0.5 * torch.ones(8)}
        samples = microcanonical(flat, starts, x, y, num_steps=800, num_samples=200, progress=False).samples
    assert ((samples["slope"].mean(0) - least_squares).abs() < 0.1).all()


def test_what_starts_from_draws_of_the_prior_says_so():
    with pytest.raises(ValueError, match="prior cannot be sampled, and microcanonical starts from draws of it"):
        microcanonical(flat, 4, *data(), num_steps=20, num_samples=4, progress=False)

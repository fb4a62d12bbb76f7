"""Draws from every kind of posterior have the model's own shapes and the right distribution."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.distributions import biject_to

from pyro_hypernet.evaluation.draws import draws, draws_and_log_prob, is_guide
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from tests.evaluation.conjugate import POSTERIOR_MEAN, POSTERIOR_SD, Y, guide_of_width
from tests.seeds import seed
from tests.small_models import Network, linear, linear_data, nested_plates, one_weight, supports


def function_guide(x, y=None):
    """A guide written by hand, with an auxiliary site."""
    noise = pyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("slope", dist.Normal(noise * torch.ones(2), 1.0).to_event(1))
    pyro.sample("noise", dist.LogNormal(0.0, 0.5))


def guide_list(model):
    parts = AutoGuideList(model)
    parts.append(AutoNormal(pyro.poutine.block(model, expose=["slope"])))
    parts.append(AutoDiagonalNormal(pyro.poutine.block(model, expose=["noise"])))
    return parts


GUIDES = {
    "AutoHypernet": AutoHypernet,
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoIAFNormal": lambda model: AutoIAFNormal(model, hidden_dim=[16]),
    "AutoGuideList": guide_list,
    "by hand": lambda model: function_guide,
}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
def test_guides_give_the_shapes_of_the_model(make):
    x, y = linear_data()
    guide = make(linear)
    guide(x, y)
    samples, log_q = draws_and_log_prob(guide, x, y, num_samples=7)
    for found in (samples, draws(guide, x, y, num_samples=7)):
        assert {name: tuple(value.shape) for name, value in found.items()} == {"slope": (7, 2), "noise": (7,)}
        assert not any(value.requires_grad for value in found.values())
        assert len(found["noise"].unique()) == 7
    assert log_q.shape == (7,)
    assert is_guide(guide)


@pytest.mark.parametrize("model", [supports, nested_plates, Network()], ids=["supports", "nested", "network"])
def test_a_mean_field_runs_vectorised_with_the_density_of_a_loop(model):
    args = (torch.randn(5, 2),) if isinstance(model, Network) else ()
    guide = AutoNormal(pyro.poutine.block(model, hide=["y"]))
    guide(*args)
    samples, log_q = draws_and_log_prob(guide, *args, num_samples=4)
    for index in range(4):
        value = {f"{name}_unconstrained": None for name in samples}
        trace = pyro.poutine.trace(guide).get_trace(*args)
        assert {n: trace.nodes[n]["value"].shape for n in samples} == {n: v[index].shape for n, v in samples.items()}
        for name in samples:
            transform = biject_to(guide.prototype_trace.nodes[name]["fn"].support)
            value[f"{name}_unconstrained"] = transform.inv(samples[name][index])
        with pyro.poutine.condition(data=value):
            expected = pyro.poutine.trace(guide).get_trace(*args).log_prob_sum()
        torch.testing.assert_close(log_q[index], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal])
def test_draws_and_density_are_those_of_the_guide(make):
    samples, log_q = draws_and_log_prob(guide_of_width(1.0, make), num_samples=4000)
    expected = dist.Normal(POSTERIOR_MEAN, POSTERIOR_SD)
    torch.testing.assert_close(log_q, expected.log_prob(samples["mean"]))
    # Five standard errors of mean and sd: a false alarm once in a million runs.
    assert abs(float(samples["mean"].mean()) - POSTERIOR_MEAN) < 5 * POSTERIOR_SD / 4000**0.5
    assert abs(float(samples["mean"].std()) / POSTERIOR_SD - 1) < 5 / 8000**0.5


def test_a_point_estimate_gives_draws_but_no_density():
    guide = AutoDelta(one_weight)
    guide(Y)
    assert draws(guide, num_samples=3)["mean"].shape == (3,)
    with pytest.raises(TypeError, match="AutoDelta is a point estimate"):
        draws_and_log_prob(guide, num_samples=3)


def test_stored_samples_are_a_subset_without_replacement_in_order():
    stored = {"w": torch.arange(100.0), "b": torch.arange(100.0)[:, None] + 0.5}
    taken = draws(stored, num_samples=30)
    assert len(taken["w"].unique()) == 30
    assert bool((taken["w"].diff() > 0).all())
    torch.testing.assert_close(taken["b"][:, 0], taken["w"] + 0.5)
    assert draws(stored, num_samples=1000)["w"].shape == (100,)
    assert not is_guide(stored)


def test_anything_with_samples_will_do():
    assert draws(SimpleNamespace(samples={"w": torch.zeros(5, 2)}))["w"].shape == (5, 2)
    mcmc = MCMC(NUTS(one_weight), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(Y)
    assert draws(mcmc)["mean"].shape == (3,)


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (3, TypeError, "posterior must be a guide"),
        (lambda: None, TypeError, "posterior function ran without a single"),
        ({}, ValueError, "A dict of samples must hold"),
        ({"w": [1.0]}, TypeError, "Samples of site 'w' must be a torch.Tensor"),
        ({"w": torch.zeros(3), "b": torch.zeros(4)}, ValueError, "Samples of all sites must share"),
        ({"w": torch.tensor(3.0)}, ValueError, "Samples of all sites must share"),
    ],
)
def test_errors(posterior, error, message):
    with pytest.raises(error, match=message):
        draws(posterior)


@pytest.mark.parametrize("make", [AutoNormal, AutoDiagonalNormal])
def test_a_guide_must_have_seen_its_model(make):
    with pytest.raises(RuntimeError, match=f"The guide {make.__name__} has not seen its model yet"):
        draws(make(one_weight))
    with pytest.raises(RuntimeError, match="The guide"):
        draws(AutoHypernet(one_weight))


def test_num_samples_must_be_positive():
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        draws({"w": torch.zeros(3)}, num_samples=0)


def test_stored_samples_have_no_density():
    with pytest.raises(TypeError, match="A guide with a density is needed"):
        draws_and_log_prob({"w": torch.zeros(3)})


def test_draws_of_a_trained_guide_follow_the_seed():
    x, y = linear_data()
    guide = AutoNormal(linear)
    SVI(linear, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x, y)
    found = []
    for _ in range(2):
        pyro.set_rng_seed(seed(3))
        found.append(draws(guide, num_samples=5)["slope"])
    torch.testing.assert_close(*found)

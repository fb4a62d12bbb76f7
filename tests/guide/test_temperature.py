"""Temperature: the guide stands for prior × likelihood^(1/T), everywhere, and says so."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import (
    AutoHypernet,
    Optim,
    Plan,
    bayesianize,
    choose_temperature,
    fit,
    khat,
    load,
    loo,
    resample,
    save,
    to_arviz,
)
from pyro_hypernet.evaluation.importance import elbo
from tests.seeds import seed

T = 0.2


def model(y, scale=1.0):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture
def y(double):
    pyro.set_rng_seed(seed())
    return torch.randn(8) + 1.0


def exact(y, temperature):
    """Mean and sd of the posterior, and the log evidence."""
    weight, n = 1 / temperature, len(y)
    precision = 1 + n * weight
    mean = weight * y.sum() / precision
    evidence = -0.5 * weight * (n * math.log(2 * math.pi) + (y**2).sum()) + 0.5 * mean**2 * precision
    return mean, precision**-0.5, evidence - 0.5 * math.log(precision)


def fitted(y, **plan):
    guide = AutoHypernet(model, plan=Plan(structure="full", hypernet="linear", **plan))
    result = fit(model, guide, (y,), num_steps=800, optim=Optim(0.02), progress=False)
    return guide, result


def test_the_posterior_is_the_tempered_one(y):
    """Of a normal: median, sd and bound are exact but for the fit, whose steps fall to zero."""
    guide, result = fitted(y, temperature=T)
    mean, sd, evidence = exact(y, T)
    samples = guide.sample_posterior(20_000)["mean"]
    assert abs(samples.mean() - mean) < 0.1 * sd
    assert abs(samples.std() / sd - 1) < 0.1
    assert abs(result.elbo - evidence) < 0.05


def test_weights_are_those_of_the_tempered_posterior(y):
    guide, _ = fitted(y, temperature=T)
    bound, _ = elbo(model, guide, y)
    assert abs(bound - exact(y, T)[2]) < 0.05
    assert khat(model, guide, y) < 0.7
    data = to_arviz(model, guide, y, num_samples=200)
    assert data["posterior"].attrs["temperature"] == T
    stats = data["sample_stats"]
    weights = torch.as_tensor((stats["lp"] - stats["log_q"]).values)
    assert abs(weights.mean() - exact(y, T)[2]) < 0.2
    assert resample(model, guide, y, num_samples=100).samples["mean"].shape == (100,)


def test_rejection_goes_by_the_tempered_posterior(y):
    guide, _ = fitted(y, temperature=T)
    with torch.no_grad():
        for parameter in guide.map.parameters():
            parameter.add_(0.3)
    choice = guide.reject((y,), rates=0.2)
    if choice is not None:
        assert choice.elbo < exact(y, T)[2] + 0.1


def test_the_usual_temperature_changes_nothing(y):
    guides = []
    for plan in (Plan(structure="full"), Plan(structure="full", temperature=1.0)):
        pyro.set_rng_seed(seed())
        guide = AutoHypernet(model, plan=plan)
        fit(model, guide, (y,), num_steps=20, progress=False)
        guides.append(guide.sample_posterior(5)["mean"])
    torch.testing.assert_close(guides[0], guides[1], rtol=0, atol=0)


def test_it_is_said_and_kept(y, tmp_path):
    guide, _ = fitted(y, temperature=T)
    assert "temperature 0.2, no Bayesian posterior: the data count 5 times" in guide.describe()
    save(guide, tmp_path / "guide")
    assert load(tmp_path / "guide", model, y).plan == guide.plan
    usual, _ = fitted(y)
    assert "temperature" not in usual.describe()


def test_fit_takes_another_temperature(y):
    guide, _ = fitted(y)
    fit(model, guide, (y,), num_steps=5, plan=Plan(temperature=T), progress=False)
    assert guide.plan.temperature == T
    fit(model, guide, (y,), num_steps=5, progress=False)
    assert guide.plan.temperature == T
    fit(model, guide, (y,), num_steps=5, plan=Plan(temperature=1.0), progress=False)
    assert guide.plan.temperature == 1


def test_an_informed_guide_has_temperature_one(y):
    guide = AutoHypernet(model).setup(y)
    assert guide.plan.structure == "informed"
    with pytest.raises(ValueError, match="make a guide by AutoHypernet"):
        fit(model, guide, (y,), num_steps=5, plan=Plan(temperature=T), progress=False)
    assert AutoHypernet(model, plan=Plan(temperature=T)).setup(y).plan.structure == "full"
    with pytest.raises(ValueError, match="make a guide by AutoHypernet"):
        Plan("informed", temperature=T)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, "cold", True])
def test_what_is_no_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be"):
        Plan(temperature=temperature)


def test_held_out_data_choose(y):
    """Data of the model, whose noise it takes for three times as large: the colder posterior predicts better.

    At T = 100 the posterior is the prior, some 1.3 nats per datum from where it should be: no seed in 1e6 is near.
    """
    pyro.set_rng_seed(seed())
    train, held_out = torch.randn(30) + 3.0, torch.randn(200) + 3.0
    store = pyro.get_param_store()
    store.clear()
    choice = choose_temperature(model, (train,), (held_out,), temperatures=(100.0, 1.0), num_steps=200)
    assert choice.temperature == 1.0
    assert choice.plan.temperature == 1.0
    assert choice.scores[1.0] > choice.scores[100.0] + choice.errors[100.0]
    assert "held-out nats per datum at 100: " in str(choice)
    assert not list(store.keys())


def test_nothing_is_left_out_at_another_temperature(y):
    guide, _ = fitted(y, temperature=T)
    with pytest.raises(ValueError, match=r"this guide is of temperature 0\.2"):
        loo(model, guide, y)


def test_a_choice_of_nothing():
    with pytest.raises(ValueError, match="at least one positive number"):
        choose_temperature(model, (torch.ones(3),), (torch.ones(3),), temperatures=())
    with pytest.raises(ValueError, match="temperature must be"):
        choose_temperature(model, (torch.ones(3),), (torch.ones(3),), temperatures=(0.0,))
    with pytest.raises(ValueError, match="at least one positive number; got 0.1"):
        choose_temperature(model, (torch.ones(3),), (torch.ones(3),), temperatures=0.1)
    with pytest.raises(ValueError, match="temperature must be .*; got 'cold'"):
        choose_temperature(model, (torch.ones(3),), (torch.ones(3),), temperatures=("cold",))
    with pytest.raises(TypeError, match="held_out must be a tuple"):
        choose_temperature(model, (torch.ones(3),), torch.ones(3))


# A large network ----------------------------------------------------------------------------------------------------


def large(**options):
    net = nn.Sequential(nn.Linear(30, 80), nn.Tanh(), nn.Linear(80, 3))
    return bayesianize(net, "categorical", num_data=40, **options)


@pytest.fixture
def rows():
    pyro.set_rng_seed(seed())
    return torch.randn(40, 30), torch.arange(40) % 3


@pytest.mark.parametrize("structure", ["auto", "low_rank", "layerwise", "full"])
def test_a_large_network_starts_at_its_values(rows, structure):
    network = large()
    guide = AutoHypernet(network, structure=structure, hypernet="linear" if structure == "full" else "auto")
    guide.setup(*rows)
    values = network.initial_values
    draws = guide.sample_posterior(400)
    for name, value in values.items():
        sd = draws[name].std(0)
        assert ((draws[name].mean(0) - value).abs() < 0.5 * sd + 1e-6).all(), name  # 10 standard errors
        prior = network.priors[name].stddev if hasattr(network, "priors") else None
        assert prior is None or (sd < prior).all()
    assert guide.plan.num_particles == 1


def test_a_start_that_is_asked_for_is_kept(rows):
    for options in ({"init_scale": 0.1}, {"init_loc_fn": pyro.infer.autoguide.init_to_median}):
        guide = AutoHypernet(large(), **options).setup(*rows)
        assert guide.plan.num_particles == 32
        values = guide._uninitialised_model[0].initial_values["0.weight"]
        assert not torch.allclose(guide.median()["0.weight"], values, atol=0.05)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Cauchy(0.0, 0.1),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(0.0, 0.1)),
    ],
    ids=["infinite", "unknown"],
)
def test_a_prior_without_a_standard_deviation(rows, prior):
    guide = AutoHypernet(large(prior=prior), structure="full", hypernet="identity").setup(*rows)
    sd = guide.sample_posterior(400)["0.weight"].std(0)
    assert (abs(sd / 0.1 - 1) < 0.4).all()  # 11 standard errors


def test_norms_of_a_large_network_start_at_its_values(rows):
    network = large(parametrization="weight_norm")
    guide = AutoHypernet(network).setup(*rows)
    assert guide.latent_dim < 2000
    assert guide.plan.num_particles == 1
    for name, value in network.initial_values.items():
        torch.testing.assert_close(guide.median()[name], value, rtol=0, atol=0.1)


def test_small_networks_start_as_before(rows):
    net = nn.Sequential(nn.Linear(30, 3))
    guide = AutoHypernet(bayesianize(net, "categorical")).setup(*rows)
    assert guide.plan.num_particles == 32


def test_a_large_network_learns_from_batches_at_a_temperature(rows):
    network = large()
    loader = DataLoader(TensorDataset(*rows), batch_size=20)
    guide = AutoHypernet(network, plan=Plan(temperature=0.01))
    before = guide.setup(*rows) and elbo(network, guide, *rows, num_samples=20)[0]
    fit(network, guide, loader, num_steps=150, progress=False)
    assert elbo(network, guide, *rows, num_samples=20)[0] > before

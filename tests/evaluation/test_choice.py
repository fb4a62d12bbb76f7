"""choose_model: the first of several models that predicts held-out data as well as the best."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_hypernet import Plan, bayesianize, choose_model, fan_in
from tests.seeds import seed


def normal(scale):
    """Data about a mean with this prior sd; the noise is 1."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model


def data():
    """Data about 5, where a prior of .1 cannot go: a posterior mean of 1 for 30 data, so 8 nats a datum worse."""
    pyro.set_rng_seed(seed())
    return torch.randn(30) + 5.0, torch.randn(50) + 5.0


def test_the_prior_that_predicts_is_chosen():
    train, held_out = data()
    pyro.get_param_store().clear()
    choice = choose_model({0.1: normal(0.1), "wide": normal(5.0)}, (train,), (held_out,), num_steps=200)
    assert choice.name == "wide"
    assert choice.scores["wide"] > choice.scores[0.1] + 2
    assert choice.errors["wide"] == 0 < choice.errors[0.1]
    assert str(choice).startswith("model wide; held-out nats per datum at 0.1: -")
    assert not list(pyro.get_param_store().keys())


def test_the_first_within_the_error_is_chosen(monkeypatch):
    """Held-out densities by decree: "first" is .1 behind the best, ± .05; "second" .02, ± .1."""
    swing = torch.tensor([1.0, -1.0]).repeat(50).double()
    decreed = {"first": -0.1 + 0.5 * swing, "second": -0.02 + swing, "third": 0 * swing}
    names = iter(decreed)
    monkeypatch.setattr("pyro_hypernet.evaluation.choice._predictive", lambda *_: decreed[next(names)])
    models = dict.fromkeys(decreed, normal(1.0))
    choice = choose_model(models, (torch.ones(3),), (torch.ones(3),), num_steps=2)
    assert choice.name == "second"
    assert choice.scores == pytest.approx({"first": -0.1, "second": -0.02, "third": 0.0})
    assert choice.errors == pytest.approx({"first": 0.05, "second": 0.1, "third": 0.0}, rel=0.02)


def test_plans_are_compared_too():
    train, held_out = data()
    model, hot = normal(5.0), Plan(temperature=1000.0)
    choice = choose_model({"hot": (model, hot), "own": model}, (train,), (held_out,), num_steps=200)
    assert choice.name == "own"
    assert choice.plan == Plan()


def test_a_networks_own_values_stay():
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    models = {gain: bayesianize(net, prior=fan_in(gain=gain), parametrization="weight_norm") for gain in (0.5, 2.0)}
    before = {gain: {k: v.clone() for k, v in model.state_dict().items()} for gain, model in models.items()}
    x, y = torch.randn(20, 1), torch.randn(20)
    choose_model(models, (x, y), (x, y), num_steps=20)
    for gain, model in models.items():
        assert all(bool((before[gain][k] == v).all()) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("models", "error", "match"),
    [
        ([normal(1.0)], TypeError, "models must be a dict from names to Pyro models; got list"),
        ({}, ValueError, "at least one model"),
        ({"a": 3}, TypeError, "'a' is int"),
        ({"a": (normal(1.0), "full")}, TypeError, r"'a' is \(function, str\)"),
        ({"a": (normal(1.0), Plan(), 3)}, TypeError, r"'a' is \(function, Plan, int\)"),
    ],
    ids=["list", "empty", "number", "no plan", "three"],
)
def test_what_is_no_choice(models, error, match):
    with pytest.raises(error, match=match):
        choose_model(models, (torch.ones(3),), (torch.ones(3),))


def test_data_held_out_are_a_tuple():
    with pytest.raises(TypeError, match="held_out must be a tuple"):
        choose_model({"a": normal(1.0)}, (torch.ones(3),), torch.ones(3))


@pytest.mark.parametrize("worst", [-torch.inf, torch.nan])
def test_models_without_a_density_are_not_chosen(worst, monkeypatch):
    decreed = {"none": torch.full((3,), worst).double(), "some": torch.zeros(3).double()}
    names = iter(decreed)
    monkeypatch.setattr("pyro_hypernet.evaluation.choice._predictive", lambda *_: decreed[next(names)])
    given = (torch.ones(3),), (torch.ones(3),)
    assert choose_model(dict.fromkeys(decreed, normal(1.0)), *given, num_steps=2).name == "some"
    names = iter(["none"])
    with pytest.raises(ValueError, match="No model predicts the held-out data at all"):
        choose_model({"none": normal(1.0)}, *given, num_steps=2)


def test_models_of_other_data_are_not_compared():
    def pairs(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y) // 2):
            pyro.sample("y", dist.Normal(mean, 1.0).expand([2]).to_event(1), obs=y.reshape(-1, 2))

    with pytest.raises(ValueError, match="'one' has 4 held-out data, 'two' has 2"):
        choose_model({"one": normal(1.0), "two": pairs}, (torch.ones(4),), (torch.ones(4),), num_steps=5)

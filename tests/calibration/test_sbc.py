"""Simulation-based calibration of fits in closed form: uniform where exact, ∪ where narrow, ∩ where wide."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.calibration import sbc as module
from pyro_hypernet.calibration.sbc import LIKELIHOOD, sbc
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from tests.evaluation.conjugate import Y
from tests.seeds import seed
from tests.small_models import one_weight
from tests.train.conjugate import exact_posterior, make_data, regression

ARGS = make_data()


def closed_form(width=1.0, shift=0.0):
    """The exact posterior given the simulated data, its spread and place changed."""

    def train(model, x, y):
        simulated = pyro.poutine.trace(model).get_trace(x, y).nodes["y"]["value"]
        posterior = exact_posterior(x, simulated)
        away = width * (posterior.sample((200,)) - posterior.loc) + shift * posterior.stddev
        return {"weight": posterior.loc + away}

    return train


def run(train, **options):
    return sbc(regression, *ARGS, train=train, **{"num_simulations": 60, "num_processes": 1, "seed": seed(), **options})


@pytest.mark.usefixtures("double")
def test_exact_posteriors_are_calibrated():
    # alpha = .001: with other seeds a false alarm once in a thousand.
    found = run(closed_form(), alpha=0.001)
    assert found.is_calibrated, str(found)
    assert set(found.ranks) == {"weight[0]", "weight[1]", "weight[2]", LIKELIHOOD}
    assert all(float(u.min()) >= 0 and float(u.max()) <= 1 for u in found.ranks.values())
    assert "look uniform" in str(found)
    assert all(p > 1e-5 for _, p in found.bias().values())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("width, shape", [(0.5, "too narrow"), (2.0, "too wide")])
def test_wrong_widths_are_told(width, shape):
    # Of 60 seeds 3 told one weight less at 60 simulations, none at 100.
    found = run(closed_form(width), num_simulations=160)
    assert {found.shapes[f"weight[{i}]"] for i in range(3)} == {shape}, str(found)
    outside = torch.cat([(u - 0.5).abs() for name, u in found.ranks.items() if name != LIKELIHOOD]).mean()
    assert (float(outside) > 0.3) == (width < 1)  # uniform ranks: .25, over 60 seeds .14–.17 and .33–.37


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shift, shape", [(1.0, "too high"), (-1.0, "too low")])
def test_shifts_are_told_by_vsbc_too(shift, shape):
    # Mean ranks are .26 off with an sd of .024: nine standard errors, of which four are asked for: 1 of 10^8 seeds.
    found = run(closed_form(shift=shift), num_simulations=100)
    assert {found.shapes[f"weight[{i}]"] for i in range(3)} == {shape}
    for i in range(3):
        mean, p_value = found.bias()[f"weight[{i}]"]
        assert abs(mean) > 4
        assert (mean < 0) == (shift > 0)
        assert p_value < 0.001
    assert not found.is_calibrated
    assert found.p_value < 0.01
    assert "not calibrated" in str(found)


@pytest.mark.usefixtures("double")
def test_processes_and_interruptions_change_nothing(tmp_path):
    options = {"num_simulations": 6, "num_draws": 50}
    whole = run(closed_form(), **options)
    path = tmp_path / "sbc.jsonl"
    run(closed_form(), path=path, **{**options, "num_simulations": 3})
    resumed = run(closed_form(), path=path, num_processes=2, **options)
    for name, u in whole.ranks.items():
        torch.testing.assert_close(resumed.ranks[name], u, rtol=0, atol=1e-9)

    def never(model, *args):
        raise AssertionError("all is done already")

    torch.testing.assert_close(run(never, path=path, **options).ranks, whole.ranks, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="made with other settings"):
        run(never, path=path, **{**options, "num_draws": 51})


def test_guides_are_trained_on_the_simulated_data():
    def train(model, y):
        guide = AutoHypernet(model, "identity", "full", init_scale=0.4).setup(y)
        values = pyro.poutine.trace(model).get_trace(y).nodes["y"]["value"]
        with torch.no_grad():
            guide.bijection.bijections[-1].loc.fill_(float(values.sum()) / 5)
            guide.bijection.bijections[-1].log_scale.fill_(-0.5 * torch.tensor(5.0).log())
        return guide

    found = sbc(one_weight, Y, train=train, num_simulations=60, alpha=0.001, num_processes=1, seed=seed())
    assert found.is_calibrated, str(found)
    assert set(found.ranks) == {"mean", LIKELIHOOD}


def test_failed_fits_are_counted():
    def train(model, y):
        if float(torch.rand(())) < 0.5:
            raise FloatingPointError("did not converge")
        return {"mean": torch.randn(50)}

    found = sbc(one_weight, Y, train=train, num_simulations=20, num_processes=1, seed=seed())
    assert 0 < found.num_failed < 20
    assert len(found.ranks["mean"]) == 20 - found.num_failed

    def fail(model, y):
        raise ValueError("no")

    with pytest.raises(ValueError, match="All 2 fits failed; the first with: ValueError: no"):
        sbc(one_weight, Y, train=fail, num_simulations=2, num_processes=1)


def test_the_default_fit_runs(monkeypatch):
    monkeypatch.setattr(module, "fit", lambda model, guide, args, **options: guide.setup(*args))
    assert len(sbc(one_weight, Y, num_simulations=2, num_processes=1).ranks["mean"]) == 2


def test_the_callers_generator_and_parameters_are_left_alone():
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(seed(5))
    expected = torch.rand(3)
    torch.manual_seed(seed(5))
    sbc(one_weight, Y, train=lambda model, y: {"mean": torch.randn(9)}, num_simulations=3, num_processes=1)
    torch.testing.assert_close(torch.rand(3), expected)
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_models_that_make_no_data_are_refused():
    def silent():
        pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))

    def factored(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", -(w**2))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    with pytest.raises(ValueError, match="The model observes nothing"):
        sbc(silent)
    with pytest.raises(ValueError, match=r"pyro.factor sites \['f'\]"):
        sbc(factored, torch.tensor(0.0))
    with pytest.raises(ValueError, match="num_simulations and num_draws must be at least 2"):
        sbc(one_weight, Y, num_simulations=1)


def test_every_simulation_starts_at_the_same_learnt_parameters():
    """Exact: a training that moves the network's point estimates sees them where they were at first."""
    model, seen = bayesianize(torch.nn.Linear(3, 1), sites=["bias"]), []
    weight = model.net.weight

    def train(simulated, x, y):
        (node,) = pyro.poutine.trace(simulated, param_only=True).get_trace(x, y).nodes.values()
        leaf = node["value"].unconstrained()
        seen.append(leaf.detach().clone())
        with torch.no_grad():
            leaf += 1.0
        return {"bias": torch.randn(50, 1), "sigma": torch.rand(50) + 0.1}

    sbc(model, torch.randn(4, 3), torch.zeros(4), train=train, num_simulations=3, num_processes=1)
    assert len(seen) == 3
    assert all(torch.equal(value, weight) for value in seen)

"""Guides that are right are told from guides that are wrong."""

import math
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, init_to_value

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, diagnose, predict
from pyro_hypernet.evaluation.checks import Facts, check_acceptance, check_functions, check_gap, check_training
from pyro_hypernet.evaluation.independent_check import IndependentDraws, find_independently
from pyro_hypernet.target import bind_guide
from tests.evaluation.conjugate import LOG_EVIDENCE, Y, guide_of_width
from tests.small_models import one_weight

TWO = PROBLEMS["two-modes"]()


def one_mode():
    guide = AutoMultivariateNormal(TWO.model)
    guide(*TWO.args)
    variance = 2.0**2 * 0.5**2 / (2.0**2 + 0.5**2)
    with torch.no_grad():
        guide.loc.copy_(TWO.truth["modes"][0]["z"])
        guide.scale, guide.scale_tril = torch.full((2,), variance**0.5), torch.eye(2)
    return guide


@pytest.mark.parametrize("ratio", [1.0, 0.95, 1.1])
def test_a_guide_that_is_right_is_to_be_used(ratio):
    diagnosis = diagnose(one_weight, guide_of_width(ratio), Y)
    assert diagnosis.verdict == "use it", str(diagnosis)
    assert diagnosis.evidence_lower == pytest.approx(LOG_EVIDENCE, abs=0.05)
    assert diagnosis.elbo <= diagnosis.evidence_lower + 1e-6 <= diagnosis.evidence_upper + 0.05
    assert 0.9 < diagnosis.acceptance <= 1
    assert diagnosis.num_draws == 10_000
    assert diagnosis.seconds > 0


@pytest.mark.parametrize("ratio", [0.5, 2.0, 0.01])
def test_a_wrong_width_is_seen(ratio):
    diagnosis = diagnose(one_weight, guide_of_width(ratio), Y)
    assert diagnosis.verdict != "use it", str(diagnosis)
    assert all(check.remedy for check in diagnosis.checks if check.level != "good")


def test_a_shift_is_seen():
    guide = guide_of_width(1.0)
    with torch.no_grad():
        guide.loc.add_(float(guide.scale))
    diagnosis = diagnose(one_weight, guide, Y)
    assert diagnosis.check("moments").level == "doubtful", str(diagnosis)
    assert diagnosis.check("moments").value > 0.7


def test_a_missed_mode_is_seen_although_khat_is_perfect():
    diagnosis = diagnose(TWO.model, one_mode(), *TWO.args)
    assert diagnosis.verdict == "do not trust it", str(diagnosis)
    assert diagnosis.khat < 0.7
    # The other mode has mass .3; 512 correlated draws of 4 populations.
    assert 0.1 < diagnosis.check("mass elsewhere").value < 0.6
    blind = diagnose(TWO.model, one_mode(), *TWO.args, max_seconds=0)
    assert blind.verdict == "use it"
    assert "there was no time" in blind.check("mass elsewhere").reading


def test_draws_at_hand_serve_to_look_beyond():
    signs = torch.where(torch.rand(400, 1) < 0.7, 1.0, -1.0)
    exact = {"z": signs * TWO.truth["modes"][0]["z"] + 0.485 * torch.randn(400, 2)}
    diagnosis = diagnose(TWO.model, one_mode(), *TWO.args, draws=exact)
    assert diagnosis.verdict == "do not trust it"
    assert diagnosis.check("mass elsewhere").value == pytest.approx(0.3, abs=0.12)  # five standard errors


def test_modes_are_climbed_where_a_run_is_too_long():
    guide = one_mode()
    found = find_independently(bind_guide(TWO.model, guide, TWO.args, {}), guide, max_seconds=1e-9)
    assert found.how == "nothing"
    assert "was guessed to take" in found.note
    assert found.likely_seconds > 0


def test_a_prior_that_cannot_be_sampled_is_no_obstacle():
    def model(y):
        w = pyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(w, 1.0), obs=y)

    guide = AutoMultivariateNormal(model, init_loc_fn=init_to_value(values={"w": torch.tensor(0.0)}), init_scale=1.0)
    guide(torch.tensor(0.0))
    diagnosis = diagnose(model, guide, torch.tensor(0.0))
    assert "the prior cannot be sampled" in diagnosis.check("mass elsewhere").reading


def test_keyword_arguments_reach_the_model():
    guide = guide_of_width(1.0)
    positional = diagnose(one_weight, guide, Y, max_seconds=0)
    by_name = diagnose(one_weight, guide, y=Y, max_seconds=0)
    assert by_name.elbo == pytest.approx(positional.elbo, abs=1e-4)


def test_point_estimates_have_no_diagnosis():
    guide = AutoDelta(one_weight)
    guide(Y)
    with pytest.raises(TypeError, match="point estimate"):
        diagnose(one_weight, guide, Y)


def test_predicting_from_a_bad_guide_warns_once():
    guide = AutoHypernet(one_weight, init_scale=0.01).setup(Y)
    assert diagnose(one_weight, guide, Y).verdict != "use it"
    with pytest.warns(UserWarning, match="The verdict on this guide is .* k-hat|The verdict on this guide"):
        predict(one_weight, guide, Y)
    predict(one_weight, guide, Y)  # warnings are errors


NOTHING = IndependentDraws("nothing")


def test_training_that_was_not_done():
    rising, flat = (
        SimpleNamespace(losses=losses + torch.randn(500), num_steps=500)
        for losses in (torch.linspace(100, 0, 500), torch.cat([torch.linspace(100, 0, 100), torch.zeros(400)]))
    )
    assert check_training(Facts(NOTHING, fit=rising)).level == "doubtful"
    assert check_training(Facts(NOTHING, fit=rising)).value == pytest.approx(20, abs=1)
    assert check_training(Facts(NOTHING, fit=flat)).level == "good"
    few = check_training(Facts(NOTHING, fit=SimpleNamespace(losses=flat.losses[:3], num_steps=3)))
    assert few.level == "doubtful"
    assert few.reading.startswith("3 steps are too few")


@pytest.mark.parametrize(("khat", "acceptance", "can"), [(0.6, 0.3, True), (1.4, 0.01, False)])
def test_a_remedy_is_offered_where_it_is_one(khat, acceptance, can):
    """Weights correct while k-hat is below .7, a chain of proposals while it moves."""
    facts = Facts(NOTHING, khat=khat, acceptance=acceptance, gap=9.0, gap_error=0.1)
    assert check_gap(facts).remedy.startswith("resample(") == can
    assert check_acceptance(facts).remedy.startswith("metropolis(") == can
    assert all("refine(model, *args)" in check(facts).remedy for check in (check_gap, check_acceptance))


def test_functions_of_draws_that_have_not_mixed_prove_nothing():
    draws = partial(IndependentDraws, "refine", num_populations=4)
    values, reference = torch.randn(500, 3).double(), torch.randn(500, 3).double() + 5
    mixed = check_functions(Facts(draws(rhat=1.0), functions=(values, reference)))
    unmixed = check_functions(Facts(draws(rhat=2.0), functions=(values, reference)))
    assert (mixed.level, unmixed.level) == ("bad", "good")
    assert "Inconclusive" in unmixed.reading
    assert math.isfinite(unmixed.value)


def test_large_models_take_fewer_draws():
    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(30_000), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w[:3], 1.0).to_event(1), obs=y)

    guide = AutoHypernet(model, "identity", "full").setup(torch.zeros(3))
    diagnosis = diagnose(model, guide, torch.zeros(3))
    assert diagnosis.num_draws == 2**25 // 30_000
    assert "30000 weights" in diagnosis.check("mass elsewhere").reading

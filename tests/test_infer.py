"""One call: what it returns, what it mends, and what is left after Ctrl-C."""

import sys
import warnings

import pyro
import pytest
import torch

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, infer, predict
from pyro_hypernet.evaluation.verdict import DO_NOT_TRUST, USE
from tests.evaluation.conjugate import LOG_EVIDENCE, POSTERIOR_MEAN, POSTERIOR_SD, Y
from tests.seeds import seed
from tests.small_models import one_weight

MODULE = sys.modules["pyro_hypernet.infer"]
TWO = PROBLEMS["two-modes"]()


def quick(model, *args, **options):
    return infer(model, *args, **{"budget": 60, "num_steps": 300, "progress": False, **options})


def test_a_good_guide_is_used_as_it_is():
    lines = []
    posterior = quick(one_weight, Y, say=lines.append)
    assert (posterior.source, posterior.verdict) == ("guide", USE)
    assert posterior.samples["mean"].shape == (1000,)
    # Five standard errors of 1 000 draws, and what 300 steps leave.
    assert abs(float(posterior.samples["mean"].mean()) - POSTERIOR_MEAN) < 0.3 * POSTERIOR_SD
    assert posterior.log_evidence == pytest.approx(LOG_EVIDENCE, abs=0.05)
    assert posterior.log_evidence_error < 0.05
    assert {"posterior", "posterior_predictive", "log_likelihood"} <= set(posterior.idata.groups())
    assert posterior.refined is None
    assert posterior.fit.num_steps == 300
    assert posterior.diagnosis.verdict == USE
    assert lines == list(posterior.log)
    assert [line.split("s  ")[1].split(":")[0] for line in lines] == ["setup", "fit", "diagnose", "done"]
    assert predict(one_weight, posterior, Y)["y"].shape == (1000, 4)


def test_a_missed_mode_is_refined():
    posterior = quick(TWO.model, *TWO.args, num_steps=500, budget=100)
    assert (posterior.source, posterior.verdict) == ("refined", USE), str(posterior)
    assert posterior.diagnosis.verdict == DO_NOT_TRUST
    assert posterior.log_evidence == pytest.approx(TWO.truth["log_evidence"], abs=0.4)
    share = float((posterior.samples["z"].sum(-1) > 0).double().mean())
    assert share == pytest.approx(0.7, abs=0.15)  # systematic resampling: sd about .03
    assert "refined draws" in posterior.because


def test_weights_mend_what_is_slightly_off():
    guide = AutoHypernet(one_weight, "identity", "full", init_scale=1.5 * POSTERIOR_SD).setup(Y)
    with torch.no_grad():
        guide.bijection.bijections[-1].loc.fill_(POSTERIOR_MEAN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = quick(one_weight, Y, guide=guide, num_steps=1, budget=20)
    assert posterior.source == "resampled", str(posterior)
    assert posterior.verdict == USE
    assert abs(float(posterior.samples["mean"].std()) / POSTERIOR_SD - 1) < 0.15  # five standard errors: .11


def test_draws_are_moved_where_there_is_no_time_to_refine(monkeypatch):
    monkeypatch.setattr(MODULE.Plan, "refined", lambda *_: 10)
    guide = AutoHypernet(one_weight, "identity", "full", init_scale=0.02).setup(Y)
    with pytest.warns(UserWarning, match="Its draws were moved 16 times"):
        posterior = quick(one_weight, Y, guide=guide, num_steps=1, budget=60)
    assert posterior.source == "moved", str(posterior)
    assert posterior.verdict != USE
    assert any("move: every draw 16 times" in line for line in posterior.log)
    draws = posterior.samples["mean"]
    # 1 000 independent draws: standard errors of .032 sd and .022; 4.5 of them.
    assert abs(float(draws.mean()) - POSTERIOR_MEAN) < 0.15 * POSTERIOR_SD
    assert abs(float(draws.std()) / POSTERIOR_SD - 1) < 0.1


@pytest.mark.parametrize("step", ["examine", "refine"])
def test_ctrl_c_keeps_what_was_reached(monkeypatch, step):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, step, interrupt)
    verdict = "do not trust it" if step == "examine" else "(do not trust|refine) it"
    with pytest.warns(UserWarning, match=f"The verdict on this posterior is '{verdict}'"):
        posterior = quick(TWO.model, *TWO.args, num_steps=50, budget=100)
    assert posterior.samples["z"].shape == (1000, 2)
    assert posterior.source == "guide"
    assert posterior.fit.num_steps == 50
    assert (posterior.diagnosis is None) == (step == "examine")
    assert any("interrupted; what was reached is kept" in line for line in posterior.log)


@pytest.mark.filterwarnings("ignore:The verdict on this posterior")
def test_the_same_seed_gives_the_same_draws():
    found = []
    for _ in range(2):
        pyro.set_rng_seed(seed(4))
        found.append(quick(one_weight, Y, num_steps=20).samples["mean"])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"num_samples": 5}, {"num_steps": 0}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="num_samples must be at least 10"):
        infer(one_weight, Y, **options)


def test_a_budget_that_cannot_be_read():
    with pytest.raises(ValueError, match="budget must be"):
        infer(one_weight, Y, budget="a while")

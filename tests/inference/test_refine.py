"""Tempered Monte Carlo reaches posteriors and evidences that are known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from models import PROBLEMS
from pyro_hypernet.inference.refine import refine

pytestmark = pytest.mark.usefixtures("double")


def quick(model, *args, **options):
    return refine(model, *args, progress=False, **options)


def test_conjugate_regression():
    problem = PROBLEMS["conjugate-regression"]()
    refined = quick(problem.model, *problem.args, num_samples=2000, num_moves=4)
    assert abs(refined.log_evidence - problem.truth["log_evidence"]) < 0.1
    assert refined.temperatures[0] == 0
    assert refined.temperatures[-1] == 1
    for name, mean in problem.truth["mean"].items():
        sd = problem.truth["sd"][name]
        # 2 000 draws: a standard error of .022 sd if independent; .15 sd is over six, of correlated draws still four.
        assert bool(((refined.samples[name].mean(0) - mean).abs() < 0.15 * sd).all()), name
        assert bool(((refined.samples[name].std(0) / sd - 1).abs() < 0.15).all()), name


def test_both_of_two_modes_are_found_with_their_masses():
    problem = PROBLEMS["abx"]()
    refined = quick(problem.model, *problem.args, num_samples=2000, num_moves=3)
    assert abs(refined.log_evidence - problem.truth["log_evidence"]) < 0.1
    (name, value) = next(iter(refined.samples.items()))
    share = float((value > 0).double().mean())
    # Systematic resampling keeps the halves within a few per cent of 1 / 2; sd about .02.
    assert 0.4 < share < 0.6, name


def test_error_of_the_evidence_and_rhat_speak_of_populations():
    problem = PROBLEMS["conjugate-regression"]()
    refined = quick(problem.model, *problem.args, num_samples=800, num_populations=8)
    assert 0 < refined.log_evidence_error < 0.3
    assert refined.max_rhat < 1.1
    assert len(refined.acceptance) == len(refined.temperatures) - 1
    assert all(0.3 < rate <= 1 for rate in refined.acceptance)
    alone = quick(problem.model, *problem.args, num_samples=100, num_populations=1)
    assert math.isnan(alone.log_evidence_error)
    assert alone.rhat == {}


def test_constrained_sites_and_seeds():
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(share[0], scale), obs=y)

    runs = []
    for _ in range(2):
        pyro.set_rng_seed(1)
        runs.append(quick(model, torch.tensor([0.1, 0.4, 0.2]), num_samples=200, num_moves=2))
    assert bool((runs[0].samples["scale"] > 0).all())
    torch.testing.assert_close(runs[0].samples["share"].sum(-1), torch.ones(200))
    torch.testing.assert_close(runs[0].samples["share"], runs[1].samples["share"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"num_samples": 10, "num_populations": 4}, {"num_moves": 0}, {"num_leapfrogs": 0}]
)
def test_numbers_out_of_range(options):
    problem = PROBLEMS["conjugate-regression"]()
    with pytest.raises(ValueError, match="num_samples, num_populations, num_moves and num_leapfrogs must be positive"):
        quick(problem.model, *problem.args, **options)


def test_no_finite_likelihood():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("never", torch.where(x.abs() >= 0, -torch.inf, 0.0) + 0 * x)

    with pytest.raises(ValueError, match="No draw of the prior has a finite likelihood"):
        quick(model)

"""NUTS through the map of the default guide, with its symmetries and its Gaussian conditional, is still exact."""

import warnings

import pyro
import pytest

from models import PROBLEMS
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.sample.nuts import NutsKernel, nuts
from pyro_hypernet.train.fit import fit
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def through(name, num_steps, **options):
    problem = PROBLEMS[name]()
    guide = AutoHypernet(problem.model, structure="informed").setup(*problem.args)
    if num_steps:
        fit(problem.model, guide, problem.args, num_steps=num_steps, progress=False)
    pyro.set_rng_seed(seed(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")
        return (
            problem,
            guide,
            nuts(problem.model, *problem.args, guide=guide, kernel=NutsKernel(num_processes=1), **options),
        )


def test_moments_where_the_conditional_is_exact():
    problem, guide, found = through("conjugate-regression", 0, num_samples=200, warmup_steps=100, num_chains=1)
    assert guide.knowledge.linear_block.block
    mean, sd = problem.truth["mean"]["w"], problem.truth["sd"]["w"]
    ess = found.ess["w"].clamp(max=200)
    # Five standard errors, four numbers; the sampler sees N(0, I).
    assert bool((((found.samples["w"].mean(0) - mean) / sd).abs() < 5 / ess.sqrt()).all())
    assert bool(((found.samples["w"].std(0) / sd - 1).abs() < 5 / ess.sqrt()).all())
    assert float(ess.min()) > 25  # over 25 seeds at least 91


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [0, 500], ids=["untrained", "trained"])
def test_moments_of_a_symmetric_product(num_steps):
    """abx: modes on both branches of a hyperbola; symmetries, and a conditional that depends on the other weight."""
    amounts = {"num_samples": 500, "warmup_steps": 200, "num_chains": 2}
    problem, guide, found = through("abx", num_steps, **amounts)
    assert guide.knowledge.symmetries.groups
    assert guide.knowledge.linear_block.block
    for name in ("a", "b"):
        square = found.samples[name] ** 2
        truth = float(problem.truth["sd"][name]) ** 2
        # Of 1 000 squares about 200 are effective: five standard errors.
        assert abs(float(square.mean()) - truth) < 5 * float(square.std()) / 200**0.5
        share = float((found.samples[name] > 0).double().mean())
        # A map that is nearly right leaves no barrier between the branches; an untrained one does.
        assert num_steps == 0 or 0.25 < share < 0.75

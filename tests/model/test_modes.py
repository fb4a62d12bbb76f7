"""Modes from the prior, the starts that they give, and a mixture base that holds them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, VectorizedELBO, best_start, fit, init_to_map
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.model.density import density_of
from pyro_hypernet.model.modes import find_modes
from tests.seeds import seed

TWO = PROBLEMS["two-modes"]()


def density():
    return density_of(TWO.model, poutine.trace(TWO.model).get_trace(*TWO.args))


def test_both_modes_are_found_the_higher_first():
    pyro.set_rng_seed(seed(0))
    modes = find_modes(density(), TWO.args, num_modes=2)
    place = 4 / (4 + 0.25) * 2.0
    torch.testing.assert_close(modes, torch.tensor([[place, place], [-place, -place]]), atol=0.02, rtol=0)


def test_more_modes_than_there_are_come_twice():
    pyro.set_rng_seed(seed(0))
    modes = find_modes(density(), TWO.args, num_modes=5)
    assert modes.shape == (5, 2)
    assert bool(modes.isfinite().all())


def test_init_to_map_starts_on_the_support():
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    y = 3.0 * torch.ones(50)
    guide = AutoHypernet(model, init_loc_fn=init_to_map(model, y)).setup(y)
    grid = torch.linspace(1, 5, 4001)
    # The mode of the unconstrained scale, so without the log-normal's 1 / scale.
    height = -0.5 * grid.log() ** 2 - 50 * grid.log() - 50 * 9 / (2 * grid**2)
    torch.testing.assert_close(guide.median()["scale"], grid[height.argmax()], atol=0.01, rtol=0)


def test_a_mixture_base_holds_both_modes():
    """4 000 draws: the share of the greater mode, 0.7, has a standard error of .007; false alarms below 10⁻⁶."""
    pyro.set_rng_seed(seed(1))
    guide = AutoHypernet(TWO.model, num_components=2)
    fit(TWO.model, guide, TWO.args, num_steps=800, progress=False)
    assert abs(float((guide.sample_posterior(4000)["z"].sum(-1) > 0).float().mean()) - 0.7) < 0.06
    assert elbo(TWO.model, guide, *TWO.args, num_samples=4000)[0] > TWO.truth["log_evidence"] - 0.1


@pytest.mark.parametrize("gradient", ["path", "total"])
def test_strata_estimate_the_same_bound(gradient):
    """Strata of 3 components against plain draws: the means of 4 000 log weights within 5 standard errors (10⁻⁶)."""
    pyro.set_rng_seed(seed(2))
    guide = AutoHypernet(TWO.model, "linear", num_components=3, init_scale=2.0).setup(*TWO.args)
    with torch.no_grad():
        guide._modules["base"].logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
    w, log_q, weights = guide.sample_strata(3 * 2000)
    assert w.shape == (6000, 2)
    assert float(weights.detach().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(guide.unconstrained_log_prob(w), log_q, atol=1e-3, rtol=1e-4)
    bound, error = elbo(TWO.model, guide, *TWO.args, num_samples=20_000)
    estimate = VectorizedELBO(6000, gradient=gradient).estimate(TWO.model, guide, *TWO.args)
    assert abs(-float(estimate.loss) - bound) < 5 * error * math.sqrt(1 + 20_000 / 6000)
    estimate.surrogate.backward()
    assert bool(guide._modules["base"].logits.grad.abs().max() > 0)


def test_a_fit_goes_on_from_the_best_of_several_starts():
    pyro.set_rng_seed(seed(0))
    guide = AutoHypernet(TWO.model)
    best_start(TWO.model, guide, TWO.args, num_steps=8)
    result = fit(TWO.model, guide, TWO.args, num_steps=168, progress=False)
    assert result.elbo > TWO.truth["log_evidence"] - 3
    with pytest.raises(ValueError, match="^num_restarts must be a positive integer; got 2.5"):
        best_start(TWO.model, guide, TWO.args, num_restarts=2.5)

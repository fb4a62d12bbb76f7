"""Trajectories leave the target as it is, and find a step size and a length by themselves."""

import pytest
import torch

from pyro_hypernet.sample.moves import TARGET_ACCEPTANCE, Trajectories
from pyro_hypernet.target import State
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")
SCALE = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)


def gaussian(w, beta):
    """A standard normal prior, and a likelihood that at beta 1 makes it N(0, SCALE²)."""
    precision = 1 / SCALE**2 - 1
    log_likelihood = -(precision * w**2).sum(-1) / 2
    return State(w, -(w**2).sum(-1) / 2, log_likelihood, -w - beta * precision * w)


def run(start, num_moves, spread, **options):
    torch.manual_seed(seed(0))
    trajectories = Trajectories(3, **{"max_leapfrogs": 64, **options})
    state, rates = gaussian(start, 1.0), []
    for _ in range(num_moves):
        state, rate = trajectories.move(gaussian, state, 1.0, torch.zeros(3), spread)
        rates.append(rate)
    return state, rates, trajectories


def test_the_target_is_left_as_it_is():
    start = SCALE * torch.randn(20_000, 3, generator=torch.Generator().manual_seed(seed(1)), dtype=torch.float64)
    state, _, _ = run(start, 10, SCALE)
    # 20 000 independent draws: standard errors of .007 sd for means, .005 for sds; a false alarm in 1e-6 of seeds.
    assert bool((state.w.mean(0) / SCALE).abs().max() < 0.036)
    assert bool((state.w.std(0) / SCALE - 1).abs().max() < 0.026)


def test_draws_from_elsewhere_arrive():
    state, _, _ = run(torch.ones(4000, 3), 30, torch.ones(3))
    # Standard errors of .016 sd and .011; five of them.
    assert bool((state.w.mean(0) / SCALE).abs().max() < 0.08)
    assert bool((state.w.std(0) / SCALE - 1).abs().max() < 0.06)


@pytest.mark.parametrize("spread", [SCALE, torch.full((3,), 20.0), torch.full((3,), 0.01)], ids=str)
def test_the_step_size_comes_to_its_acceptance(spread):
    _, rates, _ = run(SCALE * torch.randn(500, 3), 60, spread)
    assert sum(rates[-20:]) / 20 == pytest.approx(TARGET_ACCEPTANCE, abs=0.08)


def test_densities_belong_to_the_draws():
    state, _, _ = run(torch.randn(50, 3), 5, SCALE)
    for value, true in zip(state, gaussian(state.w, 1.0), strict=True):
        torch.testing.assert_close(value, true)


def test_the_length_grows_where_scales_are_unknown_and_stays_below_its_limit():
    _, _, long = run(SCALE * torch.randn(500, 3), 60, torch.ones(3))
    _, _, short = run(SCALE * torch.randn(500, 3), 60, SCALE)
    assert long.length / long.step_size > 3 * short.length / short.step_size
    _, _, limited = run(SCALE * torch.randn(500, 3), 20, torch.ones(3), max_leapfrogs=3)
    assert limited.num_leapfrogs <= 60

"""The steps between powers keep what they promise, exactly."""

import math

import pytest
import torch

from pyro_hypernet.sample.tempering import (
    effective_sample_size,
    log_mean_exp,
    mean_and_spread,
    next_beta,
    resample_in_order,
    resample_systematically,
)
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def test_effective_sample_size_of_equal_and_of_single_weights():
    assert effective_sample_size(torch.full((7,), -3.0)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, -math.inf, -math.inf])) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([0.5, 0.5, 0.25]).log()) == pytest.approx(
        1.25**2 / (0.25 + 0.25 + 0.0625)
    )


@pytest.mark.parametrize("old", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_next_beta_leaves_just_that_share_effective(old, share):
    log_likelihood = -50 * torch.linspace(0, 1, 101) ** 2
    log_likelihood[0] = -torch.inf
    new = next_beta(log_likelihood, old, share)
    assert old < new < 1
    assert effective_sample_size((new - old) * log_likelihood) == pytest.approx(share * 100, rel=1e-6)


def test_a_flat_likelihood_needs_one_step():
    assert next_beta(torch.full((5,), -1e6), 0.2, 0.5) == 1


def test_betas_rise_though_one_draw_towers_over_all():
    log_likelihood = torch.zeros(100)
    log_likelihood[0] = 1e8
    assert next_beta(log_likelihood, 0.5, 0.5) > 0.5


def test_systematic_resampling_gives_every_draw_its_expected_number_but_for_one():
    log_weights = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed(0)))
    index = resample_systematically(log_weights, 20)
    for number, chosen in enumerate(index.view(3, 20)):
        counts = torch.bincount(chosen - 50 * number, minlength=50)
        assert counts.shape == (50,)
        assert bool(((counts - 20 * log_weights[number].softmax(0)).abs() < 1).all())


def test_resampling_leaves_out_what_has_no_weight():
    log_weights = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]])
    assert set(resample_systematically(log_weights, 1000).tolist()) == {1, 3}


def test_modes_along_the_main_axis_keep_their_masses():
    """Three modes on a line in five dimensions, draws in random order: each gets its expected number but for one."""
    generator = torch.Generator().manual_seed(seed(0))
    mode = torch.randint(3, (2, 200), generator=generator)
    x = 0.01 * torch.randn(400, 5, generator=generator) + mode.flatten()[:, None] * torch.tensor([1.0, -1, 2, 0.5, 1])
    log_weights = torch.randn(2, 200, generator=generator)
    index = resample_in_order(x, log_weights, 30)
    for number, chosen in enumerate(index.view(2, 30)):
        assert bool((chosen // 200 == number).all())
        counts = torch.bincount(mode[number][chosen - 200 * number], minlength=3)
        expected = 30 * torch.stack([log_weights[number].softmax(0)[mode[number] == k].sum() for k in range(3)])
        assert bool(((counts - expected).abs() < 2).all())
        assert abs(float(counts[0] - expected[0])) < 1
        assert abs(float(counts[2] - expected[2])) < 1


def test_one_draw_can_be_resampled_without_an_axis():
    assert resample_in_order(torch.zeros(4, 0), torch.zeros(2, 2), 3).shape == (6,)


def test_mean_and_spread_are_those_of_the_weighted_draws():
    w = torch.tensor([[0.0, 5.0], [4.0, 5.0]])
    mean, spread = mean_and_spread(w, torch.tensor([0.75, 0.25]).log())
    torch.testing.assert_close(mean, torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(spread, torch.tensor([math.sqrt(3.0), 1e-6]))


def test_log_mean_exp():
    torch.testing.assert_close(log_mean_exp(torch.tensor([[1.0, 3.0]]).log()), torch.tensor([2.0]).log())

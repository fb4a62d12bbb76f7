"""Replicates are the plain distances of resampled draws, and intervals hold the truth as often as they say."""

import pytest
import torch

from pyro_hypernet.evaluation.bootstrap import (
    MAX_COLUMNS,
    ResampledTarget,
    class_replicates,
    interval,
    resampled_counts,
    shuffled_blocks,
)
from pyro_hypernet.evaluation.distances import mmd_replicates, mmd_squared, sd_ratio, wasserstein_over_sd
from pyro_hypernet.evaluation.metrics import agreement, total_variation


def repeated(draws, counts):
    return draws.repeat_interleave(counts, 0)


def test_counts_sum_to_the_draws_and_blocks_hold_neighbours():
    counts = resampled_counts(100, 7, block=10)
    assert counts.shape == (7, 100)
    assert (counts.sum(1) == 100).all()
    # With one block there is nothing to choose but where on the circle it starts.
    assert (resampled_counts(100, 7, block=100) == 1).all()
    # The mean of a replicate varies as that of ten blocks does: sd of a block's mean over sqrt(10). The sd of 2 000
    # replicates has a relative error of 1.6 %.
    values = torch.arange(100).double()
    block_means = torch.stack([values[(start + torch.arange(10)) % 100].mean() for start in range(100)])
    means = resampled_counts(100, 2000, block=10).double() @ values / 100
    assert float(means.std()) == pytest.approx(float(block_means.std(correction=0)) / 10**0.5, rel=0.08)


def test_a_shuffle_keeps_every_draw_and_the_blocks():
    order = shuffled_blocks(23, 5)
    assert sorted(order.tolist()) == list(range(23))
    assert int((order.diff() == 1).sum()) >= 18
    assert sorted(shuffled_blocks(23, 1).tolist()) == list(range(23))


def test_replicates_are_the_distances_of_repeated_draws(double):
    draws, target = torch.randn(80, 4) + 0.3, torch.randn(90, 4)
    target[:, 2] = 1.0  # a coordinate in which the reference does not vary
    counts, target_counts = resampled_counts(80, 5), resampled_counts(90, 5)
    found = ResampledTarget(target, target_counts).replicates(draws, counts)
    for i in range(5):
        ours, theirs = repeated(draws, counts[i]), repeated(target, target_counts[i])
        torch.testing.assert_close(found["w1_over_sd"][i], wasserstein_over_sd(ours, theirs))
        torch.testing.assert_close(found["sd_ratio"][i], sd_ratio(ours, theirs))


def test_of_many_coordinates_some_are_looked_at():
    draws = torch.randn(50, 3 * MAX_COLUMNS)
    counts = resampled_counts(50, 4)
    found = ResampledTarget(draws, counts).replicates(draws, counts)
    assert found["w1_over_sd"].shape == (4,)
    torch.testing.assert_close(found["w1_over_sd"], torch.zeros(4, dtype=torch.float64))


def test_mmd_of_every_draw_once_is_mmd_and_of_halves_that_of_halves(double):
    x, y, bandwidth = torch.randn(60, 3), torch.randn(50, 3) + 0.5, torch.tensor(1.3)
    once = mmd_replicates(x, y, torch.ones(1, 60), torch.ones(1, 50), bandwidth=bandwidth)
    torch.testing.assert_close(once[0], mmd_squared(x, y, bandwidth=bandwidth))
    first = (torch.arange(60) < 30).double()[None]
    halves = mmd_replicates(x, x, first, 1 - first, bandwidth=bandwidth)
    torch.testing.assert_close(halves[0], mmd_squared(x[:30], x[30:], bandwidth=bandwidth))


def test_resampling_does_not_shift_mmd():
    x, y = torch.randn(200, 2), torch.randn(200, 2)
    counts, target_counts = resampled_counts(200, 2000), resampled_counts(200, 2000)
    found = mmd_replicates(x, y, counts, target_counts, bandwidth=torch.tensor(1.5))
    exact = mmd_squared(x, y, bandwidth=torch.tensor(1.5))
    # Five standard errors of the mean of 2 000 replicates, and a two-hundredth of it for the missing pairs.
    assert abs(float(found.mean() - exact)) < 5 * float(found.std()) / 2000**0.5 + 1 / 200 * 0.05


@pytest.mark.parametrize("shape", [(30,), (30, 3)], ids=["binary", "classes"])
def test_class_replicates_are_those_of_repeated_draws(double, shape):
    p, q = (torch.rand(40, *shape) for _ in range(2))
    if len(shape) == 2:
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    counts, target_counts = resampled_counts(40, 3), resampled_counts(40, 3)
    found = class_replicates(p, q, counts, target_counts)
    for i in range(3):
        ours, theirs = repeated(p, counts[i]).mean(0), repeated(q, target_counts[i]).mean(0)
        torch.testing.assert_close(found["total_variation"][i], total_variation(ours, theirs))
        torch.testing.assert_close(found["agreement"][i], agreement(ours, theirs))


def test_intervals_hold_the_truth_as_often_as_they_say():
    # A shift by half an sd: W1/sd is 0.5. 88.6 of 100 intervals of 90 % hold it (of 1 000), so of 120 fewer than 90 or
    # all of them with a chance of 2 in 10^5.
    held = 0
    for _ in range(120):
        draws, target = torch.randn(300) + 0.5, torch.randn(300)
        counts, target_counts = resampled_counts(300, 100), resampled_counts(300, 100)
        spread = ResampledTarget(target, target_counts).replicates(draws, counts)["w1_over_sd"]
        low, high = interval("w1_over_sd", float(wasserstein_over_sd(draws, target)), spread, level=0.9)
        held += low <= 0.5 <= high
    assert 90 <= held <= 119


def test_intervals_stay_within_the_range_of_a_distance():
    spread = torch.tensor([0.0, 0.5, 1.0])
    assert interval("w1_over_sd", 0.01, spread, level=0.9)[0] == 0
    assert interval("agreement", 1.0, spread, level=0.9)[1] == 1
    low, high = interval("w1_over_sd", float("nan"), spread, level=0.9)
    assert low != low
    assert high != high

"""Importance resampling turns draws of a guide into draws of the posterior."""

import math

import pytest
import torch

from pyro_hypernet.correction.resample import choose, resample
from tests.evaluation.conjugate import LOG_EVIDENCE, POSTERIOR_MEAN, POSTERIOR_SD, Y, guide_of_width
from tests.small_models import one_weight


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("replacement", [True, False])
def test_moments_are_those_of_the_posterior(smooth, replacement):
    options = {"num_samples": 2000, "num_proposals": 40_000, "smooth": smooth, "replacement": replacement}
    found = resample(one_weight, guide_of_width(1.5), Y, **options)
    draws = found.samples["mean"]
    # Five standard errors of 2 000 independent draws.
    assert abs(float(draws.mean()) - POSTERIOR_MEAN) < 5 * POSTERIOR_SD / 2000**0.5
    assert abs(float(draws.std()) / POSTERIOR_SD - 1) < 5 / 4000**0.5
    assert abs(found.log_evidence - LOG_EVIDENCE) < 5 * found.log_evidence_error
    assert math.isnan(found.khat) != smooth
    if not replacement:
        assert found.num_distinct == 2000


def test_systematic_resampling_keeps_shares():
    index = choose(torch.tensor([0.5, 0.3, 0.2]).log(), 1000)
    counts = torch.bincount(index, minlength=3)
    assert (counts - torch.tensor([500, 300, 200])).abs().max() <= 1


def test_without_replacement_few_draws_are_those_of_weight():
    log_shares = torch.full((100,), -20.0)
    log_shares[:5] = 0.0
    assert set(choose(log_shares, 5, replacement=False).tolist()) == set(range(5))


def test_a_guide_beyond_correction_is_named():
    with pytest.warns(UserWarning, match=r"Resampling cannot correct this guide: k-hat of its weights is"):
        # k = .99, whose estimate by 1 000 draws of the tail has an sd of .065.
        resample(one_weight, guide_of_width(0.1), Y, num_proposals=100_000)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_samples must be positive"):
        resample(one_weight, guide_of_width(1.0), Y, num_samples=20, num_proposals=10, replacement=False)

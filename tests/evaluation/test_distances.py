"""Distances between sets of draws, against truths known beforehand."""

import pytest
import torch

from pyro_hypernet.evaluation.distances import median_bandwidth, mmd_squared, sd_ratio, wasserstein_over_sd


def test_wasserstein_of_a_shift_is_the_shift_over_the_sd():
    reference = 3 * torch.randn(500, 4)
    torch.testing.assert_close(
        wasserstein_over_sd(reference + 3 * torch.ones(4), reference), (3 / reference.double().std(0)).mean()
    )


def test_wasserstein_of_two_normals_one_sd_apart_is_one():
    # Standard error of the distance below 0.005 at 200 000 draws each: 0.03 is six of them.
    assert wasserstein_over_sd(torch.randn(200_000) + 1, torch.randn(200_000)) == pytest.approx(1, abs=0.03)


def test_wasserstein_has_no_dimension():
    draws, reference = torch.randn(300, 2), torch.randn(400, 2)
    torch.testing.assert_close(
        wasserstein_over_sd(100 * draws, 100 * reference), wasserstein_over_sd(draws, reference), rtol=1e-5, atol=0
    )


def test_constant_coordinates_are_left_out():
    draws, reference = torch.randn(50, 2), torch.randn(60, 2)
    constant = torch.cat([reference, torch.ones(60, 1)], 1)
    expected = wasserstein_over_sd(draws, reference)
    torch.testing.assert_close(wasserstein_over_sd(torch.cat([draws, torch.ones(50, 1)], 1), constant), expected)


def test_sd_ratio_of_half_the_width_is_a_half():
    reference = torch.randn(100, 2, 3)
    torch.testing.assert_close(sd_ratio(reference / 2, reference), torch.tensor(0.5).double())


def test_mmd_is_unbiased():
    # Mean over 200 independent pairs of samples of one distribution: 5 standard errors, once in two million runs.
    values = torch.stack([mmd_squared(torch.randn(40, 2), torch.randn(40, 2)) for _ in range(200)])
    assert abs(float(values.mean())) < 5 * float(values.std()) / 200**0.5
    assert float(values.min()) < 0


def test_mmd_of_two_normals_has_its_closed_form():
    # Kernel width h in one dimension: 2 h / sqrt(h² + 2) (1 − exp(−shift² / (2 (h² + 2)))).
    width, shift = torch.tensor(1.5), torch.tensor(1.0)
    square = width**2 + 2
    exact = 2 * width / square.sqrt() * (1 - torch.exp(-(shift**2) / (2 * square)))
    values = torch.stack(
        [mmd_squared(torch.randn(200, 1) + shift, torch.randn(200, 1), bandwidth=width) for _ in range(100)]
    )
    assert abs(float(values.mean() - exact)) < 5 * float(values.std()) / 10


def test_bandwidth_is_the_median_distance():
    assert median_bandwidth(torch.tensor([0.0, 1.0, 3.0])) == 2


@pytest.mark.parametrize("function", [wasserstein_over_sd, sd_ratio, mmd_squared])
def test_shapes_must_fit(function):
    with pytest.raises(ValueError, match="draws and reference must have shapes"):
        function(torch.randn(5, 2), torch.randn(5, 3))
    with pytest.raises(ValueError, match="draws and reference must have shapes"):
        function(torch.randn(1, 2), torch.randn(5, 2))

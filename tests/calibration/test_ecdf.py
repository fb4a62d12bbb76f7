"""The band holds uniform numbers as often as it says, and p-values are uniform."""

import pytest
import torch

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band, uniform_p_value


@pytest.mark.parametrize("size", [20, 100])
@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_the_band_holds_everywhere_at_once_as_often_as_it_says(size, coverage):
    points, lower, upper = ecdf_band(size, coverage=coverage)
    values = torch.rand(2000, size, dtype=torch.float64)
    curves = (values[:, :, None] <= points).double().mean(1)
    inside = float(((curves > lower - 1e-9) & (curves < upper + 1e-9)).all(1).double().mean())
    # Binomial error .007 of the 2 000 sets and .005 of the 4 000 behind the band: five of both, and counts are steps.
    assert coverage - 0.045 < inside < coverage + 0.05


def test_p_values_of_uniform_numbers_are_uniform():
    p_values = torch.tensor([uniform_p_value(torch.rand(50)) for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        share = float((p_values <= level).double().mean())
        assert abs(share - level) < 5 * (level * (1 - level) / 400) ** 0.5 + 0.01


@pytest.mark.parametrize("change", [lambda u: u**2, lambda u: 0.25 + u / 2, lambda u: (u > 0.5).double()])
def test_what_is_not_uniform_has_a_low_p_value(change):
    """With 100 values p exceeded .01 once in 3 000 tries of u²; with 200 the distance is 1.4 times as many sds."""
    assert uniform_p_value(change(torch.rand(200, dtype=torch.float64))) < 0.01


def test_the_band_is_around_the_diagonal_and_closes():
    narrow, wide = ecdf_band(1000, num_points=50), ecdf_band(50, num_points=50)
    for points, lower, upper in (narrow, wide):
        assert bool(((lower <= points) & (points <= upper)).all())
    assert bool((narrow[2] - narrow[1] < wide[2] - wide[1]).all())
    torch.testing.assert_close(ecdf(narrow[0], narrow[0]), torch.arange(1, 50).double() / 49)


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_values must be at least 2"):
        ecdf_band(1)

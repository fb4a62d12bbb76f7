"""Quantiles against torch's, and what is no list of probabilities."""

import pytest
import torch

from pyro_hypernet.model.quantiles import quantiles_of


def test_quantiles_agree_with_torch():
    draws = torch.randn(101, 3, 2)
    levels = [0.0, 0.013, 0.5, 1.0]
    torch.testing.assert_close(quantiles_of(draws, levels), torch.quantile(draws, torch.tensor(levels), dim=0))


@pytest.mark.parametrize("levels", [0.5, [-0.1], [1.1], [[0.5]], [float("nan")]])
def test_no_list_of_probabilities(levels):
    with pytest.raises(ValueError, match="^quantiles must be a list of probabilities in"):
        quantiles_of(torch.randn(5, 2), levels)

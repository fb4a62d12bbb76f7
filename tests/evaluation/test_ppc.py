"""Posterior predictive checks find what a model cannot make."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.evaluation.ppc import replicate
from tests.evaluation.conjugate import line

X = torch.linspace(-1, 1, 40)
SAMPLES = {"slope": 1 + 0.05 * torch.randn(1000)}


def test_data_of_the_model_pass():
    # Noise whose mean, spread and extremes are the middling ones of normal noise: every p-value is far from 0 and 1.
    noise = dist.Normal(0.0, 1.0).icdf((torch.arange(40) + 0.5) / 40)
    y = X + 0.5 * noise[17 * torch.arange(40) % 40]
    found = replicate(line, SAMPLES, X, y)
    assert [one.statistic for one in found] == ["mean", "sd", "least", "greatest"]
    assert all(one.check.level == "good" for one in found)
    assert all(one.replicated.shape == (1000,) for one in found)


def test_noise_that_is_too_large_is_seen():
    found = {one.statistic: one for one in replicate(line, SAMPLES, X, X + 3 * torch.randn(40))}
    assert found["sd"].check.level == "doubtful"
    assert found["sd"].p_value == 0
    assert "The sd of 'y' is" in found["sd"].check.reading


def test_own_statistics():
    (found,) = replicate(line, SAMPLES, X, X, statistics={"median": lambda y: y.median(-1).values})
    assert found.statistic == "median"
    assert found.observed == pytest.approx(float(X.median()))


def test_p_values_are_half_where_replicates_equal_the_data():
    def coin(y):
        pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Delta(torch.ones(3)).to_event(1), obs=y)

    (found,) = replicate(coin, {"w": torch.zeros(50)}, torch.ones(3), statistics={"mean": lambda y: y.mean(-1)})
    assert found.p_value == 0.5


def test_no_data_no_check():
    with pytest.raises(ValueError, match="The model observes nothing"):
        replicate(line, SAMPLES, X)

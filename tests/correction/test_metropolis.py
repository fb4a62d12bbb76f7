"""Chains that a guide proposes to reach the posterior, and their acceptance is what the weights say."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.correction.metropolis import _walk, metropolis
from pyro_hypernet.evaluation.importance import expected_acceptance, weighted_draws
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from tests.evaluation.conjugate import POSTERIOR_MEAN, POSTERIOR_SD, Y, guide_of_width
from tests.small_models import linear, linear_data, one_weight


@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.0])
def test_moments_are_those_of_the_posterior(ratio):
    chains = metropolis(one_weight, guide_of_width(ratio), Y, num_samples=1500)
    draws, ess = chains.samples["mean"], float(chains.ess["mean"].clamp(max=12_000))
    # Five standard errors by the effective sample size; a square mixes slower, so half of it.
    assert abs(float(draws.mean()) - POSTERIOR_MEAN) < 5 * POSTERIOR_SD / math.sqrt(ess)
    assert abs(float(draws.std()) / POSTERIOR_SD - 1) < 5 / math.sqrt(ess)
    assert chains.max_rhat < 1.05


def test_an_exact_guide_is_always_accepted():
    chains = metropolis(one_weight, guide_of_width(1.0), Y, num_samples=100)
    assert chains.acceptance > 0.999  # weights are equal up to rounding
    assert chains.longest_stay <= 2


@pytest.mark.parametrize("ratio", [0.8, 1.7])
def test_acceptance_is_what_the_weights_say(ratio):
    guide = guide_of_width(ratio)
    chains = metropolis(one_weight, guide, Y, num_samples=2000)
    expected = expected_acceptance(weighted_draws(one_weight, guide, Y, num_samples=20_000).log_weights)
    # 16 000 steps: over 60 seeds sds below .01. The weights of guides that are much narrower have no variance.
    assert chains.acceptance == pytest.approx(expected, abs=0.04)


def test_expected_acceptance_of_two_normals():
    """Of N(0, 1) proposed to by N(0, s²), from independent pairs of exact draws."""
    s = 1.5
    posterior, proposal = dist.Normal(0.0, 1.0), dist.Normal(0.0, s)
    here, there = posterior.sample((200_000,)), proposal.sample((200_000,))
    log_weight = {
        key: posterior.log_prob(w) - proposal.log_prob(w) for key, w in {"here": here, "there": there}.items()
    }
    direct = float((log_weight["there"] - log_weight["here"]).exp().clamp(max=1).mean())
    # Standard errors: .001 of the pairs, .003 of the weighted estimate.
    assert expected_acceptance(log_weight["there"]) == pytest.approx(direct, abs=0.02)
    assert expected_acceptance(torch.zeros(50)) == pytest.approx(1)


def test_shapes_and_constrained_sites():
    x, y = linear_data()
    guide = AutoHypernet(linear).setup(x, y)
    chains = metropolis(linear, guide, x, y, num_samples=20, warmup_steps=5, num_chains=3)
    assert chains.samples["slope"].shape == (60, 2)
    assert chains.samples_by_chain["noise"].shape == (3, 20)
    assert bool((chains.samples["noise"] > 0).all())
    assert chains.rhat["slope"].shape == chains.ess["slope"].shape == (2,)


def test_a_chain_leaves_an_impossible_start():
    log_weights = torch.tensor([[-math.inf, -math.inf, 0.0, -math.inf, -math.inf]])
    assert _walk(log_weights).tolist() == [[0, 1, 2, 2, 2]]


def test_what_is_refused():
    guide = guide_of_width(1.0)
    with pytest.raises(ValueError, match="num_samples must be at least 4"):
        metropolis(one_weight, guide, Y, num_samples=3)
    with pytest.raises(TypeError, match="A guide with a density is needed"):
        metropolis(one_weight, {"mean": torch.zeros(10)}, Y)

    def impossible():
        w = pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("never", torch.where(w.abs() >= 0, -torch.inf, 0.0) + 0 * w)

    with pytest.raises(ValueError, match="No draw of the guide has a finite density"):
        metropolis(impossible, lambda: pyro.sample("w", dist.Normal(torch.tensor(0.0), 1.0)))

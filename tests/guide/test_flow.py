"""A flow by itself, without a guide or a model: an affine map of normal noise, whose law is known."""

import pytest
import torch
from torch.distributions import Normal, constraints

from pyro_hypernet.guide import base
from pyro_hypernet.guide.flow import Flow
from pyro_hypernet.maps.linear import Affine
from pyro_hypernet.model.layout import Layout, Site

LOC, SCALE = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
SITE = Site("w", torch.Size([2]), torch.Size([2]), 1, constraints.real_vector, 0)


@pytest.fixture
def flow():
    origin = torch.zeros_like(LOC)
    return Flow(base.Normal(origin), Affine(LOC, SCALE), Layout((SITE,)), origin)


def test_draws_have_the_density_they_come_with(flow):
    expected = Normal(LOC, SCALE)
    for w, log_q, *_ in (flow.sample_and_log_prob(7), flow.sample_strata(7)):
        torch.testing.assert_close(log_q, expected.log_prob(w).sum(-1))
        torch.testing.assert_close(flow.log_prob(w), log_q)
        assert w.requires_grad
    assert float(flow.sample_strata(7)[2].sum()) == pytest.approx(1)
    assert flow.sample(3)["w"].shape == (3, 2)
    with pytest.raises(ValueError, match="^num_samples must be at least 1; got 0"):
        flow.sample(0)


def test_quantiles_are_fixed_and_medians_exact(flow):
    quantiles = flow.quantiles([0.1, 0.5, 0.9])["w"]
    assert torch.equal(quantiles, flow.quantiles([0.1, 0.5, 0.9])["w"])
    torch.testing.assert_close(quantiles[1], LOC)
    expected = Normal(LOC, SCALE).icdf(torch.tensor([[0.1], [0.9]], dtype=torch.float64))
    torch.testing.assert_close(quantiles[::2], expected, rtol=0, atol=0.3)  # of 4096 draws, sd 3
    with pytest.raises(ValueError, match="^quantiles must be a list of probabilities"):
        flow.quantiles([1.5])


def test_looks_are_the_same_at_every_call(flow):
    assert torch.equal(flow.looks(4), flow.looks(4))
    torch.testing.assert_close(flow.looks(4).mean(0), LOC)  # antithetic

"""Densities of draws, of a guide's own and of others."""

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_hypernet.evaluation.draws import draws_and_log_prob
from pyro_hypernet.evaluation.weighted import finite_log_weights, log_density_of, log_joint_of, weighted_draws
from pyro_hypernet.guide import AutoHypernet
from tests.small_models import linear, linear_data


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoHypernet])
def test_log_q_at_given_draws_is_that_of_drawing(make):
    x, y = linear_data()
    guide = make(linear)
    guide(x, y)
    samples, log_q = draws_and_log_prob(guide, x, y, num_samples=20)
    torch.testing.assert_close(log_density_of(guide, samples, x, y), log_q.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_log_p_is_pyros():
    x, y = linear_data()
    guide = AutoHypernet(linear).setup(x, y)
    drawn = weighted_draws(linear, guide, x, y, num_samples=3)
    for i in range(3):
        data = {name: value[i] for name, value in drawn.samples.items()}
        trace = pyro.poutine.trace(pyro.condition(linear, data=data)).get_trace(x, y)
        assert float(drawn.log_p[i]) == pytest.approx(float(trace.log_prob_sum()), rel=1e-4)
    torch.testing.assert_close(log_joint_of(linear, drawn.samples, x, y, max_bytes=1), drawn.log_p)
    assert drawn.take(torch.tensor([2, 2])).samples["slope"].shape == (2, 2)


def test_a_guide_written_by_hand_has_no_density_elsewhere():
    def guide(x, y):
        for name, value in (("slope", torch.zeros(2)), ("noise", torch.tensor(1.0))):
            pyro.sample(name, pyro.distributions.LogNormal(value, 0.1).to_event(value.dim()))

    assert log_density_of(guide, {"slope": torch.ones(1, 2), "noise": torch.ones(1)}) is None


def test_bad_weights_count_nothing():
    weights = finite_log_weights(torch.tensor([0.0, torch.nan, torch.inf]))
    assert weights.tolist() == [0.0, -torch.inf, -torch.inf]
    with pytest.raises(ValueError, match="No draw of the guide has a finite density"):
        finite_log_weights(torch.tensor([torch.nan]))

"""Leave-one-out against the closed form, through guides that are not the posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.evaluation.loo import leave_out, loo
from tests.evaluation.conjugate import Y, guide_of_width
from tests.small_models import one_weight


def exact():
    """log p(y_i | y without i) of every datum."""
    values = []
    for i in range(len(Y)):
        others = torch.cat([Y[:i], Y[i + 1 :]])
        variance = 1 / (len(others) + 1)
        values.append(dist.Normal(others.sum() * variance, (1 + variance) ** 0.5).log_prob(Y[i]))
    return torch.stack(values).double()


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.6])
def test_weights_make_up_for_a_wrong_width(ratio):
    found = loo(one_weight, guide_of_width(ratio), Y, num_samples=20_000)
    # Standard errors of 20 000 draws: .01 for the datum that matters most.
    torch.testing.assert_close(found.pointwise, exact(), rtol=0, atol=0.05)
    assert found.elpd == pytest.approx(float(exact().sum()), abs=0.1)
    assert found.num_bad == 0
    assert 0.3 < found.p_loo < 1.5  # one weight
    assert found.khat.shape == (4,)


def test_a_shifted_guide_is_made_up_for():
    guide = guide_of_width(1.2)
    with torch.no_grad():
        guide.loc.add_(0.5 * float(guide.scale))
    torch.testing.assert_close(loo(one_weight, guide, Y, num_samples=20_000).pointwise, exact(), rtol=0, atol=0.06)


def test_several_observed_sites_must_be_named():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
            pyro.sample("z", dist.Normal(mean, 1.0), obs=y)

    guide = pyro.infer.autoguide.AutoNormal(model)
    guide(Y)
    with pytest.raises(ValueError, match=r"The model observes \['y', 'z'\]: name one by site="):
        loo(model, guide, Y)
    assert len(loo(model, guide, Y, site="z", num_samples=200).pointwise) == 4
    with pytest.raises(ValueError, match="site must be one of"):
        loo(model, guide, Y, site="mean")


def test_draws_without_weight_are_not_there_and_a_datum_that_a_draw_rules_out_is_hopeless():
    values, log_weights = torch.randn(3, 200).double(), torch.randn(200).double()
    values[2] = 0.0
    log_weights[:50] = -torch.inf
    values[1, 10] = values[0, 60] = -torch.inf
    pointwise, khat = leave_out(values, log_weights)
    torch.testing.assert_close(pointwise[1:], leave_out(values[1:, 50:], log_weights[50:])[0])
    assert (float(pointwise[0]), float(khat[0])) == (-torch.inf, torch.inf)
    assert bool(khat[1:].isfinite().all())
    assert leave_out(values[2:])[1].tolist() == [0.0]  # equal weights have no tail

"""ELBO, importance weights and k-hat where the truth is known."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from pyro_hypernet.evaluation import psis
from pyro_hypernet.evaluation.draws import draws_and_log_prob, log_density_of
from pyro_hypernet.evaluation.importance import (
    elbo,
    finite_log_weights,
    khat,
    khat_of,
    weighted_draws,
)
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.sample.tempering import effective_sample_size
from pyro_hypernet.target import bind_guide
from tests.evaluation.conjugate import LOG_EVIDENCE, Y, guide_of_width, kl_of_width
from tests.seeds import seed
from tests.small_models import linear, linear_data, one_weight

KINDS = [AutoDiagonalNormal, AutoNormal]


@pytest.mark.parametrize("make", KINDS)
def test_elbo_of_the_exact_posterior_is_the_log_evidence(make):
    mean, error = elbo(one_weight, guide_of_width(1.0, make), Y)
    assert mean == pytest.approx(LOG_EVIDENCE, abs=1e-5)
    assert error < 1e-5


@pytest.mark.parametrize("make", KINDS)
def test_elbo_of_a_wrong_width_lacks_the_divergence(make):
    mean, error = elbo(one_weight, guide_of_width(0.5, make), Y, num_samples=5000)
    # Five standard errors: a false alarm once in two million runs.
    assert abs(mean - (LOG_EVIDENCE - kl_of_width(0.5))) < 5 * error
    assert 0 < error < 0.02


@pytest.mark.parametrize("make", [*KINDS, AutoHypernet])
def test_elbo_agrees_with_pyro_on_a_constrained_site(make):
    x, y = linear_data()
    guide = make(linear, init_scale=0.1)
    guide(x, y)
    mean, error = elbo(linear, guide, x, y, num_samples=2000)
    losses = torch.tensor([-Trace_ELBO().loss(linear, guide, x, y) for _ in range(400)])
    # The two Monte Carlo errors together: five standard errors of their difference.
    assert abs(mean - float(losses.mean())) < 5 * math.hypot(error, float(losses.std()) / 20)


def test_chunks_change_nothing():
    guide = guide_of_width(0.7)
    found = []
    for max_bytes in (1, 2**28):
        pyro.set_rng_seed(seed(0))
        found.append(weighted_draws(one_weight, guide, Y, num_samples=20, max_bytes=max_bytes).log_weights)
    torch.testing.assert_close(*found)
    assert found[0].dtype == torch.float64


def test_log_weights_have_mean_evidence():
    log_weights = weighted_draws(one_weight, guide_of_width(1.5), Y, num_samples=20_000).log_weights
    estimate = torch.logsumexp(log_weights, 0) - math.log(20_000)
    relative_error = float((log_weights - estimate).exp().std()) / 20_000**0.5
    assert abs(float(estimate) - LOG_EVIDENCE) < 5 * relative_error


@pytest.mark.parametrize("make", KINDS)
def test_khat_of_the_exact_posterior_is_zero(make):
    assert khat(one_weight, guide_of_width(1.0, make), Y, num_samples=2000) == 0


def test_khat_of_a_wide_guide_is_low():
    assert khat(one_weight, guide_of_width(2.0), Y) < 0.5


def test_khat_of_a_narrow_guide_is_high():
    # Weights of q = N(0, s²) against p = N(0, 1) have tail index k = 1 − s²: 0.96 here.
    assert khat(one_weight, guide_of_width(0.2), Y, num_samples=100_000) > 0.6


def test_khat_follows_the_tail():
    # Of 670 draws in the tail: standard errors of .05 at 0.3 and .073 at 0.9. A false alarm in 1e7 of seeds.
    for k in (0.3, 0.9):
        weights = dist.Pareto(1.0, 1 / k).sample((50_000,))
        assert khat_of(weights.log()) == pytest.approx(k, abs=0.4)


def test_khat_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="1 of 3 log weights are NaN"):
        khat_of(torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(ValueError, match="2 of 3 log weights are NaN"):
        khat_of(torch.tensor([math.inf, math.inf, 1.0]))
    assert math.isfinite(khat_of(torch.cat([torch.randn(500), torch.tensor([-math.inf])])))


def test_point_estimates_and_samples_have_no_elbo():
    guide = AutoDelta(one_weight)
    guide(Y)
    with pytest.raises(TypeError, match="AutoDelta is a point estimate"):
        elbo(one_weight, guide, Y)
    with pytest.raises(TypeError, match="A guide with a density is needed"):
        khat(one_weight, {"mean": torch.zeros(10)}, Y)


def test_a_guide_of_another_model_is_refused():
    with pytest.raises(ValueError, match="Latent site 'slope' is not among the guide's sites"):
        elbo(linear, guide_of_width(1.0), *linear_data())


def test_effective_sample_size():
    assert float(effective_sample_size(torch.zeros(50))) == pytest.approx(50)
    assert float(effective_sample_size(torch.tensor([1000.0, 0.0, 0.0]))) == pytest.approx(1)


def test_arviz_one_gets_log_likelihoods(monkeypatch):
    """ArviZ 1.x turns the sign of what it is given; a stand-in, for ArviZ 1.x needs Python 3.12."""
    given = []
    arviz, base = ModuleType("arviz"), ModuleType("arviz_stats.base")
    arviz.__version__ = "1.3.0"
    base.array_stats = SimpleNamespace(psislw=lambda values: given.append(values) or (values, 0.25))
    for module in (arviz, base, ModuleType("arviz_stats")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert psis.smoothed(torch.tensor([1.0, 2.0]))[1] == 0.25
    assert given[0].tolist() == [-1.0, -2.0]


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
    target = bind_guide(linear, guide, (x, y), {})
    torch.testing.assert_close(target.log_density(drawn.samples, max_bytes=1), drawn.log_p)
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

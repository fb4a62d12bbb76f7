"""The bracket lies around the evidence where that is known."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.evaluation.draws import log_density_of
from pyro_hypernet.evaluation.evidence import evidence_bracket
from pyro_hypernet.evaluation.importance import weighted_draws
from pyro_hypernet.target import bind_guide
from tests.evaluation.conjugate import LOG_EVIDENCE, POSTERIOR_MEAN, POSTERIOR_SD, Y, guide_of_width, kl_of_width
from tests.small_models import one_weight


def log_weights_of(ratio):
    guide = guide_of_width(ratio)
    own = weighted_draws(one_weight, guide, Y, num_samples=10_000).log_weights
    exact = {"mean": dist.Normal(POSTERIOR_MEAN, POSTERIOR_SD).sample((4000,))}
    return own, bind_guide(one_weight, guide, (Y,), {}).log_density(exact) - log_density_of(guide, exact, Y)


@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_one_particle_gives_both_divergences(ratio):
    bracket = evidence_bracket(*log_weights_of(ratio), num_particles=1)
    reverse = (ratio**-2 - 1) / 2 + math.log(ratio)  # KL(p || q)
    # Five standard errors of 10 000 and 4 000 draws: sd of log weights below 1.1.
    assert bracket.lower == pytest.approx(LOG_EVIDENCE - kl_of_width(ratio), abs=0.055)
    assert abs(bracket.upper - (LOG_EVIDENCE + reverse)) < 5 * bracket.upper_error


@pytest.mark.parametrize("ratio", [0.8, 1.5])
def test_the_bracket_holds_the_evidence_and_closes(ratio):
    own, exact = log_weights_of(ratio)
    widths = []
    for num_particles in (1, 10, 100):
        bracket = evidence_bracket(own, exact, num_particles=num_particles)
        assert bracket.lower < LOG_EVIDENCE + 5 * 0.011
        assert bracket.upper > LOG_EVIDENCE - 5 * bracket.upper_error
        widths.append(bracket.width)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.05


def test_without_draws_of_the_posterior_there_is_no_upper_figure():
    bracket = evidence_bracket(torch.zeros(10))
    assert (bracket.lower, bracket.lower_error) == (0, 0)
    assert math.isnan(bracket.upper)
    assert math.isnan(bracket.width)


def test_the_lower_figure_lies_between_elbo_and_evidence():
    log_weights = torch.randn(6000).double()
    bounds = [evidence_bracket(log_weights, num_particles=k).lower for k in (1, 10, 6000)]
    assert bounds[0] == pytest.approx(float(log_weights.mean()))
    assert bounds == sorted(bounds)
    assert bounds[2] == pytest.approx(float(torch.logsumexp(log_weights, 0)) - math.log(6000))
    with pytest.raises(ValueError, match="num_particles must lie between"):
        evidence_bracket(log_weights, num_particles=0)

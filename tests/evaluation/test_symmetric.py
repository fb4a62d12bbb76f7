"""Draws up to the symmetries of a network."""

import math

import pyro
import pytest
import torch

from models.references import ReferenceNet
from pyro_hypernet import AutoHypernet
from pyro_hypernet.density import LogJoint
from pyro_hypernet.evaluation.symmetric import canonical, symmetric_bound, symmetric_copies, symmetries_of
from tests.seeds import seed

NET = ReferenceNet([1, 4, 1], "normal", 0.1)
ARGS = (torch.linspace(-1, 1, 9)[:, None], torch.linspace(-1, 1, 9))


@pytest.fixture
def guide():
    pyro.set_rng_seed(seed(0))
    return AutoHypernet(NET, "linear").setup(*ARGS)


def test_copies_are_other_weights_of_the_same_network(guide):
    log_joint = LogJoint(NET, guide.layout)
    samples = guide.sample_posterior(20)
    copies = symmetric_copies(samples, NET, *ARGS)
    assert not torch.allclose(copies["W0"], samples["W0"])
    torch.testing.assert_close(
        log_joint.log_prob(copies, *ARGS), log_joint.log_prob(samples, *ARGS), rtol=1e-5, atol=1e-3
    )
    for name, value in canonical(copies, NET, *ARGS).items():
        torch.testing.assert_close(value, canonical(samples, NET, *ARGS)[name])


def test_canonical_units_are_sorted_and_positive(guide):
    keys = canonical(guide.sample_posterior(20), NET, *ARGS)["W0"][:, 0]
    assert bool((keys > 0).all())
    assert bool((keys.diff(dim=-1) >= 0).all())


def test_the_bound_gains_log_g_only_where_the_guide_is_not_symmetric(guide):
    log_order = math.lgamma(5) + 4 * math.log(2)
    one_mode = symmetric_bound(NET, guide, *ARGS)
    assert one_mode.log_order == pytest.approx(log_order)
    assert one_mode.upper == pytest.approx(one_mode.elbo + log_order)
    assert symmetric_bound(NET, AutoHypernet(NET).setup(*ARGS), *ARGS).log_order == 0


def test_a_model_that_cannot_be_tried_is_named():
    with pytest.raises(ValueError, match="symmetries cannot be tried"):
        symmetries_of(lambda data: NET(*data), list(ARGS))

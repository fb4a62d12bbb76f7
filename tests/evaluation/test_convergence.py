"""Fits that agree and fits that do not."""

import pyro.distributions as dist
import pytest
import torch

from models import PROBLEMS
from pyro_hypernet.evaluation.convergence import fits_agree
from tests.evaluation.conjugate import Y, guide_of_width, line
from tests.small_models import one_weight

X = torch.linspace(-1, 1, 5)


def test_equal_posteriors_agree():
    # R-hat of four sets of 1 000 independent draws: 1 + O(1 / 1000).
    found = fits_agree(line, [{"slope": torch.randn(1000)} for _ in range(4)], X)
    assert found.agree
    assert found.space == "function"
    assert found.num_fits == 4
    assert 0.99 < found.max_rhat < 1.02


def test_other_means_and_other_spreads_disagree():
    centre = {"slope": torch.randn(1000)}
    for other in ({"slope": 2 + torch.randn(1000)}, {"slope": 3 * torch.randn(1000)}):
        found = fits_agree(line, [centre, other], X)
        assert found.check.level == "bad"
        assert "R-hat of 2 fits in function space" in found.check.reading


def test_fits_in_other_modes_disagree_in_the_space_of_weights():
    problem = PROBLEMS["funnel"]()

    def draw(v):
        return {"v": v + 0.1 * torch.randn(500), "x": torch.randn(500, 9)}

    assert fits_agree(problem.model, [draw(0.0), draw(0.0)], *problem.args).agree
    found = fits_agree(problem.model, [draw(1.0), draw(-1.0)], *problem.args)
    assert found.space == "weights"
    assert not found.agree


def test_guides_are_drawn_from():
    assert fits_agree(one_weight, [guide_of_width(1.0), guide_of_width(1.0)], Y).agree
    assert not fits_agree(one_weight, [guide_of_width(1.0), guide_of_width(0.3)], Y).agree


def test_one_fit_agrees_with_nobody():
    with pytest.raises(ValueError, match="at least two posteriors"):
        fits_agree(line, [{"slope": dist.Normal(0.0, 1.0).sample((10,))}], X)

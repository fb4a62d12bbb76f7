"""The symmetries of a model bound to its arguments."""

import math
from types import SimpleNamespace

import pyro
import pytest
import torch

from models.references import ReferenceNet
from pyro_hypernet import AutoHypernet, GuideMixture, bayesianize, diagnose
from pyro_hypernet.evaluation.symmetric import symmetries_of
from pyro_hypernet.target import bind_guide
from tests.seeds import seed

NET = ReferenceNet([1, 4, 1], "normal", 0.1)
ARGS = (torch.linspace(-1, 1, 9)[:, None], torch.linspace(-1, 1, 9))


def test_canonical_units_are_sorted_and_positive():
    pyro.set_rng_seed(seed(0))
    guide = AutoHypernet(NET, "linear").setup(*ARGS)
    target = bind_guide(NET, guide, ARGS, {})
    symmetries = symmetries_of(target)
    assert symmetries.log_order == pytest.approx(math.lgamma(5) + 4 * math.log(2))
    w = target.layout.unconstrain(guide.sample_posterior(20))[0]
    keys = target.layout.constrain(symmetries.canonicalise(w)[0])[0]["W0"][:, 0]
    assert bool((keys > 0).all())
    assert bool((keys.diff(dim=-1) >= 0).all())


GUIDES = {"guide": AutoHypernet, "mixture": lambda model: GuideMixture([AutoHypernet(model) for _ in range(2)])}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore:The verdict on this guide")  # nothing was trained
def test_they_are_found_in_the_precision_of_the_model(dtype, make):
    """Whatever torch's default is; `diagnose` asks for them."""
    pyro.set_rng_seed(seed(0))
    args = tuple(value.to(dtype) for value in ARGS)
    model = bayesianize(torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(dtype))
    guide = make(model).setup(*args)
    assert symmetries_of(bind_guide(model, guide, args, {})).log_order > 0
    assert diagnose(model, guide, *args, num_samples=100, max_seconds=2).khat is not None


def test_a_model_that_cannot_be_tried_is_named():
    with pytest.raises(ValueError, match="symmetries cannot be tried"):
        symmetries_of(bind_guide(lambda data: NET(*data.parts), None, (SimpleNamespace(parts=ARGS),), {}))

"""Fits of many weights: no structure diverges, skipped steps are backed off from, long sums take short steps."""

import math

import pyro
import pytest
import torch
from torch import nn

from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize, fit
from pyro_hypernet.informed.structures import STRUCTURES
from pyro_hypernet.maps.coordinates import Subspace
from pyro_hypernet.maps.hypernets import HYPERNETS
from pyro_hypernet.train.optimiser import Optim, Optimiser, step_shares
from pyro_hypernet.train.step import FlatParameters, Step
from tests.seeds import seed

# Hidden units of two layers, for about 1e3 and 1e5 weights.
WIDTHS = {"1e3": 20, "1e5": 290}
NAMES = [name for name in STRUCTURES if name not in ("auto", "informed")]


def network(width):
    layers = [nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)]
    return nn.Sequential(*layers)


def fitted(structure, width, num_steps, learning_rate):
    """A classification of 512 data in batches of 128, and the fit of it."""
    pyro.set_rng_seed(seed(3))
    pyro.clear_param_store()
    x = torch.randn(512, 20)
    y = (x @ torch.randn(20, 3)).argmax(-1)
    model = bayesianize(network(width), "categorical", num_data=512)
    guide = AutoHypernet(model, structure=structure)
    batches = list(zip(x.split(128), y.split(128), strict=True))
    options = {"elbo": VectorizedELBO(1), "optim": learning_rate, "num_steps": num_steps, "progress": False}
    return guide, fit(model, guide, batches, **options)


def check(structure, width, num_steps, learning_rate):
    """No draw and no bound leaves what can be; returns how many steps were skipped."""
    guide, result = fitted(structure, width, num_steps, learning_rate)
    largest = max(float(value.abs().max()) for value in guide.sample_posterior(20).values())
    assert largest < 1e3
    assert -math.inf < result.elbo <= 0
    return result.num_skipped


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("structure", NAMES)
def test_no_structure_diverges(structure, width):
    assert check(structure, width, 24 if width < 100 else 12, None) <= 2


@pytest.mark.filterwarnings(
    "ignore:The guide's density by the inverse", "ignore:.*steps were skipped", "ignore:The loss rose above"
)
@pytest.mark.parametrize("width", [20, pytest.param(290, marks=pytest.mark.slow)], ids=WIDTHS.keys())
@pytest.mark.parametrize("structure", NAMES)
def test_no_structure_diverges_at_eight_times_the_step_size(structure, width):
    """It may skip steps, and goes on from where it was good at half of the size."""
    check(structure, width, 24, 4e-2)


@pytest.mark.slow
@pytest.mark.parametrize("width", [290, 990], ids=["1e5", "1e6"])
@pytest.mark.parametrize("structure", NAMES)
def test_no_structure_diverges_in_a_longer_fit(structure, width):
    assert check(structure, width, 60, None) <= 2


def test_many_skipped_steps_are_backed_off_from():
    """The best parameters come back, momentum goes and the step size is halved; fewer skipped steps change nothing."""
    vector, good = torch.zeros(3), Step(1.0, 0.0, 1.0, [torch.ones(3)], None)
    run = Optimiser([vector], 100, Optim(0.1, warmup=0, decay=False))
    run.step(good), run.step(good)
    run.close_window()
    best = vector.clone()
    run.step(good)
    for _ in range(9):
        run.step(Step.failed())
    assert run.caution == 1
    assert not torch.equal(vector, best)
    run.step(Step.failed())
    assert run.caution == 0.5
    assert torch.equal(vector, best)
    run.step(good)
    torch.testing.assert_close(vector, best - 0.05)


@pytest.mark.parametrize("worse", [51, 1000], ids=["most of a window", "a window and more"])
def test_a_run_that_diverges_goes_on_from_its_best(worse):
    """Where most losses of a window are above the first ones by more than had been gained; what rises less goes on."""
    vector = torch.zeros(3)
    run = Optimiser([vector], 5000, Optim(0.1, warmup=0, decay=False))

    def steps(*losses):
        for loss in losses:
            run.step(Step(loss, 0.0, 1.0, [torch.ones(3)], None))
            if run.window_is_full():
                run.close_window()

    steps(*[100.0] * 100, *[10.0] * 100)
    best = vector.clone()
    steps(*[189.0] * 100, *[1e6] * 50, *[20.0] * 50)
    assert (run.num_divergences, run.caution) == (0, 1)
    steps(*[1e6] * min(worse, 100), *[20.0] * max(0, 100 - worse))
    assert (run.num_divergences, run.caution) == (1, 0.5)
    assert torch.equal(vector, best)
    steps(*[1e6] * (worse // 100 * 100))
    assert run.num_divergences == 1 + worse // 100


@pytest.mark.parametrize("at", [lambda n: 100.0 + n, lambda n: 100 + 0.4 * math.sin(n)], ids=["rising", "level"])
@pytest.mark.parametrize("num_steps", [50, 200, 5000])
def test_what_never_came_well_below_its_start_does_not_diverge(at, num_steps):
    run = Optimiser([torch.zeros(3)], num_steps, Optim(0.1))
    for number in range(min(num_steps, 300)):
        run.step(Step(at(number), 0.0, 1.0, [torch.ones(3)], None))
        if run.window_is_full():
            run.close_window()
    assert (run.num_divergences, run.caution) == (0, 1)


@pytest.mark.parametrize("make", HYPERNETS.values(), ids=HYPERNETS.keys())
def test_up_to_2000_weights_every_parameter_takes_the_whole_step(make):
    assert not step_shares(make(2000))


def test_a_step_moves_a_sum_over_many_coordinates_no_further():
    """Shares reach the vectors that they belong to, and times the number of coordinates they are one number."""
    for dim in (4000, 40_000):
        part = nn.ModuleList([Subspace(dim, 3), nn.Linear(5, 2)])
        shares = step_shares(part)
        assert shares[part[0].directions] * dim == 2000
        flat = FlatParameters(list(part.parameters()), shares)
        run = Optimiser(flat.vectors, 10, Optim(0.1, warmup=0, decay=False, keep="last"), shares=flat.shares)
        before = [vector.clone() for vector in flat.vectors]
        run.step(Step(0.0, 0.0, 1.0, [torch.ones_like(vector) for vector in flat.vectors], None))
        moved = [float((a - b).abs().max()) for a, b in zip(before, flat.vectors, strict=True)]
        assert moved == pytest.approx([0.1 * 2000 / dim, 0.1], rel=1e-3)

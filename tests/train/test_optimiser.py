"""What fit is told by its values: the bound, how parameters are stepped, what of the plan is to be otherwise."""

from functools import partial

import pyro
import pyro.optim
import pytest
import torch

from pyro_hypernet import AutoHypernet, Optim, Plan, VectorizedELBO, best_start
from pyro_hypernet.maps.hypernets import coupling
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed
from tests.train.conjugate import make_data, regression

X, Y = make_data()
SMALL = partial(coupling, num_layers=2, hidden=(8,))
OPTIMISERS = {
    "AdamW": partial(torch.optim.AdamW, lr=5e-3),
    "Adam": partial(torch.optim.Adam, lr=5e-3),
    "SGD": partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
    "RMSprop": partial(torch.optim.RMSprop, lr=2e-3),
    "Pyro's Adam": pyro.optim.Adam({"lr": 5e-3}),
    "Pyro's ClippedAdam": pyro.optim.ClippedAdam({"lr": 5e-3}),
    "with a schedule": Optim(method=partial(torch.optim.Adam, lr=5e-3), warmup=0.1),
    "a step size": 5e-3,
}


def train(model=regression, args=(X, Y), **options):
    pyro.set_rng_seed(seed(1))
    pyro.clear_param_store()
    guide = AutoHypernet(model, SMALL, "full")
    return fit(model, guide, args, **{"num_steps": 300, "elbo": VectorizedELBO(8), "progress": False, **options})


@pytest.mark.parametrize("optim", OPTIMISERS.values(), ids=OPTIMISERS.keys())
def test_every_optimiser_trains(optim):
    """Of some hundred nats between start and end the last fifth of the steps is at least 5 below the first."""
    losses = train(optim=optim).losses
    assert float(losses[-60:].mean()) < float(losses[:60].mean()) - 5


def test_torchs_adam_is_ours():
    """The same steps, whoever makes them, clipped gradients and schedule included."""
    options = {"warmup": 0.1, "clip": 5.0}
    mine = train(optim=Optim(5e-3, **options)).losses
    torchs = train(optim=Optim(method=partial(torch.optim.Adam, lr=5e-3), **options)).losses
    torch.testing.assert_close(mine[:50], torchs[:50], rtol=1e-3, atol=1e-3)


def test_parameters_of_the_model_are_stepped_too():
    before = 2.0
    train(m.with_param, (Y[:6].view(3, 2),), optim=torch.optim.AdamW, num_steps=30)
    assert abs(float(pyro.param("noise").detach()) - before) > 1e-3


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ("adam", "^optim takes a step size, an Optim, an optimiser of Pyro's"),
        (torch.optim.LBFGS, "steps without a closure; got LBFGS"),
        (dict, "could not make one|got {}"),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), "the options of this one depend on the parameter's name"),
        (partial(torch.optim.Adam, rate=1.0), "could not make one"),
    ],
)
def test_what_is_no_optimiser_is_refused_before_any_work(optim, message):
    guide = AutoHypernet(regression)
    with pytest.raises(TypeError, match=message):
        fit(regression, guide, (X, Y), optim=optim)
    assert guide._layout is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate and clip must be positive"),
        ({"keep": "first"}, "keep must be one of best, average, last"),
        ({"warmup": 1.0}, "warmup must be a share"),
        ({"patience": 0}, "patience must be a positive number of windows or None"),
        ({"max_skipped": 0}, "max_skipped must be at least 1"),
        ({"max_seconds": 0}, "max_seconds must be positive"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Optim(**options)


def test_particles_are_those_of_the_plan_unless_the_bound_names_them(monkeypatch):
    seen, estimate = [], VectorizedELBO.estimate
    monkeypatch.setattr(
        VectorizedELBO, "estimate", lambda elbo, *args: seen.append(elbo.num_particles) or estimate(elbo, *args)
    )
    cases = [({"elbo": None}, 32), ({"elbo": None, "plan": Plan(num_particles=3)}, 3), ({"elbo": VectorizedELBO(5)}, 5)]
    for options, due in cases:
        seen.clear()
        train(num_steps=2, **options)
        assert set(seen) == {due}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elbo": pyro.infer.Trace_ELBO()}, "^elbo must be a VectorizedELBO; got Trace_ELBO: pyro.infer.SVI trains by"),
        ({"plan": {"rejection": None}}, r"^plan must be a Plan, such as Plan\(rejection=None\)"),
    ],
)
def test_other_kinds_of_values_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        fit(regression, AutoHypernet(regression), (X, Y), **options)


def test_a_plan_for_another_guide_is_refused():
    guide = AutoHypernet(regression, SMALL, "full").setup(X, Y)
    with pytest.raises(ValueError, match=r"^The guide was built with structure full; the plan asks for layerwise"):
        fit(regression, guide, (X, Y), plan=Plan(structure="layerwise"))


def test_the_best_start_is_left():
    guide = AutoHypernet(m.linear)
    pyro.set_rng_seed(seed(2))
    best_start(m.linear, guide, m.linear_data(), num_restarts=3, num_steps=20, elbo=VectorizedELBO(4))
    assert guide.is_trained
    with pytest.raises(ValueError, match="num_restarts must be a positive integer"):
        best_start(m.linear, guide, m.linear_data(), num_restarts=0)

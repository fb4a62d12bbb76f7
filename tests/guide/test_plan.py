"""A plan says all that "auto" stands for: by it, or by the names in it, the same guide is made again."""

import copy
from dataclasses import fields, replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_hypernet import AutoHypernet, Plan, bayesianize, load, save
from pyro_hypernet.informed.structures import low_rank
from pyro_hypernet.maps.hypernets import coupling
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed
from tests.train.conjugate import make_data, regression

X, Y = torch.randn(12, 1, generator=torch.Generator().manual_seed(seed(3))), torch.linspace(-1, 1, 12)


def network():
    return bayesianize(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), likelihood="gaussian")


def one_weight(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def many(x, y):
    pyro.sample("w", dist.Normal(torch.zeros(2001), 1.0).to_event(1))


# What is asked for; what comes of it.
GUIDES = {
    "network": (network, (X, Y), {}, ("informed", "sets", 5.0, True)),
    "linear weights": (lambda: m.linear, m.linear_data(), {}, ("informed", "coupling", 1.0, True)),
    "conjugate": (lambda: regression, make_data(), {}, ("informed", "identity", 1.0, False)),
    "one weight": (lambda: one_weight, (X, Y), {}, ("full", "spline", 1.0, True)),
    "many weights": (lambda: many, (X, Y), {}, ("low_rank", "by_size", 1.0, False)),
    "layerwise": (network, (X, Y), {"structure": "layerwise"}, ("layerwise", "by_size", 1.0, False)),
    "coupling": (network, (X, Y), {"hypernet": "coupling"}, ("informed", "coupling", 1.0, True)),
    "Gaussian": (network, (X, Y), {"hypernet": "linear"}, ("full", "linear", 1.0, False)),
    "components": (network, (X, Y), {"num_components": 2}, ("full", "coupling", 1.0, False)),
    "uninformed": (lambda: many, (X, Y), {"structure": "informed"}, ("full", "coupling", 1.0, False)),
    "start": (network, (X, Y), {"init_scale": 0.2}, ("full", "coupling", 1.0, True)),
    "plan": (network, (X, Y), {"plan": Plan(anneal=2.0, rejection=0.3)}, ("informed", "sets", 2.0, True)),
}
every = pytest.mark.parametrize(("make", "args", "options", "expected"), GUIDES.values(), ids=GUIDES.keys())


def made(model, args, **options):
    pyro.set_rng_seed(seed(1))
    return AutoHypernet(model, **options).setup(*args)


def assert_same(one, other):
    assert one.plan == other.plan
    assert one.describe().replace(" (chosen by auto)", "") == other.describe().replace(" (chosen by auto)", "")
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0)


@every
def test_nothing_is_left_to_auto(make, args, options, expected):
    plan = made(make(), args, **options).plan
    assert "auto" not in [getattr(plan, field.name) for field in fields(plan)]
    assert (plan.structure, plan.hypernet, plan.anneal, plan.rejection is not None) == expected


@every
def test_a_guide_by_name_is_the_guide_that_auto_chose(make, args, options, expected):
    model = make()
    guide = made(model, args, **options)
    assert_same(guide, made(model, args, plan=guide.plan))
    plan = guide.plan
    named = {"init_scale": plan.init_scale, "num_components": plan.num_components}
    if "plan" not in options:
        assert_same(guide, made(model, args, hypernet=plan.hypernet, structure=plan.structure, **named))


@every
def test_a_file_keeps_it(make, args, options, expected, tmp_path):
    model = make()
    guide = made(model, args, **options)
    save(guide, tmp_path / "guide.safetensors")
    assert_same(guide, load(tmp_path / "guide.safetensors", model))


def test_functions_with_options_stay_what_they_are_and_others_are_their_nicknames():
    plan = made(m.linear, m.linear_data(), hypernet=partial(coupling, num_layers=2), structure=low_rank).plan
    assert (plan.structure, plan.rejection, plan.anneal) == ("low_rank", None, 1.0)
    assert plan.hypernet.keywords == {"num_layers": 2}


def test_fit_goes_by_it():
    """Particles, annealing and rejection are those of the plan, unless fit is told otherwise."""
    model = network()
    guide = made(model, (X, Y), plan=Plan(num_particles=3, anneal=3.0, rejection=0.3))
    options = {"num_steps": 20, "learning_rate": 1e-3, "progress": False}
    runs = []
    for said in ({}, {"num_particles": 3, "anneal": 3.0, "rejection": 0.3}, {"rejection": None}, {"anneal": 1.0}):
        pyro.set_rng_seed(seed(2))
        runs.append(fit(model, copy.deepcopy(guide), (X, Y), **options, **said))
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=0, atol=0)
    assert runs[0].acceptance == pytest.approx(0.3, abs=0.02)
    assert runs[2].acceptance == 1
    assert not torch.equal(runs[0].losses, runs[3].losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "fuller"}, "Unknown structure 'fuller'"),
        ({"hypernet": 3}, "hypernet must be a nickname or a function"),
        ({"init_scale": 0.0}, "init_scale must be a positive number or None; got 0.0"),
        ({"num_components": 0}, "num_components must be a positive integer; got 0"),
        ({"num_particles": 0.5}, 'num_particles must be "auto" or a positive integer; got 0.5'),
        ({"anneal": -1}, 'anneal must be "auto" or a positive number'),
        ({"rejection": 1.0}, r'rejection must be "auto", None or a share of draws to keep, in \(0, 1\)'),
        ({"rejection": (0.5, 2.0)}, 'rejection must be "auto", None or a share'),
    ],
)
def test_bad_plans_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Plan(**options)


def test_a_plan_and_names_beside_it_are_refused():
    with pytest.raises(ValueError, match="^A plan names hypernet, structure"):
        AutoHypernet(network(), "coupling", plan=Plan())
    with pytest.raises(RuntimeError, match="no plan yet: call guide.setup"):
        AutoHypernet(network()).plan  # noqa: B018


def test_it_can_be_changed_a_little():
    guide = made(network(), (X, Y))
    other = made(network(), (X, Y), plan=replace(guide.plan, rejection=None))
    assert (other.plan.rejection, other.plan.hypernet) == (None, "sets")

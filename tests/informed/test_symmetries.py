"""Which permutations and flips are found, and that they are symmetries."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from models.abx import model as factors
from models.references import ReferenceNet
from models.targets import funnel_model
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.informed.symmetries import Symmetries, find_symmetries
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout

pytestmark = pytest.mark.usefixtures("double")


def normal(name, *shape, loc=0.0):
    return pyro.sample(name, dist.Normal(torch.full(shape, loc), 1.0).to_event(len(shape)))


def observe(f, y, noise=0.3):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def relu_net(x, y):
    hidden = torch.relu(x @ normal("into", x.shape[1], 5) + normal("bias", 5))
    observe(hidden @ normal("out", 5), y)


def regression(x, y):
    observe(x @ normal("slope", x.shape[1]) + normal("intercept"), y)


def last_layer_first(x, y):
    """A tanh net of two hidden layers whose weights are drawn from the last to the first."""
    out, second, first = normal("out", 4), normal("second", 3, 4), normal("first", x.shape[1], 3)
    observe(torch.tanh(torch.tanh(x @ first) @ second) @ out, y)


def middle_layer_first(x, y):
    """As above, and the weights that stand first belong to both layers."""
    second, first, out = normal("second", 3, 4), normal("first", x.shape[1], 3), normal("out", 4)
    observe(torch.tanh(torch.tanh(x @ first) @ second) @ out, y)


def product_of_units(x, y):
    """Signs of units may flip in pairs only."""
    observe(torch.tanh(x[:, :1] * normal("into", 4) + normal("bias", 4)).prod(-1), y)


def ring(x, y):
    """Units may be turned around their ring, but not permuted otherwise; three rings."""
    pairs = [(normal(f"from_{i}", 3), normal(f"to_{i}", 3)) for i in range(3)]
    observe(sum((a * b.roll(1)).sum() * x[:, 0] ** (i + 1) for i, (a, b) in enumerate(pairs)), y)


def uneven_prior(x, y):
    """As y = a b x, but a is likelier to be positive."""
    observe(normal("a", loc=0.5) * normal("b") * x[:, 0], y, noise=0.01)


def data(num=12, dim=1):
    x = torch.randn(num, dim)
    return x, (x.sum(-1) > 0).to(x)


def search(model, *args, no_keys_in=()):
    """The symmetries found, the layout, the log joint as a function of the weights, and draws of the prior."""
    layout = Layout.from_trace(poutine.trace(model).get_trace(*args))
    log_joint = LogJoint(model, layout, mode="eager")
    w = log_joint.sample_prior(20, *args)
    found = find_symmetries(lambda w: log_joint(w, *args), layout, w, no_keys_in=no_keys_in)
    return found, layout, lambda w: log_joint(w, *args), w


SYMMETRIC = {
    "one hidden layer": (lambda: ReferenceNet([1, 5, 1], "normal", 0.1), 1),
    "two hidden layers": (lambda: ReferenceNet([2, 4, 4, 1], "bernoulli", None), 2),
    "relu": (lambda: relu_net, 2),
    "a b x": (lambda: lambda x, y: factors(x[:, 0], y), 1),
    "last layer first": (lambda: last_layer_first, 2),
    "middle layer first": (lambda: middle_layer_first, 2),
}


@pytest.fixture(params=SYMMETRIC)
def case(request):
    make, dim = SYMMETRIC[request.param]
    return search(make(), *data(dim=dim))


def test_hidden_layers_are_found_with_signs():
    found, *_ = search(ReferenceNet([1, 5, 1], "normal", 0.1), *data())
    (units,) = found.groups
    assert units.flips
    assert set(units.axes) == {("W0", 1), ("b0", 0), ("W1", 0)}
    assert units.index.shape == (5, 3)
    assert found.log_order == pytest.approx(math.log(math.factorial(5)) + 5 * math.log(2))

    found, *_ = search(ReferenceNet([2, 4, 4, 1], "bernoulli", None), *data(dim=2))
    assert [units.flips for units in found.groups] == [True, True]
    assert {frozenset(units.axes) for units in found.groups} == {
        frozenset({("W0", 1), ("b0", 0), ("W1", 0)}),
        frozenset({("W1", 1), ("b1", 0), ("W2", 0)}),
    }
    assert found.log_order == pytest.approx(2 * (math.log(24) + 4 * math.log(2)))


def test_relu_units_have_no_signs():
    found, *_ = search(relu_net, *data(dim=2))
    (units,) = found.groups
    assert not units.flips
    assert set(units.axes) == {("into", 1), ("bias", 0), ("out", 0)}
    assert found.log_order == pytest.approx(math.log(120))


@pytest.mark.parametrize("dim", [1, 3])
def test_a_regression_has_none(dim):
    found, *_ = search(regression, *data(dim=dim))
    assert found.groups == ()
    assert found.log_order == 0


def test_the_joint_flip_of_two_factors():
    x, y = data()
    found, *_ = search(factors, x[:, 0], y)
    (units,) = found.groups
    assert units.flips
    assert [name for name, _ in units.axes] == ["a", "b"]
    assert units.keys.tolist() == [0]
    assert found.log_order == pytest.approx(math.log(2))


def test_exchangeable_weights_are_left_alone():
    found, *_ = search(funnel_model, torch.zeros(9))
    assert found.groups == ()


def test_keys_are_kept_out_of_some_sites():
    free, *_ = search(relu_net, *data(dim=2))
    bound, *_ = search(relu_net, *data(dim=2), no_keys_in=("into", "out"))
    assert free.groups[0].key_site == "into"
    assert bound.groups[0].key_site == "bias"
    none, *_ = search(relu_net, *data(dim=2), no_keys_in=("into", "bias", "out"))
    assert none.groups == ()


def test_flips_in_pairs_are_no_flips():
    found, *_ = search(product_of_units, *data())
    assert not any(units.flips for units in found.groups)


def test_turns_of_a_ring_are_no_permutations():
    found, *_ = search(ring, *data(), no_keys_in=())
    assert found.groups == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_that_breaks_the_symmetry_under_much_data(dtype):
    torch.set_default_dtype(dtype)
    knowledge = AutoHypernet(uneven_prior, structure="informed").setup(*data(2000)).knowledge
    assert knowledge.linear_block.block == ("b",)
    assert knowledge.symmetries.groups == ()


def test_canonicalise_and_undo(case):
    found, _, _, w = case
    canonical, moves = found.canonicalise(w)
    assert not torch.equal(canonical, w)
    torch.testing.assert_close(found.undo(canonical, moves), w, rtol=0, atol=0)
    for units in found.groups:
        keys = canonical[:, units.keys]
        assert bool((keys.diff(dim=-1) >= 0).all())
        assert not units.flips or bool((keys >= 0).all())


def test_the_log_joint_is_the_same_for_all_copies(case):
    found, _, log_joint, w = case
    copies = found.random_copies(w)
    assert bool((copies != w).any())  # of a group of two, all of 20 copies are the draws themselves in 1 of 10^6 runs
    torch.testing.assert_close(log_joint(copies), log_joint(w), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_joint(found.canonicalise(w)[0]), log_joint(w), rtol=1e-10, atol=1e-10)


def test_all_copies_have_one_canonical_form(case):
    found, _, _, w = case
    canonical = found.canonicalise(w)[0]
    torch.testing.assert_close(found.canonicalise(canonical)[0], canonical, rtol=0, atol=0)
    torch.testing.assert_close(found.canonicalise(found.random_copies(w))[0], canonical, rtol=0, atol=0)


def test_copies_are_equally_likely():
    """Chi-square over the 8 copies of two units with signs; its false-alarm rate is 1e-6.

    The 1 − 1e-6 quantile of chi-square with 7 degrees of freedom is 40.5.
    """
    found, _, _, w = search(ReferenceNet([1, 2, 1], "normal", 0.1), *data())
    copies = found.random_copies(w[:1].expand(4000, -1))
    _, counts = copies.unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert float(((counts - 500.0) ** 2 / 500).sum()) < 40.5


def test_the_description_comes_back_through_json(case):
    found, layout, _, w = case
    twin = Symmetries.from_description(layout, json.loads(json.dumps(found.describe())))
    assert str(twin) == str(found)
    assert twin.log_order == found.log_order
    torch.testing.assert_close(twin.canonicalise(w)[0], found.canonicalise(w)[0], rtol=0, atol=0)
    for mine, theirs in zip(found.groups, twin.groups, strict=True):
        assert (theirs.axes, theirs.key_site, theirs.flips) == (mine.axes, mine.key_site, mine.flips)

"""Which weights the observations answer to linearly, and that the answer is the model's own."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from models.abx import model as factors
from models.eight_schools import EFFECTS, ERRORS, centred
from models.references import ReferenceNet
from pyro_hypernet.informed.linear_block import find_linear_block
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from tests import small_models as m

pytestmark = pytest.mark.usefixtures("double")


def data(num=12, dim=1):
    x = torch.randn(num, dim)
    return x, (x.sum(-1) > 0).to(x)


def find(model, *args, points=None):
    layout = Layout.from_trace(poutine.trace(model).get_trace(*args))
    points = LogJoint(model, layout).sample_prior(16, *args) if points is None else points
    return find_linear_block(model, layout, points, args, {})


def block_of(model, *args):
    linear = find(model, *args)
    return linear.block if linear else None


def scalar(name="b"):
    return pyro.sample(name, dist.Normal(torch.zeros(()), 1.0))


def observe(fn, y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", fn, obs=y)


@pytest.mark.parametrize(
    "widths, likelihood, sigma, block",
    [
        ([1, 5, 1], "normal", 0.1, ("W1", "b1")),
        ([1, 5, 1], "normal", None, ("W1", "b1")),
        ([2, 4, 4, 1], "bernoulli", None, ("W2", "b2")),
        ([2, 4, 3], "categorical", None, ("W1", "b1")),
    ],
)
def test_the_last_layer_of_a_network(widths, likelihood, sigma, block):
    x, y = data(dim=widths[0])
    y = y.long() if likelihood == "categorical" else y
    assert block_of(ReferenceNet(widths, likelihood, sigma), x, y) == block


def test_all_coefficients_of_a_regression_but_not_its_noise():
    assert block_of(m.linear, *m.linear_data()) == ("slope",)


def test_one_of_two_factors():
    x, y = data()
    assert block_of(factors, x[:, 0], y) == ("b",)


def gamma_likelihood(x, y):
    observe(dist.Gamma(2.0, torch.exp(-scalar() * x[:, 0])), y + 1)


def noise_depends(x, y):
    b = scalar()
    observe(dist.Normal(b * x[:, 0], torch.exp(b)), y)


def bent(x, y):
    observe(dist.Normal(scalar() ** 2 * x[:, 0], 1.0), y)


def unknown_prior(x, y):
    observe(dist.Normal(pyro.sample("b", dist.Gumbel(torch.zeros(()), 1.0)) * x[:, 0], 1.0), y)


def without_data(x, y):
    scalar()


@pytest.mark.parametrize("model", [gamma_likelihood, noise_depends, bent, unknown_prior, without_data])
def test_none_where_there_is_none(model):
    assert find(model, *data()) is None


@pytest.mark.parametrize(
    "function", [torch.abs, torch.relu, lambda b: torch.maximum(b, 0.1 * b)], ids=["abs", "relu", "leaky"]
)
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)])
def test_a_kink_at_zero_is_not_linear(function, signs):
    def model(x, y):
        observe(dist.Normal(function(scalar()) * x[:, 0], 1.0), y)

    points = torch.tensor([[0.3], [0.7 * signs[0]], [1.1 * signs[1]], [0.5 * signs[0]]])
    assert find(model, *data(), points=points) is None


def test_the_block_stops_where_a_prior_depends_on_it():
    errors, effects = torch.tensor(ERRORS), torch.tensor(EFFECTS)
    assert block_of(centred, errors, effects) == ("theta",)

    def centre_is_seen_too(x, y):
        mu = scalar("mu")
        theta = pyro.sample("theta", dist.Normal(mu.expand(len(y)), 1.0).to_event(1))
        observe(dist.Normal(theta + mu * x[:, 0], 1.0), y)

    assert block_of(centre_is_seen_too, *data()) == ("theta",)

    def not_centred(x, y):
        mu = scalar("mu")
        theta = pyro.sample("theta", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        observe(dist.Normal(theta + mu * (1 + x[:, 0]), 1.0), y)

    assert block_of(not_centred, *data()) == ("mu", "theta")


def nested_centre(x, y):
    mu = scalar("mu")
    theta = pyro.sample("theta", dist.Normal(mu.expand(len(y)), 1.0).to_event(1))
    observe(dist.Normal(theta + mu * x[:, 0], 1.0), y)


def nested_square(x, y):
    mu = scalar("mu")
    theta = pyro.sample("theta", dist.Normal((mu**2).expand(len(y)), 1.0).to_event(1))
    observe(dist.Normal(theta, 1.0), y)


def nested_scale(x, y):
    mu = scalar("mu")
    theta = pyro.sample("theta", dist.Normal(torch.zeros(len(y)), mu.exp()).to_event(1))
    observe(dist.Normal(theta, 1.0), y)


def nested_twice(x, y):
    top = scalar("top")
    mu = pyro.sample("mu", dist.Normal(2 * top - 1, 1.0))
    theta = pyro.sample("theta", dist.Normal(mu.expand(len(y)), 0.5).to_event(1))
    observe(dist.Normal(theta, 1.0), y)


NESTED = {
    "centre": (nested_centre, ("mu", "theta")),
    "twice": (nested_twice, ("top", "mu", "theta")),
    "square": (nested_square, ("theta",)),
    "scale": (nested_scale, ("theta",)),
}


@pytest.mark.parametrize("case", NESTED)
def test_priors_may_be_affine_in_the_block_too(case):
    """The block goes as far as that holds; prior locations are the model's own."""
    model, block = NESTED[case]
    x, y = data()
    layout = Layout.from_trace(poutine.trace(model).get_trace(x, y))
    points = LogJoint(model, layout).sample_prior(16, x, y)
    linear = find_linear_block(model, layout, points, (x, y), {}, may_nest=True)
    assert linear.block == block
    assert linear.is_nested == (len(block) > 1)
    if linear.is_nested:
        answer, w = linear(points, (x, y), {}), points[:, linear.index]
        locs = answer.prior_loc + (answer.prior_jacobian @ w[..., None])[..., 0]
        for row, values in zip(locs, points, strict=True):
            sites = layout.constrain(values)[0]
            trace = poutine.trace(poutine.condition(model, sites)).get_trace(x, y)
            expected = [trace.nodes[name]["fn"].mean.expand(layout[name].shape).reshape(-1) for name in block]
            torch.testing.assert_close(row, torch.cat(expected))


def poisson(x, y):
    observe(dist.Poisson(torch.exp(scalar("a") + scalar("b") * x[:, 0])), y)


def binomial(x, y):
    observe(dist.Binomial(3, logits=scalar("a") + scalar("b") * x[:, 0]), y)


def student(x, y):
    loc = pyro.sample("a", dist.StudentT(3.0, torch.ones(()), 2.0)) + pyro.sample(
        "b", dist.Laplace(torch.zeros(()), 0.5)
    )
    observe(dist.StudentT(4.0, loc * x[:, 0], 0.7), y)


def log_normal(x, y):
    observe(dist.LogNormal(scalar("a") + scalar("b") * x[:, 0], 0.5), y + 1)


LOCATIONS = {
    "normal": (ReferenceNet([1, 5, 1], "normal", None), lambda fn: fn.loc),
    "bernoulli": (ReferenceNet([2, 4, 4, 1], "bernoulli", None), lambda fn: fn.logits),
    "categorical": (ReferenceNet([2, 4, 3], "categorical", None), lambda fn: fn.logits - fn.logits.mean(-1)[:, None]),
    "regression": (m.linear, lambda fn: fn.loc),
    "poisson": (poisson, lambda fn: fn.rate.log()),
    "binomial": (binomial, lambda fn: fn.logits),
    "student": (student, lambda fn: fn.loc),
    "log-normal": (log_normal, lambda fn: fn.loc),
}


@pytest.mark.parametrize("case", LOCATIONS)
def test_the_answer_is_the_models_own(case):
    model, location = LOCATIONS[case]
    x, y = data(dim=model.widths[0] if isinstance(model, ReferenceNet) else 2)
    y = y.long() if case == "categorical" else y
    linear = find(model, x, y)
    layout = linear.layout
    w = 1.5 * torch.randn(6, layout.dim)
    answer = linear(w, (x, y), {})
    block = w[:, linear.index]
    found = answer.offset + (answer.jacobian @ block[..., None])[..., 0]
    for row, values in zip(found, w, strict=True):
        sites = layout.constrain(values)[0]
        trace = poutine.trace(poutine.condition(model, sites)).get_trace(x, y)
        fn = trace.nodes["y"]["fn"]
        torch.testing.assert_close(row, location(fn).reshape(-1), rtol=1e-10, atol=1e-10)
    other = linear(w.index_fill(1, linear.index, 7.0), (x, y), {})
    for mine, theirs in zip(vars(answer).values(), vars(other).values(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_precisions_and_priors():
    x, y = data()
    linear = find(student, x, y)
    answer = linear(torch.randn(3, 2), (x, y), {})
    torch.testing.assert_close(answer.log_precision, torch.full((3, 12), -2.0) * torch.tensor(0.7).log())
    torch.testing.assert_close(answer.prior_loc, torch.tensor([1.0, 0.0]).expand(3, 2))
    torch.testing.assert_close(answer.prior_scale, torch.tensor([2.0, 0.5]).expand(3, 2))


def test_scales_and_masks_of_observations():
    def model(x, y):
        b = scalar()
        with pyro.plate("data", len(y)), poutine.scale(scale=3.0), poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(b * x[:, 0], 0.5), obs=y)

    x, y = data()
    log_precision = find(model, x, y)(torch.randn(2, 1), (x, y), {}).log_precision.exp()
    torch.testing.assert_close(log_precision[0], torch.where(y > 0, 12.0, 0.0), rtol=1e-10, atol=1e-10)


def test_the_start_under_a_normal_likelihood_is_the_data():
    x, y = data()
    targets, log_precisions = find(ReferenceNet([1, 5, 1], "normal", None), x, y).start(torch.zeros(17), (x, y), {})
    torch.testing.assert_close(targets, y, rtol=0, atol=0)
    assert not log_precisions.any()


def test_handlers_around_the_call_do_not_matter():
    x, y = data()
    model = ReferenceNet([1, 5, 1], "normal", 0.1)
    linear = find(model, x, y)
    w = torch.randn(4, linear.layout.dim)
    expected = linear(w, (x, y), {})
    with pyro.plate("particles", 4, dim=-3), poutine.trace() as trace:
        found = linear(w, (x, y), {})
    assert [name for name in trace.trace.nodes if name != "particles"] == []
    torch.testing.assert_close(found.jacobian, expected.jacobian)
    torch.testing.assert_close(found.offset, expected.offset)

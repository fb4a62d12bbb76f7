"""Draws of a default guide are numbers in float32 on every support, however far its weights run."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_hypernet import AutoHypernet
from pyro_hypernet.informed.conditional import _factor
from pyro_hypernet.maps.bounds import RANGE, Bounded, bounds
from pyro_hypernet.model.layout import Layout
from tests.seeds import seed


def one_site(make):
    def model(y):
        value = pyro.sample("value", make())
        pyro.sample("y", dist.Normal(value.sum(), 1.0), obs=y)

    return model


def relevance(x, y):
    """A network with scales of its inputs, which have heavy tails: the loss was infinite after a dozen steps."""
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(x.shape[1])).to_event(1))
    first = pyro.sample("first", dist.Normal(torch.zeros(4, x.shape[1]), scale.expand(4, -1)).to_event(2))
    last = pyro.sample("last", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ first.mT) @ last, noise), obs=y)


X = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed(0)))
MODELS = {
    "half Cauchy": (one_site(lambda: dist.HalfCauchy(torch.ones(3)).to_event(1)), torch.tensor(1.0)),
    "log normal": (one_site(lambda: dist.LogNormal(torch.zeros(3), 10.0).to_event(1)), torch.tensor(1.0)),
    "gamma": (one_site(lambda: dist.Gamma(torch.full((3,), 0.01), 0.01).to_event(1)), torch.tensor(1.0)),
    "inverse gamma": (one_site(lambda: dist.InverseGamma(torch.full((3,), 0.1), 0.1).to_event(1)), torch.tensor(1.0)),
    "Pareto": (one_site(lambda: dist.Pareto(torch.ones(3), 0.1).to_event(1)), torch.tensor(1.0)),
    "uniform": (one_site(lambda: dist.Uniform(-torch.ones(3), 1.0).to_event(1)), torch.tensor(1.0)),
    "beta": (one_site(lambda: dist.Beta(torch.full((3,), 0.01), 0.01).to_event(1)), torch.tensor(1.0)),
    "relevance": (relevance, X, torch.sin(2 * X[:, 0])),
}
GUIDES = {"default": {}, "mixture": {"num_components": 2}, "iaf": {"hypernet": "iaf"}, "full": {"structure": "full"}}
CASES = [
    pytest.param(
        model,
        args,
        options,
        id=f"{name}-{kind}",
        marks=[] if kind == "default" or name == "relevance" else [pytest.mark.slow],
    )
    for name, (model, *args) in MODELS.items()
    for kind, options in GUIDES.items()
]


def assert_numbers(guide):
    with torch.no_grad():
        w, log_q = guide.sample_and_log_prob(1000)
        values, log_det = guide.layout.constrain(w)
    assert all(part.isfinite().all() for part in (w, log_q, log_det, *values.values()))
    assert all(guide.layout[name].support.check(value).all() for name, value in values.items())


@pytest.mark.parametrize(("model", "args", "options"), CASES)
def test_plain_svi_at_a_great_step_size_draws_numbers(model, args, options):
    """Whatever the seed: what could overflow is bounded, so there is no false alarm but by rounding."""
    guide = AutoHypernet(model, **options).setup(*args)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        assert all(math.isfinite(svi.step(*args)) for _ in range(12))
        assert_numbers(guide)


def test_weights_that_ran_away_are_numbers():
    """The map of a trained network of heavy tails, its noise a thousand times as large."""
    guide = AutoHypernet(relevance).setup(*MODELS["relevance"][1:])
    noise = 1000 * torch.randn(200, guide.latent_dim)
    w, log_det = guide.bijection.forward_and_log_det(noise)
    values, _ = guide.layout.constrain(w)
    assert all(part.isfinite().all() for part in (w, log_det, *values.values()))
    assert all((values[name] > 0).all() for name in ("scale", "noise"))


def test_nothing_changes_within_the_range():
    bound = Bounded(torch.tensor([0, 2]), torch.tensor([0.0, 5.0]))
    x = torch.tensor([[RANGE, 1e6, 5.0 - RANGE], [0.3, -1e6, 7.0]])
    y, log_det = bound.forward_and_log_det(x)
    assert torch.equal(x, y)
    assert torch.equal(log_det, torch.zeros(2))


def test_only_constrained_sites_are_bounded():
    def model():
        pyro.sample("real", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("positive", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))

    layout = Layout.from_trace(pyro.poutine.trace(model).get_trace())
    (bound,) = bounds(layout, torch.arange(5.0), shared=torch.tensor([3]))
    assert bound.index.tolist() == [2, 3, 4]
    assert bound.centre.tolist() == [2.0, 0.0, 4.0]
    (site,) = layout.sites[:1]
    assert bounds(Layout((site,)), torch.zeros(2)) == []


@pytest.mark.parametrize("kind", ["singular", "indefinite", "not a number", "infinite pull"])
def test_a_factor_at_any_weights(kind):
    """Triangular, with a positive diagonal, beside a row that it does not touch."""
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    bad = {"singular": torch.ones(2, 2), "indefinite": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}.get(kind, good)
    total = torch.stack([good, bad.double() * (math.nan if kind == "not a number" else 1.0)])
    pull = torch.tensor([[1.0, 2.0], [1.0, math.inf if kind == "infinite pull" else 0.0]], dtype=torch.float64)
    factor, pull, _ = _factor(total, pull, 1e-16)
    assert factor.isfinite().all()
    assert pull.isfinite().all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    torch.testing.assert_close(factor[0], torch.linalg.cholesky(good))

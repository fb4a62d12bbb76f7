"""Rejection: draws and density agree, the bound rises to the evidence, and nothing of it outlives a training step."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from models.conjugate_regression import conjugate_regression
from pyro_hypernet import AutoHypernet, load, save
from pyro_hypernet.evaluation.importance import elbo, weighted_draws
from pyro_hypernet.guide.rejection import Rejection, choose_rate
from pyro_hypernet.model.arguments import Arguments
from tests.fits import fit
from tests.seeds import seed


def banana(y):
    """A ridge that no Gaussian fits; its evidence is known by quadrature."""
    a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=y.dtype), 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=y.dtype), 1.0))
    pyro.sample("y", dist.Normal(b + a**2, 0.3), obs=y)


Y = torch.tensor(1.0, dtype=torch.float64)


def log_evidence():
    """By the trapezoidal rule on a grid that leaves out less than 1e-8."""
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    normal = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    log_p = normal.log_prob(a) + normal.log_prob(b) + dist.Normal(b + a**2, 0.3).log_prob(Y)
    return float(log_p.logsumexp((0, 1))) + 2 * math.log(float(grid[1] - grid[0]))


@pytest.fixture(scope="module")
def rejected():
    """A Gaussian about as wide as the ridge, before and after rejection at one in five."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(0))
    guide = AutoHypernet(banana, "linear", init_scale=1.3).setup(Y)
    before = elbo(banana, guide, Y, num_samples=4000)[0]
    choice = guide.reject((Y,), rates=(0.2,))
    return guide, before, choice


def test_the_bound_rises_and_stays_below_the_evidence(rejected):
    guide, before, choice = rejected
    after, error = elbo(banana, guide, Y, num_samples=4000)
    truth = log_evidence()
    assert before < truth - 0.2
    assert truth - after < (truth - before) / 3
    assert after < truth + 4 * error + 3 * choice.rate_error
    assert abs(after - choice.elbo) < 4 * error + 4 * choice.rate_error + 0.02


def test_importance_weights_average_to_the_evidence(rejected):
    """log q is exact: 4 standard errors, a false alarm in 16 000, beside the error of the rate."""
    guide, _, choice = rejected
    weights = weighted_draws(banana, guide, Y, num_samples=8000).log_weights
    relative = (weights - log_evidence()).exp()
    error = float(relative.std()) / math.sqrt(len(relative))
    assert abs(float(relative.mean()) - 1) < 4 * error + 4 * choice.rate_error


def test_the_density_integrates_to_one(rejected):
    guide, _, choice = rejected
    grid = torch.linspace(-6, 6, 301, dtype=torch.float64)
    w = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        log_q = guide.unconstrained_log_prob(w)
    mass = float(log_q.logsumexp(0)) + 2 * math.log(float(grid[1] - grid[0]))
    assert abs(mass) < 4 * choice.rate_error + 0.005


def test_scored_draws_have_the_density_they_came_with(rejected):
    guide = rejected[0]
    w, log_q = guide.sample_and_log_prob(300)
    torch.testing.assert_close(guide.unconstrained_log_prob(w), log_q, atol=1e-8, rtol=1e-8)
    samples, log_det = guide.layout.constrain(w)
    torch.testing.assert_close(guide.log_prob(samples), log_q - log_det, atol=1e-8, rtol=1e-8)


def test_quantiles_are_those_of_the_draws(rejected):
    """Medians of 4 000 draws against the fixed ones of a like number: 5 standard errors of both."""
    guide = rejected[0]
    draws, medians = guide.sample_posterior(4000), guide.median()
    assert guide.median()["a"] == medians["a"]
    for name, value in draws.items():
        below = float((value < medians[name]).double().mean())
        assert abs(below - 0.5) < 5 * 0.5 / math.sqrt(2000)


def test_pyros_own_predictive_draws_what_is_kept(rejected):
    """The ridge's upper part: shares of 2 000 draws each, 5 standard errors."""
    guide = rejected[0]
    theirs = Predictive(banana, guide=guide, num_samples=400)(Y)
    ours = guide.sample_posterior(4000)
    share = [float((value["b"].flatten() < 0).double().mean()) for value in (theirs, ours)]
    assert abs(share[0] - share[1]) < 5 * 0.5 / math.sqrt(400)


def test_a_training_step_ends_it(rejected):
    guide = copy.deepcopy(rejected[0])
    assert guide.rejection is not None
    SVI(banana, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(Y)
    assert guide.rejection is None
    assert rejected[0].rejection is not None


def test_fit_ends_it_before_training_and_plain_guides_keep_all(rejected):
    guide = copy.deepcopy(rejected[0])
    result = fit(banana, guide, (Y,), num_steps=5, progress=False)
    assert guide.rejection is None  # "linear" promises a Gaussian
    assert result.acceptance == 1.0


def test_none_keeps_every_draw_again(rejected):
    guide = copy.deepcopy(rejected[0])
    guide.reject(None)
    assert elbo(banana, guide, Y, num_samples=2000)[0] < log_evidence() - 0.2


def test_it_is_saved_and_copied(rejected, tmp_path):
    guide = rejected[0]
    save(guide, tmp_path / "guide.safetensors")
    again = load(tmp_path / "guide.safetensors", banana)
    w = guide.sample_and_log_prob(50)[0]
    for copied in (again, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close(copied.unconstrained_log_prob(w), guide.unconstrained_log_prob(w))
        assert copied.rejection.rate == pytest.approx(guide.rejection.rate)


def ring(radius):
    """As hard for a guide that has barely been trained as the banana is easy."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=radius.dtype), 2.0).to_event(1))
    pyro.sample("radius", dist.Normal((w**2).sum(-1).sqrt(), 0.3), obs=radius)


def test_the_default_fit_chooses_a_rate_where_there_is_something_to_gain():
    """Over 20 seeds two estimates of the bound differed by .04 nats, and by .2 where it was at -35."""
    guide = AutoHypernet(ring)
    result = fit(ring, guide, (3 * Y,), num_steps=30, num_particles=8, progress=False)
    assert result.acceptance == pytest.approx(guide.rejection.rate)
    assert result.acceptance < 1
    assert "proposals is kept" in guide.describe()
    reached = elbo(ring, guide, 3 * Y, num_samples=2000)[0]
    assert abs(reached - result.elbo) < 0.5
    fit(ring, guide, (3 * Y,), num_steps=30, num_particles=8, rejection=None, progress=False)
    assert guide.rejection is None


def test_an_exact_guide_rejects_nothing():
    problem = conjugate_regression()
    guide = AutoHypernet(problem.model)
    assert fit(problem.model, guide, problem.args, num_steps=20, progress=False).acceptance == 1.0
    assert guide.rejection is None


@pytest.mark.parametrize("rates", [(), (0.0,), (1.5,), ("often",), 2.0])
def test_rates_out_of_range_are_refused(rejected, rates):
    with pytest.raises(ValueError, match="^rates must be a share of draws to keep"):
        copy.deepcopy(rejected[0]).reject((Y,), rates=rates)


@pytest.mark.parametrize("rejection", [0.0, 2.0, "never"])
def test_fit_refuses_unknown_rejections(rejection):
    with pytest.raises(ValueError, match="^rejection must be"):
        fit(banana, AutoHypernet(banana), (Y,), num_steps=1, rejection=rejection)


def threshold_at(log_threshold):
    return Rejection(torch.tensor(log_threshold), torch.tensor(0.0), 0.0, Arguments((), {}), is_shared=False)


def test_the_threshold_keeps_the_share_asked_for():
    log_weights = 3 * torch.randn(20000, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)
    for rate in (0.5, 0.1, 0.02):
        choice = choose_rate(log_weights, (rate,), gap=0.0)
        kept = threshold_at(choice.log_threshold).log_acceptance(log_weights)
        assert float(kept.exp().mean()) == pytest.approx(rate, rel=1e-6)
        assert choice.elbo <= choice.log_evidence


def test_the_greatest_rate_that_comes_near_is_taken():
    log_weights = torch.randn(20000, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)
    gaps = [choose_rate(log_weights, (rate,), gap=0.0) for rate in (0.5, 0.2, 0.1)]
    assert [c.elbo for c in gaps] == sorted(c.elbo for c in gaps)
    gap = gaps[1].log_evidence - gaps[1].elbo + 1e-9
    assert choose_rate(log_weights, (0.1, 0.5, 0.2), gap=gap).log_rate == pytest.approx(math.log(0.2))


def test_worthless_proposals_are_never_kept():
    log_weights = torch.tensor([0.0, math.nan, -math.inf, 1.0])
    choice = choose_rate(log_weights, (0.4,), gap=0.0)
    kept = threshold_at(choice.log_threshold).log_acceptance(log_weights)
    assert kept[1] == kept[2] == -math.inf
    with pytest.raises(ValueError, match="^No proposal of the guide has a finite weight"):
        choose_rate(torch.full((5,), math.nan), (0.4,), gap=0.0)


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def without_weights(*args, **kwargs):
    raise ValueError("No proposal of the guide has a finite weight")


@pytest.mark.parametrize(
    ("failure", "why"),
    [(interrupted, "interrupted"), (without_weights, "all steps done")],
    ids=["Ctrl-C", "no weights"],
)
def test_a_fit_survives_a_choice_that_fails(monkeypatch, failure, why):
    guide = AutoHypernet(banana)
    monkeypatch.setattr(guide, "reject", lambda args, kwargs=None, **options: failure() if args else None)
    result = fit(banana, guide, (Y,), num_steps=20, num_particles=4, progress=False)
    assert len(result.losses) == 20
    assert result.stopped_because == why
    assert result.acceptance == 1.0


def test_a_share_that_was_asked_for_must_be_possible(monkeypatch):
    guide = AutoHypernet(banana)
    monkeypatch.setattr(guide, "reject", lambda args, kwargs=None, **options: without_weights() if args else None)
    with pytest.warns(UserWarning, match="^Every draw of the guide is kept: No proposal"):
        result = fit(banana, guide, (Y,), num_steps=20, num_particles=4, rejection=0.5, progress=False)
    assert (result.num_steps, result.acceptance) == (20, 1.0)  # what was learnt is not lost


LIKELIHOODS = {
    "normal": lambda f: dist.Normal(f, 0.5),
    "student": lambda f: dist.StudentT(4.0, f, 1.0),
    "bernoulli": lambda f: dist.Bernoulli(logits=f),
    "poisson": lambda f: dist.Poisson(f.exp()),
    "zero-inflated Poisson": lambda f: dist.ZeroInflatedPoisson(f.exp(), gate=torch.tensor(0.3)),
    "negative binomial": lambda f: dist.NegativeBinomial(3.0, logits=f),
    "gamma": lambda f: dist.Gamma(2.0, (-f).exp()),
    "beta": lambda f: dist.Beta(f.exp(), 1.0),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_a_guide_that_rejects_trains_on_by_plain_svi(likelihood):
    """Its weights come from graphs that no gradient may go through."""
    x = torch.linspace(-1.0, 1.0, 8)

    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
        offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", likelihood(slope * x + offset), obs=y)

    pyro.set_rng_seed(seed(0))
    y = poutine.condition(model, data={"slope": torch.tensor(0.5), "offset": torch.tensor(0.0)})(x)
    guide = AutoHypernet(model)
    fit(model, guide, (x, y), num_steps=5, num_particles=4, progress=False)
    guide.reject((x, y), rates=(0.5,))
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x, y))
    assert guide.rejection is None
    assert all(bool(parameter.isfinite().all()) for parameter in guide.parameters())

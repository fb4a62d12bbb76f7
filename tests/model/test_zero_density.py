"""A model that raises an error at some weights has density zero there, whoever asks; one that is random is refused."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_hypernet import AutoHypernet, NutsKernel, metropolis, move, nuts, refine, resample
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout

Y = torch.tensor([0.8, 0.7])
RAISES = "ignore:The density raises an error:UserWarning"
LOOPS = "ignore:The model cannot be vmapped:UserWarning"


def correlated(y):
    """No Cholesky factor where |r| > 1, which is a third of the prior."""
    r = pyro.sample("r", dist.Normal(y.new_zeros(()), 1.0))
    covariance = torch.stack([torch.stack([1 + 0 * r, r]), torch.stack([r, 1 + 0 * r])])
    pyro.sample("y", dist.MultivariateNormal(y.new_zeros(2), covariance), obs=y)


def factor_in_a_likelihood(y):
    r = pyro.sample("r", dist.Normal(y.new_zeros(()), 1.0))
    covariance = (1 - r.abs()) * torch.eye(2) + r.abs()
    factor = torch.linalg.cholesky(covariance - 0.2 * torch.eye(2))
    pyro.factor("fit", -(torch.linalg.solve_triangular(factor, y[:, None], upper=False) ** 2).sum() / 2)


def logarithm_of_a_number(y):
    r = pyro.sample("r", dist.Normal(y.new_zeros(()), 1.0))
    shift = math.log(1 - float(r) ** 2)
    pyro.sample("y", dist.Normal(r + shift, 1.0).expand([2]).to_event(1), obs=y)


def check_of_the_users(y):
    r = pyro.sample("r", dist.Normal(y.new_zeros(()), 1.0))
    if abs(r) > 1:
        raise ValueError("r must be a correlation.")
    pyro.sample("y", dist.Normal(r, 1.0).expand([2]).to_event(1), obs=y)


def assertion_of_the_users(y):
    r = pyro.sample("r", dist.Normal(y.new_zeros(()), 1.0))
    assert abs(r) < 1
    pyro.sample("y", dist.Normal(r, 1.0).expand([2]).to_event(1), obs=y)


RAISING = {
    f.__name__: f
    for f in (correlated, factor_in_a_likelihood, logarithm_of_a_number, check_of_the_users, assertion_of_the_users)
}


def log_joint_of(model, y, mode="graph"):
    trace = poutine.trace(poutine.condition(model, {"r": y.new_tensor(0.5)})).get_trace(y)
    trace.nodes["r"]["is_observed"] = False
    return LogJoint(model, Layout.from_trace(trace), mode=mode)


@pytest.mark.filterwarnings(RAISES, LOOPS)
@pytest.mark.parametrize("mode", ["graph", "eager", "loop"])
@pytest.mark.parametrize("name", RAISING)
def test_only_the_draws_at_which_a_model_raises_have_density_zero(name, mode, double):
    y = Y.double()
    log_joint = log_joint_of(RAISING[name], y, mode)
    good, w = torch.tensor([[0.1], [0.4], [-0.6]]), torch.tensor([[1.5], [0.1], [-2.0], [0.4], [-0.6], [3.0]])
    expected = torch.full((6,), -math.inf)
    with pyro.validation_enabled(False):
        expected[[1, 3, 4]] = torch.stack([log_joint._value_of_one(row, (y,), {}) for row in good])
    run = log_joint.bind_value_and_grad(y)
    for _ in range(2):
        for points in (w, w[[0, 2]], w[[1, 3]], w):
            rows = [int((w == point).nonzero()[0, 0]) for point in points]
            torch.testing.assert_close(log_joint(points, y), expected[rows], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(log_joint.parts(points, y).sum(-1), expected[rows], rtol=1e-10, atol=1e-10)
            for values, gradients in (log_joint.value_and_grad(points, y), run(points)):
                torch.testing.assert_close(values, expected[rows], rtol=1e-10, atol=1e-10)
                assert bool((gradients == 0).flatten().eq(values.isinf()).all())
    leaf = w.clone().requires_grad_()
    values = log_joint(leaf, y)
    (gradient,) = torch.autograd.grad(values[values.isfinite()].sum(), leaf)
    torch.testing.assert_close(gradient, log_joint.value_and_grad(w, y)[1], rtol=1e-10, atol=1e-10)
    assert log_joint.num_failed > 0


def test_it_is_said_once():
    log_joint, w = log_joint_of(correlated, Y), torch.tensor([[0.5], [2.0]])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            log_joint(w, Y)
    assert ["raises an error at some draws (linalg.cholesky" in str(warning.message) for warning in said] == [True]
    assert log_joint.num_failed == 3


@pytest.mark.filterwarnings(LOOPS)
@pytest.mark.parametrize("model", [check_of_the_users, correlated])
def test_a_models_own_mistake_is_no_zero_density(model):
    log_joint = log_joint_of(model, Y)
    log_joint(torch.zeros(3, 1), Y)
    with pytest.raises((RuntimeError, ValueError), match=r"shape|size|expand|match|broadcast"):
        log_joint(torch.zeros(3, 1), torch.ones(3, 5))


def test_draws_of_the_prior_at_which_the_model_raises_are_draws_of_the_prior():
    """20 000 draws: the share beyond one is .317 ± .0033; nine standard errors off in no run that anyone will see."""
    layout = log_joint_of(correlated, Y).layout
    draws = LogJoint(correlated, layout).sample_prior(20_000, Y)
    assert abs(float((draws.abs() > 1).float().mean()) - 0.317) < 0.03


def truth():
    """Evidence and posterior mean, by quadrature."""
    r = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[1:-1]
    y = Y.double()
    square = (y[0] ** 2 - 2 * r * y[0] * y[1] + y[1] ** 2) / (1 - r**2)
    log_p = -square / 2 - (1 - r**2).log() / 2 - math.log(2 * math.pi) - r**2 / 2 - math.log(2 * math.pi) / 2
    return float(log_p.logsumexp(0)) + math.log(1e-4), float((log_p.softmax(0) * r).sum())


SAMPLERS = {
    "nuts": lambda guide, model, y: (
        nuts(model, y, num_samples=150, warmup_steps=100, num_chains=4, kernel=NutsKernel(num_processes=1)).samples
    ),
    "nuts in processes": lambda guide, model, y: (
        nuts(model, y, num_samples=150, warmup_steps=100, num_chains=4, kernel=NutsKernel(num_processes=2)).samples
    ),
    "refine": lambda guide, model, y: refine(model, y, num_samples=2000, progress=False).samples,
    "move": lambda guide, model, y: move(model, guide, y, num_samples=1000, num_moves=24, progress=False).samples,
    "metropolis": lambda guide, model, y: metropolis(model, guide, y, num_samples=500, num_chains=4).samples,
    "resample": lambda guide, model, y: resample(model, guide, y, num_samples=1000).samples,
}


def wide_guide(model, y):
    """A third of its draws have no density."""
    values = {"r": y.new_tensor(0.0)}
    guide = AutoHypernet(model, init_loc_fn=pyro.infer.autoguide.init_to_value(values=values), init_scale=1.0)
    return guide.setup(y)


@pytest.mark.filterwarnings(RAISES, "ignore:NUTS has not mixed:UserWarning", "ignore:The populations of:UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "in" in n.split() else n for n in SAMPLERS]
)
def test_every_sampler_finds_the_posterior_of_a_model_that_raises(name):
    """Means of at least 100 effective draws of sd .3: a standard error of .03, of which .2 is more than six."""
    guide = None if name.startswith(("nuts", "refine")) else wide_guide(correlated, Y)
    samples = SAMPLERS[name](guide, correlated, Y)
    assert abs(float(samples["r"].mean()) - truth()[1]) < 0.2
    assert bool((samples["r"].abs() < 1).all())


@pytest.mark.filterwarnings(RAISES)
def test_the_evidence_counts_draws_without_density():
    """The error of the log evidence of 4 000 draws is about .02 nats, of which .15 is seven."""
    refined = refine(correlated, Y, num_samples=4000, progress=False)
    assert abs(refined.log_evidence - truth()[0]) < 0.15


def test_nuts_says_how_often_the_model_raised():
    with pytest.warns(UserWarning, match=r"at \d+ of about \d+ points of NUTS"):
        result = nuts(correlated, Y, num_samples=50, warmup_steps=50, num_chains=4, kernel=NutsKernel(num_processes=1))
    assert result.num_failed > 0


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=20) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def noisy(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean + 0.1 * torch.randn(()), 1.0).expand([len(y)]).to_event(1), obs=y)


def counting():
    runs = [0]

    def model(y):
        runs[0] += 1
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + 0.1 * runs[0], 1.0).expand([len(y)]).to_event(1), obs=y)

    return model


def dropping_out():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(32), 1.0).to_event(1))
        kept = nn.functional.dropout(mean, 0.5)
        pyro.sample("y", dist.Normal(kept.mean(), 1.0).expand([len(y)]).to_event(1), obs=y)

    return model


RANDOM = {"subsampled": lambda: subsampled, "noisy": lambda: noisy, "counting": counting, "dropout": dropping_out}


@pytest.mark.filterwarnings("ignore:Captured as a graph:UserWarning")
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_density_is_refused(kind, name):
    """A false pass: two runs drop out the same of 32 numbers, one in 4e9, or draw the same half of 40 rows, one in
    1e11."""
    model, y = RANDOM[kind](), torch.linspace(-1.0, 1.0, 40)
    guide = None if name.startswith(("nuts", "refine")) else AutoHypernet(model).setup(y)
    with pytest.raises(ValueError, match=r"is another at every call"):
        SAMPLERS[name](guide, model, y)

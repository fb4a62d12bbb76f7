"""The Gaussian conditional: exact where the model is conjugate, a lawful bijection elsewhere; when it is chosen."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_sample

from models.conjugate_regression import conjugate_regression
from models.conjugate_regression import model as regression
from models.references import ReferenceNet
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.informed import conditional
from pyro_hypernet.informed.conditional import GaussianConditional
from pyro_hypernet.informed.structures import informed
from pyro_hypernet.maps.hypernets import coupling, linear
from pyro_hypernet.model import validate
from pyro_hypernet.model.density import LogJoint
from tests import small_models as m
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def shaken(module, size=0.1):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn_like(parameter)
    return module


def data(num=12, dim=1):
    x = torch.randn(num, dim)
    return x, torch.tanh(x.sum(-1)) + 0.1 * torch.randn(num)


def net(likelihood="normal", sigma=None, dim=1, outputs=1):
    x, y = data(dim=dim)
    y = {"normal": y, "bernoulli": (y > 0).to(y), "categorical": (y > 0).long()}[likelihood]
    return ReferenceNet([dim, 3, outputs], likelihood, sigma), x, y


def map_of(guide):
    (found,) = (part for part in guide.modules() if isinstance(part, GaussianConditional))
    return found


@pytest.mark.parametrize("hypernet", ["auto", "identity", "linear", "spline"])
def test_a_conjugate_posterior_before_any_training(hypernet):
    problem = conjugate_regression()
    guide = AutoHypernet(regression, hypernet, "informed").setup(*problem.args)
    w, log_q = guide.sample_and_log_prob(64)
    log_weights = LogJoint(regression, guide.layout)(w, *problem.args) - log_q
    torch.testing.assert_close(log_weights, torch.full((64,), problem.truth["log_evidence"]), rtol=0, atol=1e-8)


def test_a_conjugate_posterior_in_float32():
    """To 1e-3 of about −40 nats: sums of 40 terms in float32 are exact to 1e-5 each."""
    torch.set_default_dtype(torch.float32)
    problem = conjugate_regression()
    guide = AutoHypernet(regression).setup(*problem.args)
    w, log_q = guide.sample_and_log_prob(64)
    assert w.dtype == torch.float32
    log_weights = LogJoint(regression, guide.layout)(w, *problem.args) - log_q
    torch.testing.assert_close(log_weights, torch.full((64,), problem.truth["log_evidence"]), rtol=0, atol=1e-3)


def test_coefficients_given_a_learnt_noise():
    x, y = m.linear_data()
    guide = AutoHypernet(m.linear).setup(x, y)
    noise = torch.rand(20) + 0.1
    slope = torch.randn(2, 20, 2)
    log_q = guide.log_prob({"slope": slope, "noise": noise.expand(2, 20)})
    precision = x.T @ x / noise[:, None, None] ** 2 + torch.eye(2)
    mean = torch.linalg.solve(precision, (x.T @ y) / noise[:, None] ** 2)
    given_noise = dist.MultivariateNormal(mean, precision_matrix=precision).log_prob(slope)
    torch.testing.assert_close(log_q[0] - log_q[1], given_noise[0] - given_noise[1], rtol=1e-9, atol=1e-9)
    # What remains is log q(noise), whose mass is one.
    line = torch.linspace(-14.0, 14.0, 2001)
    at = {"slope": torch.zeros(2001, 2), "noise": line.exp()}
    precision = x.T @ x / at["noise"][:, None, None] ** 2 + torch.eye(2)
    mean = torch.linalg.solve(precision, (x.T @ y) / at["noise"][:, None] ** 2)
    given_noise = dist.MultivariateNormal(mean, precision_matrix=precision, validate_args=False).log_prob(at["slope"])
    mass = (guide.log_prob(at) - given_noise + line).exp().sum() * (line[1] - line[0])
    assert abs(float(mass.detach()) - 1) < 1e-6


CASES = {
    "normal": lambda: net(),
    "fixed noise": lambda: net(sigma=0.1),
    "bernoulli": lambda: net("bernoulli"),
    "categorical": lambda: net("categorical", outputs=3),
    "regression": lambda: (m.linear, *m.linear_data()),
    "conjugate": lambda: (regression, *conjugate_regression().args),
}


@pytest.fixture(params=CASES)
def case(request):
    model, *args = CASES[request.param]()
    guide = AutoHypernet(model, "coupling", "informed").setup(*args)
    return shaken(map_of(guide), 0.2), guide.latent_dim


@pytest.mark.parametrize("batch_shape", [(), (5,), (3, 1, 5)])
def test_inverse_inverts(case, batch_shape):
    bijection, dim = case
    x = torch.randn(*batch_shape, dim)
    y, log_det = bijection.forward_and_log_det(x)
    back, log_det_back = bijection.inverse_and_log_det(y)
    assert log_det.shape == batch_shape
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)


def test_log_det_agrees_with_autograd(case):
    bijection, dim = case
    for x in torch.randn(4, dim):
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection.forward_and_log_det(v)[0], x)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(bijection.forward_and_log_det(x)[1], expected, rtol=1e-9, atol=1e-9)


def test_every_parameter_gets_a_gradient(case):
    bijection, dim = case
    if bijection.linear_block.is_exact:  # then there is nothing to learn
        assert not list(bijection.parameters())
        return
    y, log_det = bijection.forward_and_log_det(torch.randn(16, dim))
    ((y**2).sum() + log_det.sum()).backward()
    for name, parameter in bijection.named_parameters():
        assert bool((parameter.grad != 0).any()), name
        assert bool(parameter.grad.isfinite().all()), name


def test_chunks_change_nothing(case, monkeypatch):
    bijection, dim = case
    x = torch.randn(7, dim)
    whole = bijection.forward_and_log_det(x), bijection.inverse_and_log_det(x)
    seen = []
    spy = bijection._conditional
    monkeypatch.setattr(bijection, "_conditional", lambda w: seen.append(len(w)) or spy(w))
    monkeypatch.setattr(conditional, "_CHUNK", 2 * len(bijection.targets) * (len(bijection.index) + 1))
    parts = bijection.forward_and_log_det(x), bijection.inverse_and_log_det(x)
    assert seen == [2, 2, 2, 1] * 2
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_a_pickle_has_its_model_along():
    guide = AutoHypernet(net()[0]).setup(*net()[1:])
    noise = torch.randn(4, guide.latent_dim)
    twin = pickle.loads(pickle.dumps(guide.bijection))
    torch.testing.assert_close(twin.forward_and_log_det(noise), guide.bijection.forward_and_log_det(noise))


def test_a_deepcopy_has_the_same_density_and_goes_its_own_way():
    model, *args = net()
    guide = shaken(AutoHypernet(model).setup(*args))
    twin = copy.deepcopy(guide)
    draws = guide.sample_posterior(5)
    expected = guide.log_prob(draws)
    torch.testing.assert_close(twin.log_prob(draws), expected, rtol=0, atol=0)
    assert twin.describe() == guide.describe()
    shaken(twin)
    assert not torch.allclose(twin.log_prob(draws), expected)
    torch.testing.assert_close(guide.log_prob(draws), expected, rtol=0, atol=0)


def test_too_large_for_memory_is_said_beforehand(monkeypatch):
    monkeypatch.setattr(validate, "_free_bytes", lambda device: 100.0)
    model, *args = net()
    with pytest.raises(ValueError, match="The guide is too large for memory"):
        AutoHypernet(model).setup(*args)


def test_made_without_memory_it_has_the_same_parameters():
    model, *args = net()
    guide = AutoHypernet(model).setup(*args)
    loc, scale = torch.zeros(guide.latent_dim), torch.ones(guide.latent_dim)
    with torch.device("meta"):
        empty = informed(guide.layout, coupling, loc.to("meta"), scale.to("meta"), knowledge=guide.knowledge)
    real = informed(guide.layout, coupling, loc, scale, knowledge=guide.knowledge)
    assert [p.shape for p in empty.parameters()] == [p.shape for p in real.parameters()]
    assert all(p.is_meta for p in empty.parameters())


# -- when it is chosen --


class Rows:
    """Data in a container of the user's own, of which a guide keeps nothing."""

    def __init__(self, parts):
        self.parts = parts


def iterated(rows):
    m.linear(*rows.parts)


def improper(x, y):
    slope = pyro.sample("slope", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)


PLAIN = {
    "init_loc_fn": lambda: AutoHypernet(m.linear, init_loc_fn=init_to_sample).setup(*m.linear_data()),
    "init_scale": lambda: AutoHypernet(m.linear, init_scale=0.1).setup(*m.linear_data()),
    "linear": lambda: AutoHypernet(m.linear, "linear").setup(*m.linear_data()),
    "identity": lambda: AutoHypernet(m.linear, "identity").setup(*m.linear_data()),
    "linear with options": lambda: AutoHypernet(m.linear, partial(linear, mix="low_rank")).setup(*m.linear_data()),
    "components": lambda: AutoHypernet(m.linear, num_components=2).setup(*m.linear_data()),
    "iterator of data": lambda: AutoHypernet(iterated).setup(Rows(m.linear_data())),
    "subsampled": lambda: AutoHypernet(m.subsampled).setup(torch.randn(20)),
    "blocked switch": lambda: AutoHypernet(poutine.block(m.with_switch, hide=["switch"])).setup(torch.randn(5)),
    "own parameter": lambda: AutoHypernet(m.with_param).setup(torch.randn(5, 2)),
    "no data": lambda: AutoHypernet(m.supports).setup(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_auto_knows_nothing(name):
    guide = PLAIN[name]()
    assert guide.knowledge is None
    assert "structure full (chosen by auto)" in guide.describe()
    assert "found" not in guide.describe()


@pytest.mark.parametrize("name", ["iterator of data", "subsampled", "blocked switch", "own parameter", "no data"])
def test_informed_of_nothing_is_full(name):
    guide = PLAIN[name]()
    asked = AutoHypernet(guide.model, structure="informed")
    args = {"iterator of data": [Rows(m.linear_data())], "subsampled": [torch.randn(20)], "no data": []}
    asked.setup(*args.get(name, [torch.randn(5, 2) if name == "own parameter" else torch.randn(5)]))
    assert asked.knowledge is None
    eps = torch.randn(50, asked.latent_dim)
    spread = asked.bijection.forward_and_log_det(eps)[0] - asked.bijection.forward_and_log_det(0 * eps)[0]
    torch.testing.assert_close(spread, 0.1 * eps)


def test_auto_is_informed_where_there_is_something_to_find():
    model, *args = net()
    for guide in (AutoHypernet(model), AutoHypernet(model, "spline"), AutoHypernet(model, structure="informed")):
        described = guide.setup(*args).describe()
        assert "structure informed" in described
        assert "found: W1, b1: drawn from a normal distribution given all other weights." in described
        assert "found: W0, b0, W1: 3 hidden units that may be reordered, and their signs flipped, which" in described
        assert guide.knowledge.linear_block.block == ("W1", "b1")
    assert "structure informed (chosen by auto)" in AutoHypernet(model).setup(*args).describe()


def test_an_init_scale_is_kept_where_it_is_asked_for():
    """Within 20 %, 13 standard errors, of each spread; keys are sorted |N(0, 0.01²)|, below 6 sd: once in 1e5 runs."""
    model, *args = net()
    guide = AutoHypernet(model, structure="informed", init_scale=0.01).setup(*args)
    w = guide.layout.unconstrain(guide.sample_posterior(2000))[0]
    w = guide.knowledge.symmetries.canonicalise(w)[0]  # copies apart, the spread is what was asked for
    sites = guide.layout.unpack(w)
    torch.testing.assert_close(sites["b0"].std(0), torch.full((3,), 0.01), rtol=0.2, atol=0)
    assert float(sites["W0"].max()) < 0.06


def test_learning_leaves_the_random_numbers_alone():
    model, *args = net()
    pyro.set_rng_seed(seed(5))
    AutoHypernet(model, "coupling", init_scale=0.1).setup(*args)
    expected = torch.rand(3)
    pyro.set_rng_seed(seed(5))
    guide = AutoHypernet(model, "coupling", "informed", init_scale=0.1).setup(*args)
    assert guide.knowledge
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)

"""The problems: what they call the truth is true, and every model is plain Pyro that vmaps."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to

from models import PROBLEMS
from models.networks import tanh_network
from pyro_hypernet.model.density import LogJoint, map_model
from pyro_hypernet.model.layout import Layout
from tests.seeds import seed

CACHE = {}


def problem_of(name):
    if name not in CACHE:
        CACHE[name] = PROBLEMS[name]()
    return CACHE[name]


def layout_of(problem):
    return Layout.from_trace(poutine.trace(problem.model).get_trace(*problem.args))


def known(key):
    return [name for name in PROBLEMS if key in problem_of(name).truth]


def by_importance(problem, num=200_000):
    """Log evidence and posterior means and sds of the sites, by importance sampling from the prior."""
    with torch.random.fork_rng():
        torch.manual_seed(seed(0))
        layout = layout_of(problem)
        data = {
            name
            for name, node in poutine.trace(problem.model).get_trace(*problem.args).nodes.items()
            if node["type"] == "sample" and node["is_observed"]
        }

        def collect(trace):
            trace.compute_log_prob()
            weight = sum((trace.nodes[name]["log_prob_sum"] for name in data if name in trace.nodes), torch.zeros(()))
            return weight, {name: trace.nodes[name]["value"] for name in layout.names}

        empty = {"unused": torch.zeros(num)}
        log_weights, values = map_model(problem.model, empty, problem.args, collect=collect)
    weights = log_weights.double().softmax(0)
    means = {name: torch.tensordot(weights, v.double(), dims=1) for name, v in values.items()}
    sds = {name: torch.tensordot(weights, (v.double() - means[name]) ** 2, dims=1).sqrt() for name, v in values.items()}
    return float(log_weights.double().logsumexp(0) - math.log(num)), means, sds, float(1 / (weights**2).sum())


@pytest.mark.parametrize("name", PROBLEMS)
def test_named_and_described(name):
    problem = problem_of(name)
    assert problem.name == name
    assert problem.description.endswith(".")


@pytest.mark.parametrize("name", PROBLEMS)
def test_vmapped_and_captured_equals_one_by_one(name):
    problem = problem_of(name)
    layout = layout_of(problem)
    w = 0.5 * torch.randn(3, layout.dim)
    log_joint = LogJoint(problem.model, layout)
    one_by_one = LogJoint(problem.model, layout, mode="loop")(w, *problem.args)
    for _ in range(2):
        torch.testing.assert_close(log_joint(w, *problem.args), one_by_one, rtol=1e-5, atol=1e-3)
    assert log_joint.mode == "graph"


@pytest.mark.parametrize("mode", ["graph", "eager"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_density_is_pyros_own_with_the_jacobians(name, mode, double):
    problem = PROBLEMS[name]()
    log_joint = LogJoint(problem.model, layout_of(problem), mode=mode)
    w = 0.5 * torch.randn(4, log_joint.layout.dim)
    expected = []
    for row in w:
        values, _ = log_joint.layout.constrain(row)
        total = poutine.trace(poutine.condition(problem.model, values)).get_trace(*problem.args).log_prob_sum()
        for site in log_joint.layout.sites:
            transform = biject_to(site.support)
            total = total + transform.log_abs_det_jacobian(transform.inv(values[site.name]), values[site.name]).sum()
        expected.append(total)
    for _ in range(2):  # the second time from the graph
        torch.testing.assert_close(log_joint(w, *problem.args), torch.stack(expected), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            log_joint.value_and_grad(w, *problem.args)[0], torch.stack(expected), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_at_every_making_and_global_generators_untouched(name):
    problem = problem_of(name)
    state = torch.random.get_rng_state()
    again = PROBLEMS[name]()
    assert torch.equal(state, torch.random.get_rng_state())
    for old, new in zip((*problem.args, problem.x_test), (*again.args, again.x_test), strict=True):
        assert old is new is None or torch.equal(old, new)


@pytest.mark.parametrize("name", PROBLEMS)
def test_in_double_precision(name, double):
    problem = PROBLEMS[name]()
    trace = poutine.trace(problem.model).get_trace(*problem.args)
    layout = Layout.from_trace(trace)
    assert {trace.nodes[site]["value"].dtype for site in layout.names} == {torch.float64}
    w = 0.3 * torch.randn(2, layout.dim)
    assert LogJoint(problem.model, layout)(w, *problem.args).dtype == torch.float64


@pytest.mark.parametrize("name", [name for name in PROBLEMS if problem_of(name).x_test is not None])
def test_models_run_on_test_inputs(name):
    problem = problem_of(name)
    f = problem.model(problem.x_test)
    assert len(f) == len(problem.x_test)
    if problem.y_test is not None:
        assert problem.y_test.shape == problem.x_test.shape[:1]
        assert problem.y_test.dtype == problem.args[1].dtype


@pytest.mark.parametrize("name", known("mean"))
def test_truths_have_the_shapes_of_their_sites(name):
    problem = problem_of(name)
    layout = layout_of(problem)
    for values in (problem.truth["mean"], problem.truth["sd"], problem.init_values, *problem.truth.get("modes", ())):
        for site, value in values.items():
            assert value.shape == layout[site].shape
            assert value.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("name", known("modes"))
def test_modes_are_modes(name):
    """The gradient is zero and the Hessian negative at each."""
    problem = problem_of(name)
    layout = layout_of(problem)
    log_joint = LogJoint(problem.model, layout, mode="eager")
    for mode in problem.truth["modes"]:
        w = layout.unconstrain(mode)[0]
        assert float(log_joint.value_and_grad(w[None], *problem.args)[1].abs().max()) < 0.01
        hessian = torch.func.hessian(lambda v: log_joint(v[None], *problem.args)[0])(w)
        assert float(torch.linalg.eigvalsh(hessian).max()) < 0


@pytest.mark.parametrize("name", ["two-modes", "abx", "eight-schools", "eight-schools-noncentred"])
def test_quadrature_and_closed_forms_agree_with_importance_sampling(name):
    problem = problem_of(name)
    log_evidence, means, sds, effective = by_importance(problem)
    assert effective > 1000
    error = 5 / math.sqrt(effective)
    assert abs(log_evidence - problem.truth["log_evidence"]) < error
    for site, mean in problem.truth["mean"].items():
        sd = problem.truth["sd"][site].double()
        assert float(((means[site] - mean) / sd).abs().max()) < error
        assert float((sds[site] / sd - 1).abs().max()) < 2 * error


def test_evidence_of_the_conjugate_regression_by_bayes_rule():
    """log p(y) = log p(y, w) - log p(w | y) for any w."""
    problem = problem_of("conjugate-regression")
    mean, covariance = problem.truth["mean"]["w"], problem.truth["covariance"]["w"]
    w = mean + 0.5 * torch.randn(5, 4)
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    evidence = LogJoint(problem.model, layout_of(problem))(w, *problem.args) - posterior.log_prob(w)
    torch.testing.assert_close(evidence, torch.full((5,), problem.truth["log_evidence"]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(problem.truth["sd"]["w"], covariance.diagonal().sqrt())


def test_posterior_of_two_modes_is_the_mixture_by_bayes_rule():
    problem = problem_of("two-modes")
    mode = problem.truth["modes"][0]["z"]
    variance = 1 / (1 / 2.0**2 + 1 / 0.5**2)
    parts = torch.distributions.Normal(torch.stack([mode, -mode]), math.sqrt(variance))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor(problem.truth["masses"])),
        torch.distributions.Independent(parts, 1),
    )
    z = 2 * torch.randn(20, 2)
    evidence = LogJoint(problem.model, layout_of(problem))(z, *problem.args) - mixture.log_prob(z)
    torch.testing.assert_close(evidence, torch.full((20,), problem.truth["log_evidence"]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(mixture.mean, problem.truth["mean"]["z"])
    torch.testing.assert_close(mixture.variance.sqrt(), problem.truth["sd"]["z"])


@pytest.mark.parametrize("name", ["correlated-gaussian", "banana"])
def test_moments_of_targets_without_data(name):
    """Their draws are the model's own: the prior is the target, which also makes the log evidence zero."""
    problem = problem_of(name)
    log_evidence, means, sds, effective = by_importance(problem)
    assert log_evidence == pytest.approx(0.0, abs=1e-9)
    assert problem.truth["log_evidence"] == 0.0
    for site, mean in problem.truth["mean"].items():
        sd = problem.truth["sd"][site].double()
        assert float(((means[site] - mean) / sd).abs().max()) < 5 / math.sqrt(effective)
        assert float((sds[site] / sd - 1).abs().max()) < 0.03


def test_funnel_is_normal_given_its_neck():
    problem = problem_of("funnel")
    loc = problem.args[0]
    values = {"v": torch.tensor([2.0, -1.0]), "x": torch.randn(2, len(loc))}
    log_prob = LogJoint(problem.model, layout_of(problem)).log_prob(values, loc)
    expected = torch.distributions.Normal(0.0, 3.0).log_prob(values["v"])
    expected = expected + torch.distributions.Normal(0.0, (values["v"] / 2).exp()[:, None]).log_prob(values["x"]).sum(
        -1
    )
    torch.testing.assert_close(log_prob, expected)
    sd = torch.tensor([math.exp(3.0**2 / 4)]).expand(9)
    torch.testing.assert_close(problem.truth["sd"]["x"], sd)


def test_diabetes_is_the_model_of_the_demo():
    problem = problem_of("diabetes")
    assert layout_of(problem).dim == 122
    x, y = problem.args
    assert (len(x), len(problem.x_test)) == (332, 110)
    torch.testing.assert_close(x.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(), torch.tensor(1.0))


def test_prior_of_the_networks_is_that_of_the_references():
    problem = problem_of("gap")
    scales = [float(prior.base_dist.scale.flatten()[0]) for prior in problem.model.priors.values()]
    assert scales == pytest.approx([1.5, 1.0, 1.5 / math.sqrt(20), 1.0])


def test_useless_inputs_have_their_own_scales():
    layout = layout_of(problem_of("ard"))
    assert layout["scale"].shape == (6,)
    assert not layout["scale"].is_unconstrained


def test_tanh_network():
    net = tanh_network(3, 5, 2)
    assert [type(layer).__name__ for layer in net] == ["Linear", "Tanh", "Linear"]
    assert net(torch.zeros(4, 3)).shape == (4, 2)
    torch.testing.assert_close(tanh_network(3, 5, 2)[0].weight, net[0].weight)


def test_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"^This problem needs scikit-learn"):
        PROBLEMS["wine"]()


def test_no_parameters_are_left_in_the_store():
    for name in PROBLEMS:
        problem = problem_of(name)
        poutine.trace(problem.model).get_trace(*problem.args)
    assert not list(pyro.get_param_store().keys())

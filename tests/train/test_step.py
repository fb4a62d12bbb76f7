"""A step gives the same losses and gradients however it runs."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.maps.hypernets import coupling
from pyro_hypernet.train import step as step_module
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.step import FlatParameters
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed
from tests.train.conjugate import make_data, regression

X, Y = make_data()
SMALL = partial(coupling, num_layers=2, hidden=(8,))


def hidden_units(x, y=None, *, family="normal"):
    """A tanh network whose last layer acts linearly and whose hidden units may change places."""
    out = 3 if family == "categorical" else 1
    w0 = pyro.sample("w0", dist.Normal(x.new_zeros(x.shape[1], 4), 1.0).to_event(2))
    w1 = pyro.sample("w1", dist.Normal(x.new_zeros(4, out), 1.0).to_event(2))
    f = torch.tanh(x @ w0) @ w1
    with pyro.plate("data", len(x)):
        if family == "categorical":
            pyro.sample("y", dist.Categorical(logits=f), obs=y)
        else:
            pyro.sample("y", dist.Normal(f.squeeze(-1), 0.3), obs=y)


def in_minibatches(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def draws_its_own_rows(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=7) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ weight, 0.5), obs=y[rows])


CLASSES = torch.arange(20) % 3
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:], Y[16:])]
LINEAR_DATA = tuple(value.double() for value in m.linear_data())
# What is fitted: model, arguments, options of the guide, options of fit.
CASES = {
    "full": (regression, (X, Y), {"hypernet": SMALL, "structure": "full"}, {}),
    "linear weights alone": (regression, (X, Y), {"hypernet": SMALL, "structure": "informed"}, {}),
    "informed": (hidden_units, (X, Y), {"hypernet": SMALL}, {}),
    "informed, classes": (partial(hidden_units, family="categorical"), (X, CLASSES), {"hypernet": SMALL}, {}),
    "a site on a half line": (m.linear, LINEAR_DATA, {"hypernet": SMALL}, {}),
    "iaf": (hidden_units, (X, Y), {"hypernet": "iaf", "structure": "full"}, {}),
    "spline": (hidden_units, (X, Y), {"hypernet": "spline", "structure": "layerwise"}, {}),
    "low rank": (hidden_units, (X, Y), {"hypernet": SMALL, "structure": "low_rank"}, {}),
    "weight norm": (hidden_units, (X, Y), {"hypernet": SMALL, "structure": "weight_norm"}, {}),
    "mixture": (hidden_units, (X, Y), {"hypernet": SMALL, "structure": "full", "num_components": 3}, {}),
    "path": (regression, (X, Y), {"hypernet": SMALL}, {"gradient": "path"}),
    "total": (regression, (X, Y), {"hypernet": SMALL}, {"gradient": "total"}),
    "importance weighted": (hidden_units, (X, Y), {"hypernet": SMALL}, {"bound": "importance_weighted"}),
    "minibatches": (in_minibatches, BATCHES, {"hypernet": SMALL}, {}),
    "rows drawn by the model": (draws_its_own_rows, (X, Y), {"hypernet": SMALL}, {}),
    "param": (m.with_param, (Y[:6].view(3, 2),), {"hypernet": SMALL}, {}),
    "module": (m.Network, (X[:, :2], Y), {"hypernet": SMALL}, {}),
}

LONG = ("spline", "iaf", "importance weighted", "low rank", "weight norm", "total")


def run(case, compile, num_steps=12):
    model, args, of_guide, of_fit = CASES[case]
    model = model() if model is m.Network else model
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(1))
    options = {"num_particles": 4, "learning_rate": 0.02, "progress": False, "num_steps": num_steps, **of_fit}
    return fit(model, AutoHypernet(model, **of_guide), args, compile=compile, **options)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES])
def test_a_captured_step_gives_the_same_losses(case):
    as_it_stands, captured = run(case, "off"), run(case, "graph")
    assert (as_it_stands.compile, captured.compile) == ("off", "graph"), captured.compile_reason
    assert as_it_stands.num_skipped == 0
    torch.testing.assert_close(captured.losses, as_it_stands.losses, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["full", "informed, classes", "mixture", "minibatches", "param"])
def test_a_compiled_step_gives_the_same_losses(case):
    as_it_stands, compiled = run(case, "off"), run(case, "inductor")
    assert compiled.compile == "inductor", compiled.compile_reason
    torch.testing.assert_close(compiled.losses, as_it_stands.losses, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["graph", "inductor"])
def test_a_captured_step_gives_the_same_losses_on_a_gpu(compile):
    x, y = X.cuda(), Y.cuda()
    losses = []
    for how in ("off", compile):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed(1))
        with torch.device("cuda"):
            guide = AutoHypernet(regression, SMALL, "full")
            losses.append(fit(regression, guide, (x, y), num_steps=12, compile=how, progress=False).losses)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_parameters_of_the_model_are_stepped_when_captured():
    before = 2.0
    run("param", "graph", 30)
    # It goes some .1; without a step it stays, to the last digit.
    assert abs(float(pyro.param("noise").detach()) - before) > 1e-3


def test_a_model_that_cannot_be_captured_says_so():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if float(mean.detach().sum()) > 100:
            raise AssertionError
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="cannot be vmapped"):
        result = fit(model, AutoHypernet(model), (Y[:2],), num_steps=5, compile="graph", progress=False)
    assert (result.compile, result.compile_reason) == ("off", "the model cannot be captured as a graph")


def test_eager_models_are_not_captured():
    options = {"num_steps": 3, "compile": "graph", "mode": "eager", "progress": False}
    result = fit(regression, AutoHypernet(regression, SMALL), (X, Y), **options)
    assert (result.compile, result.compile_reason) == ("off", 'mode="eager" captures nothing')


def test_a_guide_that_draws_by_itself_is_found_out():
    def shaken(dim):
        bijection = SMALL(dim)
        forward = bijection.forward_and_log_det

        def draws(x):
            y, log_det = forward(x)
            return y + float(torch.rand(())), log_det  # a Python number: fixed where it is captured

        bijection.forward_and_log_det = draws
        return bijection

    guide = AutoHypernet(regression, shaken, "full")
    result = fit(regression, guide, (X, Y), num_steps=5, compile="graph", gradient="total", progress=False)
    assert result.compile == "off"
    assert "differs by" in result.compile_reason or "could not be captured" in result.compile_reason


def test_without_a_compiler_the_graph_runs(monkeypatch):
    monkeypatch.setattr(step_module, "has_compiler", lambda: False)
    result = run("full", "inductor", 5)
    assert (result.compile, result.compile_reason) == ("graph", "no C++ compiler was found")


def test_short_runs_are_not_compiled():
    result = run("full", "auto", 20)
    assert result.compile == "off"
    assert result.compile_reason.startswith("capturing would take about")


def test_long_runs_are_captured(monkeypatch):
    monkeypatch.setattr(step_module, "_CAPTURE_FACTOR", 0.0)
    result = run("full", "auto", 60)
    assert result.compile == "graph"
    assert result.compile_reason.startswith("compiling would take about")


def test_flat_parameters_are_views_until_released():
    leaves = [torch.ones(2, 3, requires_grad=True), torch.zeros(4, dtype=torch.float64, requires_grad=True)]
    leaves.append(torch.full((), 5.0, requires_grad=True))
    flat = FlatParameters(leaves)
    assert [len(vector) for vector in flat.vectors] == [7, 4]
    flat.vectors[0].add_(1.0)
    assert float(leaves[2].detach()) == 6.0
    gathered = flat.gather([torch.ones(2, 3), None, torch.tensor(2.0)])
    torch.testing.assert_close(gathered[0], torch.tensor([1.0] * 6 + [2.0]))
    assert not bool(gathered[1].any())
    flat.release()
    flat.vectors[0].zero_()
    assert float(leaves[2].detach()) == 6.0
    assert leaves[0].untyped_storage().nbytes() == 6 * 4


def test_a_convolution_is_captured_though_torchscript_knows_no_gradient_of_it():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    model, args = bayesianize(net, "categorical"), (torch.randn(6, 1, 4, 4), torch.arange(6) % 2)
    losses = []
    for compile in ("off", "graph"):
        pyro.set_rng_seed(seed(0))
        guide = AutoHypernet(model, structure="low_rank")
        result = fit(model, guide, args, num_steps=12, num_particles=2, compile=compile, progress=False)
        assert result.compile == compile
        losses.append(result.losses)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


# -- shapes of batches --


def of_shapes(sizes, num_steps, **options):
    """A stepper after steps over batches of these sizes, given again and again."""
    batches = [(X[:size], Y[:size]) for size in sizes]
    guide = AutoHypernet(in_minibatches, SMALL, "full").setup(*batches[0])
    elbo = VectorizedELBO(2)
    elbo.prepare(in_minibatches, guide, batches[0], {})
    parameters = FlatParameters(list(guide.parameters()))
    stepper = step_module.Stepper(
        in_minibatches, guide, elbo, parameters, num_steps=num_steps, is_fixed=False, **options
    )
    for number in range(num_steps):
        stepper(batches[number % len(batches)])
    return stepper


def test_what_does_not_repeat_is_not_captured(monkeypatch):
    monkeypatch.setattr(step_module, "_CAPTURE_FACTOR", 0.0)
    monkeypatch.setattr(step_module, "_COMPILE_SECONDS", 1e9)
    with pytest.warns(UserWarning, match="The model runs uncaptured where argument number 1"):
        stepper = of_shapes(range(5, 17), 12, compile="auto")
    assert (stepper.compile, len(stepper._graphs)) == ("off", 0)
    assert "9 batches have 9 shapes" in stepper.reason
    stepper = of_shapes([5, 6], 24, compile="auto")
    assert (stepper.compile, len(stepper._graphs)) == ("graph", 2)


class Twice(torch.autograd.Function):
    """Of the old style: without setup_context, which functorch wants."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def with_old_function(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(Twice.apply(mean) / 2, 1.0), obs=y)


@pytest.mark.filterwarnings("ignore:The model cannot be vmapped", "ignore:The model could not be captured")
@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("mode, compile", [("graph", "off"), ("graph", "graph"), ("eager", "off"), ("loop", "off")])
def test_old_autograd_functions_are_fitted(mode, compile, gradient):
    """In every way that a step can run."""
    options = {"num_steps": 5, "num_particles": 2, "progress": False, "rejection": None}
    guide = AutoHypernet(with_old_function, "linear", "full")
    result = fit(with_old_function, guide, (Y[:5].float(),), mode=mode, compile=compile, gradient=gradient, **options)
    assert result.gradient == gradient
    assert bool(result.losses.isfinite().all())

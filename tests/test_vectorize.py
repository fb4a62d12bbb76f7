"""However a model is written, its density and gradient are those of Pyro, run draw by draw, with autograd."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_hypernet import AutoHypernet, bayesianize, fit, nuts, refine
from pyro_hypernet.density import LogJoint
from pyro_hypernet.layout import Layout

Y = torch.tensor([-1.0, -1.2, 1.0, 1.1, 0.9, -1.0, -0.8, 1.3])


def log_joint_of(model, *args):
    return LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(*args)))


def by_autograd(log_joint, w, *args):
    """Values and gradients, one draw at a time, without vmap and without a graph."""
    values, gradients = [], []
    for row in w:
        leaf = row.clone().requires_grad_()
        sites, log_det = log_joint.layout.constrain(leaf)
        conditioned = poutine.condition(log_joint.model, sites)
        with pyro.validation_enabled(False):
            value = poutine.trace(conditioned).get_trace(*args).log_prob_sum() + log_det
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, leaf)[0])
    return torch.stack(values), torch.stack(gradients)


def assert_as_by_autograd(log_joint, w, *args):
    """Three times: as it is first run, replayed, and differentiated by autograd."""
    expected, expected_gradient = by_autograd(log_joint, w, *args)
    for _ in range(2):
        value, gradient = log_joint.value_and_grad(w, *args)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(log_joint(w, *args), expected, rtol=1e-9, atol=1e-9)
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(leaf, *args).sum(), leaf)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


class Double(torch.autograd.Function):
    """An old function, without `setup_context`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def hidden_markov(y):
    p = pyro.sample("p", dist.Dirichlet(y.new_full((2, 2), 2.0)).to_event(1))
    m = pyro.sample("m", dist.Normal(y.new_tensor([-1.0, 1.0]), 1.0).to_event(1))
    pyro.sample("y", dist.DiscreteHMM(y.new_zeros(2), p.log(), dist.Normal(m, 0.5)), obs=y)


def own_function(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(Double.apply(mean) / 2, 1.0), obs=y)


OLD_FUNCTIONS = {"DiscreteHMM": hidden_markov, "own function": own_function}


@pytest.mark.filterwarnings("ignore:The model cannot be vmapped:UserWarning")
@pytest.mark.parametrize("name", OLD_FUNCTIONS)
def test_old_autograd_functions_are_differentiated_by_autograd(name, double):
    log_joint = log_joint_of(OLD_FUNCTIONS[name], Y.double())
    assert_as_by_autograd(log_joint, 0.5 * torch.randn(3, log_joint.layout.dim), Y.double())
    assert log_joint.mode == "loop"


@pytest.mark.filterwarnings("ignore:The model cannot be vmapped:UserWarning")
@pytest.mark.filterwarnings("ignore:NUTS has not mixed:UserWarning", "ignore:The populations of:UserWarning")
def test_old_autograd_functions_go_through_fit_nuts_and_refine():
    result = fit(own_function, AutoHypernet(own_function), (Y,), num_steps=5, progress=False)
    assert math.isfinite(result.elbo)
    options = {"num_samples": 4, "warmup_steps": 4, "num_chains": 1, "num_processes": 1}
    assert nuts(own_function, Y, **options).samples["mean"].shape == (4,)
    refined = refine(own_function, Y, num_samples=16, num_populations=2, num_moves=2, num_leapfrogs=4, progress=False)
    assert refined.samples["mean"].shape == (16,)


class Attend(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 1)

    def forward(self, x):
        h = self.inner(x, x, x)[0] if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x)
        return self.head(h.mean(1))


ATTENTION = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 1, enable_nested_tensor=False
    ),
}


@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_differentiated_whatever_ran_first(name, is_training, double):
    net = Attend(ATTENTION[name]()).train(is_training)
    x, y = torch.randn(6, 3, 4), torch.randn(6)
    log_joint = log_joint_of(bayesianize(net, "gaussian"), x, y)
    assert_as_by_autograd(log_joint, 0.5 * torch.randn(2, log_joint.layout.dim), x, y)
    assert log_joint.mode == "graph"


ENCODERS = [pytest.param(name, marks=pytest.mark.slow) for name in ATTENTION if name != "MultiheadAttention"]


@pytest.mark.parametrize("name", ["MultiheadAttention", *ENCODERS])
def test_attention_is_fitted(name):
    x, y = torch.randn(6, 3, 4), torch.randn(6)
    model = bayesianize(Attend(ATTENTION[name]()), "gaussian")
    result = fit(model, AutoHypernet(model), (x, y), num_steps=3, progress=False)
    assert math.isfinite(result.elbo)

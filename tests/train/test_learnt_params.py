"""Models with parameters of their own: captured whatever the particles and batches, and differentiated once."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.maps.hypernets import coupling
from pyro_hypernet.train.elbo import VectorizedELBO
from tests.fits import fit
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")
X = torch.randn(24, 3, generator=torch.Generator().manual_seed(seed(3)), dtype=torch.float64)
Y = X.sum(1).sin()
SMALL = partial(coupling, num_layers=1, hidden=(4,))
ARGS = {"full batch": (X, Y), "loader": [(X[:12], Y[:12]), (X[12:], Y[12:])]}


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def observe(f, y, scale=0.3):
    with pyro.plate("data", 24, subsample_size=len(f)):
        pyro.sample("y", dist.Normal(f, scale), obs=y)


def with_param(x, y=None):
    inner, scale = pyro.param("inner", torch.ones(3, 4)), pyro.param("scale", torch.ones(()), dist.constraints.positive)
    outer = pyro.sample("outer", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    observe((x @ inner + x @ inner.view(3, 4)).tanh() @ outer, y, scale)


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = PyroModule[nn.Linear](3, 4), PyroModule[nn.Linear](4, 1)
        self.head.weight = PyroSample(dist.Normal(torch.zeros(1, 4), 1.0).to_event(2))

    def forward(self, x, y=None):
        observe(self.head(self.body(x).tanh())[:, 0], y)


MODELS = {
    "all": lambda: bayesianize(net(), num_data=24),
    "last_layer": lambda: bayesianize(net(), num_data=24, sites="last_layer"),
    "weight_norm": lambda: bayesianize(net(), num_data=24, parametrization="weight_norm"),
    "pyro.param": lambda: with_param,
    "PyroModule": Module,
}


def losses(case, args, num_particles, compile):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(1))
    model, elbo = MODELS[case](), VectorizedELBO(num_particles, compile=compile)
    guide = AutoHypernet(model, "identity", "full")
    result = fit(model, guide, ARGS[args], num_steps=6, elbo=elbo, progress=False)
    assert result.compile == compile, result.compile_reason
    assert "from Python" not in result.compile_reason
    return result.losses


QUICK = ("last_layer", "weight_norm", "pyro.param")
CASES = [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in MODELS]


@pytest.mark.parametrize("args", ARGS)
@pytest.mark.parametrize("num_particles", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_a_captured_fit_has_the_losses_of_one_that_is_not(case, num_particles, args):
    expected = losses(case, args, num_particles, "off")
    torch.testing.assert_close(losses(case, args, num_particles, "graph"), expected, rtol=1e-9, atol=1e-9)


class Counted(torch.autograd.Function):
    """The identity, which counts how often it is differentiated."""

    generate_vmap_rule = True
    count = 0

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        Counted.count += 1
        return gradient


def learnt(x, y, *, is_learnt=True):
    shift = pyro.param("shift", torch.full((), 0.3)) if is_learnt else torch.full((), 0.3)
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(Counted.apply((x @ slope + shift).tanh()), 0.5), obs=y)


def gradients(model, bound, gradient, num_components):
    """By the guide's parameters and by the model's, at the same random numbers; the model differentiated once."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(1))
    guide = AutoHypernet(model, SMALL, "full", num_components=num_components, init_scale=0.2).setup(X, Y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    elbo = VectorizedELBO(6, bound=bound, gradient=gradient, mode="eager")
    elbo.prepare(model, guide, (X, Y), {})
    pyro.set_rng_seed(seed(2))
    Counted.count = 0
    estimate = elbo.estimate(model, guide, X, Y)
    leaves, own = list(guide.parameters()), list(elbo.params.values())
    found = torch.autograd.grad(estimate.surrogate, [*leaves, *own], allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found[: len(leaves)]]), found[len(leaves) :], Counted.count


@pytest.mark.parametrize("num_components", [1, 3])
@pytest.mark.parametrize("bound", ["elbo", "importance_weighted"])
def test_models_with_parameters_are_differentiated_once(bound, num_components):
    """By paths the guide's gradient is that of the same model without parameters, theirs that of the total gradient."""
    path, total = (gradients(learnt, bound, gradient, num_components) for gradient in ("path", "total"))
    fixed = gradients(partial(learnt, is_learnt=False), bound, "path", num_components)
    torch.testing.assert_close(path[0], fixed[0])
    torch.testing.assert_close(path[1], total[1])
    assert float(path[1][0].abs()) > 1e-3
    assert path[2] == total[2] == fixed[2] == 1

"""A mixture of normals as the base: its two samplers have one law and one gradient, and every ELBO can train it."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO

from pyro_hypernet import AutoHypernet
from pyro_hypernet.guide.mixture import DiagonalMixture, Mixture
from tests import small_models as m
from tests.seeds import seed


@pytest.fixture
def base(double):
    pyro.set_rng_seed(seed(3))
    base = Mixture(torch.zeros(2), 3)
    with torch.no_grad():
        base.locs.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]))
        base.log_scales.copy_(torch.tensor([[0.3, -1.0], [-0.4, 0.2], [-0.8, -0.1]]))
        base.logits.copy_(torch.tensor([0.3, -0.5, 0.2]))
    return base


def test_draws_and_densities_are_those_of_pyros(base):
    both = base.distribution(), dist.MixtureOfDiagNormals(base.locs, base.log_scales.exp(), base.logits)
    mine, theirs = (_seeded_draws(mixture) for mixture in both)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(both[0].log_prob(mine), both[1].log_prob(mine))
    torch.testing.assert_close(both[0].log_prob(mine), base.log_prob(mine))


def _seeded_draws(mixture):
    pyro.set_rng_seed(seed(4))
    return mixture.sample((15,))


def test_pathwise_gradients_are_those_of_the_exact_strata(base):
    """Of a mean over 20 times 5 000 draws: 8 standard errors of 20 values, a false alarm in some 1e-6."""

    def function(z):
        return torch.sin(z @ torch.tensor([1.0, 2.0])) + z[..., 0] * z[..., 1]

    parameters = list(base.parameters())
    z, _, weights = base.sample_strata(3 * 200_000)
    exact = torch.autograd.grad((function(z) * weights).sum(), parameters)
    runs = [torch.autograd.grad(function(base.distribution().rsample((5000,))).mean(), parameters) for _ in range(20)]
    for values, expected in zip(zip(*runs, strict=True), exact, strict=True):
        values = torch.stack(values)
        error = values.std(0) / math.sqrt(len(values))
        assert ((values.mean(0) - expected).abs() < 8 * error + 0.01).all()


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dim", [2, 300, 5000])
def test_gradients_are_finite_in_any_number_of_axes(dim, spread):
    """In float32, at centres near and far, scales alike and a thousand times apart."""
    pyro.set_rng_seed(seed())
    base = Mixture(torch.zeros(dim), 4)
    with torch.no_grad():
        base.locs.mul_(spread)
        base.log_scales.uniform_(-4.0, 3.0)
    z = base.distribution().rsample((20,))
    for gradient in torch.autograd.grad(z.sin().sum(), list(base.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_traced_gradients_are_the_same(base):
    def draw(locs, scales, logits):
        pyro.set_rng_seed(seed())
        return DiagonalMixture(locs, scales, logits).rsample((7,)).sin().sum()

    def draw_again(*parts):  # the trace does not hold the seed
        pyro.set_rng_seed(seed())
        return traced(*parts)

    parts = tuple(part.detach().requires_grad_() for part in (base.locs, base.log_scales.exp(), base.logits))
    traced = torch.jit.trace(draw, parts, check_trace=False)
    for _ in range(3):  # the executor optimises as it goes
        theirs = torch.autograd.grad(draw_again(*parts), parts)
        for mine, other in zip(torch.autograd.grad(draw(*parts), parts), theirs, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("elbo", [JitTrace_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO, JitTraceMeanField_ELBO])
def test_jit_elbos_train_it(elbo):
    guide = AutoHypernet(m.linear, num_components=2)
    make = partial(elbo, strict_enumeration_warning=False) if elbo is JitTraceEnum_ELBO else elbo
    loss = make(ignore_jit_warnings=True)
    for _ in range(3):
        assert math.isfinite(loss.loss_and_grads(m.linear, guide, *m.linear_data()))
    assert all(bool((parameter.grad != 0).any()) for parameter in guide._modules["base"].parameters())

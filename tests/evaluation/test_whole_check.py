"""A verdict by a loader of all random coordinates, where these are few: that of data given at once."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, bayesianize, diagnose
from pyro_hypernet.evaluation import diagnose as diagnose_module
from pyro_hypernet.evaluation.importance import weighted_draws
from pyro_hypernet.evaluation.whole_check import weigh_all
from pyro_hypernet.maps.linear import Affine
from tests.seeds import seed

NUM, DIM = 60, 3
GENERATOR = torch.Generator().manual_seed(seed(0))
# Orthogonal columns: the posterior of the weights is a product of normals.
X = torch.linalg.qr(torch.randn(NUM, DIM, generator=GENERATOR, dtype=torch.float64)).Q * 4
Y = torch.randn(NUM, generator=GENERATOR).double()


def model(x, y, *, num_data=None):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
    with poutine.scale(scale=1.0 if num_data is None else num_data / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)


def with_scale(x, y):
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ weight, scale), obs=y)


def loader(size, *data, **options):
    return DataLoader(TensorDataset(*(data or (X, Y))), batch_size=size, **options)


def guide_of(width, **options):
    """The posterior of the weights, whose sds are so many times what they should be."""
    guide = AutoHypernet(model, plan=Plan("full", "identity", rejection=None, **options)).setup(X, Y)
    affine = next(part for part in guide.bijection.modules() if isinstance(part, Affine))
    precision = 1 + 16 * guide.plan.weight
    with torch.no_grad():
        affine.loc.copy_(X.T @ Y * guide.plan.weight / precision)
        affine.log_scale.fill_(math.log(width / precision**0.5))
    return guide


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("num_data", [None, NUM])
@pytest.mark.parametrize("size", [7, 60])
def test_all_draws_of_the_posterior_weigh_the_log_evidence(size, num_data, temperature):
    """But for scales, which traits have in float32."""
    guide = guide_of(1.0, temperature=temperature)
    found = weigh_all(model, guide, loader(size, shuffle=True), {"num_data": num_data}, num_samples=20).log_weights
    power, eye = guide.plan.weight, torch.eye(NUM).double()
    evidence = dist.MultivariateNormal(torch.zeros(NUM).double(), eye / power + X @ X.T).log_prob(Y)
    # Normals to a power are normals of another width, up to a constant.
    evidence = evidence + NUM / 2 * ((1 - power) * math.log(2 * math.pi) - math.log(power))
    torch.testing.assert_close(found, evidence.expand(1, 20), rtol=0, atol=1e-4)


def trained(kind):
    """Guides off their posterior, and what they are of."""
    if kind == "mixture":
        parts = [AutoHypernet(with_scale, "coupling", "full").setup(X, Y) for _ in range(2)]
        guide = GuideMixture(parts).setup(X, Y)
    else:
        options = {"noise": {"num_components": 2}, "temperature": {"temperature": 0.5}}.get(kind, {})
        parts = [AutoHypernet(with_scale, plan=Plan("full", "coupling", **options)).setup(X, Y)]
        guide = parts[0]
    with torch.no_grad():
        for parameter in (p for part in parts for p in part.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return guide


@pytest.mark.parametrize("kind", ["plain", "noise", "temperature", "mixture"])
def test_batches_weigh_as_all_data_at_once(kind):
    """In chunks of a few draws: exact densities, a support and mixtures of both kinds included."""
    pyro.set_rng_seed(seed(0))
    guide = trained(kind)
    pyro.set_rng_seed(seed(1))
    expected = weighted_draws(with_scale, guide, X, Y, num_samples=30).log_weights
    for size, max_bytes in ((NUM, 2**28), (7, 2**13)):
        pyro.set_rng_seed(seed(1))
        found = weigh_all(with_scale, guide, loader(size), {}, num_samples=30, max_bytes=max_bytes)
        torch.testing.assert_close(found.log_weights[0], expected, rtol=1e-9, atol=1e-9)
        assert found.w.shape == (1, 30, 1 + DIM)


@pytest.mark.parametrize("width", [1.0, 1.2])
@pytest.mark.parametrize("size", [16, 60])
def test_the_diagnosis_is_that_of_all_data(width, size):
    """Every check and figure, but for seconds and what was not looked for."""
    guide = guide_of(width)
    pyro.set_rng_seed(seed(1))
    expected = diagnose(model, guide, X, Y, num_samples=1000, max_seconds=0)
    pyro.set_rng_seed(seed(1))
    found = diagnose(model, guide, loader(size))
    assert found.verdict == expected.verdict
    assert found.judged == expected.judged == "all random coordinates"
    assert [check.name for check in found.checks] == [check.name for check in expected.checks]
    assert [check.level for check in found.checks] == [check.level for check in expected.checks]
    for name in ("khat", "elbo", "elbo_error", "evidence_lower", "ess", "acceptance", "num_draws"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-4)


def test_where_all_fail_the_last_layer_is_looked_at(monkeypatch):
    """And that is said, here of a k-hat that would do."""
    monkeypatch.setattr(diagnose_module, "BELIEVABLE_KHAT", -math.inf)
    pyro.set_rng_seed(seed(0))
    found = diagnose(model, guide_of(1.2), loader(16))
    assert found.verdict != "use it"
    assert found.judged.startswith(f"the last layer's {DIM} weights")
    assert math.isfinite(found.check("all coordinates").value)
    assert f"all {DIM} random coordinates" in found.check("all coordinates").reading


@pytest.mark.parametrize("is_mixture", [False, True])
def test_norms_of_a_network_are_weighed_all_together(is_mixture):
    """Of a mixture, whose components learn directions of their own, component by component."""
    pyro.set_rng_seed(seed(0))
    net = nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    network = bayesianize(net, parametrization="weight_norm")
    plan = Plan("full", "linear")
    guide = GuideMixture.from_starts(network, 3, plan=plan) if is_mixture else AutoHypernet(network, plan=plan)
    guide.setup(X, Y)
    network.num_data = NUM
    for part in network, *(guide.models_for(network) if is_mixture else ()):
        part.num_data = NUM
    found = weigh_all(network, guide, loader(13), {}, num_samples=10)
    dim = found.w.shape[-1]
    assert found.log_weights.shape == ((3, 10) if is_mixture else (1, 10))
    assert dim == 4 + 4 + 1 + 1 + 1  # norms, biases, the noise
    pairs = zip(guide.models_for(network), guide.components, strict=True) if is_mixture else [(network, guide)]
    for row, w, (own, part) in zip(found.log_weights, found.w, pairs, strict=True):
        expected = part.density(own)(w, X, Y).detach() - part._flow().log_prob(w).detach()
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=1e-4)
    assert "random coordinates" in diagnose(network, guide, loader(13), num_samples=40).to_string()

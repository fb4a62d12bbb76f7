"""A verdict by a loader: of the last layer given all other weights, whose posterior is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, bayesianize, diagnose
from pyro_hypernet.evaluation import diagnose as diagnose_module
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.evaluation.last_layer_check import weigh_last_layer
from pyro_hypernet.maps.linear import Affine
from tests.seeds import seed

NUM, DIM = 60, 5
GENERATOR = torch.Generator().manual_seed(seed(0))
# Orthogonal columns: the posterior of the head is a product of normals.
X = torch.linalg.qr(torch.randn(NUM, DIM, generator=GENERATOR, dtype=torch.float64)).Q * 4
Z, TARGETS, Y = (torch.randn(*shape, generator=GENERATOR).double() for shape in ((NUM, 2), (NUM,), (NUM,)))


def model(x, z, targets, y, *, num_data=None):
    """Targets of the body, which alone is badly fitted, and of the head."""
    body = pyro.sample("body.weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    head = pyro.sample("head.weight", dist.Normal(x.new_zeros(DIM), 1.0).to_event(1))
    with poutine.scale(scale=1.0 if num_data is None else num_data / len(x)), pyro.plate("data", len(x)):
        pyro.sample("targets", dist.Normal(z @ body, 1.0), obs=targets)
        pyro.sample("y", dist.Normal(x @ head, 1.0), obs=y)


def loader(size, **options):
    return DataLoader(TensorDataset(X, Z, TARGETS, Y), batch_size=size, **options)


def guide_of(width, hypernet="identity", **options):
    """The posterior of the head, whose sds are so many times what they should be, and a body far too narrow."""
    guide = AutoHypernet(model, plan=Plan("full", hypernet, rejection=None, **options)).setup(X, Z, TARGETS, Y)
    affine = next(part for part in guide.bijection.modules() if isinstance(part, Affine))
    precision = 1 + 16 * guide.plan.weight
    mean = X.T @ Y * guide.plan.weight / precision
    with torch.no_grad():
        affine.loc.copy_(torch.cat([mean.new_zeros(2), mean]))
        narrow, right = mean.new_full((2,), -5.0), mean.new_full((DIM,), math.log(width / precision**0.5))
        affine.log_scale.copy_(torch.cat([narrow, right]))
    return guide


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("num_data", [None, NUM])
@pytest.mark.parametrize("size", [7, 60])
def test_an_exact_last_layer_is_found_exact(size, num_data, temperature):
    """Whatever the others are: all weights of a section are the same, but for scales, which traits have in float32."""
    pyro.set_rng_seed(seed(0))
    guide = guide_of(1.0, temperature=temperature)
    found = weigh_last_layer(
        model, guide, loader(size, shuffle=True), {"num_data": num_data}, num_sections=3, num_samples=20
    )
    assert found.dim == DIM
    assert found.log_weights.shape == (3, 20)
    torch.testing.assert_close(found.log_weights, found.log_weights[:, :1].expand(-1, 20), rtol=0, atol=1e-4)
    bound = elbo(model, guide, X, Z, TARGETS, Y, num_samples=4000)
    assert float(found.log_weights.mean()) == pytest.approx(bound[0], abs=5)  # of two badly fitted weights: sd .1


@pytest.mark.parametrize(("width", "is_good"), [(1.0, True), (1.15, True), (0.1, False)])
def test_the_verdict_is_of_the_last_layer(width, is_good, monkeypatch):
    """Where there are more coordinates than are weighed together.

    Too narrow k-hat tends to one: of 12 seeds 1.08 ± .12 and acceptances below .16; a little wide −.3 ± .04, .77.
    """
    monkeypatch.setattr(diagnose_module, "MOST_COORDINATES", DIM)
    pyro.set_rng_seed(seed(0))
    found = diagnose(model, guide_of(width), loader(16))
    assert (found.verdict == "use it") == is_good
    assert found.num_draws == 1000
    assert (found.khat < 0.5) == is_good
    assert (found.acceptance > 0.4) == is_good
    assert "given all others" in found.to_string()
    assert found.judged.startswith(f"the last layer's {DIM} weights")


def test_batches_weigh_as_all_data_at_once():
    """Of a flow of all weights, in chunks of a few draws."""
    guide, results = guide_of(0.8, "coupling"), []
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for size, max_bytes in ((NUM, 2**28), (7, 2**14)):
        pyro.set_rng_seed(seed(1))
        options = {"num_sections": 2, "num_samples": 30, "max_bytes": max_bytes}
        results.append(weigh_last_layer(model, guide, loader(size), {}, **options).log_weights)
    torch.testing.assert_close(*results)
    pyro.set_rng_seed(seed(1))
    others, noise = torch.randn(7), torch.randn(30, DIM)  # the noise of the first section
    eps = torch.cat([others[:2].double().expand(30, -1), noise.double()], 1)
    w, log_det = guide.bijection.forward_and_log_det(eps)
    values = guide.layout.constrain(w)[0]
    log_p = torch.stack(
        [
            poutine.trace(poutine.condition(model, {k: v[i] for k, v in values.items()}))
            .get_trace(X, Z, TARGETS, Y)
            .log_prob_sum()
            for i in range(30)
        ]
    )
    expected = log_p - dist.Normal(0.0, 1.0).log_prob(eps).sum(-1) + log_det
    torch.testing.assert_close(results[0][0], expected.detach(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("parametrization", ["weights", "weight_norm"])
def test_mixtures_of_networks_have_a_verdict(parametrization):
    """Of every component by itself, with directions of its own or not; norms of the last layer belong to it."""
    pyro.set_rng_seed(seed(0))
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    network = bayesianize(net, "categorical", parametrization=parametrization)
    labels = torch.arange(NUM) % 3
    mixture = GuideMixture.from_starts(network, 3, plan=Plan("full", "linear")).setup(Z, labels)
    batches = DataLoader(TensorDataset(Z, labels), batch_size=13)
    found = weigh_last_layer(network, mixture, batches, {}, num_sections=4, num_samples=6)
    assert found.log_weights.shape == (6, 6)
    assert found.dim == (15 if parametrization == "weights" else 6)
    assert math.isfinite(diagnose(network, mixture, batches, num_samples=80).elbo)


REFUSED = {
    "data left out": (lambda: diagnose(model, guide_of(1.0), loader(7, drop_last=True)), ValueError, "drop_last"),
    "half of the data": (
        lambda: diagnose(model, guide_of(1.0), loader(16), num_data=2 * NUM),
        ValueError,
        "gives 50.0% of those",
    ),
    "draws": (lambda: diagnose(model, guide_of(1.0), loader(16), draws={}), ValueError, "no draws="),
    "another guide": (lambda: diagnose(model, AutoNormal(model), loader(16)), TypeError, "got AutoNormal"),
    "noise of two components": (
        lambda: diagnose(model, guide_of(1.0, num_components=2), loader(16)),
        ValueError,
        "num_components=1",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_weighed_says_so(call, error, match):
    with pytest.raises(error, match=match):
        call()

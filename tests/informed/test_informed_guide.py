"""An informed guide in use: on disk, in training, in prediction, and both modes of y = a b x."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from models.abx import abx
from models.references import ReferenceNet
from pyro_hypernet import AutoHypernet, load, predict, save
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.model.density import LogJoint
from tests.fits import fit
from tests.seeds import seed


def data(num=15, dtype=torch.float32):
    x = torch.linspace(-2, 2, num, dtype=dtype)[:, None]
    return x, torch.sin(2 * x[:, 0])


NET = ReferenceNet([1, 4, 1], "normal", 0.2)


def particle_net(x, y=None):
    """A tanh net that also runs under a plate of particles."""
    into = pyro.sample("into", dist.Normal(x.new_zeros(4), 1.5).to_event(1))
    bias = pyro.sample("bias", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
    out = pyro.sample("out", dist.Normal(x.new_zeros(4), 0.75).to_event(1))
    hidden = torch.tanh(x * into[..., None, :] + bias[..., None, :])
    f = (hidden @ out[..., None])[..., 0]
    f = f.squeeze(-2) if f.dim() > 1 else f
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("y", dist.Normal(f, 0.2), obs=y)


def shaken(guide, size=0.1):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += size * torch.randn_like(parameter)
    return guide


@pytest.mark.parametrize("structure", ["auto", "informed"])
@pytest.mark.parametrize("by_name", [False, True])
def test_on_disk(structure, by_name, tmp_path):
    x, y = data()
    guide = AutoHypernet(NET, "coupling", structure)
    guide = shaken(guide.setup(x, y=y) if by_name else guide.setup(x, y))
    assert guide.knowledge
    save(guide, tmp_path / "guide.safetensors")
    loaded = load(tmp_path / "guide.safetensors", NET)
    pyro.set_rng_seed(seed(7))
    expected = guide.sample_posterior(5)
    pyro.set_rng_seed(seed(7))
    found = loaded.sample_posterior(5)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    torch.testing.assert_close(loaded.log_prob(expected), guide.log_prob(expected), rtol=0, atol=0)
    assert loaded.describe() == guide.describe().replace(" (chosen by auto)", "")
    loaded.setup(x, y)
    torch.testing.assert_close(loaded.log_prob(expected), guide.log_prob(expected), rtol=0, atol=0)
    save(loaded, tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors", NET)
    torch.testing.assert_close(again.log_prob(expected), guide.log_prob(expected), rtol=0, atol=0)


def test_a_loaded_guide_trains_on(tmp_path):
    x, y = data()
    save(AutoHypernet(NET).setup(x, y), tmp_path / "guide.safetensors")
    loaded = load(tmp_path / "guide.safetensors", NET)
    losses = fit(NET, loaded, (x, y), num_steps=150, num_particles=16, progress=False).losses
    assert losses[-20:].mean() < losses[:20].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fit(dtype):
    x, y = data(dtype=dtype)
    guide = AutoHypernet(NET)
    result = fit(NET, guide, (x, y), num_steps=100, num_particles=16, progress=False)
    assert guide.knowledge.linear_block.block == ("W1", "b1")
    assert {parameter.dtype for parameter in guide.parameters()} == {dtype}
    assert guide.sample_posterior(2)["W0"].dtype == dtype
    assert result.num_skipped == 0
    assert result.losses[-20:].mean() < result.losses[:20].mean()


def test_svi_with_particles_in_a_plate():
    x, y = data()
    guide = AutoHypernet(particle_net)
    svi = SVI(particle_net, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(8, vectorize_particles=True))
    losses = [svi.step(x, y) for _ in range(100)]
    assert guide.knowledge.symmetries.groups
    assert guide.knowledge.linear_block.block == ("out",)
    assert sum(losses[-20:]) < sum(losses[:20])


def test_moving_to_float64():
    x, y = data()
    guide = shaken(AutoHypernet(NET).setup(x, y), 0.05)
    draws = guide.sample_posterior(20)
    expected = guide.log_prob(draws)
    guide.to(torch.float64)
    assert guide.sample_posterior(2)["W0"].dtype == torch.float64
    found = guide.log_prob({name: value.double() for name, value in draws.items()})
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-3, atol=1e-2)
    result = fit(NET, guide, (x.double(), y.double()), num_steps=5, progress=False)
    assert result.num_skipped == 0


def test_predict():
    x, y = data()
    guide = AutoHypernet(NET).setup(x, y)
    at = torch.linspace(-3, 3, 7)[:, None]
    predicted = predict(NET, guide, at, num_samples=50)
    assert predicted["f"].shape == (50, 7, 1)
    assert predicted["y"].shape == (50, 7)
    assert bool(predicted["y"].isfinite().all())


def test_quantiles_and_median():
    x, y = data()
    guide = AutoHypernet(NET).setup(x, y)
    low, middle, high = guide.quantiles([0.1, 0.5, 0.9])["W0"]
    assert bool(((low < middle) & (middle < high)).all())
    assert all(bool(value.isfinite().all()) for value in guide.median().values())


def test_both_modes_of_two_factors():
    """By construction half of the draws are in each mode: 4 000 draws leave [0.45, 0.55] once in 4e9 runs (6.3 sd).

    The fit ends within 0.1 nats of the evidence, so the modes themselves are right.
    """
    problem = abx()
    guide = AutoHypernet(problem.model)
    fit(problem.model, guide, problem.args, num_steps=600, num_particles=32, progress=False)
    draws = guide.sample_posterior(4000)
    assert 0.45 < float((draws["a"] > 0).float().mean()) < 0.55
    assert float((draws["a"] * draws["b"] > 0).float().mean()) > 0.99
    bound, error = elbo(problem.model, guide, *problem.args, num_samples=4000)
    assert problem.truth["log_evidence"] - 0.1 < bound < problem.truth["log_evidence"] + 4 * error


def test_draws_of_the_prior():
    """Means within 5 standard errors and variances within 10 %: the false-alarm rate is below 1e-4."""

    def model(x):
        pyro.sample("normal", dist.Normal(x.new_full((3,), 2.0), 0.5).to_event(1))
        pyro.sample("positive", dist.LogNormal(x.new_tensor(-1.0), 0.75))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))

    guide = AutoHypernet(model, init_scale=0.1).setup(torch.zeros(1))
    w = LogJoint(model, guide.layout).sample_prior(4000, torch.zeros(1))
    assert w.shape == (4000, 6)
    expected_mean, expected_sd = torch.tensor([2.0, 2.0, 2.0, -1.0]), torch.tensor([0.5, 0.5, 0.5, 0.75])
    assert bool(((w[:, :4].mean(0) - expected_mean).abs() < 5 * expected_sd / 4000**0.5).all())
    torch.testing.assert_close(w[:, :4].std(0), expected_sd, rtol=0.05, atol=0)
    assert bool(w.isfinite().all())
    assert len(w.unique(dim=0)) == 4000

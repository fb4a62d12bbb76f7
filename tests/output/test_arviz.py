"""Every group of an InferenceData, with its dims, and ArviZ's own functions on it."""

import sys
from types import ModuleType, SimpleNamespace

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_hypernet.inference.nuts import nuts
from pyro_hypernet.output.arviz import to_arviz
from tests.small_models import Network, linear, linear_data, nested_plates, subsampled


def trained(model, *args):
    guide = AutoNormal(model, init_scale=0.1)
    guide(*args)
    return guide


def test_groups_of_a_regression():
    x, y = linear_data()
    data = to_arviz(linear, trained(linear, x, y), x, y, num_samples=50)
    assert set(data.groups()) == {"posterior", "posterior_predictive", "log_likelihood", "observed_data"}
    assert data.posterior["slope"].dims == ("chain", "draw", "slope_dim_0")
    assert data.posterior["slope"].shape == (1, 50, 2)
    assert data.posterior["noise"].dims == ("chain", "draw")
    assert data.posterior_predictive["y"].dims == data.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert data.observed_data["y"].dims == ("data",)
    np.testing.assert_allclose(data.observed_data["y"], y.numpy())


def test_predictions_are_new_draws_about_the_function():
    x, y = linear_data()
    samples = {"slope": torch.ones(2000, 2), "noise": torch.full((2000,), 0.5)}
    data = to_arviz(linear, samples, x, y, num_samples=2000)
    residuals = data.posterior_predictive["y"].values[0] - x.sum(-1).numpy()
    # 60 000 residuals: five standard errors of mean and sd, a false alarm once in a million runs.
    assert abs(residuals.mean()) < 5 * 0.5 / 60_000**0.5
    assert abs(residuals.std() - 0.5) < 5 * 0.5 / 120_000**0.5
    expected = dist.Normal(x.sum(-1), 0.5).log_prob(y)
    np.testing.assert_allclose(data.log_likelihood["y"].values[0, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_deterministic_sites_stand_among_the_predictions():
    x, y = linear_data()
    network = Network()
    data = to_arviz(network, trained(network, x, y), x, y, num_samples=10)
    assert data.posterior_predictive["f"].dims == ("chain", "draw", "f_dim_0")
    assert data.posterior["first.weight"].shape == (1, 10, 4, 2)


def test_chains_are_kept():
    x, y = linear_data()
    chains = {"slope": torch.randn(3, 40, 2), "noise": torch.rand(3, 40)}
    result = SimpleNamespace(
        samples={name: value.flatten(0, 1) for name, value in chains.items()},
        samples_by_chain=chains,
        divergences=(0, 1, 0),
    )
    data = to_arviz(linear, result, x, y, num_samples=5)
    np.testing.assert_allclose(data.posterior["slope"], chains["slope"].numpy())
    assert data.log_likelihood["y"].shape == data.posterior_predictive["y"].shape == (3, 40, 30)
    assert "sample_stats" not in data.groups()
    summary = arviz.summary(data, var_names=["slope"])
    assert float(summary["r_hat"].iloc[0]) < 1.5
    result.diverging = torch.zeros(3, 40, dtype=torch.bool)
    assert to_arviz(linear, result, x, y).sample_stats["diverging"].shape == (3, 40)


def test_a_result_of_nuts_keeps_all_its_draws():
    x, y = linear_data()
    chains = nuts(linear, x, y, num_samples=50, warmup_steps=100, num_chains=2, num_processes=1)
    data = to_arviz(linear, chains, x, y, num_samples=3)
    np.testing.assert_allclose(data.posterior["slope"], chains.samples_by_chain["slope"].numpy())
    assert data.posterior_predictive["y"].shape == (2, 50, 30)


def test_plates_name_the_axes_they_own():
    y = torch.randn(3, 2)
    data = to_arviz(nested_plates, trained(nested_plates, y), y, num_samples=5)
    assert data.posterior["inner_mean"].dims == ("chain", "draw", "outer", "inner")
    assert data.posterior["outer_mean"].dims == ("chain", "draw", "outer", "outer_mean_dim_1")
    assert data.observed_data["y"].dims == ("outer", "inner")


def test_coords_and_dims_of_the_user():
    x, y = linear_data()
    data = to_arviz(
        linear,
        trained(linear, x, y),
        x,
        y,
        num_samples=5,
        coords={"feature": ["a", "b"]},
        dims={"slope": ["feature"]},
    )
    assert data.posterior["slope"].dims == ("chain", "draw", "feature")
    assert list(data.posterior["feature"].values) == ["a", "b"]


def test_without_data_there_is_nothing_observed():
    x, y = linear_data()
    data = to_arviz(linear, trained(linear, x, y), x[:4], num_samples=5)
    assert set(data.groups()) == {"posterior", "posterior_predictive"}
    assert data.posterior_predictive["y"].shape == (1, 5, 4)


def test_classes_stay_whole_numbers():
    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=torch.stack([x * weight, -x * weight], -1)), obs=y)

    x, y = torch.randn(6), torch.tensor([0, 1, 0, 1, 1, 0])
    data = to_arviz(model, {"weight": torch.randn(30)}, x, y)
    assert data.observed_data["y"].dtype.kind == "i"
    assert set(np.unique(data.posterior_predictive["y"])) <= {0, 1}


def test_arviz_can_use_it(tmp_path):
    x, y = linear_data()
    data = to_arviz(linear, trained(linear, x, y), x, y, num_samples=400)
    assert {"slope[0]", "slope[1]", "noise"} == set(arviz.summary(data).index)
    path = tmp_path / "posterior.nc"
    data.to_netcdf(str(path))
    np.testing.assert_allclose(arviz.from_netcdf(str(path)).posterior["noise"], data.posterior["noise"])


def test_a_subsampled_plate_keeps_its_index():
    data = to_arviz(subsampled, {"mean": torch.zeros(8)}, torch.arange(20.0))
    assert data.posterior_predictive["y"].shape == (1, 8, 5)


def test_arviz_one_gets_a_dict_of_groups(monkeypatch):
    """A stand-in with the interface of ArviZ 1.x, which needs Python 3.12."""
    stand_in, base = ModuleType("arviz"), ModuleType("arviz_base")
    stand_in.__version__ = "1.3.0"
    base.from_dict = lambda data, *, sample_dims, coords, dims: SimpleNamespace(**locals())
    monkeypatch.setitem(sys.modules, "arviz", stand_in)
    monkeypatch.setitem(sys.modules, "arviz_base", base)
    x, y = linear_data()
    found = to_arviz(linear, trained(linear, x, y), x, y, num_samples=5, coords={"data": list(range(30))})
    assert set(found.data) == {"posterior", "posterior_predictive", "log_likelihood", "observed_data"}
    assert found.data["posterior"]["slope"].shape == (1, 5, 2)
    assert found.sample_dims == ["chain", "draw"]
    assert found.dims["y"] == ["data"]
    assert found.coords == {"data": list(range(30))}


def test_errors_come_from_the_draws():
    with pytest.raises(TypeError, match="posterior must be a guide"):
        to_arviz(linear, 3, *linear_data())

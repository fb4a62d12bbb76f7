"""Every group of an InferenceData, with its dims, and ArviZ's own functions on it: written for ArviZ 0.x and 1.x."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import arviz
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pyro_hypernet.evaluation.importance import weighted_draws
from pyro_hypernet.evaluation.psis import arviz_is_split
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.sample.nuts import NutsKernel, nuts
from pyro_hypernet.sample.refine import refine
from tests.seeds import seed
from tests.small_models import Network, linear, linear_data, nested_plates, subsampled

# Chains are short here, for nothing is asked of their draws but where they go.
pytestmark = pytest.mark.filterwarnings("ignore:NUTS has not mixed")

ALL = {
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "observed_data",
    "constant_data",
    "sample_stats",
    "prior",
    "prior_predictive",
}


def test_the_daily_notice_of_arviz_is_no_error():
    """The first import of a day gives it: on a fresh machine every run of the tests begins with it."""
    warnings.warn("\nArviZ is undergoing a major refactor\nand more of it.", FutureWarning, stacklevel=1)


def groups(data):
    """Names of the groups of an InferenceData or a DataTree."""
    return {name.strip("/") for name in (data.groups if arviz_is_split() else data.groups())} - {""}


def trained(model, *args):
    guide = AutoNormal(model, init_scale=0.1)
    guide(*args)
    return guide


def test_groups_of_a_regression():
    x, y = linear_data()
    data = to_arviz(linear, trained(linear, x, y), x, y, num_samples=50)
    assert groups(data) == ALL
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
    assert set(data.sample_stats.data_vars) == {"lp"}
    assert data.sample_stats["lp"].shape == (3, 40)
    summary = arviz.summary(data, var_names=["slope"])
    assert float(summary["r_hat"].iloc[0]) < 1.5
    result.diverging = torch.zeros(3, 40, dtype=torch.bool)
    assert to_arviz(linear, result, x, y).sample_stats["diverging"].shape == (3, 40)


def test_a_result_of_nuts_keeps_all_its_draws():
    x, y = linear_data()
    chains = nuts(linear, x, y, num_samples=50, warmup_steps=20, num_chains=2, kernel=NutsKernel(num_processes=1))
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
    assert groups(data) == {"posterior", "posterior_predictive", "sample_stats", "prior", "prior_predictive"} | {
        "constant_data"
    }
    assert set(data.sample_stats.data_vars) == {"log_q"}
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
    """A stand-in with the interface of ArviZ 1.x, which needs Python 3.12; there this file runs on the real one."""
    stand_in, base = ModuleType("arviz"), ModuleType("arviz_base")
    stand_in.__version__ = "1.3.0"
    base.from_dict = lambda data, *, sample_dims, coords, dims: SimpleNamespace(**locals())
    monkeypatch.setitem(sys.modules, "arviz", stand_in)
    monkeypatch.setitem(sys.modules, "arviz_base", base)
    x, y = linear_data()
    found = to_arviz(linear, trained(linear, x, y), x, y, num_samples=5, coords={"data": list(range(30))})
    assert set(found.data) == ALL
    assert found.data["posterior"]["slope"].shape == (1, 5, 2)
    assert found.sample_dims == ["chain", "draw"]
    assert found.dims["y"] == ["data"]
    assert found.coords == {"data": list(range(30))}


def test_densities_of_the_draws_stand_beside_them(double):
    x, y = (value.double() for value in linear_data())
    guide = AutoHypernet(linear, "linear", "full").setup(x, y)
    data = to_arviz(linear, guide, x, y, num_samples=20)
    samples = {name: torch.tensor(data.posterior[name].values[0]) for name in ("slope", "noise")}
    stats = {name: torch.tensor(data.sample_stats[name].values[0]) for name in ("lp", "log_q", "log_weight")}
    torch.testing.assert_close(stats["log_q"], guide.log_prob(samples))
    for s in range(20):
        values = {name: value[s] for name, value in samples.items()}
        trace = pyro.poutine.trace(pyro.poutine.condition(linear, data=values)).get_trace(x, y)
        torch.testing.assert_close(stats["lp"][s], trace.log_prob_sum())
    torch.testing.assert_close(stats["log_weight"], stats["lp"] - stats["log_q"])
    pyro.set_rng_seed(seed(3))
    weights = weighted_draws(linear, guide, x, y, num_samples=20).log_weights
    pyro.set_rng_seed(seed(3))
    torch.testing.assert_close(
        torch.tensor(to_arviz(linear, guide, x, y, num_samples=20).sample_stats["log_weight"].values[0]), weights
    )


def test_stored_draws_may_stand_beside_the_log_q_of_a_guide(double):
    x, y = (value.double() for value in linear_data())
    guide = AutoHypernet(linear, "linear", "full").setup(x, y)
    samples = guide.sample_posterior(7)
    stats = to_arviz(linear, samples, x, y, guide=guide).sample_stats
    assert set(stats.data_vars) == {"lp", "log_q"}
    np.testing.assert_allclose(stats["log_q"].values[0], guide.log_prob(samples).detach().numpy())


def test_prior_draws_follow_the_prior_and_predict():
    x, y = linear_data()
    data = to_arviz(linear, trained(linear, x, y), x, y, num_samples=5, num_prior_samples=4000)
    slope, noise = data.prior["slope"].values[0], data.prior["noise"].values[0]
    assert slope.shape == (4000, 2)
    # Five standard errors each: a false alarm once in a million runs.
    assert abs(slope.mean()) < 5 / 8000**0.5
    assert abs(slope.std() - 1) < 5 / 16000**0.5
    assert abs(np.log(noise).std() - 0.5) < 5 * 0.5 / 8000**0.5
    residual = (data.prior_predictive["y"].values[0] - slope @ x.numpy().T) / noise[:, None]
    assert abs(residual.std() - 1) < 5 / (2 * residual.size) ** 0.5
    assert "prior" not in groups(to_arviz(linear, trained(linear, x, y), x, y, num_prior_samples=0))


def test_an_improper_prior_has_no_draws():
    def model(y):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    found = groups(to_arviz(model, {"mean": torch.randn(30)}, torch.ones(3)))
    assert {"prior", "prior_predictive"}.isdisjoint(found)
    assert "log_likelihood" in found


def test_arguments_that_nobody_observes_are_constants():
    x, y = linear_data()
    data = to_arviz(
        linear,
        trained(linear, x, y),
        x,
        y,
        num_samples=5,
        coords={"feature": ["a", "b"]},
        dims={"slope": ["feature"], "x": ["data", "feature"]},
    )
    assert set(data.constant_data.data_vars) == {"x"}
    assert data.constant_data["x"].dims == ("data", "feature")
    np.testing.assert_allclose(data.constant_data["x"], x.numpy())
    assert to_arviz(linear, {"slope": torch.zeros(5, 2), "noise": torch.ones(5)}, x, y).constant_data["x"].dims == (
        "data",
        "x_dim_1",
    )


@pytest.mark.filterwarnings("ignore:The populations of refine disagree")  # 40 draws; nothing is asked of their mixing
def test_refined_draws_and_point_estimates():
    x, y = linear_data()
    refined = refine(linear, x, y, num_samples=40, num_populations=2, progress=False)
    data = to_arviz(linear, refined, x, y)
    assert data.posterior["slope"].shape == (1, 40, 2)
    assert set(data.sample_stats.data_vars) == {"lp"}
    point = AutoDelta(linear)
    point(x, y)
    assert set(to_arviz(linear, point, x, y, num_samples=3).sample_stats.data_vars) == {"lp"}


@pytest.fixture(scope="module")
def two():
    """Two posteriors of one model: chains, and a guide whose widths are wrong."""
    pyro.set_rng_seed(seed(0))
    x, y = linear_data()
    chains = nuts(linear, x, y, num_samples=100, warmup_steps=100, num_chains=2, kernel=NutsKernel(num_processes=1))
    names = {"coords": {"feature": ["a", "b"]}, "dims": {"slope": ["feature"]}}
    return {
        "nuts": to_arviz(linear, chains, x, y, **names),
        "guide": to_arviz(linear, trained(linear, x, y), x, y, num_samples=200, **names),
    }


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution:UserWarning")
@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas 3.1 on ArviZ 0.23
def test_loo_and_compare_of_arviz_run_on_it(two):
    loo = {name: arviz.loo(data, pointwise=True) for name, data in two.items()}
    assert all(len(result.pareto_k) == 30 for result in loo.values())
    assert set(arviz.compare(two).index) == {"nuts", "guide"}
    assert {"slope[a]", "slope[b]", "noise"} == set(arviz.summary(two["nuts"]).index)


@pytest.mark.filterwarnings("ignore")  # of ArviZ's and matplotlib's own
@pytest.mark.parametrize("name", ["nuts", "guide"])
@pytest.mark.parametrize("plot", ["plot_trace", "plot_pair", "plot_ppc", "plot_khat"])
def test_plots_of_arviz_run_on_it(two, name, plot):
    data = two[name]
    draw = getattr(arviz, "plot_ppc_dist" if plot == "plot_ppc" and arviz_is_split() else plot)
    assert draw(arviz.loo(data, pointwise=True) if plot == "plot_khat" else data) is not None
    assert plt.get_fignums()
    plt.close("all")


def test_errors_come_from_the_draws():
    with pytest.raises(TypeError, match="posterior must be a guide"):
        to_arviz(linear, 3, *linear_data())


def in_plate(plate, site):
    """A latent of the name `site` in a plate of the name `plate`, around the data."""

    def model(y=None):
        with pyro.plate(plate, 4):
            value = pyro.sample(site, dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(value, 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    ("plate", "site", "axis", "variable"),
    [
        ("chain", "a", "chain_axis", "a"),
        ("draw", "a", "draw_axis", "a"),
        ("shop", "draw", "shop", "draw_site"),
        ("chain", "draw", "chain_axis", "draw_site"),
    ],
)
def test_names_that_arviz_has_taken_are_changed_with_a_word(plate, site, axis, variable):
    samples = {site: torch.randn(10, 4)}
    with pytest.warns(UserWarning, match="Names that ArviZ cannot hold beside each other were changed"):
        data = to_arviz(in_plate(plate, site), samples, torch.zeros(4), coords={plate: list("abcd")})
    assert data.posterior[variable].dims == ("chain", "draw", axis)
    assert data.log_likelihood["y"].dims == ("chain", "draw", axis)
    assert data.observed_data["y"].dims == (axis,)
    assert data.posterior[axis].values.tolist() == list("abcd")
    np.testing.assert_array_equal(data.posterior[variable].values[0], samples[site].numpy())


def test_an_axis_called_as_a_site_gets_another_name():
    with pytest.warns(UserWarning, match="'a' to 'a_axis'"):
        data = to_arviz(in_plate("shop", "a"), {"a": torch.randn(10, 4)}, torch.zeros(4), dims={"a": ["a"]})
    assert data.posterior["a"].dims == ("chain", "draw", "a_axis")
    assert data.log_likelihood["y"].dims == ("chain", "draw", "shop")


def test_a_subsampled_plate_leaves_out_a_density_that_is_noise():
    guide = AutoHypernet(subsampled).setup(torch.arange(20.0))
    data = to_arviz(subsampled, guide, torch.arange(20.0), num_samples=8)
    assert set(data.sample_stats.data_vars) == {"log_q"}

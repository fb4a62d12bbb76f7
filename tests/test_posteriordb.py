"""The models of posteriordb: each has the density of the Stan model, written here once more with SciPy."""

import pickle

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from models.posteriordb import FLAT, POSTERIORS, read_posteriordb
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from tests.seeds import seed

RNG = np.random.default_rng(seed(0))
DATA = {
    "arK-arK": {"K": 2, "T": 9, "y": RNG.normal(size=9)},
    "diamonds-diamonds": {
        "N": 6,
        "Y": 8.0 + RNG.normal(size=6),
        "K": 3,
        "X": np.c_[np.ones(6), 3.0 + RNG.normal(size=(6, 2))],
        "prior_only": 0,
    },
    "eight_schools-eight_schools_noncentered": {"J": 3, "y": np.array([28, 8, -3]), "sigma": np.array([15, 10, 16])},
    "gp_pois_regr-gp_regr": {"N": 4, "x": np.array([-4, -1, 0, 5]), "y": RNG.normal(size=4)},
    "kidiq-kidscore_interaction": {
        "N": 5,
        "kid_score": np.array([65, 98, 85, 83, 115]),
        "mom_hs": np.array([1, 1, 1, 0, 1]),
        "mom_iq": np.array([121.1, 89.4, 115.4, 99.4, 92.7]),
    },
    "low_dim_gauss_mix-low_dim_gauss_mix": {"N": 6, "y": 3 * RNG.normal(size=6)},
}


def parameters(*names):
    """Such as "beta[1]", from pairs of a name and a length, 0 for a scalar."""
    return [f"{name}[{i + 1}]" if n else name for name, n in names for i in range(max(n, 1))]


NAMES = {
    "arK-arK": parameters(("alpha", 0), ("beta", 2), ("sigma", 0)),
    "diamonds-diamonds": parameters(("b", 2), ("Intercept", 0), ("sigma", 0)),
    "eight_schools-eight_schools_noncentered": parameters(("theta", 3), ("mu", 0), ("tau", 0)),
    "gp_pois_regr-gp_regr": parameters(("rho", 0), ("alpha", 0), ("sigma", 0)),
    "kidiq-kidscore_interaction": parameters(("beta", 4), ("sigma", 0)),
    "low_dim_gauss_mix-low_dim_gauss_mix": parameters(("mu", 2), ("sigma", 2), ("theta", 0)),
}


def ark(data, alpha, beta1, beta2, sigma):
    y, beta = data["y"], [beta1, beta2]
    total = stats.norm(0, 10).logpdf([alpha, *beta]).sum() + stats.halfcauchy(0, 2.5).logpdf(sigma)
    for t in range(2, 9):
        mu = alpha + sum(beta[k] * y[t - k - 1] for k in range(2))
        total += stats.norm(mu, sigma).logpdf(y[t])
    return total


def diamonds(data, b1, b2, intercept, sigma):
    centred = data["X"][:, 1:] - data["X"][:, 1:].mean(0)
    prior = stats.norm.logpdf([b1, b2]).sum() + stats.t(3, 8, 10).logpdf(intercept)
    prior += stats.t(3, 0, 10).logpdf(sigma) - stats.t(3, 0, 10).logsf(0)
    return prior + stats.norm(intercept + centred @ [b1, b2], sigma).logpdf(data["Y"]).sum()


def eight_schools(data, *values):
    """theta is not the site: its density is that of theta_trans over tau for every school."""
    theta, mu, tau = np.array(values[:3]), values[3], values[4]
    prior = stats.norm((theta - mu) / tau, 1).logpdf(0).sum() + stats.norm(0, 5).logpdf(mu)
    prior += stats.halfcauchy(0, 5).logpdf(tau)
    return prior + stats.norm(theta, data["sigma"]).logpdf(data["y"]).sum()


def gp_regr(data, rho, alpha, sigma):
    x = data["x"]
    cov = alpha**2 * np.exp(-((x[:, None] - x) ** 2) / (2 * rho**2)) + np.diag(np.full(4, sigma))
    prior = stats.gamma(25, scale=1 / 4).logpdf(rho) + stats.halfnorm(0, 2).logpdf(alpha)
    return prior + stats.halfnorm.logpdf(sigma) + stats.multivariate_normal(np.zeros(4), cov).logpdf(data["y"])


def kidscore(data, *values):
    beta, sigma = values[:4], values[4]
    hs, iq = data["mom_hs"], data["mom_iq"]
    mean = beta[0] + beta[1] * hs + beta[2] * iq + beta[3] * hs * iq
    prior = stats.halfcauchy(0, 2.5).logpdf(sigma) + stats.norm(0, FLAT).logpdf(beta).sum()
    return prior + stats.norm(mean, sigma).logpdf(data["kid_score"]).sum()


def gauss_mix(data, mu1, mu2, sigma1, sigma2, theta):
    assert mu1 < mu2
    prior = np.log(2) + stats.norm(0, 2).logpdf([mu1, mu2]).sum() + stats.halfnorm(0, 2).logpdf([sigma1, sigma2]).sum()
    first, second = stats.norm(mu1, sigma1).pdf(data["y"]), stats.norm(mu2, sigma2).pdf(data["y"])
    return prior + stats.beta(5, 5).logpdf(theta) + np.log(theta * first + (1 - theta) * second).sum()


STAN = dict(zip(POSTERIORS, (ark, diamonds, eight_schools, gp_regr, kidscore, gauss_mix), strict=True))


def write(path, name):
    """A file of the format, with made-up data and draws."""
    draws = np.random.default_rng(seed(1)).normal(size=(10, 20, len(NAMES[name]))).astype(np.float32)
    mean, sd = draws.mean((0, 1), dtype=float), draws.std((0, 1), dtype=float)
    data = {f"data_{key}": np.asarray(value) for key, value in DATA[name].items()}
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / f"{name}.npz", names=np.array(NAMES[name]), draws=draws, mean=mean, sd=sd, **data)
    return draws, mean, sd


def posterior_and_draws(folder, name, dtype=torch.float64):
    """The posterior, its log joint and five points in unconstrained space."""
    write(folder, name)
    posterior = read_posteriordb(folder, name, dtype=dtype)
    layout = Layout.from_trace(poutine.trace(posterior.model).get_trace(*posterior.args))
    return posterior, LogJoint(posterior.model, layout), 0.7 * torch.randn(5, layout.dim, dtype=dtype)


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_is_that_of_the_stan_model(name, tmp_path, double):
    posterior, log_joint, w = posterior_and_draws(tmp_path, name)
    samples, _ = log_joint.layout.constrain(w)
    expected = torch.tensor([STAN[name](DATA[name], *row) for row in posterior.to_reference(samples).tolist()])
    torch.testing.assert_close(log_joint.log_prob(samples, *posterior.args), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", POSTERIORS)
def test_vmapped_and_captured_equals_one_by_one(name, tmp_path, double):
    posterior, log_joint, w = posterior_and_draws(tmp_path, name)
    one_by_one = LogJoint(posterior.model, log_joint.layout, mode="loop")
    for _ in range(2):  # the second time from the graph
        torch.testing.assert_close(log_joint(w, *posterior.args), one_by_one(w, *posterior.args))
        for result, expected in zip(
            log_joint.value_and_grad(w, *posterior.args), one_by_one.value_and_grad(w, *posterior.args), strict=True
        ):
            torch.testing.assert_close(result, expected)
    assert log_joint.mode == "graph"


@pytest.mark.parametrize("name", POSTERIORS)
def test_sites_and_arguments_have_the_dtype_asked_for(name, tmp_path):
    for dtype in (torch.float32, torch.float64):
        posterior, log_joint, w = posterior_and_draws(tmp_path, name, dtype)
        samples, _ = log_joint.layout.constrain(w)
        values = posterior.to_reference(samples)
        assert values.shape == (5, len(posterior.names))
        tensors = (*posterior.args, posterior.mean, posterior.sd, posterior.draws, values, *samples.values())
        assert {tensor.dtype for tensor in tensors} == {dtype}
        assert log_joint(w, *posterior.args).dtype == dtype


@pytest.mark.parametrize("part", ["data/posteriordb", "posteriordb", "."])
def test_reads_what_was_written(part, tmp_path):
    name = "low_dim_gauss_mix-low_dim_gauss_mix"
    draws, mean, sd = write(tmp_path / part, name)
    posterior = read_posteriordb(tmp_path, name)
    assert (posterior.name, posterior.names) == (name, ("mu[1]", "mu[2]", "sigma[1]", "sigma[2]", "theta"))
    for tensor, array in ((posterior.draws, draws), (posterior.mean, mean), (posterior.sd, sd)):
        torch.testing.assert_close(tensor, torch.as_tensor(array, dtype=torch.float32))


@pytest.mark.parametrize("name", POSTERIORS)
def test_can_be_sent_to_another_process(name, tmp_path):
    posterior, log_joint, w = posterior_and_draws(tmp_path, name)
    copy = pickle.loads(pickle.dumps(posterior))
    samples, _ = log_joint.layout.constrain(w)
    assert copy.model is posterior.model
    assert torch.equal(copy.to_reference(samples), posterior.to_reference(samples))


def test_a_covariance_that_rounding_makes_singular_spoils_its_own_draw_only(tmp_path):
    posterior, log_joint, w = posterior_and_draws(tmp_path, "gp_pois_regr-gp_regr", torch.float32)
    w[1] = torch.tensor([9.0, 3.0, -40.0])
    for _ in range(2):
        finite = log_joint(w, *posterior.args).isfinite()
        assert finite.tolist() == [True, False, True, True, True]


def test_missing_file_names_the_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"posteriordb/arK-arK\.npz, .* or .*arK-arK\.npz: pass its folder"):
        read_posteriordb(tmp_path, "arK-arK")


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"^name must be one of arK-arK, .*; got 'garch'\.$"):
        read_posteriordb(tmp_path, "garch")

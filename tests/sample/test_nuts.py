"""Chains against a posterior in closed form, their diagnostics, and what they refuse."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.sample.nuts import NutsKernel, nuts
from tests import small_models as m
from tests.seeds import seed
from tests.train.conjugate import exact_guide, exact_posterior, make_data, regression, set_exactly

X, Y = make_data()
POSTERIOR = exact_posterior(X, Y)
SHALLOW = NutsKernel(max_tree_depth=4, num_processes=1)
CHAINS, DRAWS = 2, 500  # some 100 effective draws in half a chain: R-hat above 1.05 in 1 of 10^5 runs


def run(*args, model=None, **options):
    options = {
        "num_samples": DRAWS,
        "warmup_steps": 150,
        "num_chains": CHAINS,
        "kernel": NutsKernel(num_processes=1),
        **options,
    }
    if model is None:
        model, args = regression, args or (X, Y)
    return nuts(model, *args, **options)


@pytest.fixture(scope="module")
def plain():
    pyro.set_rng_seed(seed(1))
    return run()


@pytest.fixture(scope="module")
def through_guide():
    pyro.set_rng_seed(seed(2))
    return run(guide=exact_guide(X, Y))


@pytest.fixture(params=["plain", "through_guide"])
def result(request):
    return request.getfixturevalue(request.param)


def test_moments_are_those_of_the_posterior(result):
    """Within five standard errors, by the effective sample size: once in 10^5 runs by chance over six numbers."""
    draws, ess = result.samples["weight"], result.ess["weight"].clamp(max=CHAINS * DRAWS)
    error = (draws.mean(0) - POSTERIOR.loc) / POSTERIOR.stddev
    assert bool((error.abs() < 5 / ess.sqrt()).all())
    # A square mixes slower than the value itself: half of its effective sample size.
    assert bool(((draws.std(0) / POSTERIOR.stddev - 1).abs() < 5 / ess.sqrt()).all())


def test_shapes(result):
    assert result.samples["weight"].shape == (CHAINS * DRAWS, 3)
    assert result.samples_by_chain["weight"].shape == (CHAINS, DRAWS, 3)
    torch.testing.assert_close(result.samples_by_chain["weight"].flatten(0, 1), result.samples["weight"])
    assert result.samples["weight"].dtype == torch.float64
    assert not result.samples["weight"].requires_grad
    assert result.rhat["weight"].shape == result.ess["weight"].shape == (3,)
    assert result.function_rhat["f"].shape == result.function_ess["y"].shape == (len(X),)


def test_diagnostics_of_a_run_that_is_well(result):
    assert set(result.function_rhat) == set(result.function_ess) == {"f", "y"}
    assert result.divergences == (0,) * CHAINS
    assert result.diverging.shape == (CHAINS, result.diverging.shape[1])
    assert result.diverging.dtype == torch.bool
    assert len(result.acceptance) == CHAINS
    assert all(0.9 < rate <= 1 for rate in result.acceptance)
    assert 0.99 < result.max_rhat < 1.05
    assert 0.99 < result.max_function_rhat < 1.05
    assert float(result.ess["weight"].min()) > 50
    assert result.seconds > 0
    torch.testing.assert_close(result.function_rhat["f"], result.function_rhat["y"])  # f is the mean of y


def test_the_guide_saves_gradients_where_the_posterior_is_narrow():
    """Inputs that are nearly the same: a ridge sixty times as long as wide, which the guide makes round.

    Over five seeds the chains through the guide took 4 to 11 % of the gradients; half of them is the bound.
    """
    x = 5 * (X[:, :1] + 0.002 * X)
    short = {"num_samples": 20, "warmup_steps": 20}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")
        plain, through = run(x, Y, **short), run(x, Y, guide=exact_guide(x, Y), **short)
    assert sum(through.num_gradients) < sum(plain.num_gradients) / 2


@pytest.mark.parametrize("hypernet", ["coupling", "iaf"])
def test_through_a_flow_that_is_not_the_posterior(hypernet):
    """The map bends the space; its log determinant makes up for it."""
    guide = AutoHypernet(regression, hypernet, "full").setup(X, Y)
    set_exactly(guide, POSTERIOR)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")  # for that the run is short
        result = run(guide=guide, num_samples=150, warmup_steps=50, num_chains=1, kernel=SHALLOW)
    ess = result.ess["weight"].clamp(max=150)
    error = (result.samples["weight"].mean(0) - POSTERIOR.loc) / POSTERIOR.stddev
    assert bool((error.abs() < 5 / ess.sqrt()).all())
    assert bool(((result.samples["weight"].std(0) / POSTERIOR.stddev - 1).abs() < 5 / ess.sqrt()).all())


def test_draws_of_constrained_sites_lie_on_their_supports():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")
        result = run(model=m.supports, num_samples=20, warmup_steps=20, num_chains=1, kernel=SHALLOW)
    guide = AutoHypernet(m.supports).setup()
    for site in guide.layout.sites:
        assert bool(site.support.check(result.samples[site.name]).all()), site.name
        assert result.samples[site.name].shape == (20, *site.shape)
    assert result.function_rhat == {}


def test_mean_of_a_constrained_posterior():
    """rate ~ Gamma(2, 1), ten counts: the posterior is Gamma(2 + sum, 11)."""
    counts = torch.tensor([3.0, 4, 2, 5, 3, 3, 1, 4, 2, 6], dtype=torch.float64)

    def model(counts):
        rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(2.0), 1.0))
        with pyro.plate("data", len(counts)):
            pyro.sample("y", dist.Poisson(rate), obs=counts)

    result = run(counts, model=model, num_samples=300, warmup_steps=100)
    exact = dist.Gamma(2 + counts.sum(), torch.tensor(11.0, dtype=torch.float64))
    ess = result.ess["rate"].clamp(max=600)
    # Five standard errors.
    assert abs(float((result.samples["rate"].mean() - exact.mean) / exact.stddev)) < 5 / float(ess) ** 0.5
    assert abs(float(result.samples["rate"].std() / exact.stddev) - 1) < 5 / float(ess) ** 0.5
    assert set(result.function_rhat) == {"y"}


def test_the_same_seed_gives_the_same_draws_in_one_process_or_two():
    """To the bit in one process; in two but for rounding, which a chain makes larger: other draws would be sds away."""
    found = []
    for num_processes in (1, 1, 2):
        pyro.set_rng_seed(seed(3))
        short = {"num_samples": 20, "warmup_steps": 20, "kernel": NutsKernel(num_processes=num_processes)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NUTS has not mixed")
            found.append(run(**short))
    torch.testing.assert_close(found[0].samples["weight"], found[1].samples["weight"], rtol=0, atol=0)
    torch.testing.assert_close(found[0].samples["weight"], found[2].samples["weight"], rtol=1e-4, atol=1e-4)
    assert found[0].divergences == found[2].divergences
    by_chain = found[0].samples_by_chain["weight"]
    assert not torch.equal(by_chain[0], by_chain[1])


def test_chains_that_stay_in_different_modes_warn():
    def model(y):
        w = pyro.sample("w", dist.Normal(y.new_zeros(()), 10.0))
        f = pyro.deterministic("f", w + 0.0)
        modes = torch.stack([dist.Normal(sign * 8.0, 0.3).log_prob(f) for sign in (-1.0, 1.0)])
        pyro.factor("modes", modes.logsumexp(0))

    # Each of 16 chains goes to either side with the same chance: all to one side in 1 of 30 000 runs.
    with pytest.warns(UserWarning, match="^NUTS has not mixed: the worst split R-hat in function space is"):
        result = run(torch.zeros(1), model=model, num_samples=40, warmup_steps=40, num_chains=16)
    means = result.samples_by_chain["w"].mean(1)
    assert float(means.min()) < -7
    assert float(means.max()) > 7
    assert result.max_function_rhat > 2


def test_symmetric_weights_that_agree_in_function_space_do_not_warn():
    def model(y):
        w = pyro.sample("w", dist.Normal(y.new_zeros(()), 5.0))
        f = pyro.deterministic("f", w**2)
        pyro.sample("y", dist.Normal(f, 0.5), obs=y)

    # As above: all of 16 chains have one sign in 1 of 30 000 runs.
    result = run(torch.tensor(16.0), model=model, num_samples=200, warmup_steps=100, num_chains=16)
    assert result.max_rhat > 2
    assert result.max_function_rhat < 1.05


def test_deterministic_sites_of_discrete_likelihoods_are_probabilities():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    x = torch.randn(8, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")  # only shapes are asked for
        result = run(x, torch.arange(8) % 3, model=model, num_samples=20, warmup_steps=20, num_chains=1)
    assert result.function_ess["y"].shape == (8, 3)


# -- what is refused --


def test_no_start_with_a_finite_density():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("never", torch.tensor(-math.inf))

    with pytest.raises(ValueError, match="^No start with a finite density in 100 tries: check the data for NaN"):
        nuts(model, num_samples=5, warmup_steps=5, num_chains=2, kernel=NutsKernel(num_processes=1))


def test_nan_in_the_data():
    y = Y.clone()
    y[3] = math.nan
    with pytest.raises(ValueError, match="^No start with a finite density in 100 tries: check the data for NaN"):
        run(X, y)


@pytest.mark.parametrize(
    "options", [{"num_samples": 3}, {"num_chains": 0}, {"warmup_steps": -1}], ids=["samples", "chains", "warm-up"]
)
def test_numbers_out_of_range(options):
    with pytest.raises(
        ValueError, match="^num_samples must be at least 4 .*, num_chains positive and warmup_steps not"
    ):
        run(**options)


def test_num_processes_out_of_range():
    with pytest.raises(ValueError, match="^num_processes must be positive or None; got 0"):
        run(kernel=NutsKernel(num_processes=0))


def test_a_model_without_latent_sites():
    def model(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(RuntimeError, match="^The model has no latent site: there is nothing for nuts to do"):
        run(torch.zeros(3), model=model)


def test_a_discrete_latent_site():
    with pytest.raises(ValueError, match="(?s)discrete|Discrete"):
        run(torch.ones(3), model=m.with_switch)


def test_a_guide_of_another_model():
    def other(x, y):
        pyro.sample("slope", dist.Normal(x.new_zeros(3), 1.0).to_event(1))

    guide = AutoHypernet(other).setup(X, Y)
    with pytest.raises(ValueError, match="^Latent site 'weight' is not among the guide's sites"):
        nuts(regression, X, Y, guide=guide, num_samples=5, warmup_steps=5, num_chains=1)


def test_the_fewest_draws():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NUTS has not mixed")
        result = run(num_samples=4, warmup_steps=0, num_chains=1)
    assert result.samples["weight"].shape == (4, 3)
    assert result.rhat["weight"].shape == (3,)

"""Tempered Monte Carlo reaches posteriors and evidences that are known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value

from models import PROBLEMS
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.modes import init_to_map
from pyro_hypernet.sample.refine import HmcKernel, refine
from pyro_hypernet.train.fit import fit
from tests.seeds import seed
from tests.small_models import subsampled
from tests.train.conjugate import exact_evidence, exact_guide, make_data, regression

pytestmark = pytest.mark.usefixtures("double")
WHOLE = HmcKernel(collapse=False)


def quick(model, *args, **options):
    return refine(model, *args, progress=False, **options)


def test_conjugate_regression():
    problem = PROBLEMS["conjugate-regression"]()
    refined = quick(problem.model, *problem.args, num_samples=2000, num_moves=4, kernel=WHOLE)
    assert refined.collapsed == ()
    # Over eight seeds an sd of .11 nats: five of them. A term or a power that is left out makes one nat and more.
    assert abs(refined.log_evidence - problem.truth["log_evidence"]) < 0.55
    assert refined.betas[0] == 0
    assert refined.betas[-1] == 1
    for name, mean in problem.truth["mean"].items():
        sd = problem.truth["sd"][name]
        # 2 000 draws: a standard error of .022 sd if independent; .15 sd is over six, of one in three still four.
        assert bool(((refined.samples[name].mean(0) - mean).abs() < 0.15 * sd).all()), name
        assert bool(((refined.samples[name].std(0) / sd - 1).abs() < 0.15).all()), name


def test_what_is_normal_throughout_is_exact():
    problem = PROBLEMS["conjugate-regression"]()
    refined = quick(problem.model, *problem.args, num_samples=20_000, num_moves=1)
    assert refined.collapsed == ("w",)
    assert refined.betas == (0.0, 1.0)
    assert abs(refined.log_evidence - problem.truth["log_evidence"]) < 1e-8
    covariance = torch.cov(refined.samples["w"].mT)
    scale = torch.outer(problem.truth["sd"]["w"], problem.truth["sd"]["w"])
    # Independent draws: standard errors of .007 and .01; five of them and more.
    assert (
        float(((refined.samples["w"].mean(0) - problem.truth["mean"]["w"]) / problem.truth["sd"]["w"]).abs().max())
        < 0.04
    )
    assert float(((covariance - problem.truth["covariance"]["w"]) / scale).abs().max()) < 0.06


@pytest.mark.parametrize("collapse", [True, False])
def test_a_learnt_noise_comes_out_the_same_either_way(collapse):
    x = torch.linspace(-1, 1, 15)
    y = 2 * x + 0.3 * torch.sin(20 * x)

    def model():
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(-1.0), 1.0))
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0), 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, noise), obs=y)

    refined = quick(model, num_samples=4000, kernel=HmcKernel(collapse=collapse))
    grid = torch.linspace(-4, 2, 4001)
    covariance = grid.exp()[:, None, None] ** 2 * torch.eye(15) + 9 * torch.outer(x, x)
    log_density = dist.MultivariateNormal(torch.zeros(15), covariance).log_prob(y) + dist.Normal(-1.0, 1.0).log_prob(
        grid
    )
    log_evidence = log_density.logsumexp(0) + math.log(6 / 4000)
    mean = (log_density.softmax(0) * grid).sum()
    sd = (log_density.softmax(0) * (grid - mean) ** 2).sum().sqrt()
    assert refined.collapsed == (("slope",) if collapse else ())
    # Over 60 seeds the sd is .023 and .066 nats, of the mean .02 sd and of the spread .024: six sds and more.
    assert abs(refined.log_evidence - float(log_evidence)) < (0.15 if collapse else 0.45)
    assert float((refined.samples["noise"].log().mean() - mean).abs() / sd) < 0.15
    assert float((refined.samples["noise"].log().std() / sd - 1).abs()) < 0.15


def test_both_of_two_modes_are_found_with_their_masses():
    problem = PROBLEMS["abx"]()
    refined = quick(problem.model, *problem.args, num_samples=2000, num_moves=3)
    assert abs(refined.log_evidence - problem.truth["log_evidence"]) < 0.1
    (name, value) = next(iter(refined.samples.items()))
    share = float((value > 0).double().mean())
    # Systematic resampling keeps the halves within a few per cent of 1 / 2; sd about .02.
    assert 0.4 < share < 0.6, name


def test_unequal_modes_keep_their_masses():
    problem = PROBLEMS["two-modes"]()
    shares = []
    for repeat in range(5):
        pyro.set_rng_seed(seed(repeat))
        z = quick(problem.model, *problem.args).samples["z"]
        shares.append(float((z.sum(-1) > 0).double().mean()))
    # One share has a standard error of .025 (over 20 seeds), the mean of five .011: a false alarm in 1 of 3 000.
    assert abs(sum(shares) / 5 - problem.truth["masses"][0]) < 0.04


def test_error_of_the_evidence_and_rhat_speak_of_populations():
    problem = PROBLEMS["conjugate-regression"]()
    refined = quick(problem.model, *problem.args, num_samples=800, num_populations=8, kernel=WHOLE)
    assert 0 < refined.log_evidence_error < 0.3
    assert refined.max_rhat < 1.1
    assert len(refined.acceptance) == len(refined.betas) - 1
    assert all(0.3 < rate <= 1 for rate in refined.acceptance)
    assert refined.max_function_rhat < 1.1
    assert 1 <= refined.pooled_rhat < 1.05
    assert 100 < refined.ess <= 800
    assert set(refined.function_rhat) == {"f", "y"}
    alone = quick(problem.model, *problem.args, num_samples=100, num_populations=1, kernel=WHOLE)
    assert math.isnan(alone.log_evidence_error)
    assert math.isnan(alone.pooled_rhat)
    assert alone.rhat == {}


@pytest.mark.filterwarnings("ignore:The populations of refine disagree")  # nothing is asked of their mixing
def test_constrained_sites_and_seeds():
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 1.0))
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(share[0], scale), obs=y)

    runs = []
    for _ in range(2):
        pyro.set_rng_seed(seed(1))
        runs.append(quick(model, torch.tensor([0.1, 0.4, 0.2]), num_samples=200, num_moves=2))
    assert bool((runs[0].samples["scale"] > 0).all())
    torch.testing.assert_close(runs[0].samples["share"].sum(-1), torch.ones(200))
    torch.testing.assert_close(runs[0].samples["share"], runs[1].samples["share"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"num_samples": 10, "num_populations": 4},
        {"num_moves": 0},
    ],
)
def test_numbers_out_of_range(options):
    problem = PROBLEMS["conjugate-regression"]()
    with pytest.raises(ValueError, match="num_samples, num_populations and num_moves must be positive"):
        quick(problem.model, *problem.args, **options)


@pytest.mark.parametrize("options", [{"num_leapfrogs": 0}, {"num_threads": 0}])
def test_numbers_of_a_kernel_out_of_range(options):
    with pytest.raises(ValueError, match="num_leapfrogs and num_threads must be positive"):
        HmcKernel(**options)


def test_no_finite_likelihood():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("never", torch.where(x.abs() >= 0, -torch.inf, 0.0) + 0 * x)

    with pytest.raises(ValueError, match="No draw of the prior has a finite likelihood"):
        quick(model)


def test_data_that_hold_nan_are_named():
    problem = PROBLEMS["conjugate-regression"]()
    x, y = problem.args
    y = y.clone()
    y[3] = torch.nan
    with pytest.raises(ValueError, match="Argument 'y' holds NaN in 1 of 40 places"):
        quick(problem.model, x, y)


def test_no_latent_site():
    with pytest.raises(RuntimeError, match="no latent site: there is nothing for refine to do"):
        quick(lambda: pyro.sample("y", dist.Normal(torch.tensor(0.0), 1.0), obs=torch.tensor(1.0)))


def test_an_improper_prior_is_refused():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="The model's prior cannot be sampled"):
        quick(model)


def test_minibatches_are_refused():
    with pytest.raises(ValueError, match=r"Plate 'data' draws a minibatch of 5 out of 12"):
        quick(subsampled, torch.zeros(12))


@pytest.mark.parametrize("repeat", range(3))
def test_a_guide_without_one_of_two_modes_is_found_out_and_does_no_harm(repeat):
    """y = a b x: modes at (a, b) and (−a, −b), of which the guide has one."""
    pyro.set_rng_seed(seed(repeat))
    problem = PROBLEMS["abx"]()
    start = {name: value.abs() for name, value in init_to_map(problem.model, *problem.args).keywords["values"].items()}
    guide = AutoHypernet(problem.model, "identity", "full", init_loc_fn=init_to_value(values=start), init_scale=0.05)
    fit(problem.model, guide, problem.args, num_steps=300, progress=False)
    (name, of_guide) = next(iter(guide.sample_posterior(500).items()))
    assert float((of_guide > 0).double().mean()) in (0.0, 1.0)
    refined = quick(problem.model, *problem.args, guide=guide, num_samples=2000, num_moves=4)
    assert 0.4 < float((refined.samples[name] > 0).double().mean()) < 0.6
    assert refined.coverage.missed > 0.4
    assert refined.coverage.lower < refined.log_evidence < refined.coverage.upper


def test_a_guide_that_is_the_posterior_covers_it():
    x, y = make_data()
    refined = quick(regression, x, y, guide=exact_guide(x, y), num_samples=400)
    for bound in (refined.coverage.lower, refined.coverage.upper, refined.coverage.log_evidence):
        assert bound == pytest.approx(exact_evidence(x, y), abs=1e-6)


@pytest.mark.filterwarnings("ignore:The populations of refine disagree")  # forty draws may
def test_the_draws_are_as_many_as_asked_for_though_moves_do_not_divide_them():
    problem = PROBLEMS["abx"]()
    refined = quick(problem.model, *problem.args, num_samples=40, num_populations=4, num_moves=7)
    assert {len(value) for value in refined.samples.values()} == {40}


def test_populations_that_disagree_are_reported():
    """A spike that a handful of particles find in one population and not in another."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        modes = torch.stack([torch.full((4,), 3.0), torch.full((4,), -3.0)])
        parts = dist.Normal(modes, 0.05).to_event(1)
        pyro.sample("y", dist.Normal(x.mean(), 1.0), obs=torch.tensor(0.0))
        pyro.factor("spikes", torch.logsumexp(parts.log_prob(x), 0))

    pyro.set_rng_seed(seed(0))
    with pytest.warns(UserWarning, match="The populations of refine disagree"):
        quick(model, num_samples=32, num_populations=4, num_moves=2)


def test_a_model_that_runs_in_a_loop():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        scale = 1.0 if mean.item() < math.inf else 2.0
        pyro.sample("y", dist.Normal(mean, scale).expand([len(y)]).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="runs in a loop"):
        refined = quick(model, torch.ones(3), num_samples=80, num_moves=2, kernel=HmcKernel(num_leapfrogs=4))
    assert refined.collapsed == ()
    # The posterior is N(3/4, 1/4): 80 draws, a standard error of .06 if independent; five of them at half the number.
    assert abs(float(refined.samples["mean"].mean()) - 0.75) < 0.4

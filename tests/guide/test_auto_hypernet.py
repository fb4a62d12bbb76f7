"""AutoHypernet's own methods, and every error that it owes to the user."""

import copy
import math
import resource
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_value
from pyro.infer.reparam import LatentStableReparam

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture
from pyro_hypernet.guide.in_words import HYPERNETS_IN_WORDS, STRUCTURES_IN_WORDS
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.informed.structures import STRUCTURES, low_rank
from pyro_hypernet.maps.foreign import foreign
from pyro_hypernet.maps.hypernets import HYPERNETS, coupling, linear
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.target import bind_guide
from pyro_hypernet.train.elbo import VectorizedELBO
from tests import small_models as m
from tests.fits import fit

DATA = m.linear_data()


def shaken(guide, size=0.1):
    """The guide, its every parameter moved from where it starts."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += size * torch.randn_like(parameter)
    return guide


# -- densities --


@pytest.mark.parametrize("hypernet", ["linear", "coupling", "spline", "iaf"])
@pytest.mark.parametrize("model, args", [(m.linear, DATA), (m.supports, ())], ids=["linear", "supports"])
def test_log_p_minus_log_q_of_samples_averages_to_the_elbo(model, args, hypernet):
    guide, elbo = shaken(AutoHypernet(model, hypernet).setup(*args)), VectorizedELBO(100)
    log_joint = LogJoint(model, guide.layout, mode="eager")
    samples = guide.sample_posterior(2000)
    weights = (log_joint.log_prob(samples, *args) - guide.log_prob(samples)).detach()
    elbos = torch.tensor([-elbo.loss(model, guide, *args) for _ in range(20)])
    # Five standard errors of either: once in 10^6 runs by chance.
    error = float((weights.var() / len(weights) + elbos.var() / len(elbos)).sqrt())
    assert abs(float(weights.mean() - elbos.mean())) < 5 * error


def test_the_density_of_its_own_model_is_kept_and_handed_on():
    """One for every mode, with its graphs; not by copies, nor after a restart, nor for another form of the model."""
    guide, elbo = AutoHypernet(m.linear, structure="full").setup(*DATA), VectorizedELBO(4)
    own = guide.density(m.linear)
    assert own is guide.density(m.linear) is elbo.prepare(m.linear, guide, DATA, {})
    assert bind_guide(m.linear, guide, DATA, {}).log_joint is own
    assert GuideMixture([guide]).density(m.linear) is own
    assert bind_guide(m.linear, guide, DATA, {}, mode="eager").log_joint is guide.density(m.linear, mode="eager")
    assert guide.density(m.linear, mode="eager") is not own
    guide.take_temperature(Plan(temperature=0.5))
    others = [bind_guide(m.linear, guide, DATA, {}).log_joint, guide.density(partial(m.linear))]
    others += [copy.copy(guide).density(m.linear), copy.deepcopy(guide).density(m.linear)]
    others.append(guide.restart(*DATA).density(m.linear))
    assert all(other is not own for other in others)


def test_log_prob_is_the_change_of_variables_by_hand():
    def model():
        pyro.sample("positive", dist.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))

    guide = shaken(AutoHypernet(model, "linear").setup())
    samples = guide.sample_posterior(6)
    log_q = guide.log_prob(samples)
    assert log_q.shape == (6,)
    # Where x is exp(w0), dw0/dx = 1/x; on the simplex the first two parts are free, and autograd differentiates.
    for row in range(6):
        x, part = samples["positive"][row], samples["simplex"][row, :2]

        def unconstrained(free):
            values = {"positive": free[0], "simplex": torch.cat([free[1:], 1 - free[1:].sum(0, keepdim=True)])}
            return guide.layout.unconstrain(values)[0]

        free = torch.cat([x[None], part])
        jacobian = torch.autograd.functional.jacobian(unconstrained, free)
        assert float(jacobian[0, 0]) == pytest.approx(1 / float(x), rel=1e-9)
        expected = guide.unconstrained_log_prob(unconstrained(free)) + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_q[row], expected)


def test_unconstrained_log_prob_is_that_of_the_draws():
    guide = shaken(AutoHypernet(m.linear, "coupling").setup(*DATA)).double()
    w, log_q = guide.sample_and_log_prob(7)
    torch.testing.assert_close(guide.unconstrained_log_prob(w.detach()), log_q)
    assert w.requires_grad
    torch.testing.assert_close(guide.get_posterior().log_prob(w), log_q)


# -- shapes --


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sample_posterior_has_one_leading_axis(num_samples):
    guide = AutoHypernet(m.supports).setup()
    samples = guide.sample_posterior(num_samples)
    for site in guide.layout.sites:
        assert samples[site.name].shape == (num_samples, *site.shape)
        assert not samples[site.name].requires_grad
    assert guide.log_prob(samples).shape == (num_samples,)


def test_log_prob_takes_any_leading_axes():
    guide = AutoHypernet(m.linear).setup(*DATA)
    samples = guide.sample_posterior(6)
    nested = {name: value.unflatten(0, (2, 3)) for name, value in samples.items()}
    torch.testing.assert_close(guide.log_prob(nested).flatten(), guide.log_prob(samples))
    one = {name: value[0] for name, value in samples.items()}
    torch.testing.assert_close(guide.log_prob(one), guide.log_prob(samples)[0])


# -- what it says of itself --


def test_describe_names_and_counts():
    guide = AutoHypernet(m.linear, structure="full").setup(*DATA)
    count = sum(parameter.numel() for parameter in guide.parameters())
    size, in_training = (f"{number * count / 1000:.3g} kB" for number in (4, 16))
    assert guide.describe().splitlines() == [
        f"AutoHypernet: 3 weights in 2 sites; {count} parameters, {size} ({in_training} while Adam trains them).",
        f"  structure full: {STRUCTURES_IN_WORDS['full']}.",
        f"  hypernet coupling (chosen by auto): {HYPERNETS_IN_WORDS['coupling']}.",
        "  fit: 32 draws of the weights in every step, then the posterior may reject draws, until 5% to 50% are kept.",
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.01])
@pytest.mark.parametrize("parametrization", [None, "weight_norm"])
def test_describe_says_where_so_many_weights_underfit(parametrization, temperature):
    """2 025 weights of a network at temperature 1; not the few norms of the same, nor where data count more."""
    net = torch.nn.Sequential(torch.nn.Linear(90, 22), torch.nn.Tanh(), torch.nn.Linear(22, 1))
    model = bayesianize(net, "gaussian", **({"parametrization": parametrization} if parametrization else {}))
    guide = AutoHypernet(model, plan=Plan(temperature=temperature)).setup(torch.randn(5, 90), torch.randn(5))
    assert ("predictions underfit" in guide.describe()) == (not parametrization and temperature == 1)


def test_every_nickname_has_plain_words():
    """Only what a plan may hold after setup: "auto" stands for another there."""
    assert set(STRUCTURES_IN_WORDS) == set(STRUCTURES) - {"auto"}
    assert set(HYPERNETS_IN_WORDS) == set(HYPERNETS) - {"auto"}


@pytest.mark.parametrize(
    "options, part",
    [
        (
            {"hypernet": "iaf", "structure": "layerwise"},
            "hypernet iaf: layers that shift and scale every",
        ),
        ({"hypernet": partial(coupling, num_layers=2)}, "hypernet coupling(num_layers=2): layers that shift"),
        ({"structure": partial(low_rank, rank=2)}, "structure low_rank(rank=2): a network moves"),
        ({"hypernet": linear}, "hypernet linear: normal"),
        ({"hypernet": "identity"}, "6 parameters, 24 B (96 B while Adam trains them)"),
    ],
)
def test_describe_says_what_was_asked_for(options, part):
    assert part in AutoHypernet(m.linear, **options).setup(*DATA).describe()


def test_describe_counts_bytes_in_float64():
    guide = AutoHypernet(m.linear, "identity").setup(*DATA).double()
    assert "6 parameters, 48 B (192 B while Adam trains them)" in guide.describe()


def test_auto_takes_a_spline_for_one_weight_and_low_rank_for_many():
    def spread(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    assert "hypernet spline (chosen by auto)" in AutoHypernet(spread).setup(torch.ones(3)).describe()

    def many():
        pyro.sample("w", dist.Normal(torch.zeros(2001), 1.0).to_event(1))

    assert "structure low_rank (chosen by auto)" in AutoHypernet(many).setup().describe()


def test_setup_twice_changes_nothing():
    guide = shaken(AutoHypernet(m.linear).setup(*DATA))
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    parameters = [id(parameter) for parameter in guide.parameters()]
    assert guide.setup(DATA[0][:5], DATA[1][:5]) is guide  # fewer rows, the same sites
    assert [id(parameter) for parameter in guide.parameters()] == parameters
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


# -- several components --


def mixture(scale=1.0):
    guide = AutoHypernet(m.linear, "linear", num_components=2, init_scale=scale).setup(*DATA).double()
    return shaken(guide)


def test_mixture_density_by_hand():
    guide = mixture(0.7)
    w, log_q = guide.sample_and_log_prob(9)
    steer, affine = guide.bijection.bijections[:2]  # then the bound on the noise, which is the identity here
    matrix = affine.log_scale.exp()[:, None] * (torch.eye(3) + steer.hypernet.bijections[0].weight.tril(-1))
    base = guide.base
    parts = [
        dist.MultivariateNormal(affine.loc + matrix @ loc, scale_tril=matrix @ log_scale.exp().diag()).log_prob(w)
        for loc, log_scale in zip(base.locs, base.log_scales, strict=True)
    ]
    expected = (torch.stack(parts) + base.logits.log_softmax(0)[:, None]).logsumexp(0)
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(guide.unconstrained_log_prob(w), expected)


def two_numbers():
    pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("hypernet", ["linear", "coupling"])
def test_mixture_density_integrates_to_one(hypernet):
    guide = AutoHypernet(two_numbers, hypernet, num_components=2, init_scale=1.0).setup()
    guide = shaken(guide, 0.1 if hypernet == "linear" else 0.03).double()  # at .1 tails reach far off the grid
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = guide.unconstrained_log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=0.01)


def two_modes():
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False))
    modes = torch.stack([dist.Normal(sign * 3.0, 0.5).log_prob(w[0]) for sign in (-1.0, 1.0)])
    pyro.factor("target", modes.logsumexp(0) - math.log(2) + dist.Normal(0.0, 1.0).log_prob(w[1]))


def test_two_components_find_two_equal_modes():
    """Each starts at a mode that some of 64 draws of the prior climb to. A standard error of a share of 4 000: .008."""
    guide = AutoHypernet(two_modes, "linear", num_components=2)
    result = fit(two_modes, guide, (), num_steps=800, num_particles=8, learning_rate=0.03, progress=False)
    first = guide.sample_posterior(4000)["w"][:, 0]
    assert 0.4 < float((first > 0).double().mean()) < 0.6
    for side in (first[first > 0], -first[first < 0]):
        assert float(side.mean()) == pytest.approx(3.0, abs=0.15)
        assert float(side.std()) == pytest.approx(0.5, abs=0.15)
    assert result.elbo == pytest.approx(0.0, abs=0.1)  # the target is a density: its evidence is one


def test_components_of_one_weight():
    with pytest.raises(ValueError, match="^num_components > 1 needs at least two unconstrained weights"):
        AutoHypernet(m.one_weight, num_components=2).setup(torch.ones(3))


# -- models that it cannot serve --


def test_a_discrete_latent():
    with pytest.raises(ValueError, match="(?s)switch"):
        AutoHypernet(m.with_switch).setup(torch.ones(3))


def test_a_latent_inside_a_subsampled_plate():
    def model(y):
        with pyro.plate("data", len(y), subsample_size=5) as index:
            local = pyro.sample("local", dist.Normal(torch.zeros(5), 1.0))
            pyro.sample("y", dist.Normal(local, 1.0), obs=y[index])

    with pytest.raises(ValueError, match=r"^Latent site 'local' lies inside the subsampled plate 'data' \(5 of 20\)"):
        AutoHypernet(model).setup(torch.zeros(20))


def test_no_latent():
    def model(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(RuntimeError, match=r"found no latent variables"):
        AutoHypernet(model).setup(torch.zeros(3))


def test_sites_or_shapes_that_change_between_calls():
    guide = AutoHypernet(m.linear).setup(*DATA)
    wider = torch.randn(30, 4), DATA[1]
    with pytest.raises(ValueError, match=r"^The latent sites changed: expected 'slope' of shape \(2\)"):
        guide.setup(*wider)

    def growing(y, more=False):
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if more:
            pyro.sample("extra", dist.Normal(torch.zeros(()), 1.0))

    guide = AutoHypernet(growing).setup(torch.ones(1))
    with pytest.raises(ValueError, match="^The latent sites changed: expected"):
        guide.setup(torch.ones(1), more=True)
    with pytest.raises(ValueError, match="^Latent site 'extra' is not among the guide's sites"):
        VectorizedELBO().loss(growing, guide, torch.ones(1), more=True)


def test_a_support_that_depends_on_another_latent():
    def model():
        width = pyro.sample("width", dist.LogNormal(torch.zeros(()), 1.0))
        pyro.sample("inside", dist.Uniform(torch.zeros(()), width))

    with pytest.raises(ValueError, match="^The latent sites changed: expected 'inside'.*a run at other weights has"):
        AutoHypernet(model).setup()


def test_a_model_that_pyro_would_refuse_at_other_weights_is_served():
    """Only the start must be sound: validation of the trial run elsewhere is off."""

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("narrow", torch.where(w.abs().sum() > 0.5, torch.full((), math.nan), torch.zeros(())))

    start = init_to_value(values={"w": torch.zeros(2)})
    assert AutoHypernet(model, init_loc_fn=start).setup().latent_dim == 2


@pytest.mark.parametrize("make", [transforms.planar, transforms.radial, transforms.sylvester])
def test_a_foreign_flow_that_cannot_invert(make):
    with pytest.raises(ValueError, match="^The foreign flow .* cannot invert"):
        AutoHypernet(m.linear, foreign(make)).setup(*DATA)


@pytest.mark.parametrize("make", [transforms.permute, lambda dim: transforms.ExpTransform()])
def test_a_foreign_flow_without_parameters(make):
    with pytest.raises(ValueError, match="^The foreign flow .* has no parameters to train"):
        AutoHypernet(m.linear, foreign(make)).setup(*DATA)


# -- data that it cannot start from --


def test_an_infinite_density_at_the_start_names_the_site():
    def model(y):
        low = pyro.sample("low", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("fine", dist.Normal(low.sum(), 1.0), obs=torch.tensor(0.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Uniform(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"^The density at the start is not finite at site 'y' \(-inf\): check"):
        AutoHypernet(model).setup(torch.tensor([0.5, 2.0]))


def test_a_nan_density_at_the_start_names_the_site():
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.validation_enabled(False):
            pyro.factor("root", (w.sum() * 0 - 1).sqrt())

    with pytest.raises(ValueError, match=r"^The density at the start is not finite at site 'root' \(nan\): check"):
        AutoHypernet(model).setup()


class Spread(pyro.nn.PyroModule):
    def forward(self, x, y=None):
        return m.linear(x, y)


@pytest.mark.parametrize("model", [m.linear, Spread(), m.Network()], ids=["function", "PyroModule", "network"])
@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_nan_in_the_data_names_the_argument(model, name, by_keyword):
    data = {"x": DATA[0].clone(), "y": DATA[1].clone()}
    data[name][3] = math.nan
    count, total = int(data[name].isnan().sum()), data[name].numel()
    args, kwargs = ((), data) if by_keyword else (tuple(data.values()), {})
    with pytest.raises(ValueError, match=f"^Argument '{name}' holds NaN in {count} of {total} places"):
        AutoHypernet(model).setup(*args, **kwargs)


def test_masked_nan_in_the_data_is_allowed():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y.nan_to_num())

    y = torch.tensor([1.0, math.nan, 2.0])
    guide = AutoHypernet(model).setup(y)
    assert math.isfinite(VectorizedELBO().loss(model, guide, y))


# -- memory --


def test_too_large_for_memory_says_how_many_bytes_and_allocates_nothing():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(200_000), 1.0).to_event(1))

    guide = AutoHypernet(model, partial(linear, mix="triangular"), "full")
    count = 200_000**2 + 2 * 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError,
        match=rf"^The guide is too large for memory: {count} parameters need {16 * count} bytes \(640 GB\) .*"
        'Use structure="low_rank", "weight_norm" or "last_layer"',
    ):
        guide.setup()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert not list(guide.parameters())
    assert AutoHypernet(model, "identity").setup().latent_dim == 200_000


# -- what the constructor and the methods refuse --


def test_unknown_nicknames_list_the_choices():
    with pytest.raises(
        ValueError, match="^Unknown hypernet 'realnvp'; choose one of auto, by_size, identity, linear, "
    ):
        AutoHypernet(m.linear, "realnvp")
    with pytest.raises(ValueError, match="^Unknown structure 'kronecker'; choose one of auto, informed, full, layerwi"):
        AutoHypernet(m.linear, structure="kronecker")
    with pytest.raises(TypeError, match="^hypernet must be a nickname or a function from a dimension to a Bijection"):
        AutoHypernet(m.linear, 4)
    with pytest.raises(TypeError, match="^structure must be a nickname or a function of"):
        AutoHypernet(m.linear, structure=None)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "small"])
def test_init_scale_out_of_range(value):
    with pytest.raises(ValueError, match="^init_scale must be a positive number or None; got"):
        AutoHypernet(m.linear, init_scale=value)


@pytest.mark.parametrize("value", [0, -1, 2.0, "two"])
def test_num_components_out_of_range(value):
    with pytest.raises(ValueError, match="^num_components must be a positive integer; got"):
        AutoHypernet(m.linear, num_components=value)


def test_samples_whose_names_do_not_fit():
    guide = AutoHypernet(m.linear).setup(*DATA)
    samples = guide.sample_posterior(3)
    with pytest.raises(
        ValueError, match=r"^Samples must hold exactly the latent sites .*missing \['noise'\], unknown \["
    ):
        guide.log_prob({"slope": samples["slope"], "sigma": samples["noise"]})
    with pytest.raises(
        ValueError, match=r"^Samples must hold exactly the latent sites .*missing \[\], unknown \['y'\]"
    ):
        guide.log_prob({**samples, "y": torch.zeros(3, 30)})


def test_samples_whose_shapes_do_not_fit():
    guide = AutoHypernet(m.linear).setup(*DATA)
    samples = guide.sample_posterior(3)
    with pytest.raises(ValueError, match=r"^Samples of site 'slope' must have shape \(..., 2\); got \(3, 4\)"):
        guide.log_prob({**samples, "slope": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match="^Samples of all sites must share their leading axes"):
        guide.log_prob({**samples, "noise": torch.ones(5)})


@pytest.mark.parametrize("num_samples", [0, -3])
def test_number_of_draws_out_of_range(num_samples):
    with pytest.raises(ValueError, match="^num_samples must be at least 1; got"):
        AutoHypernet(m.linear).setup(*DATA).sample_posterior(num_samples)


@pytest.mark.parametrize("quantiles", [[0.5, 1.5], [-0.1], 0.5, [[0.5]], [math.nan]])
def test_quantiles_out_of_range(quantiles):
    with pytest.raises(ValueError, match=r"^quantiles must be a list of probabilities in \[0, 1\]; got"):
        AutoHypernet(m.linear).setup(*DATA).quantiles(quantiles)


@pytest.mark.parametrize("use", [lambda g: g.layout, lambda g: g.describe(), lambda g: g.log_prob({})])
def test_use_before_setup(use):
    with pytest.raises(RuntimeError, match="^The guide does not know its model's sites yet: call guide.setup"):
        use(AutoHypernet(m.linear))


@pytest.mark.parametrize(
    "use", [lambda g: g.bijection, lambda g: g.sample_posterior(2), lambda g: g.sample_and_log_prob(2)]
)
def test_draws_before_setup(use):
    with pytest.raises(RuntimeError, match="^The guide has no parameters yet: call guide.setup"):
        use(AutoHypernet(m.linear))


def test_a_reparametrised_site_starts_without_a_warning():
    """A site that a handler draws by other sites, of which the guide knows only those."""

    @poutine.reparam(config={"step": LatentStableReparam()})
    def model():
        stability = pyro.sample("stability", dist.Uniform(torch.tensor(1.0), 2.0))
        with pyro.plate("time", 4):
            step = pyro.sample("step", dist.Stable(stability, 0.0))
            pyro.sample("y", dist.Normal(step, 1.0), obs=torch.zeros(4))

    assert "step" not in AutoHypernet(model).setup().layout.names


def masked_out(y, mask, prior):
    with poutine.mask(mask=mask):
        pyro.sample("lost", prior)
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("mask", [False, torch.tensor([True, False, True])], ids=["all", "one"])
@pytest.mark.parametrize("prior", [dist.Normal(torch.zeros(3), 1.0), dist.LogNormal(torch.zeros(3), 1.0)])
def test_a_latent_without_prior_and_likelihood_is_refused(mask, prior):
    with pytest.raises(ValueError, match=r"^The prior of latent site 'lost' is masked out in . of 3 places"):
        AutoHypernet(masked_out).setup(torch.tensor(1.0), mask, prior)


def test_a_masked_prior_is_no_fault_where_the_posterior_has_an_integral():
    """Nothing is masked; the support has ends; the likelihood depends on the latent; or obs_mask masks what it must."""

    def likely(y):
        with poutine.mask(mask=False):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    def missing(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=torch.tensor([True, False, True]))

    y = torch.tensor([1.0, 2.0, 3.0])
    AutoHypernet(masked_out).setup(y[0], torch.tensor(True), dist.Normal(torch.zeros(3), 1.0))
    AutoHypernet(masked_out).setup(y[0], False, dist.Beta(torch.ones(3), 1.0))
    AutoHypernet(likely).setup(y)
    assert AutoHypernet(missing).setup(y).layout.names == ("mean", "y_unobserved")


def test_what_obs_mask_leaves_out_has_the_prior_of_what_is_seen():
    """The places that are observed have no prior in Pyro, so that the bound rose for ever: to 27 nats in 200 steps."""
    y, seen = torch.linspace(-1.0, 3.0, 8).double(), torch.arange(8) % 3 > 0

    def model(y, seen):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=seen)

    guide = AutoHypernet(model)
    result = fit(model, guide, (y, seen), num_steps=200, progress=False)
    number = int(seen.sum())
    covariance = torch.eye(number).double() + 4.0
    evidence = dist.MultivariateNormal(torch.zeros(number).double(), covariance).log_prob(y[seen])
    assert result.elbo == pytest.approx(float(evidence), abs=0.5)
    assert bool((guide.sample_posterior(1000)["y_unobserved"].abs() < 20).all())


def test_a_mask_of_the_users_own_stays_whatever_the_name():
    """Only Pyro's pair of sites, one after the other, is taken for what `obs_mask` makes."""

    def model(y):
        with poutine.mask(mask=torch.tensor([True, False])):
            w = pyro.sample("w_unobserved", dist.Normal(y.new_zeros(2), 1.0))
        pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)

    guide = AutoHypernet(model).setup(torch.ones(2))
    w = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    log_p = LogJoint(model, guide.layout)(w, torch.ones(2))
    assert float(log_p[0] - log_p[1]) == pytest.approx((4 - 1) / 2)  # the likelihood alone

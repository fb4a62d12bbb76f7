"""Laws of mixtures of guides: an exact density, and every verb that takes a guide takes a mixture, or says why not."""

import contextlib
import copy
import math
import pickle
import tempfile
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import NeuTraReparam
from torch import nn

import pyro_hypernet as ph
from pyro_hypernet import AutoHypernet, GuideMixture, Plan, VectorizedELBO, bayesianize, fit, load, save, stack
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.evaluation.ppc import replicate
from pyro_hypernet.evaluation.predict import log_likelihood
from pyro_hypernet.evaluation.stacking import _stacking_weights
from pyro_hypernet.guide.disagreement import disagreement_of
from pyro_hypernet.model.density import LogJoint
from tests import small_models as m
from tests.seeds import seed

LINEAR = Plan("full", "linear", rejection=None)
FLOW = Plan("full", "coupling", rejection=None)


def two_modes(y):
    """w² is observed: two modes of equal mass, at ±1.99, far apart."""
    w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
    pyro.sample("y", dist.Normal(w**2, 0.2), obs=y)


Y = (torch.tensor(4.0, dtype=torch.float64),)
STARTS = [{"w": torch.tensor(sign, dtype=torch.float64)} for sign in (-2.0, 2.0)]
LINEAR_DATA = tuple(value.double() for value in m.linear_data())


def linear(x, y=None):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 0.5))
    f = pyro.deterministic("f", x @ slope, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def net(dtype=torch.float64):
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)


CLASSIFIER = bayesianize(net(), "categorical")
LABELLED = LINEAR_DATA[0], torch.arange(len(LINEAR_DATA[0])) % 3


def moved(mixture, *args):
    """Set up, its parameters moved apart from where they start."""
    mixture.setup(*args)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixture


def rejecting():
    mixture = moved(GuideMixture([AutoHypernet(linear, plan=LINEAR) for _ in range(2)]), *LINEAR_DATA)
    mixture.components[0].reject(LINEAR_DATA, rates=0.5)
    return mixture


MIXTURES = {
    "of equal weights": lambda: (
        linear,
        LINEAR_DATA,
        moved(GuideMixture.from_starts(linear, 3, plan=LINEAR), *LINEAR_DATA),
    ),
    "weighted": lambda: (
        linear,
        LINEAR_DATA,
        moved(GuideMixture([AutoHypernet(linear, plan=FLOW) for _ in range(2)], log_weights=[1.0, 0.0]), *LINEAR_DATA),
    ),
    "of different structures": lambda: (
        linear,
        LINEAR_DATA,
        moved(
            GuideMixture(
                [
                    AutoHypernet(linear),
                    AutoHypernet(linear, "identity"),
                    AutoHypernet(linear, "coupling", "full", num_components=2),
                ]
            ),
            *LINEAR_DATA,
        ),
    ),
    "one of them without a weight": lambda: (
        linear,
        LINEAR_DATA,
        moved(
            GuideMixture([AutoHypernet(linear, plan=LINEAR) for _ in range(3)], log_weights=[0.0, -math.inf, 1.0]),
            *LINEAR_DATA,
        ),
    ),
    "one of them rejecting": lambda: (linear, LINEAR_DATA, rejecting()),
    "of one": lambda: (linear, LINEAR_DATA, moved(GuideMixture([AutoHypernet(linear)]), *LINEAR_DATA)),
    "tempered": lambda: (
        CLASSIFIER,
        LABELLED,
        moved(GuideMixture.from_starts(CLASSIFIER, 2, plan=Plan("full", temperature=0.5)), *LABELLED),
    ),
    "of networks": lambda: (
        CLASSIFIER,
        LABELLED,
        moved(GuideMixture.from_starts(CLASSIFIER, [net(), net()], plan=LINEAR), *LABELLED),
    ),
    "of given starts": lambda: (two_modes, Y, moved(GuideMixture.from_starts(two_modes, STARTS), *Y)),
    "on every support": lambda: (m.supports, (), moved(GuideMixture.from_starts(m.supports, 2, plan=LINEAR))),
    "within plates": lambda: (m.nested_plates, (), moved(GuideMixture.from_starts(m.nested_plates, 2, plan=LINEAR))),
}


@pytest.fixture(params=MIXTURES.values(), ids=MIXTURES.keys())
def case(request):
    pyro.set_rng_seed(seed(0))
    return request.param()


def by_hand(mixture, w):
    """log Σ π_k q_k, every density by its component."""
    pairs = zip(mixture.log_weights.tolist(), mixture.components, strict=True)
    parts = [log_weight + part.unconstrained_log_prob(w) for log_weight, part in pairs]
    return torch.stack(parts).logsumexp(0)


@torch.no_grad()
def test_the_density_is_that_of_the_mixture_however_it_is_drawn(case):
    _, _, mixture = case
    tolerance = {"rtol": 1e-3, "atol": 1e-2} if mixture.layout.dim and _dtype(mixture) == torch.float32 else {}
    w, log_q = mixture.sample_and_log_prob(40)
    strata, log_of_strata, shares = mixture.sample_strata(10)
    assert float(shares.sum()) == pytest.approx(1)
    for points, found in ((w, log_q), (strata, log_of_strata)):
        torch.testing.assert_close(found, by_hand(mixture, points), **tolerance)
    values, log_det = mixture.layout.constrain(w)
    torch.testing.assert_close(mixture.log_prob(values), log_q - log_det, **tolerance)
    posterior = mixture.get_posterior()
    for shape in ((), (4,), (2, 3)):
        assert posterior.log_prob(posterior.sample(shape)).shape == shape


def _dtype(mixture):
    return next(mixture.components[0].parameters()).dtype


@torch.no_grad()
def test_draws_are_of_every_component_in_proportion(case):
    """Means of 4 000 draws within 6 standard errors, over at most 40 coordinates: one false alarm in 10⁷."""
    _, _, mixture = case
    layout, num = mixture.layout, 4000
    w, _, shares = mixture.sample_strata(num)
    centre = w.median(0).values
    bounded = torch.tanh(w - centre)
    expected, spread = (shares[:, None] * bounded).sum(0), bounded.std(0) + 1e-3
    ways = {
        "sample_posterior": layout.unconstrain(mixture.sample_posterior(num))[0],
        "sample_and_log_prob": mixture.sample_and_log_prob(num)[0],
        "posterior": mixture.get_posterior().sample((num,)),
    }
    for name, draws in ways.items():
        error = (torch.tanh(draws - centre).mean(0) - expected).abs() / spread * (num / 2) ** 0.5
        assert float(error.max()) < 9, name  # that of both, weights of strata allowed for


@torch.no_grad()
def test_quantiles_are_those_of_the_draws(case):
    """Shares of 4 000 draws below within .05, 6 standard errors at least."""
    _, _, mixture = case
    draws = mixture.layout.unconstrain(mixture.sample_posterior(4000))[0]
    found = mixture.layout.unconstrain(mixture.quantiles([0.1, 0.5]))[0]
    below = (draws[:, None] < found).double().mean(0)
    assert float((below - torch.tensor([[0.1], [0.5]])).abs().max()) < 0.05
    for name, value in mixture.median().items():
        torch.testing.assert_close(value, mixture.quantiles([0.5])[name][0], rtol=0, atol=0)


def test_copies_and_files_draw_the_same(case, tmp_path):
    model, args, mixture = case
    mixture.disagreement = ph.GuideMixture.measure_disagreement(mixture, *args) if args else None
    save(mixture, tmp_path / "mixture.safetensors")
    again = [copy.deepcopy(mixture), load(tmp_path / "mixture.safetensors", model, *args)]
    if mixture.components[0].rejection is None and not any(part.knowledge for part in mixture.components):
        again.append(pickle.loads(pickle.dumps(mixture)))
    pyro.set_rng_seed(seed(1))
    expected = mixture.sample_posterior(6)
    for other in again:
        assert repr(other.disagreement) == repr(mixture.disagreement)  # NaN of a single one included
        pyro.set_rng_seed(seed(1))
        for name, value in other.sample_posterior(6).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
        torch.testing.assert_close(other.log_prob(expected), mixture.log_prob(expected), rtol=0, atol=0)


def test_pyro_runs_it_as_any_guide(case):
    model, args, mixture = case
    trace = poutine.trace(mixture).get_trace(*args)
    values = {name: trace.nodes[name]["value"].detach() for name in mixture.layout.names}
    values = {site.name: values[site.name].reshape(site.shape) for site in mixture.layout.sites}
    torch.testing.assert_close(
        trace.log_prob_sum().detach().double(), mixture.log_prob(values).detach().double(), rtol=1e-3, atol=1e-3
    )
    assert math.isfinite(Trace_ELBO().loss(model, mixture, *args))
    found = Predictive(model, guide=mixture, num_samples=2)(*args)
    assert set(found) >= {name for name in mixture.layout.names if trace.nodes[name]["is_observed"]}


@pytest.mark.parametrize("make", [Trace_ELBO, lambda: VectorizedELBO(4)], ids=["Trace_ELBO", "VectorizedELBO"])
def test_svi_trains_all_components_together(make):
    """And every parameter stands in the store under one name."""
    pyro.set_rng_seed(seed(0))
    pyro.clear_param_store()
    mixture = GuideMixture.from_starts(linear, 2, plan=LINEAR).setup(*LINEAR_DATA)
    before = [parameter.detach().clone() for parameter in mixture.parameters()]
    svi = SVI(linear, mixture, pyro.optim.Adam({"lr": 0.01}), make())
    for _ in range(12):
        svi.step(*LINEAR_DATA)
    moved_ones = [not torch.equal(old, new) for old, new in zip(before, mixture.parameters(), strict=True)]
    assert all(moved_ones)
    assert len(pyro.get_param_store()) == len(moved_ones)


def test_gradients_of_the_bound_are_unbiased():
    """Of 200 000 draws of two normals with fixed weights: within 6 standard errors of what quadrature gives."""
    pyro.set_rng_seed(seed(0))
    mixture = GuideMixture.from_starts(two_modes, STARTS, plan=Plan("full", "identity"))
    mixture.setup(*Y).set_log_weights([0.0, 1.0])
    leaves, log_joint = list(mixture.parameters()), LogJoint(two_modes, mixture.layout)
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]
    q = mixture.unconstrained_log_prob(grid)
    value = log_joint(grid, *Y).detach()
    assert torch.trapezoid(q.exp(), grid[:, 0]).item() == pytest.approx(1, abs=1e-6)
    expected = torch.autograd.grad(torch.trapezoid(q.exp() * (value - q), grid[:, 0]), leaves)
    w, log_q, shares = mixture.sample_strata(200_000)
    found = torch.autograd.grad((shares * (log_joint(w, *Y) - log_q)).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_two_modes_are_worth_a_bit():
    """The bound of the mixture is that of a component and log 2: both 3 · 10⁻² off at most, with margin."""
    pyro.set_rng_seed(seed(0))
    mixture = GuideMixture.from_starts(two_modes, STARTS, plan=Plan("full", "linear"))
    result = fit(two_modes, mixture, Y, num_steps=300, optim=0.02, progress=False)
    assert result.num_steps == 300
    assert mixture.log_weights.tolist() == pytest.approx([-math.log(2)] * 2)
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)[:, None]
    evidence = float(torch.trapezoid(LogJoint(two_modes, mixture.layout)(grid, *Y).exp(), grid[:, 0]).log())
    both, _ = elbo(two_modes, mixture, *Y, num_samples=4000)
    one, _ = elbo(two_modes, mixture.components[0], *Y, num_samples=4000)
    assert both - one == pytest.approx(math.log(2), abs=0.03)
    assert evidence - both == pytest.approx(0, abs=0.03)


def test_fit_trains_each_as_by_itself():
    """Bit by bit."""
    alone = [AutoHypernet(linear, plan=LINEAR).setup(*LINEAR_DATA) for _ in range(2)]
    together = copy.deepcopy(alone)
    options = {"num_steps": 20, "optim": 0.02, "progress": False}
    pyro.set_rng_seed(seed(0))
    for guide in alone:
        guide.setup(*LINEAR_DATA)  # as the mixture's fit does; it draws random numbers
    results = [fit(linear, guide, LINEAR_DATA, **options) for guide in alone]
    pyro.set_rng_seed(seed(0))
    result = fit(linear, GuideMixture(together), LINEAR_DATA, **options)
    for one, other in zip(alone, together, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)
    assert result.elbo == pytest.approx(sum(one.elbo for one in results) / 2)
    torch.testing.assert_close(result.losses, (results[0].losses + results[1].losses) / 2)


def test_an_interrupted_fit_draws_from_what_was_trained():
    model, calls = linear, []

    def batches():
        calls.append(None)
        if len(calls) > 4:  # the first component takes three passes, and one was looked at before
            raise KeyboardInterrupt
        return iter([LINEAR_DATA])

    class Loader:
        __iter__ = staticmethod(batches)

        def __len__(self):
            return 1

    mixture = GuideMixture([AutoHypernet(model, plan=LINEAR) for _ in range(3)])
    warned = pytest.warns(UserWarning, match=r"Only \d of 3 components were trained")
    with warned, contextlib.suppress(KeyboardInterrupt):
        fit(model, mixture, Loader(), num_steps=3, progress=False)
    trained = [guide.is_trained for guide in mixture.components]
    assert 0 < sum(trained) < 3
    assert (mixture.log_weights > -math.inf).tolist() == trained
    assert mixture.sample_posterior(10)["noise"].shape == (10,)


VERBS = {
    "predict": lambda model, guide, args: ph.predict(model, guide, *args, num_samples=10),
    "log_likelihood": lambda model, guide, args: log_likelihood(model, guide, *args, num_samples=10),
    "replicate": lambda model, guide, args: replicate(model, guide, *args, num_samples=20),
    "elbo": lambda model, guide, args: elbo(model, guide, *args, num_samples=20),
    "khat": lambda model, guide, args: ph.khat(model, guide, *args, num_samples=200),
    "loo": lambda model, guide, args: ph.loo(model, guide, *args, num_samples=200),
    "diagnose": lambda model, guide, args: ph.diagnose(model, guide, *args, num_samples=200, max_seconds=0),
    "resample": lambda model, guide, args: ph.resample(model, guide, *args, num_samples=10).samples,
    "metropolis": lambda model, guide, args: ph.metropolis(model, guide, *args, num_samples=10, num_chains=2),
    "move": lambda model, guide, args: ph.move(model, guide, *args, num_samples=10, num_moves=1, num_leapfrogs=2),
    "refine": lambda model, guide, args: (
        ph.refine(model, *args, guide=guide, num_samples=80, num_moves=2, progress=False).coverage
    ),
    "compare": lambda model, guide, args: ph.compare(
        {"mixture": guide}, guide.sample_posterior(40), model, *args, num_samples=40
    ),
    "fits_agree": lambda model, guide, args: ph.fits_agree(model, [guide, *guide.components], *args, num_samples=10),
    "to_arviz": lambda model, guide, args: ph.to_arviz(model, guide, *args, num_samples=12, num_prior_samples=2),
    "report": lambda model, guide, args: ph.report(
        model, guide, *args, out=tempfile.mkdtemp(), diagnosis=VERBS["diagnose"](model, guide, args)
    ),
    "sbc": lambda model, guide, args: ph.sbc(
        model, *args, train=lambda own, *data: guide, num_simulations=2, num_draws=20, num_processes=1
    ),
    "describe": lambda model, guide, args: guide.describe(),
    "AutoGuideList": lambda model, guide, args: _in_a_list(model, guide, args),
}


def _in_a_list(model, guide, args):
    together = pyro.infer.autoguide.AutoGuideList(model)
    together.append(copy.deepcopy(guide))
    return together(*args)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_every_verb_takes_a_mixture(verb):
    pyro.set_rng_seed(seed(0))
    mixture = GuideMixture.from_starts(linear, 2, plan=LINEAR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing was trained
        mixture.setup(*LINEAR_DATA)
        assert verb(linear, mixture, LINEAR_DATA) is not None


REFUSED = {
    "NeuTra by nuts": (lambda model, guide, args: ph.nuts(model, *args, guide=guide), TypeError, "mixture.components"),
    "NeuTraReparam": (
        lambda model, guide, args: poutine.trace(NeuTraReparam(guide).reparam(model)).get_trace(*args),
        ValueError,
        "NeuTraReparam",
    ),
    "best_start": (lambda model, guide, args: ph.best_start(model, guide, args), TypeError, "one by one"),
}


@pytest.mark.parametrize(("verb", "error", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_what_needs_one_map_says_so(verb, error, match):
    mixture = GuideMixture.from_starts(linear, 2, plan=LINEAR).setup(*LINEAR_DATA)
    with pytest.raises(error, match=match):
        verb(linear, mixture, LINEAR_DATA)


WRONG = {
    "none": (lambda: GuideMixture([]), ValueError, "needs guides"),
    "twice": (lambda: GuideMixture([AutoHypernet(linear)] * 2), ValueError, "each once"),
    "another guide": (lambda: GuideMixture([AutoNormal(linear)]), TypeError, "AutoNormal"),
    "too many weights": (lambda: GuideMixture([AutoHypernet(linear)], log_weights=[0.0, 0.0]), ValueError, "1 numbers"),
    "NaN": (lambda: GuideMixture([AutoHypernet(linear)], log_weights=[math.nan]), ValueError, "none NaN"),
    "no weight": (lambda: GuideMixture([AutoHypernet(linear)], log_weights=[-math.inf]), ValueError, "least finite"),
    "other sites": (
        lambda: GuideMixture([AutoHypernet(linear).setup(*LINEAR_DATA), AutoHypernet(two_modes).setup(*Y)]),
        ValueError,
        "another component",
    ),
    "temperatures": (
        lambda: GuideMixture([AutoHypernet(linear, plan=Plan("full", temperature=t)) for t in (1.0, 0.1)]).setup(
            *LINEAR_DATA
        ),
        ValueError,
        "one temperature",
    ),
    "no starts": (lambda: GuideMixture.from_starts(linear, 0), ValueError, "at least 1"),
    "a number of another kind": (lambda: GuideMixture.from_starts(linear, 2.5), TypeError, "float"),
    "starts of another network": (
        lambda: GuideMixture.from_starts(CLASSIFIER, [nn.Linear(2, 3).double()]),
        ValueError,
        "'0.weight'",
    ),
    "nets for another model": (lambda: GuideMixture.from_starts(linear, [net()]), TypeError, "dicts"),
    "learnt parameters": (
        lambda: GuideMixture.from_starts(learns_its_noise, 2).setup(*LINEAR_DATA),
        ValueError,
        "parameters of its own",
    ),
    "learnt parameters of one model": (
        lambda: GuideMixture([AutoHypernet(DIRECTIONS), AutoHypernet(DIRECTIONS)]).setup(*LABELLED),
        ValueError,
        "from_starts",
    ),
    "other bodies": (lambda: GuideMixture(list(map(_last_layer, range(2)))).setup(*LABELLED), ValueError, "differ"),
    "nothing to reset": (lambda: GuideMixture.from_starts(bayesianize(Fixed(), "categorical"), 2), ValueError, "reset"),
    "temperature of loo": (
        lambda: ph.loo(
            linear,
            GuideMixture.from_starts(linear, 2, plan=Plan("full", temperature=0.5)).setup(*LINEAR_DATA),
            *LINEAR_DATA,
        ),
        ValueError,
        "temperature",
    ),
    "stack of a guide": (lambda: stack(linear, AutoHypernet(linear), *LINEAR_DATA), TypeError, "GuideMixture"),
    "draws before setup": (lambda: GuideMixture.from_starts(linear, 2).sample_posterior(3), RuntimeError, "setup"),
}


DIRECTIONS = bayesianize(net(), "categorical", parametrization="weight_norm")


def learns_its_noise(x, y=None):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    noise = pyro.param("noise", torch.tensor(1.0, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, noise.exp()), obs=y)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))

    def forward(self, x):
        return x @ self.weight


def _last_layer(_):
    body = net()
    body[0].requires_grad_(False)
    return AutoHypernet(bayesianize(body, "categorical", sites="last_layer"))


@pytest.mark.parametrize(("make", "error", "match"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_mixture_says_so(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_components_of_a_large_network_start_at_values_of_their_own():
    """With the widths of a guide at a network, and one particle; the first at the network's own values."""
    big = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 3))
    model = bayesianize(big, "categorical")
    x, y = m.linear_data()[0], torch.arange(30) % 3
    mixture = GuideMixture.from_starts(model, 2).setup(x, y)
    assert mixture.components[1].plan == mixture.components[0].plan == AutoHypernet(model).setup(x, y).plan
    first, second = (part.median() for part in mixture.components)
    torch.testing.assert_close(first["0.weight"], big[0].weight, rtol=0, atol=1e-4)
    assert float((first["0.weight"] - second["0.weight"]).abs().mean()) > 0.1


def test_arviz_has_a_chain_of_every_component_that_weighs_the_same():
    mixture = GuideMixture.from_starts(linear, 3, plan=LINEAR).setup(*LINEAR_DATA)
    options = {"num_samples": 12, "num_prior_samples": 0}
    data = ph.to_arviz(linear, mixture, *LINEAR_DATA, **options)
    assert dict(data["posterior"].sizes)["chain"] == 3
    assert dict(data["posterior"].sizes)["draw"] == 4
    parts = torch.tensor(data["posterior"]["slope"].values)
    noise = torch.tensor(data["posterior"]["noise"].values)
    for k, part in enumerate(mixture.components):  # nowhere is its own component less dense than all others
        own = part.log_prob({"slope": parts[k], "noise": noise[k]}).detach()
        log_q = torch.tensor(data["sample_stats"]["log_q"].values[k])
        assert bool((log_q >= own - math.log(3) - 1e-9).all())
    mixture.set_log_weights([0.0, 1.0, 1.0])
    weighted = ph.to_arviz(linear, mixture, *LINEAR_DATA, **options)
    assert dict(weighted["posterior"].sizes)["chain"] == 1
    assert weighted["posterior"].attrs["component_weights"] == pytest.approx(mixture.log_weights.exp().tolist())


def test_stacking_finds_the_weights_of_a_known_mixture():
    """Data of .7 N(−3, 1) + .3 N(3, 1): within .08 of 2 000 data, 7 standard errors; a useless component gets none."""
    pyro.set_rng_seed(seed(0))
    which = torch.rand(2000, dtype=torch.float64) < 0.3
    y = torch.randn(2000, dtype=torch.float64) + torch.where(which, 3.0, -3.0)
    centres = torch.tensor([-3.0, 3.0, 30.0], dtype=torch.float64)
    weights = _stacking_weights(dist.Normal(centres[:, None], 1.0).log_prob(y))
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64), rtol=0, atol=0.08)
    with pytest.raises(ValueError, match="1 of 2 held-out"):
        _stacking_weights(torch.tensor([[0.0, -math.inf]], dtype=torch.float64))


def test_stack_weighs_by_held_out_data():
    """A component that was trained is worth more than one whose slopes are far off."""
    pyro.set_rng_seed(seed(0))
    values = [{"slope": torch.full((2,), slope).double()} for slope in (1.0, -1.0)]
    mixture = GuideMixture.from_starts(linear, values, plan=Plan("full", "identity", init_scale=0.05))
    found = stack(linear, mixture.setup(*LINEAR_DATA), *LINEAR_DATA)
    assert float(found.weights[0]) > 0.9
    assert found.scores[0] > found.scores[1]
    assert found.score >= float(found.scores.max()) - 1e-6
    torch.testing.assert_close(mixture.log_weights.exp(), found.weights)


def step_model(x):
    """Classes by the sign of a slope, or a slope times x."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=slope * x))


def line_model(x):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0))


@pytest.mark.parametrize(("model", "between", "measure"), [(step_model, 1.0, "classes"), (line_model, 4.0, "distance")])
def test_disagreement_of_what_is_known(model, between, measure):
    """Slopes 1 and −1 of one component, 3 and −1 … : opposite signs name opposite classes; distances are of slopes."""
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    found = disagreement_of(model, [{"slope": torch.full((3,), 3.0)}, {"slope": torch.full((3,), -1.0)}], (x,), {})
    assert found.within == pytest.approx(0, abs=1e-4)
    assert found.measure == measure
    scale = 1.0 if measure == "classes" else float(x.square().mean().sqrt() / x.std())  # the mean slope is 1
    assert found.between == pytest.approx(between * scale, rel=1e-4)
    assert f"{found}" in f"{found} {found}"


def test_describe_says_weights_and_disagreement():
    mixture = GuideMixture.from_starts(CLASSIFIER, 2, plan=LINEAR)
    fit(CLASSIFIER, mixture, LABELLED, num_steps=2, progress=False)
    text = mixture.describe()
    assert "weights 0.5, 0.5" in text
    assert "between components" in text
    assert "AutoHypernet: 21 weights" in text

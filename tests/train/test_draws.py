"""Draws that not all data share: the bound's expectation and gradient are the same, and their variance is less."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Checkpoint, GuideMixture, Plan, VectorizedELBO, bayesianize, fit
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.train import optimiser as optimiser_module
from pyro_hypernet.train import step as step_module
from pyro_hypernet.train.optimiser import Optimiser
from tests.seeds import seed
from tests.train.conjugate import make_data, regression

# Estimates compared, and particles of each.
REPEATS, PARTICLES = 40, 200
pytestmark = pytest.mark.filterwarnings("ignore:The loss rose above")
# Of the mean difference of two times REPEATS estimates in standard errors, over at most 100 numbers at once: exceeded
# by chance with a probability below 1e-5.
MOST = 6.5


class Positions(nn.Module):
    """A layer at every position of a datum, then one for their mean."""

    def __init__(self):
        super().__init__()
        self.each, self.all = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.all(self.each(x).tanh().prod(1))


class Twice(Positions):
    """A layer that is called twice, so that its weights are one draw for all data."""

    def __init__(self):
        super().__init__()
        self.each = nn.Linear(3, 3)

    def forward(self, x):
        return self.all(self.each(self.each(x).tanh()).tanh())


class Read(Twice):
    """A layer whose weight something else reads."""

    def forward(self, x):
        return self.all(self.each(x).tanh() @ self.each.weight)


class PositionsFirst(Positions):
    """The data along the second axis of a layer's inputs, as many positions as data."""

    def forward(self, x):
        return self.all(self.each(x.transpose(0, 1)).tanh().prod(0))


def dense():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def convolution():
    layers = nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, groups=2, bias=False), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2, 2))


# The network, the shape of a datum, options, and how many of its sites are drawn anew.
NETWORKS = {
    "dense": (dense, (3,), {}, 4),
    "only weights": (dense, (3,), {"sites": ["*.weight"]}, 2),
    "only biases": (dense, (3,), {"sites": ["*.bias"]}, 2),
    "convolution": (convolution, (1, 4, 4), {}, 5),
    "positions": (Positions, (4, 2), {}, 4),
    "positions first": (PositionsFirst, (6, 2), {}, 2),
    "called twice": (Twice, (3,), {}, 2),
    "read elsewhere": (Read, (3,), {}, 2),
    "learnt noise": (dense, (3,), {"likelihood": "gaussian"}, 4),
    "other priors": (dense, (3,), {"prior": {"0.weight": "ard", "2.bias": dist.Laplace(0.0, 1.0), "*": 0.7}}, 3),
}


def problem(name):
    """A network of `bayesianize` in float64, a mean field around it, and six data."""
    make, shape, options, _ = NETWORKS[name]
    pyro.set_rng_seed(seed(1))
    net, x = make().double(), torch.randn(6, *shape, dtype=torch.float64)
    if "prior" in options:
        options = {"prior": {**options["prior"], "2.bias": dist.Laplace(x.new_zeros(()), 1.0)}}
    y = torch.randn(6, 2, dtype=x.dtype) if "likelihood" in options else torch.tensor([0, 1, 1, 0, 1, 0])
    model = bayesianize(net, **{"likelihood": "categorical", **options}, num_data=30)
    guide = AutoHypernet(model, plan=Plan("full", "identity", init_scale=0.8)).setup(x, y)
    return model, guide, (x, y)


def estimates(model, guide, args, repeats=REPEATS, **options):
    """Losses and gradients of so many estimates, shape `(repeats, 1 + parameters)`."""
    elbo, rows = VectorizedELBO(**{"num_particles": PARTICLES, "compile": "off", **options}), []
    learnt = model.parameters() if isinstance(model, nn.Module) else ()
    leaves = [*guide.parameters(), *(parameter for parameter in learnt if parameter.requires_grad)]
    for _ in range(repeats):
        loss = elbo.differentiable_loss(model, guide, *args)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        rows.append(torch.cat([loss.detach()[None], *(g.flatten() for g in gradients if g is not None)]))
    return torch.stack(rows)


def distance(one, other):
    """Greatest difference of two samples' means, in standard errors; what has no spread must be the same."""
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    gap = (one.mean(0) - other.mean(0)).abs()
    assert bool((gap[error == 0] <= 1e-9).all())
    return float((gap / error)[error > 0].max())


DREW_MORE = ("dense", "other priors")


@pytest.mark.parametrize("name, gradient", [*((n, "path") for n in NETWORKS), *((n, "total") for n in DREW_MORE)])
def test_local_has_the_expectation_of_the_bound(name, gradient):
    """By the tails of Student's t with 78 degrees of freedom a false alarm is rarer than 1 in 10 000."""
    model, guide, args = problem(name)
    ours = estimates(model, guide, args, draws="local", gradient=gradient)
    assert distance(ours, estimates(model, guide, args, gradient=gradient)) < MOST


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_draw_anew_where_a_datum_has_weights_of_its_own(name):
    model, guide, args = problem(name)
    elbo = VectorizedELBO(1, draws="local")
    elbo.prepare(model, guide, args, {})
    assert len(elbo._drawing._local.sites) == NETWORKS[name][3]


def test_the_network_is_as_it_was():
    model, guide, args = problem("convolution")
    before = {name: (type(module), dict(vars(module))) for name, module in model.net.named_modules()}
    VectorizedELBO(2, draws="local").loss(model, guide, *args)
    for name, module in model.net.named_modules():
        kind, attributes = before[name]
        assert type(module) is kind
        assert vars(module).keys() == attributes.keys()


def of_a_plate(x, y, noise=0.5):
    """Scaled to 30 data, as many of them as there are rows drawn."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.3))
    with pyro.plate("data", 30, subsample_size=len(x)):
        pyro.sample("y", dist.Normal((x @ weight).tanh() * scale, noise), obs=y)


def all_at_once(x, y):
    """Not scaled."""
    with pyro.poutine.scale(scale=1 / 5):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, (x @ weight).tanh(), 0.5), obs=y)


# The model, options of the guide, and how many draws share six rows.
SPLIT = {
    "scaled": (of_a_plate, {"hypernet": "linear"}, 2),
    "parts of unequal length": (of_a_plate, {}, 4),
    "more draws than rows": (of_a_plate, {}, 8),
    "not scaled": (all_at_once, {}, 4),
    "a mixture": (all_at_once, {"num_components": 2}, 5),
    "a mixture, scaled": (of_a_plate, {"num_components": 2}, 4),
    "a mixture of more draws than rows": (all_at_once, {"num_components": 2}, 8),
}


@pytest.mark.parametrize("name, gradient", [*((name, "path") for name in SPLIT), ("a mixture, scaled", "total")])
def test_split_has_the_expectation_of_the_bound(name, gradient):
    """Of estimates that each are means of a few; false alarms as above."""
    model, options, number = SPLIT[name]
    pyro.set_rng_seed(seed(2))
    x = torch.randn(6, 2, dtype=torch.float64)
    args = x, x.sum(1) + torch.arange(6)
    guide = AutoHypernet(model, **{"hypernet": "identity", "structure": "full", "init_scale": 0.8, **options}).setup(
        *args
    )
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    samples = {"draws": "split", "num_particles": number, "gradient": gradient}
    ours = estimates(model, guide, args, 400, **samples).reshape(40, 10, -1).mean(1)
    assert distance(ours, estimates(model, guide, args, gradient=gradient)) < MOST


@pytest.mark.parametrize("draws", ["split", "local"])
def test_of_a_linear_network_the_mean_gradient_is_the_exact_one(draws):
    """Normal noise and prior: the bound of a mean field is known as a function of centres and widths."""
    pyro.set_rng_seed(seed(3))
    x, noise, number = torch.randn(5, 3, dtype=torch.float64), 0.5, 40
    y = x.sum(1) + noise * torch.randn(5, dtype=x.dtype)
    net = nn.Linear(3, 1, bias=False).double()
    model = bayesianize(net, Gaussian(sigma=noise), prior=1.0, num_data=number)
    guide = AutoHypernet(model, plan=Plan("full", "identity", init_scale=0.3)).setup(x, y)
    loc, log_scale = (parameter.detach().clone().requires_grad_() for parameter in guide.parameters())
    square = (y - x @ loc) ** 2 + x**2 @ (2 * log_scale).exp()
    fit_to_data = -square.sum() / 2 / noise**2 - 5 * math.log(noise * math.sqrt(2 * math.pi))
    divergence = ((loc**2 + (2 * log_scale).exp() - 1) / 2 - log_scale).sum()
    loss = divergence - number / 5 * fit_to_data
    exact = torch.cat([loss.detach()[None], *torch.autograd.grad(loss, (loc, log_scale))])
    rows = estimates(model, guide, (x, y), 600, draws=draws, num_particles=5)
    assert bool(((rows.mean(0) - exact).abs() < MOST * (rows.var(0) / len(rows)).sqrt()).all())


@pytest.mark.parametrize("draws, number, theory, most", [("split", 4, 1 / 4, 0.4), ("local", 1, 1 / 64, 0.05)])
def test_the_variance_falls_with_the_number_of_draws(draws, number, theory, most):
    """64 data that say the same of one weight: the gradient of the centre varies by the mean of their draws.

    Over 400 estimates each ratio of variances is off by 10 % in a standard deviation: six of them are allowed.
    """
    pyro.set_rng_seed(seed(4))
    x, y = torch.ones(64, 1, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    model = bayesianize(nn.Linear(1, 1, bias=False).double(), Gaussian(sigma=0.1), num_data=64)
    guide = AutoHypernet(model, plan=Plan("full", "identity", init_scale=0.3)).setup(x, y)
    one = estimates(model, guide, (x, y), 400, num_particles=1)
    ours = estimates(model, guide, (x, y), 400, num_particles=number, draws=draws)
    ratio = float(ours.var(0)[1] / one.var(0)[1])
    assert theory / 2 < ratio < most


def network(likelihood="categorical", **options):
    torch.manual_seed(seed(5))
    return bayesianize(dense(), likelihood, **options)


def classes():
    generator = torch.Generator().manual_seed(seed(6))
    x = torch.randn(50, 3, generator=generator)
    return x, (x[:, 0] > x[:, 1]).long()


def loader():
    return DataLoader(TensorDataset(*classes()), batch_size=16, shuffle=True)  # the last batch holds 2


def trained(draws, args, *, number=3, steps=40, compile="off", **options):
    pyro.clear_param_store()
    model, of_plan = network(), options.pop("plan", Plan())
    guide = AutoHypernet(model, plan=Plan("full", "identity"))
    pyro.set_rng_seed(seed(7))
    elbo = VectorizedELBO(number, draws=draws, compile=compile)
    result = fit(model, guide, args, num_steps=steps, elbo=elbo, progress=False, plan=of_plan, **options)
    return result, torch.cat([parameter.detach() for parameter in guide.parameters()])


FITS = {"minibatches": (loader, Plan(temperature=0.5, anneal=3.0)), "all data": (classes, Plan())}


@pytest.mark.parametrize("draws", ["split", "local"])
@pytest.mark.parametrize("name", FITS)
def test_a_captured_fit_is_the_uncaptured_one(draws, name):
    """Random numbers are the same, rounding alone differs."""
    args, plan = FITS[name]
    one, other = (trained(draws, args(), compile=compile, plan=plan)[0] for compile in ("off", "graph"))
    assert (one.mode, one.compile, other.compile) == ("graph", "off", "graph")
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-3)
    assert one.elbo == pytest.approx(other.elbo, rel=1e-2)


@pytest.mark.parametrize("draws", ["split", "local"])
def test_a_killed_run_goes_on_bit_for_bit(draws, tmp_path, monkeypatch):
    options = {"steps": 20}
    whole = trained(draws, loader(), checkpoint=Checkpoint(tmp_path / "whole", every_seconds=0), **options)
    step, killed = Optimiser.step, Checkpoint(tmp_path / "killed", every_seconds=0)

    def kill(run, *args):
        if len(run.losses) == 9:
            raise KeyError("killed")
        step(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "step", kill)
        with pytest.raises(KeyError):
            trained(draws, loader(), checkpoint=killed, **options)
    result, parameters = trained(draws, loader(), checkpoint=killed, **options)
    assert torch.equal(result.losses, whole[0].losses)
    assert torch.equal(parameters, whole[1])
    assert result.elbo == whole[0].elbo
    with pytest.raises(ValueError, match=f'draws was "{draws}" and is "batch"'):
        trained("batch", loader(), checkpoint=killed, **options)


@pytest.mark.parametrize("draws", ["split", "local"])
def test_long_vectors_in_blocks_take_the_same_path(draws, monkeypatch):
    monkeypatch.setattr(optimiser_module, "_LEAST_WINDOW", 1)  # both keep the parameters of the same step
    plain = trained(draws, [classes()], compile="graph", optim=1e-3)[0].losses
    monkeypatch.setattr(step_module, "_LONG", 1)
    result = trained(draws, [classes()], compile="graph", optim=1e-3)[0]
    assert result.compile_reason.startswith("captured in blocks")
    torch.testing.assert_close(result.losses, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("draws", ["split", "local"])
def test_components_of_a_mixture_are_trained_so(draws):
    model = network()
    plan = Plan("full", "identity")
    mixture = GuideMixture.from_starts(model, 2, plan=plan)
    result = fit(model, mixture, loader(), num_steps=30, elbo=VectorizedELBO(2, draws=draws), progress=False)
    assert bool(result.losses.isfinite().all())


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal])
def test_guides_of_pyro_have_the_same_expectation(autoguide):
    """False alarms as above."""
    pyro.clear_param_store()
    model, _, args = problem("learnt noise")
    guide = autoguide(model, init_scale=0.8)
    guide(*args)
    ours = estimates(model, guide, args, draws="local")
    assert distance(ours, estimates(model, guide, args)) < MOST
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), VectorizedELBO(2, draws="local"))
    assert all(math.isfinite(svi.step(*args)) for _ in range(40))  # the last of them captured


def test_random_numbers_are_passed_over():
    """As a process does that shares batch and draws with others."""
    model, guide, args = problem("dense")
    elbo, losses = VectorizedELBO(2, draws="local"), []
    elbo.prepare(model, guide, args, {})
    for elbo.skip in (0, 0, 1):
        pyro.set_rng_seed(seed(9))
        losses.append(elbo.loss(model, guide, *args))
    assert losses[0] == losses[1] != losses[2]


def outputs_that_meet(x, y):
    """The likelihood of one site is of all rows at once."""
    f = MEETING(x, y)
    pyro.sample("total", dist.Normal(f.sum(), 1.0), obs=f.new_zeros(()))


MEETING = network(num_data=50)


def local_latents(x, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        own = pyro.sample("own", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(own, 1.0), obs=x[:, 0])


def correlated(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    covariance = scale * torch.exp(-(torch.cdist(x, x) ** 2)) + torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=x[:, 0])


# What is asked for, of which model and guide, with which data, and the message.
REFUSED = {
    "another guide": ("local", network(), {"hypernet": "linear", "structure": "full"}, None, "independent normal"),
    "a mixture": ("local", network(), {"hypernet": "identity", "num_components": 2}, None, "num_components=2"),
    "no network": ("local", regression, {"hypernet": "identity"}, make_data(), "no network of bayesianize"),
    "weight norm": (
        "local",
        network(parametrization="weight_norm", sites=["*.weight"]),
        {"hypernet": "identity"},
        None,
        "no layer",
    ),
    "rows that meet": (
        "local",
        outputs_that_meet,
        {"hypernet": "identity", "structure": "full"},
        None,
        "sum over the rows",
    ),
    "one covariance": ("split", correlated, {"hypernet": "identity"}, None, "sum over the rows"),
    "latents of rows": ("split", local_latents, {"hypernet": "identity"}, None, "on a half of its 50 rows"),
    "other lengths": (
        "split",
        lambda x, y: regression(x[:20], y),
        {"hypernet": "identity"},
        (torch.ones(30, 2), torch.ones(20)),
        r"lengths are \[30, 20\]",
    ),
    "one row": (
        "split",
        regression,
        {"hypernet": "identity"},
        (torch.ones(1, 2), torch.ones(1)),
        "first batch holds 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_any_step(name, monkeypatch):
    monkeypatch.setattr(Optimiser, "step", None)
    draws, model, options, args, message = REFUSED[name]
    guide = AutoHypernet(model, **options)
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, guide, classes() if args is None else args, elbo=VectorizedELBO(2, draws=draws), progress=False)
    assert "draws=" in str(caught.value)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="draws must be one of batch, split, local"):
        VectorizedELBO(draws="example")
    with pytest.raises(ValueError, match='needs draws="batch"'):
        VectorizedELBO(draws="split", bound="importance_weighted")


def test_a_last_batch_of_one_row_has_one_draw():
    """Seven rows, then one: what is tried before the first step is the first batch."""
    pyro.set_rng_seed(seed(0))
    x = torch.randn(22, 3)
    model = bayesianize(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)), "gaussian")
    batches = DataLoader(TensorDataset(x, x.sum(1)), batch_size=7)
    elbo = VectorizedELBO(4, draws="split")
    result = fit(model, AutoHypernet(model, "identity", "full"), batches, num_steps=8, elbo=elbo, progress=False)
    assert result.num_skipped == 0
    assert result.losses.isfinite().all()

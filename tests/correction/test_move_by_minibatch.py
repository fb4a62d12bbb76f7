"""Chains by minibatches arrive at the posterior up to a stated bias, whatever batches are, wherever they start."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyro_hypernet import (
    AutoHypernet,
    GuideMixture,
    Plan,
    SghmcKernel,
    bayesianize,
    fit,
    move_by_minibatch,
    nuts,
    predict,
    to_arviz,
)
from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from tests.seeds import seed
from tests.small_models import supports

N, B, D = 200, 40, 3


def data():
    """Correlated inputs: the posterior's correlation is about -.7."""
    generator = torch.Generator().manual_seed(seed(3))
    x, noise = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (N,)))
    x[:, 1] += x[:, 0]
    return x, x.sum(-1) + noise


X, Y = data()


def regression(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
    with pyro.plate("data", N, subsample=y):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def own_batches(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
    with pyro.plate("data", N, subsample_size=B) as index:
        pyro.sample("y", dist.Normal(x[index] @ w, 1.0), obs=y[index])


def exact(temperature=1.0):
    precision = torch.eye(D).double() + X.mT @ X / temperature
    return dist.MultivariateNormal(torch.linalg.solve(precision, X.mT @ Y / temperature), precision_matrix=precision)


def starts(size=64):
    """Half a standard deviation off, and too wide by a half."""
    posterior = exact()
    return {"w": posterior.mean + posterior.precision_matrix.diagonal() ** -0.5 * (1.5 * torch.randn(size, D) + 0.5)}


def loader(**options):
    return DataLoader(TensorDataset(X, Y), batch_size=B, **options)


BATCHES = {
    "all data": lambda: (X, Y),
    "shuffled": lambda: loader(shuffle=True),
    "in order": lambda: [(X[i : i + B], Y[i : i + B]) for i in range(0, N, B)],
    "by name": lambda: [{"x": X[i : i + B], "y": Y[i : i + B]} for i in range(0, N, B)],
    "ragged": lambda: DataLoader(TensorDataset(X, Y), batch_size=45, shuffle=True),
    "with replacement": lambda: loader(sampler=RandomSampler(range(N), replacement=True)),
    "drawn by the model": lambda: (X, Y),
}


def quick(model, posterior, args, **options):
    chosen = {"num_steps": 60, "warmup_steps": 20, "num_samples": 40, "progress": False}
    return move_by_minibatch(model, posterior, args, **{**chosen, **options})


def errors(samples, posterior):
    """Of means in standard deviations, and of standard deviations, the worst of all weights."""
    sd = posterior.covariance_matrix.diagonal().sqrt()
    draws = samples["w"]
    return (draws.mean(0) - posterior.mean).div(sd).abs().max(), (draws.std(0) / sd - 1).abs().max()


def long(posterior, kind, **options):
    """Enough steps that what is left is the bias."""
    model = own_batches if kind == "drawn by the model" else regression
    sizes = {"num_steps": 1000, "warmup_steps": 300, "num_samples": 480, "num_chains": 24}
    return quick(model, posterior, BATCHES[kind](), **sizes, **options)


@pytest.mark.parametrize("kind", BATCHES)
def test_means_and_widths_of_a_gaussian(kind):
    pyro.set_rng_seed(seed(0))
    moved = long(starts(), kind)
    of_means, of_widths = errors(moved.samples, exact())
    # Over 20 seeds of every kind the worst were .31 and .17; medians .04 to .12 and .03 to .06.
    assert of_means < 0.45
    assert of_widths < 0.25


def test_smaller_steps_are_heated_less():
    """Without the correction: the noise of minibatches heats, and less so by smaller steps."""
    pyro.set_rng_seed(seed(0))
    long_steps, short_steps = (SghmcKernel(step_size=h, corrects_noise=False) for h in (0.3, 0.03))
    with pytest.warns(UserWarning, match="times their temperature: .* too wide. Take a step size below 0.3"):
        wide = long(starts(), "with replacement", kernel=long_steps)
    right = long(starts(), "with replacement", kernel=short_steps)
    assert (wide.samples["w"].std(0) / right.samples["w"].std(0)).mean() > 1.2


@pytest.mark.parametrize("temperature", [None, 1.0, 4.0])
def test_temperature_is_that_of_the_guide_unless_another_is_asked_for(temperature):
    pyro.set_rng_seed(seed(0))
    guide = AutoHypernet(regression, plan=Plan("full", "linear", temperature=0.25)).setup(X, Y)
    fit(regression, guide, (X, Y), num_steps=300, optim=0.05, progress=False)
    moved = long(guide, "shuffled", kernel=SghmcKernel(temperature=temperature))
    assert moved.temperature == (temperature or 0.25)
    of_means, of_widths = errors(moved.samples, exact(moved.temperature))
    assert of_means < 0.45
    assert of_widths < 0.3


def simple(**options):
    return AutoHypernet(regression, "identity", "full", **options).setup(X, Y)


STARTS = {
    "guide": simple,
    "several modes": lambda: simple(num_components=3),
    "mixture": lambda: GuideMixture([simple(), simple()]),
    "stored": starts,
    "moved": lambda: quick(regression, starts(), (X, Y)),
}


@pytest.mark.parametrize("kind", STARTS)
def test_what_chains_start_from(kind):
    moved = quick(regression, STARTS[kind](), loader(shuffle=True))
    assert moved.samples["w"].shape == (40, D)
    assert moved.samples_by_chain["w"].shape == (8, 5, D)
    assert moved.stopped_because == "all steps done"
    assert moved.num_steps == 60


def test_a_draw_for_every_start():
    moved = quick(regression, starts(), (X, Y), num_samples=30, num_chains=30)
    assert moved.samples_by_chain["w"].shape == (30, 1, D)


def test_draws_of_cycles_come_from_short_steps():
    kernel = SghmcKernel(num_cycles=3)
    factors = [kernel.factor(share) for share in (0.0, 1 / 6, 0.3333, 0.34, 0.9999)]
    torch.testing.assert_close(factors, [4.0, 1.0, 0.25, 4.0, 0.25], rtol=0.02, atol=0)
    assert quick(regression, starts(), loader(shuffle=True), kernel=kernel).samples["w"].shape == (40, D)


def network():
    torch.manual_seed(seed(0))
    x = torch.linspace(-2, 2, 60)[:, None]
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    return bayesianize(net, num_data=60), x, x[:, 0].sin() + 0.1 * torch.randn(60)


def test_predictions_and_arviz_take_the_result():
    model, x, y = network()
    guide = AutoHypernet(model, plan=Plan(temperature=0.5)).setup(x, y)
    batches = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True)
    moved = quick(model, guide, batches, num_chains=4)
    assert predict(model, moved, x, return_sites=["f"])["f"].shape[:2] == (40, 60)
    data = to_arviz(model, moved, x, y, num_prior_samples=0)
    assert data.posterior["0.weight"].shape[:2] == (4, 10)
    assert data.posterior.attrs["temperature"] == 0.5


@pytest.mark.slow
def test_functions_of_a_network_are_those_of_nuts():
    """The mean distance over inputs of what 16 chains and NUTS predict, in standard deviations of NUTS."""
    model, x, y = network()
    guide = AutoHypernet(model, "identity", "full").setup(x, y)
    fit(model, guide, (x, y), num_steps=1000, progress=False)
    exact = nuts(model, x, y, num_samples=500, warmup_steps=300, num_chains=2)
    batches = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True)
    sizes = {"num_steps": 6000, "warmup_steps": 2000, "num_samples": 800, "num_chains": 16}
    moved = quick(model, guide, batches, **sizes)

    def distance(posterior):
        old, new = (predict(model, p, x, return_sites=["f"])["f"].squeeze(-1) for p in (posterior, exact))
        return wasserstein_over_sd(old, new)

    assert distance(moved) < 0.3 < distance(guide)


def test_every_support_is_kept():
    guide = AutoHypernet(supports).setup()
    moved = quick(supports, guide, ())
    for name, node in guide.prototype_trace.iter_stochastic_nodes():
        value = moved.samples[name]
        assert bool(node["fn"].support.check(value).all()), name
        assert value.shape == (40, *node["value"].shape)


def test_chains_that_meet_no_density_are_put_back():
    """A density that is no number beyond an edge through the middle of the posterior."""
    edge = exact().mean[0]

    def cliff(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
        pyro.factor("edge", (w[0] - edge).sqrt())
        with pyro.plate("data", N, subsample=y):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    pyro.set_rng_seed(seed(0))
    with pytest.warns(UserWarning, match="gradients that were not finite and were put back"):
        moved = quick(cliff, starts(), loader(shuffle=True), num_steps=400, kernel=SghmcKernel(step_size=0.3))
    assert moved.num_returned > 0
    assert bool((moved.samples["w"][:, 0] > edge - 0.2).all())


class Stopping:
    """Batches of which one, late, raises an error."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        for number in range(200):
            if number == 50:
                raise self.error
            yield X[:B], Y[:B]


def test_an_interrupted_run_keeps_its_draws():
    moved = quick(regression, starts(), Stopping(KeyboardInterrupt()), num_samples=80)
    assert moved.stopped_because == "interrupted"
    assert 8 <= len(moved.samples["w"]) < 80


def test_a_batch_that_fails_costs_no_draws():
    with pytest.warns(UserWarning, match="Chains stopped at step .*: disk gone. The draws are kept"):
        moved = quick(regression, starts(), Stopping(OSError("disk gone")), num_samples=80)
    assert moved.stopped_because == "failed"
    assert 8 <= len(moved.samples["w"]) < 80


def test_no_step_is_made_after_the_time():
    moved = quick(regression, starts(), (X, Y), kernel=SghmcKernel(max_seconds=1e-6))
    assert (moved.stopped_because, moved.num_steps) == ("out of time", 0)
    assert moved.samples["w"].shape == (8, D)  # the starts


WRONG = {
    "kernel": ({"kernel": "sghmc"}, TypeError, "kernel must be an SghmcKernel"),
    "steps": ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1"),
    "chains": ({"num_chains": 1}, ValueError, "num_chains must be an integer of at least 2"),
    "warmup": ({"warmup_steps": 60}, ValueError, "too few for 5 draws"),
    "not batches": ({"args": X}, TypeError, "args must be a tuple"),
    "unscaled": ({"args": [(X[:100], Y[:100]), (X[100:150], Y[100:150])], "model": "once"}, ValueError, "scale 1"),
    "one start": ({"posterior": {"w": torch.zeros(1, D).double()}}, ValueError, "At least two draws are needed"),
    "points": ({"posterior": {"w": torch.zeros(9, D).double()}}, ValueError, "do not vary"),
    "other sites": ({"posterior": {"v": torch.randn(9, D).double()}}, ValueError, "exactly the latent sites"),
    "NaN": ({"args": (X, Y * torch.nan)}, ValueError, "NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case):
    def once(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    options, kind, text = WRONG[case]
    chosen = {"posterior": starts(), "args": (X, Y), "model": regression, **options}
    if chosen["model"] == "once":
        chosen["model"] = once
    with pytest.raises(kind, match=text):
        quick(**chosen)


@pytest.mark.parametrize("name", ["step_size", "friction", "num_cycles", "temperature", "max_seconds"])
def test_kernels_that_are_refused(name):
    with pytest.raises(ValueError, match="must be positive"):
        SghmcKernel(**{name: -1 if name == "num_cycles" else 0.0})

"""Guides known to be good or bad, in two sets: one to choose thresholds on, one to try them on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor, nn

from models import PROBLEMS
from models.targets import gaussian
from models.two_modes import two_modes
from pyro_hypernet import AutoHypernet, Optim, Plan, bayesianize, fan_in, fit
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.maps.hypernets import identity
from pyro_hypernet.model.tempered import at_temperature


@dataclass(frozen=True)
class Case:
    """A guide and what is known of it.

    Attributes:
        name: What it is.
        is_good: Whether its verdict should be "use it".
        make: From nothing to (model, args, guide, fit or None).
    """

    name: str
    is_good: bool
    make: Callable[[], tuple[Any, tuple, Any, Any]] = field(repr=False)


def random_gaussian(dim: int, seed: int, correlation: float = 0.5) -> tuple[Tensor, Tensor]:
    """Location and covariance of scales from 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(dim) + correlation * torch.randn(dim, dim, generator=generator)
    scale = torch.logspace(-0.5, 0.5, dim)
    return torch.randn(dim, generator=generator), scale[:, None] * (mix @ mix.T) * scale


def gaussian_guide(model: Any, args: tuple, loc: Tensor, covariance: Tensor) -> AutoMultivariateNormal:
    """Pyro's Gaussian guide set to a mean and a covariance in unconstrained space."""
    guide = AutoMultivariateNormal(model)
    guide(*args)
    tril = torch.linalg.cholesky(covariance.double())
    scale = tril.diagonal()
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.scale = scale.to(loc)
        guide.scale_tril = (tril / scale[:, None]).to(loc)
    return guide


def off_target(dim: int, seed: int, *, width: float = 1.0, shift: float = 0.0, everywhere: bool = True) -> tuple:
    """A Gaussian target and a Gaussian guide of `width` times its sds, `shift` sds away, along all axes or one."""
    loc, covariance = random_gaussian(dim, seed)
    tril = torch.linalg.cholesky(covariance)
    at = torch.ones(dim) if everywhere else torch.eye(dim)[0]
    away = shift * covariance.diagonal().sqrt() * at
    args = (loc, tril)
    return gaussian, args, gaussian_guide(gaussian, args, loc + away, width**2 * covariance), None


def off_conjugate(*, width: float = 1.0, shift: float = 0.0) -> tuple:
    """The conjugate regression and its exact posterior, widened or shifted by sds."""
    problem = PROBLEMS["conjugate-regression"]()
    mean, covariance, sd = (problem.truth[key]["w"] for key in ("mean", "covariance", "sd"))
    guide = gaussian_guide(problem.model, problem.args, mean + shift * sd, width**2 * covariance)
    return problem.model, problem.args, guide, None


def one_mode_of_two() -> tuple:
    """The heavier mode of two-modes, exactly."""
    problem = two_modes()
    mode = problem.truth["modes"][0]["z"]
    variance = 2.0**2 * 0.5**2 / (2.0**2 + 0.5**2)
    guide = gaussian_guide(problem.model, problem.args, mode, variance * torch.eye(2))
    return problem.model, problem.args, guide, None


def three_modes(y: Tensor) -> None:
    """A weight known up to three values."""
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 4.0))
    parts = dist.Normal(torch.stack([z, z + 4.0, z - 4.0]), 0.4)
    pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(probs=torch.tensor([0.6, 0.25, 0.15])), parts), obs=y)


def trained(
    model: Any, args: tuple, *guide_args: Any, num_steps: int = 3000, batches: Any = None, **options: Any
) -> tuple:
    """A guide trained by `fit`; on `batches` where given."""
    guide = AutoHypernet(model, *guide_args, **options)
    result = fit(
        model,
        guide,
        args if batches is None else batches,
        num_steps=num_steps,
        plan=Plan(rejection=None),
        progress=False,
    )
    return model, args, guide, result


def trained_on(name: str, *guide_args: Any, **options: Any) -> tuple:
    """The same on a problem."""
    problem = PROBLEMS[name]()
    return trained(problem.model, problem.args, *guide_args, **options)


def stopped(name: str, share: float, *guide_args: Any, num_steps: int = 5000) -> tuple:
    """A fit of `num_steps` stopped after a share of them, its schedule not yet run down."""
    problem = PROBLEMS[name]()
    guide = AutoHypernet(problem.model, *guide_args)
    steps = int(share * num_steps)
    how = {"optim": Optim(decay=False), "plan": Plan(rejection=None)}
    result = fit(problem.model, guide, problem.args, num_steps=steps, **how, progress=False)
    return problem.model, problem.args, guide, result


def badly_scaled_minibatches(name: str, size: int, num_steps: int = 2000) -> tuple:
    """Trained on minibatches whose likelihood counts twice, not as often as there are batches; judged on all data.

    `fit` refuses minibatches that are not scaled at all.
    """
    problem = PROBLEMS[name]()
    batches = list(zip(*(value.split(size) for value in problem.args), strict=True))
    _, _, guide, result = trained(
        at_temperature(problem.model, 0.5), problem.args, batches=batches, num_steps=num_steps
    )
    return problem.model, problem.args, guide, result


def untrained(name: str, **options: Any) -> tuple:
    """A guide as it starts."""
    problem = PROBLEMS[name]()
    return problem.model, problem.args, AutoHypernet(problem.model, **options).setup(*problem.args), None


def small_network() -> tuple:
    """A 1→3→1 tanh network and 20 data."""
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(-2, 2, 20)[:, None]
    y = torch.tanh(1.5 * x[:, 0]) + 0.1 * torch.randn(20, generator=generator)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    return bayesianize(net, Gaussian(sigma=0.1), prior=fan_in(gain=1.5)), (x, y)


def logistic(x: Tensor, y: Tensor | None = None) -> None:
    """Logistic regression."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    f = pyro.deterministic("f", x @ w, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def logistic_data(num: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and classes drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, dim, generator=generator)
    p = torch.sigmoid(x @ torch.linspace(-1, 1, dim))
    return x, (torch.rand(num, generator=generator) < p).float()


def counts(y: Tensor) -> None:
    """A rate and the shape of its gamma prior."""
    shape = pyro.sample("shape", dist.LogNormal(y.new_zeros(()), 0.5))
    rate = pyro.sample("rate", dist.Gamma(shape, y.new_tensor(1.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def noisy_line(x: Tensor, y: Tensor | None = None) -> None:
    """Linear regression with learnt noise."""
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(x.new_tensor(-1.0), 1.0))
    f = pyro.deterministic("f", x @ slope, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def noisy_data() -> tuple[Tensor, Tensor]:
    """50 rows, three inputs."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(50, 3, generator=generator)
    return x, x.sum(-1) + 0.5 * torch.randn(50, generator=generator)


def _gaussian_args(dim: int, seed: int, correlation: float) -> tuple:
    loc, covariance = random_gaussian(dim, seed, correlation)
    return loc, torch.linalg.cholesky(covariance)


COUNTS = (torch.tensor([3.0, 1, 4, 1, 5]),)

CALIBRATION = [
    Case("exact, 1 weight", True, partial(off_target, 1, 1)),
    Case("exact, 10 weights", True, partial(off_target, 10, 2)),
    Case("exact, 50 weights", True, partial(off_target, 50, 3)),
    Case("5 % too narrow, 3 weights", True, partial(off_target, 3, 4, width=0.95)),
    Case("10 % too wide, 3 weights", True, partial(off_target, 3, 4, width=1.1)),
    Case("0.1 sd off, one of 5 weights", True, partial(off_target, 5, 5, shift=0.1, everywhere=False)),
    Case("funnel, iaf", True, partial(trained_on, "funnel", "iaf", "full", num_steps=4000)),
    Case("logistic, 200 data, linear", True, partial(trained, logistic, logistic_data(200, 3, 0), "linear")),
    Case("counts, coupling", True, partial(trained, counts, COUNTS, "coupling", "full")),
    Case("abx, default, 1000 steps", True, partial(trained_on, "abx", num_steps=1000)),
    Case("noisy line, coupling", True, partial(trained, noisy_line, noisy_data(), "coupling", "full")),
    Case("mean field, 3 weights", False, lambda: trained(gaussian, _gaussian_args(3, 1, 1.0), "identity", "full")),
    Case("1.5 times too narrow, 10 weights", False, partial(off_target, 10, 2, width=1 / 1.5)),
    Case("1.5 times too narrow, 2 weights", False, partial(off_target, 2, 7, width=1 / 1.5)),
    Case("1.5 times too wide, 2 weights", False, partial(off_target, 2, 7, width=1.5)),
    Case("0.6 sd off, one of 5 weights", False, partial(off_target, 5, 5, shift=0.6, everywhere=False)),
    Case("one mode of three", False, partial(trained, three_modes, (torch.tensor(1.0),), "linear", "full")),
    Case("eight schools, linear", False, partial(trained_on, "eight-schools", "linear", "full")),
    Case("banana, linear", False, partial(trained_on, "banana", "linear", "full")),
    Case("wine, 250 steps", False, partial(trained_on, "wine", num_steps=250)),
    Case("small network, mean field", False, lambda: trained(*small_network(), "identity", "full", num_steps=1500)),
]

HELD_OUT = [
    Case("conjugate regression, exact", True, off_conjugate),
    Case("conjugate regression, default", True, partial(trained_on, "conjugate-regression")),
    Case("correlated Gaussian, linear", True, partial(trained_on, "correlated-gaussian", "linear", "full")),
    Case("two modes, two components", True, partial(trained_on, "two-modes", num_components=2)),
    Case("abx, default", True, partial(trained_on, "abx")),
    Case("banana, spline", True, partial(trained_on, "banana", "spline", "full", num_steps=5000)),
    Case("eight schools non-centred, default", True, partial(trained_on, "eight-schools-noncentred", num_steps=5000)),
    Case("logistic, 100 data, default", True, partial(trained, logistic, logistic_data(100, 6, 1))),
    Case("counts, default", True, partial(trained, counts, (torch.tensor([2.0, 0, 7, 3, 3, 2]),))),
    Case("noisy line, default", True, partial(trained, noisy_line, noisy_data())),
    Case("mean field on a correlated Gaussian", False, partial(trained_on, "correlated-gaussian", identity, "full")),
    Case("one mode of two", False, one_mode_of_two),
    Case("too narrow by 2", False, partial(off_conjugate, width=0.5)),
    Case("too wide by 2", False, partial(off_conjugate, width=2.0)),
    Case("1 sd off", False, partial(off_conjugate, shift=1.0)),
    Case("stopped at 5 % of the steps", False, partial(stopped, "eight-schools", 0.05, "coupling", "full")),
    Case("minibatches badly scaled", False, partial(badly_scaled_minibatches, "conjugate-regression", 8)),
    Case("mean field on a funnel", False, partial(trained_on, "funnel", identity, "full")),
    Case("start, almost a point", False, partial(untrained, "conjugate-regression", init_scale=0.01)),
    Case("one mode of a network", False, lambda: trained_on("gap", "linear", "full", num_steps=2000)),
]
SETS = {"calibration": CALIBRATION, "held-out": HELD_OUT}

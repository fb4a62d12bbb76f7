"""What a run leaves behind, and Pyro's own autoguides, all trained alike.

Training is Adam with cosine decay to zero and gradients clipped by their norm.
The loss is VectorizedELBO with total gradients: the estimator of Pyro's Trace_ELBO for these guides, all particles in
one pass of a captured model, so several times faster than Trace_ELBO's loop over particles. Guides start as Pyro starts
them, with `init_scale=0.1` where there is one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions.transforms as transforms
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import autoguide
from torch import Tensor

from models.references import Reference
from pyro_hypernet import predict
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.evaluation.importance import khat_of, weighted_draws
from pyro_hypernet.evaluation.metrics import nll
from pyro_hypernet.evaluation.predict import log_likelihood
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.train.elbo import VectorizedELBO

NUM_DRAWS = 1000
NUM_WEIGHTS = 10_000
CLIP = 100.0
# Pyro's default for couplings is 10 D wide, a million parameters at D = 300; this is what the flows of ours have.
HIDDEN = (64, 64)
Guide = autoguide.AutoContinuous | autoguide.AutoNormal


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        log_weights: log p − log q of independent draws in nats, shape `(10000,)`; for DAIS those of its own bound, on
            its extended space; empty for samplers.
        f: Network outputs at the test inputs for every draw, shape `(1000, n_test, out)`.
        seconds: Wall time of training, compilation included.
        bound: The ELBO in nats, or the log evidence of `refine`; NaN for NUTS.
        bound_error: Its standard error.
        khat: Pareto k-hat of the weights, NaN where there are none.
        log_density: Mean log predictive density of the test targets, in nats.
        notes: What else there is to say, such as the acceptance of `refine`.
    """

    log_weights: np.ndarray = field(repr=False)
    f: Tensor = field(repr=False)
    seconds: float
    bound: float
    bound_error: float
    khat: float
    log_density: float
    notes: dict[str, float]


def judge(
    reference: Reference,
    samples: dict[str, Tensor],
    seconds: float,
    log_weights: np.ndarray | None = None,
    *,
    bound: tuple[float, float] = (math.nan, math.nan),
    notes: dict[str, float] | None = None,
) -> Outcome:
    """Runs the network on the draws of a posterior and sums up its importance weights.

    Args:
        reference: The task.
        samples: A dict from site to draws, shape `(1000, *shape)`.
        seconds: What they took.
        log_weights: In nats, shape `(10000,)`; None for samplers.
        bound: Bound and its error in nats, where they do not follow from the weights.
        notes: Goes into the outcome.

    Raises:
        FloatingPointError: If a draw or a weight is not a number.
    """
    log_weights = np.zeros(0) if log_weights is None else np.asarray(log_weights, dtype=np.float64)
    f = predict(reference.model, samples, reference.x_test, num_samples=NUM_DRAWS, return_sites=["f"])["f"]
    if not bool(f.isfinite().all()) or np.isnan(log_weights).any():
        raise FloatingPointError("The fit ended in weights that are not numbers.")
    log_densities = log_likelihood(reference.model, samples, reference.x_test, reference.y_test, num_samples=NUM_DRAWS)
    khat = math.nan
    if len(log_weights):
        bound = (float(log_weights.mean()), float(log_weights.std(ddof=1)) / math.sqrt(len(log_weights)))
        khat = khat_of(torch.as_tensor(log_weights))
    return Outcome(log_weights, f, seconds, *bound, khat, -float(nll(log_densities["y"])), notes or {})


def train(reference: Reference, guide: Guide, num_steps: int, num_particles: int, learning_rate: float) -> None:
    """Trains a guide in place.

    Args:
        reference: The task.
        guide: One of Pyro's guides over all latent sites.
        num_steps: Number of steps.
        num_particles: Draws in one estimate of the bound.
        learning_rate: Adam's first step size.

    Raises:
        FloatingPointError: If a loss is not a number.
    """
    guide(*reference.args)  # makes the parameters
    elbo = VectorizedELBO(num_particles, gradient="total")
    parameters = [parameter for parameter in guide.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = elbo.differentiable_loss(reference.model, guide, *reference.args)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"The loss at step {step} is {loss.item()}.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()


def measure(reference: Reference, guide: Any, seconds: float, notes: dict[str, float] | None = None) -> Outcome:
    """Draws from a trained guide with a density, Pyro's or ours.

    Args:
        reference: The task.
        guide: The guide.
        seconds: What its training took.
        notes: Goes into the outcome.
    """
    log_weights = weighted_draws(reference.model, guide, *reference.args, num_samples=NUM_WEIGHTS).log_weights
    samples = draws(guide, *reference.args, num_samples=NUM_DRAWS)
    return judge(reference, samples, seconds, log_weights.numpy(), notes=notes)


def run_autoguide(
    make: Callable[[Any], Guide],
    reference: Reference,
    num_steps: int,
    num_particles: int,
    learning_rate: float,
    seed: int,
) -> Outcome:
    """Trains and measures the guide that `make` builds on the model."""
    _reset(seed)
    start = time.perf_counter()
    guide = make(reference.model)
    train(reference, guide, num_steps, num_particles, learning_rate)
    return measure(reference, guide, time.perf_counter() - start)


def run_laplace(reference: Reference, num_steps: int, num_particles: int, learning_rate: float, seed: int) -> Outcome:
    """The mode by Adam, then Pyro's Laplace approximation there; it fails where the Hessian has a wrong sign.

    `num_particles` does not matter: the mode's loss is no estimate.
    """
    _reset(seed)
    start = time.perf_counter()
    delta = _train_mode(reference, num_steps, learning_rate)
    guide = delta.laplace_approximation(*reference.args)
    return measure(reference, guide, time.perf_counter() - start)


def run_radial_on_laplace(
    reference: Reference, num_steps: int, num_particles: int, learning_rate: float, seed: int
) -> Outcome:
    """Five radial layers, trained by the ELBO, over a frozen Gaussian at the mode; see `RadialOnLaplace`.

    Source: Kristiadi, Eschenhagen and Hennig 2022, "Posterior Refinement Improves Sample Efficiency in BNNs".
    """
    _reset(seed)
    start = time.perf_counter()
    delta = _train_mode(reference, num_steps, learning_rate)
    loc = delta.loc.detach()
    scale_tril = laplace_scale_tril(reference, loc, Layout.from_trace(delta.prototype_trace))
    pyro.clear_param_store()
    guide = RadialOnLaplace(reference.model, loc, scale_tril)
    train(reference, guide, num_steps, num_particles, learning_rate)
    return measure(reference, guide, time.perf_counter() - start)


class RadialOnLaplace(autoguide.AutoNormalizingFlow):
    """Radial layers over a Gaussian that is not trained.

    Args:
        model: The Pyro model.
        loc: Mode of the posterior, shape `(D,)`.
        scale_tril: Cholesky factor of the covariance there, shape `(D, D)`.
        num_layers: Number of radial layers.
    """

    def __init__(self, model: Any, loc: Tensor, scale_tril: Tensor, num_layers: int = 5) -> None:
        def make(dim: int) -> ComposeTransformModule:
            layers = [transforms.Radial(dim) for _ in range(num_layers)]
            return ComposeTransformModule([transforms.LowerCholeskyAffine(loc, scale_tril, cache_size=1), *layers])

        super().__init__(model, make)


def laplace_scale_tril(reference: Reference, loc: Tensor, layout: Layout) -> Tensor:
    """Cholesky factor of the covariance of a regularised Laplace approximation.

    The Hessian of −log p in double precision, its eigenvalues raised to the least precision of the prior, below which
    no direction of a generalised Gauss-Newton matrix can fall either: positive definite whatever the network.

    Args:
        reference: The task.
        loc: Mode of the unconstrained posterior, shape `(D,)`.
        layout: The model's latent sites.

    Returns:
        Shape `(D, D)`, in the precision of `loc`.
    """
    log_joint = LogJoint(reference.model, layout, mode="eager")
    args = tuple(value.double() if value.is_floating_point() else value for value in reference.args)
    point = loc.double().requires_grad_()
    log_p = log_joint(point, *args)
    (gradient,) = torch.autograd.grad(log_p, point, create_graph=True)
    hessian = -torch.stack([torch.autograd.grad(entry, point, retain_graph=True)[0] for entry in gradient])
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    floor = min(1.0, min(reference.model.widths[:-1]) / 1.5**2)
    covariance = (vectors / values.clamp(min=floor)) @ vectors.mT
    return torch.linalg.cholesky((covariance + covariance.mT) / 2).to(loc)


def _train_mode(reference: Reference, num_steps: int, learning_rate: float) -> autoguide.AutoLaplaceApproximation:
    delta = autoguide.AutoLaplaceApproximation(reference.model)
    train(reference, delta, num_steps, 1, learning_rate)
    return delta


def _reset(seed: int) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)


def _iaf(model: Any) -> autoguide.AutoIAFNormal:
    dim = _dim(model)
    return autoguide.AutoIAFNormal(model, hidden_dim=[max(64, dim)], num_transforms=2)


def _dim(model: Any) -> int:
    """Number of weights of a ReferenceNet."""
    pairs = zip(model.widths, model.widths[1:], strict=False)
    learns_sigma = model.likelihood == "normal" and model.sigma is None
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairs) + learns_sigma


def _flow(make_layer: Callable[[int], Any], num_layers: int, model: Any) -> autoguide.AutoNormalizingFlow:
    """Layers with the order of the weights reversed in between.

    `iterated` alone, as Pyro's docstrings show it, would never move the first half of the weights from N(0, 1).
    """

    def make(dim: int) -> ComposeTransformModule:
        layers = []
        for _ in range(num_layers):
            layers += [make_layer(dim), transforms.Permute(torch.arange(dim).flip(0), cache_size=1)]
        return ComposeTransformModule(layers)

    return autoguide.AutoNormalizingFlow(model, make)


_GUIDES: dict[str, Callable[[Any], Guide]] = {
    "AutoNormal": partial(autoguide.AutoNormal, init_scale=0.1),
    "AutoMultivariateNormal": partial(autoguide.AutoMultivariateNormal, init_scale=0.1),
    "AutoLowRankMultivariateNormal": partial(autoguide.AutoLowRankMultivariateNormal, init_scale=0.1),
    "AutoIAFNormal": _iaf,
    "4 affine couplings": partial(_flow, partial(transforms.affine_coupling, hidden_dims=list(HIDDEN)), 4),
    "2 spline couplings": partial(_flow, partial(transforms.spline_coupling, hidden_dims=list(HIDDEN)), 2),
}

PYRO_PEERS: dict[str, Callable[..., Outcome]] = {
    **{f"pyro {name}": partial(run_autoguide, make) for name, make in _GUIDES.items()},
    "pyro AutoLaplaceApproximation": run_laplace,
    "radial flow on Laplace": run_radial_on_laplace,
}

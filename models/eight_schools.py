"""Eight schools, centred and non-centred; moments and evidence by quadrature over the one scale.

Source: Rubin, Estimation in parallel randomized experiments, 1981, table 1; priors as in Stan's example.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.problem import Problem

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
SCALE = 5.0


def centred(errors: Tensor, y: Tensor | None = None) -> Tensor:
    """`mu ~ N(0, 5²)`, `tau ~ HalfCauchy(5)`, `theta ~ N(mu, tau²)`, `y ~ N(theta, errors²)`; returns theta, `(8,)`."""
    mu, tau = _population(errors)
    with pyro.plate("schools", len(errors)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=y)
    return theta


def noncentred(errors: Tensor, y: Tensor | None = None) -> Tensor:
    """The same with `theta = mu + tau z`, `z ~ N(0, 1)`."""
    mu, tau = _population(errors)
    with pyro.plate("schools", len(errors)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(errors), 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, errors), obs=y)
    return theta


def _population(errors: Tensor) -> tuple[Tensor, Tensor]:
    mu = pyro.sample("mu", dist.Normal(errors.new_zeros(()), errors.new_tensor(SCALE)))
    return mu, pyro.sample("tau", dist.HalfCauchy(errors.new_tensor(SCALE)))


def exact(errors: Tensor, y: Tensor, *, points: int = 4001) -> dict:
    """Given tau all is Gaussian, so one integral over log tau remains, done by the trapezoidal rule.

    Args:
        errors: Standard errors, shape `(8,)`.
        y: Effects, shape `(8,)`.
        points: Of the grid of log tau, from exp(-12) to exp(12).

    Returns:
        As in `Problem.truth`.
    """
    s, y64 = errors.double(), y.double()
    log_tau = torch.linspace(-12, 12, points, dtype=torch.float64)
    tau = log_tau.exp()
    eye, ones = torch.eye(len(s), dtype=torch.float64), torch.ones(len(s), dtype=torch.float64)
    prior = tau[:, None, None] ** 2 * eye + SCALE**2 * torch.outer(ones, ones)  # of theta
    marginal = prior + torch.diag(s**2)  # of y
    log_joint = dist.MultivariateNormal(0 * y64, marginal).log_prob(y64)
    log_joint = log_joint + dist.HalfCauchy(s.new_tensor(SCALE)).log_prob(tau) + log_tau
    weights = log_joint.softmax(0)
    gain = torch.linalg.solve(marginal, prior).mT
    theta, theta_variance = gain @ y64, (prior - gain @ prior).diagonal(dim1=-2, dim2=-1)
    ratio = SCALE**2 * torch.linalg.solve(marginal, ones.expand(points, -1))
    mu, mu_variance = ratio @ y64, SCALE**2 * (1 - ratio.sum(-1))
    values = {"mu": (mu, mu_variance), "tau": (tau, 0 * tau), "theta": (theta, theta_variance)}
    moments = {name: _moments(weights, *pair) for name, pair in values.items()}
    return {
        "mean": {name: pair[0].to(y.dtype) for name, pair in moments.items()},
        "sd": {name: pair[1].to(y.dtype) for name, pair in moments.items()},
        "log_evidence": float(log_joint.logsumexp(0) + (log_tau[1] - log_tau[0]).log()),
    }


def _moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of a mixture, along the first axis."""
    mean = torch.tensordot(weights, means, dims=1)
    return mean, torch.tensordot(weights, variances + (means - mean) ** 2, dims=1).sqrt()


def eight_schools() -> Problem:
    """The centred form, a funnel."""
    errors, y = torch.tensor(ERRORS), torch.tensor(EFFECTS)
    return Problem(
        name="eight-schools",
        description="A hierarchical model whose posterior narrows like a funnel as tau goes to zero.",
        model=centred,
        args=(errors, y),
        truth=exact(errors, y),
    )


def eight_schools_noncentred() -> Problem:
    """The non-centred form, an easy posterior; its truth leaves out z."""
    errors, y = torch.tensor(ERRORS), torch.tensor(EFFECTS)
    truth = exact(errors, y)
    for key in ("mean", "sd"):
        truth[key].pop("theta")
    return Problem(
        name="eight-schools-noncentred",
        description="The same posterior of mu and tau in coordinates that suit a guide.",
        model=noncentred,
        args=(errors, y),
        truth=truth,
    )

"""Six posteriors of stan-dev/posteriordb as Pyro models, with reference draws read from a folder of `.npz` files.

Source: Magnusson, Torgander, Bürkner et al., posteriordb, arXiv 2407.04967; the models are its Stan files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.eight_schools import noncentred

# Sd of what stands for Stan's flat prior: the kid scores' posterior moves by less than 0.001 of its sds.
FLAT = 1000.0

Samples = Mapping[str, Tensor]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PosteriorDB:
    """A model, its data, and reference draws of its posterior.

    Attributes:
        name: Posteriordb's name, that of the file too.
        model: The Pyro model: the Stan model's density up to a constant, and to its Jacobians.
        args: The model's arguments, data included.
        names: The reference's parameters, such as "beta[1]".
        mean: Their means over all draws, shape `(p,)`.
        sd: Their standard deviations, shape `(p,)`.
        draws: The draws, shape `(10, 1000, p)`.
        to_reference: From a dict from site to draws, shape `(S, *shape)`, to those of the parameters in the order of
            `names`, shape `(S, p)`.
    """

    name: str
    model: Callable[..., Tensor | None]
    args: tuple[Tensor, ...]
    names: tuple[str, ...]
    mean: Tensor = field(repr=False)
    sd: Tensor = field(repr=False)
    draws: Tensor = field(repr=False)
    to_reference: Callable[[Samples], Tensor] = field(repr=False)


def autoregression(past: Tensor, y: Tensor | None = None) -> Tensor:
    """arK: `y ~ N(alpha + past @ beta, sigma²)`.

    Args:
        past: Column k holds the values k + 1 steps before, shape `(T - K, K)`.
        y: The series without its first K values, shape `(T - K,)`.

    Returns:
        The means, shape `(T - K,)`.
    """
    alpha = pyro.sample("alpha", dist.Normal(past.new_zeros(()), 10.0))
    beta = pyro.sample("beta", dist.Normal(past.new_zeros(past.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(past.new_tensor(2.5)))
    return _observe_normal(alpha + past @ beta, sigma, y)


def diamonds(x: Tensor, y: Tensor | None = None) -> Tensor:
    """diamonds: `y ~ N(Intercept + x @ b, sigma²)`, as brms writes it.

    Args:
        x: Centred inputs, shape `(N, 24)`.
        y: Log prices, shape `(N,)`.

    Returns:
        The means, shape `(N,)`.
    """
    b = pyro.sample("b", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, x.new_tensor(8.0), 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, x.new_zeros(()), 10.0)))
    return _observe_normal(intercept + x @ b, sigma, y)


def kid_scores(x: Tensor, y: Tensor | None = None) -> Tensor:
    """kidscore_interaction: `y ~ N(x @ beta, sigma²)`, whose flat prior of beta is here `N(0, FLAT²)`.

    Args:
        x: Ones, whether the mother finished high school, her IQ, and the product of both, shape `(N, 4)`.
        y: The children's scores, shape `(N,)`.

    Returns:
        The means, shape `(N,)`.
    """
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(x.shape[1]), FLAT).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(x.new_tensor(2.5)))
    return _observe_normal(x @ beta, sigma, y)


def gaussian_process(x: Tensor, y: Tensor | None = None) -> None:
    """gp_regr: squared-exponential covariance of sd alpha and length rho; sigma is the noise's variance, as in Stan.

    Args:
        x: Inputs, shape `(N,)`.
        y: Targets, shape `(N,)`.
    """
    rho = pyro.sample("rho", dist.Gamma(x.new_tensor(25.0), 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(x.new_tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(x.new_tensor(1.0)))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * (-0.5 * distance**2).exp() + sigma * torch.eye(len(x), dtype=x.dtype, device=x.device)
    scale_tril, info = torch.linalg.cholesky_ex(covariance)
    # Where rounding leaves no factor the density is NaN, for samplers to reject; `cholesky` would end the whole batch.
    scale_tril = torch.where(info == 0, scale_tril, torch.nan)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), scale_tril=scale_tril), obs=y)


def mixture(y: Tensor) -> None:
    """low_dim_gauss_mix: `y ~ theta N(mu[0], sigma[0]²) + (1 - theta) N(mu[1], sigma[1]²)`, the components summed out.

    Stan's ordered `mu ~ N(0, 2²)` is `centre -+ gap / 2` with `centre ~ N(0, 2)` and `gap ~ HalfNormal(2 sqrt(2))`:
    half the sum and the difference of two independent Gaussians are independent, and the Jacobian is one.

    Args:
        y: Data, shape `(N,)`.
    """
    centre = pyro.sample("centre", dist.Normal(y.new_zeros(()), 2.0**0.5))
    gap = pyro.sample("gap", dist.HalfNormal(y.new_tensor(2.0 * 2.0**0.5)))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0 * y.new_ones(2)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_tensor(5.0), 5.0))
    mu = torch.stack([centre - gap / 2, centre + gap / 2])
    shares = dist.Categorical(logits=torch.stack([theta.log(), (-theta).log1p()]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(shares, dist.Normal(mu, sigma)), obs=y)


def _observe_normal(mean: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
    with pyro.plate("data", len(mean)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)
    return mean


def _in_order(samples: Samples, sites: tuple[str, ...]) -> Tensor:
    """The reference's parameters where they are the sites, one after the other."""
    return torch.cat([samples[site].reshape(len(samples[site]), -1) for site in sites], -1)


def _schools_to_reference(samples: Samples) -> Tensor:
    mu, tau = samples["mu"][:, None], samples["tau"][:, None]
    return torch.cat([mu + tau * samples["z"], mu, tau], -1)


def _mixture_to_reference(samples: Samples) -> Tensor:
    centre, half = samples["centre"][:, None], samples["gap"][:, None] / 2
    return torch.cat([centre - half, centre + half, samples["sigma"], samples["theta"][:, None]], -1)


def _series(data: Arrays) -> tuple[np.ndarray, ...]:
    y, lags = data["y"], int(data["K"])
    return np.stack([y[lags - k : len(y) - k] for k in range(1, lags + 1)], -1), y[lags:]


def _centred_design(data: Arrays) -> tuple[np.ndarray, ...]:
    x = data["X"][:, 1:]  # the first column is the intercept's
    return x - x.mean(0), data["Y"]


def _interaction(data: Arrays) -> tuple[np.ndarray, ...]:
    school, iq = data["mom_hs"], data["mom_iq"]
    return np.stack([np.ones_like(iq), school, iq, school * iq], -1), data["kid_score"]


def _entries(data: Arrays, keys: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    return tuple(data[key] for key in keys)


# Model, the model's arguments from the data of the file, and the way back to the reference's parameters.
_RECIPES: dict[str, tuple[Callable, Callable, Callable]] = {
    "arK-arK": (autoregression, _series, partial(_in_order, sites=("alpha", "beta", "sigma"))),
    "diamonds-diamonds": (diamonds, _centred_design, partial(_in_order, sites=("b", "Intercept", "sigma"))),
    "eight_schools-eight_schools_noncentered": (
        noncentred,
        partial(_entries, keys=("sigma", "y")),
        _schools_to_reference,
    ),
    "gp_pois_regr-gp_regr": (
        gaussian_process,
        partial(_entries, keys=("x", "y")),
        partial(_in_order, sites=("rho", "alpha", "sigma")),
    ),
    "kidiq-kidscore_interaction": (kid_scores, _interaction, partial(_in_order, sites=("beta", "sigma"))),
    "low_dim_gauss_mix-low_dim_gauss_mix": (mixture, partial(_entries, keys=("y",)), _mixture_to_reference),
}
POSTERIORS = tuple(_RECIPES)


def read_posteriordb(folder: str | Path, name: str, dtype: torch.dtype = torch.float32) -> PosteriorDB:
    """Reads one posterior.

    Args:
        folder: The folder that holds `data/posteriordb/NAME.npz`, `posteriordb/NAME.npz` or `NAME.npz`.
        name: One of POSTERIORS.
        dtype: Of data and draws.

    Raises:
        FileNotFoundError: If there is no such file, naming the places looked at.
        ValueError: If the name is none of POSTERIORS.
    """
    if name not in _RECIPES:
        raise ValueError(f"name must be one of {', '.join(POSTERIORS)}; got {name!r}.")
    places = [Path(folder) / part / f"{name}.npz" for part in ("data/posteriordb", "posteriordb", "")]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        looked = f"{places[0]}, {places[1]} or {places[2]}"
        raise FileNotFoundError(f"No posterior of posteriordb at {looked}: pass its folder with --data.")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    data = {key.removeprefix("data_"): value for key, value in arrays.items() if key.startswith("data_")}
    model, to_args, to_reference = _RECIPES[name]
    mean, sd, draws = (torch.as_tensor(arrays[key], dtype=dtype) for key in ("mean", "sd", "draws"))
    return PosteriorDB(
        name=name,
        model=model,
        args=tuple(torch.as_tensor(array, dtype=dtype) for array in to_args(data)),
        names=tuple(str(parameter) for parameter in arrays["names"]),
        mean=mean,
        sd=sd,
        draws=draws,
        to_reference=to_reference,
    )

"""Noise sent through a map, as a distribution over a model's weights: its draws, density and quantiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_hypernet.guide.base import Base, Strata
from pyro_hypernet.maps.bijection import Bijection, in_pieces
from pyro_hypernet.model.layout import PERIOD, Layout, Site
from pyro_hypernet.model.quantiles import quantiles_of

# Draws behind medians and quantiles, and the most numbers that they may hold.
QUANTILE_DRAWS, QUANTILE_NUMBERS = 4096, 2**27
_ONTO_PERIOD = biject_to(PERIOD)


@dataclass(frozen=True)
class Flow:
    """`w = T(eps)`, with the density `log q(w) = log p(eps) − log|det dT/deps|`.

    Attributes:
        noise: The distribution of eps on R^D.
        bijection: The map T, from noise to unconstrained weights.
        layout: The sites that these stand for.
        origin: Zeros of shape `(D,)`; dtype and device of all.
    """

    noise: Base
    bijection: Bijection
    layout: Layout
    origin: Tensor

    def sample_and_log_prob(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draws of w with gradients to all parameters, shape `(S, D)`, and their log q in nats, shape `(S,)`."""
        base = self.noise.distribution()
        eps = base.rsample((num_samples,))
        w, log_det = in_pieces(self.bijection, eps)
        return w, base.log_prob(eps) - log_det

    def sample_strata(self, num_samples: int, share: slice | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As many draws of every component of the noise, their log q, and weights that sum to one, shape `(S,)`.

        With `share` only so many of them, out of the same noise.
        """
        strata = self.noise.sample_strata(num_samples)
        strata = strata if share is None else Strata(*(part[share] for part in strata))
        w, log_det = in_pieces(self.bijection, strata.eps)
        return w, strata.log_prob - log_det, strata.weights

    def log_prob(self, w: Tensor) -> Tensor:
        """log q of unconstrained weights of shape `(..., D)`, in nats, shape `(...)`."""
        eps, log_det = self.bijection.inverse_and_log_det(w)
        return self.noise.log_prob(eps) + log_det

    @torch.no_grad()
    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """A dict from site to draws of shape `(S, *shape)`, without gradient."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
        w = in_pieces(self.bijection, self.noise.distribution().sample((num_samples,)))[0]
        return self.layout.constrain(w)[0]

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """Quantiles of every coordinate of w, on the sites' supports, shape `(Q, *shape)`, from fixed antithetic draws.

        Raises:
            ValueError: If they are no list of Q probabilities.
        """
        num_draws = max(64, min(QUANTILE_DRAWS / self.noise.rate, QUANTILE_NUMBERS // len(self.origin)))
        noise = self.noise.place(self._fixed_noise(2 * (int(num_draws) // 2)))
        return self.layout.constrain(quantiles_of(in_pieces(self.bijection, noise)[0], quantiles))[0]

    @torch.no_grad()
    def looks(self, num_draws: int) -> Tensor:
        """Weights that can be drawn, the same at every call, shape `(num_draws, D)`, `num_draws` even."""
        with pyro.validation_enabled(False):
            return self.bijection.forward_and_log_det(self.noise.place(self._fixed_noise(num_draws)))[0]

    def _fixed_noise(self, num_draws: int) -> Tensor:
        """Antithetic standard normal draws, the same at every call, shape `(num_draws, D)`, `num_draws` even."""
        generator = torch.Generator("cpu").manual_seed(0)
        half = torch.randn(num_draws // 2, len(self.origin), generator=generator, device="cpu", dtype=torch.float64)
        return torch.cat([half, -half]).to(self.origin)


class OntoPeriods(Bijection):
    """A map T followed by the maps of periodic sites onto (−π, π), for which Pyro takes the whole real line.

    Args:
        bijection: T.
        sites: The periodic sites.
    """

    def __init__(self, bijection: Bijection, sites: Sequence[Site]) -> None:
        super().__init__()
        self.bijection, self.sites = bijection, tuple(sites)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, log_det = self.bijection.forward_and_log_det(x)
        parts, at = [], 0
        for site in self.sites:
            inside = w[..., site.slice]
            angle = _ONTO_PERIOD(inside)
            log_det = log_det + _ONTO_PERIOD.log_abs_det_jacobian(inside, angle).sum(-1)
            parts += [w[..., at : site.start], angle]
            at = site.slice.stop
        return torch.cat([*parts, w[..., at:]], -1), log_det

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        parts, at, beyond = [], 0, 0.0
        for site in self.sites:
            angle = y[..., site.slice]
            inside = _ONTO_PERIOD.inv(angle)
            beyond = beyond - _ONTO_PERIOD.log_abs_det_jacobian(inside, angle).sum(-1)
            parts += [y[..., at : site.start], inside]
            at = site.slice.stop
        x, log_det = self.bijection.inverse_and_log_det(torch.cat([*parts, y[..., at:]], -1))
        return x, log_det + beyond

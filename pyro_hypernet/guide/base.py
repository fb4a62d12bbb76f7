"""The noise that a guide's map turns into weights."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Strata(NamedTuple):
    """Draws in equal numbers from every component of a base, with weights for that.

    Attributes:
        eps: Shape `(S, D)`, with pathwise gradients.
        log_prob: In nats, shape `(S,)`.
        weights: They sum to one, shape `(S,)`.
    """

    eps: Tensor
    log_prob: Tensor
    weights: Tensor


class Base(ABC):
    """A distribution on R^D: all that a guide asks of its noise."""

    @property
    def num_components(self) -> int:
        """How many parts of it are drawn from separately."""
        return 1

    @property
    def rate(self) -> float:
        """The share of draws that are kept, in (0, 1]."""
        return 1.0

    @abstractmethod
    def distribution(self) -> dist.TorchDistribution:
        """Draws one by one with pathwise gradients, for Pyro."""

    @abstractmethod
    def log_prob(self, eps: Tensor) -> Tensor:
        """Log density in nats, shape `(...)`, of points of shape `(..., D)`."""

    @abstractmethod
    def place(self, noise: Tensor) -> Tensor:
        """Turns standard normal draws, shape `(S, D)`, into draws of this, the same at every call, shape `(S', D)`."""

    def sample_strata(self, num_samples: int) -> Strata:
        """At least so many draws, as many of every component: of K components each gives `S / K`, rounded up."""
        base = self.distribution()
        eps = base.rsample((num_samples,))
        log_prob = base.log_prob(eps)
        return Strata(eps, log_prob, torch.full_like(log_prob, 1 / num_samples))


class Normal(nn.Module, Base):
    """The standard normal.

    Args:
        origin: Zeros of shape `(D,)`; fixes dtype and device.
    """

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        self.register_buffer("origin", origin, persistent=False)

    def distribution(self) -> dist.TorchDistribution:
        # Not validated: draws that are not finite are for the trainer to count and skip, not to fail on here.
        return dist.Normal(self.origin, torch.ones_like(self.origin), validate_args=False).to_event(1)

    def log_prob(self, eps: Tensor) -> Tensor:
        # As the distribution does, without passes over means and scales.
        return (-(eps**2) / 2 - math.log(math.sqrt(2 * math.pi))).sum(-1)

    def sample_strata(self, num_samples: int) -> Strata:
        eps = torch.randn(num_samples, len(self.origin), dtype=self.origin.dtype, device=self.origin.device)
        log_prob = self.log_prob(eps)
        return Strata(eps, log_prob, torch.full_like(log_prob, 1 / num_samples))

    def place(self, noise: Tensor) -> Tensor:
        return noise

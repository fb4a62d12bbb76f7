"""A mixture of normals as the base of a guide: as many modes as components, drawn in equal numbers."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

# Of every component at the start, where more than one shares the width of the whole.
_COMPONENT_SCALE = 0.5


class MixtureBase(nn.Module):
    """A learnt mixture of K diagonal normals on R^D, its centres spread like the noise, in opposite pairs.

    Args:
        origin: Zeros of shape `(D,)`, D at least 2; fixes dtype and device.
        num_components: K.

    Raises:
        ValueError: If D is 1.
    """

    def __init__(self, origin: Tensor, num_components: int) -> None:
        super().__init__()
        if origin.shape[-1] < 2:
            raise ValueError("num_components > 1 needs at least two unconstrained weights; the model has one.")
        half = torch.randn(-(-num_components // 2), origin.shape[-1])
        locs = torch.stack([half, -half], dim=1).flatten(0, 1)[:num_components]
        self.locs = nn.Parameter(locs.to(origin))
        self.log_scales = nn.Parameter(torch.full_like(self.locs, math.log(_COMPONENT_SCALE)))
        self.logits = nn.Parameter(origin.new_zeros(num_components))

    def distribution(self) -> dist.TorchDistribution:
        """Pyro's own, with pathwise gradients, for Pyro's ELBOs.

        Raises:
            NotImplementedError: While `torch.jit` traces with gradients, as Pyro's Jit ELBOs do.
        """
        if torch.jit.is_tracing():  # which knows no gradients written in Python, such as Pyro's
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    "torch.jit cannot trace the gradients of num_components > 1: in the place of a Jit ELBO use "
                    "Trace_ELBO, VectorizedELBO, or fit."
                )
            parts = dist.Normal(self.locs, self.log_scales.exp(), validate_args=False).to_event(1)
            return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), parts, validate_args=False)
        return dist.MixtureOfDiagNormals(self.locs, self.log_scales.exp(), self.logits)

    def log_prob(self, eps: Tensor) -> Tensor:
        """Log density in nats, shape `(...)`, of points of shape `(..., D)`."""
        parts = dist.Normal(self.locs, self.log_scales.exp(), validate_args=False).log_prob(eps[..., None, :]).sum(-1)
        return (parts + self.logits.log_softmax(-1)).logsumexp(-1)

    def sample_strata(self, num_each: int) -> tuple[Tensor, Tensor]:
        """Draws `num_each` times from every component.

        Returns:
            Draws of shape `(num_each * K, D)`, with pathwise gradients, and their weights, which sum to one.
        """
        noise = torch.randn(num_each, *self.locs.shape, dtype=self.locs.dtype, device=self.locs.device)
        weights = self.logits.softmax(-1).expand(num_each, -1) / num_each
        return (self.locs + self.log_scales.exp() * noise).flatten(0, 1), weights.flatten()

    def place(self, noise: Tensor) -> Tensor:
        """Turns standard normal draws, shape `(S, D)`, into draws of the mixture, each component in proportion."""
        shares = self.logits.softmax(-1).cumsum(-1)
        at = (torch.arange(len(noise), device=noise.device) + 0.5) / len(noise)
        component = torch.searchsorted(shares, at.to(shares)).clamp(max=len(shares) - 1)
        return self.locs[component] + self.log_scales[component].exp() * noise

"""A mixture of normals as the base of a guide: as many modes as components, drawn in equal numbers."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_hypernet.guide.base import Base, Strata

# Of every component at the start, where more than one shares the width of the whole.
_COMPONENT_SCALE = 0.5


class Mixture(nn.Module, Base):
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

    @property
    def num_components(self) -> int:
        return len(self.logits)

    def distribution(self) -> dist.TorchDistribution:
        return DiagonalMixture(self.locs, self.log_scales.exp(), self.logits)

    def log_prob(self, eps: Tensor) -> Tensor:
        return self.distribution().log_prob(eps)

    def sample_strata(self, num_samples: int) -> Strata:
        num_each = -(-num_samples // self.num_components)
        noise = torch.randn(num_each, *self.locs.shape, dtype=self.locs.dtype, device=self.locs.device)
        eps = (self.locs + self.log_scales.exp() * noise).flatten(0, 1)
        weights = self.logits.softmax(-1).expand(num_each, -1) / num_each
        return Strata(eps, self.log_prob(eps), weights.flatten())

    def place(self, noise: Tensor) -> Tensor:
        # Each component in proportion.
        shares = self.logits.softmax(-1).cumsum(-1)
        at = (torch.arange(len(noise), device=noise.device) + 0.5) / len(noise)
        component = torch.searchsorted(shares, at.to(shares)).clamp(max=len(shares) - 1)
        return self.locs[component] + self.log_scales[component].exp() * noise


class DiagonalMixture(dist.TorchDistribution):
    """A mixture of diagonal normals, its pathwise gradients finite in float32 in any number of axes.

    Pyro's MixtureOfDiagNormals has the same gradients, as quotients of densities: in three hundred axes these are zero,
    and the gradients no numbers; nor can torch.jit trace it.

    A draw z moves with a parameter at a velocity v that solves `div(q v) = −∂q/∂parameter`. For a centre that is the
    component's share `r_k = π_k q_k / q` of the density at z, for a scale `r_k (z − μ_k) / σ_k`. For a logit, where
    `∂q/∂logit_k = π_k (q_k − q)`, mass flows in two stages: every component becomes, axis by axis, one with the least
    scales of all, and between two of these it flows along the line through their centres.

    Source: Jankowiak and Karaletsos 2019, arXiv 1806.01856, section 4.3.

    Args:
        locs: Shape `(K, D)`.
        scales: Shape `(K, D)`.
        logits: Of the components, shape `(K,)`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own interface
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, locs: Tensor, scales: Tensor, logits: Tensor) -> None:
        self.locs, self.scales, self.logits = locs, scales, logits
        self.log_shares = logits.log_softmax(-1)
        super().__init__(torch.Size(), locs.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    def log_prob(self, value: Tensor) -> Tensor:
        return (self._log_parts(value).sum(-1) + self.log_shares).logsumexp(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        # Detached, for torch.jit does not record no_grad.
        fixed = DiagonalMixture(self.locs.detach(), self.scales.detach(), self.logits.detach())
        with torch.no_grad():
            which = torch.distributions.Categorical(logits=fixed.log_shares, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            z = fixed.locs[which] + fixed.scales[which] * torch.randn_like(fixed.locs[which])
            share = (fixed._log_parts(z).sum(-1) + fixed.log_shares - fixed.log_prob(z)[..., None]).exp()[..., None]
            by_scale = share * (z[..., None, :] - fixed.locs) / fixed.scales
            by_logit = fixed._flow(z)
        # Zero, but for their gradients.
        locs, scales, logits = self.locs - fixed.locs, self.scales - fixed.scales, (self.logits - fixed.logits)[:, None]
        return z + (share * locs + by_scale * scales + by_logit * logits).sum(-2)

    def _flow(self, z: Tensor) -> Tensor:
        """Velocities of draws of shape `(..., D)` with every logit, shape `(..., K, D)`."""
        shares, log_prob = self.log_shares.exp()[:, None], self.log_prob(z)[..., None]
        least = self.scales.amin(0)
        apart = z[..., None, :] - self.locs
        wide, narrow = self._log_parts(z), _log_normal(apart / least) - least.log()
        before, after = wide.cumsum(-1) - wide, narrow.flip(-1).cumsum(-1).flip(-1) - narrow
        gained = torch.special.ndtr(apart / least) - torch.special.ndtr(apart / self.scales)
        narrowing = gained * _bounded(before + after - log_prob[..., None])

        line = (self.locs[:, None] - self.locs) / least  # from component j, on the second axis, into k, on the first
        line = line / line.square().sum(-1, keepdim=True).sqrt().clamp(min=torch.finfo(z.dtype).tiny)
        along = ((apart / least)[..., :, None, :] * line).sum(-1)  # of z beyond the centre of k
        from_other = ((apart / least)[..., None, :, :] * line).sum(-1)
        log_across = narrow.sum(-1)[..., None] - _log_normal(along) - log_prob[..., None]
        flow = (torch.special.ndtr(from_other) - torch.special.ndtr(along)) * _bounded(log_across)
        moving = ((flow * self.log_shares.exp())[..., None] * line * least).sum(-2)
        return shares * (narrowing - (shares * narrowing).sum(-2, keepdim=True) + moving)

    def _log_parts(self, value: Tensor) -> Tensor:
        """log density of every component in every axis, shape `(..., K, D)`."""
        return dist.Normal(self.locs, self.scales, validate_args=False).log_prob(value[..., None, :])


def _log_normal(values: Tensor) -> Tensor:
    """Log density of the standard normal."""
    return -0.5 * (values.square() + math.log(2 * math.pi))


def _bounded(log_ratio: Tensor) -> Tensor:
    """A ratio of densities; its mean over draws is one at most, so e^30 is one draw in as many, and is a number."""
    return log_ratio.clamp(max=30.0).exp()

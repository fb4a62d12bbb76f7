"""A posterior of BoTorch made of weighted draws of a function, each the same function wherever it is looked at."""

import torch
from botorch.posteriors.posterior import Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor


class WeightedPaths(Posterior):
    """The values of S functions at q points, one function drawn with its weight; noise may be added to it.

    BoTorch's own `EnsemblePosterior` draws another function for every element of a t-batch. Here a sample is one
    function for all b and q (for weights that differ from batch to batch, the one at the same quantile), so what an
    acquisition function says of a candidate does not depend on where in the batch it stands. Base samples are standard
    normal: the samplers of Gaussian processes serve, the quasi-random one by default.

    Gradients flow through values, mean and variance to X; through weights to mean and variance alone.

    Args:
        values: Shape `(*b, S, q, m)`.
        weights: Adding up to one, shape `(*b, S)`; batch axes are broadcast to those of the values.
        noise: Variances of the noise, normal and independent, shape `(*b, S, q, m)`; None for none.
    """

    def __init__(self, values: Tensor, weights: Tensor, noise: Tensor | None = None) -> None:
        self.values, self.weights, self.noise = values, weights, noise

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def batch_shape(self) -> torch.Size:
        """Of the t-batch, `b`."""
        return torch.broadcast_shapes(self.values.shape[:-3], self.weights.shape[:-1])

    @property
    def mean(self) -> Tensor:
        """Shape `(*b, q, m)`."""
        return (self.weights[..., None, None] * self.values).sum(-3)

    @property
    def variance(self) -> Tensor:
        """Of what `rsample` draws from, shape `(*b, q, m)`: one draw alone has none."""
        spread = (self.values - self.mean.unsqueeze(-3)) ** 2
        return (self.weights[..., None, None] * (spread if self.noise is None else spread + self.noise)).sum(-3)

    @property
    def base_sample_shape(self) -> torch.Size:
        # The first row says which function, the others are the noise.
        rows = (1, 1) if self.noise is None else (1 + self.values.shape[-2], self.values.shape[-1])
        return self.batch_shape + torch.Size(rows)

    @property
    def batch_range(self) -> tuple[int, int]:
        return 0, -2

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008 - as BoTorch's
        return sample_shape + self.batch_shape + self.values.shape[-2:]

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        sample_shape = torch.Size([1]) if sample_shape is None else sample_shape
        rows = self.base_sample_shape[-2:]
        shape = sample_shape + torch.Size([1] * len(self.batch_shape)) + rows
        base_samples = torch.randn(shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(sample_shape, base_samples.expand(sample_shape + self.base_sample_shape))

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        if base_samples.shape != sample_shape + self.base_sample_shape:
            raise ValueError(
                f"base_samples must have shape {tuple(sample_shape + self.base_sample_shape)}; got "
                f"{tuple(base_samples.shape)}."
            )
        batch, event, number = self.batch_shape, self.values.shape[-3:], sample_shape.numel()
        base_samples = base_samples.reshape(number, batch.numel(), *self.base_sample_shape[-2:])
        edges = self.weights.detach().cumsum(-1).expand(*batch, -1).reshape(batch.numel(), -1)
        quantiles = torch.special.ndtr(base_samples[..., 0, 0]).mT.contiguous()
        index = torch.searchsorted(edges / edges[:, -1:], quantiles).clamp(max=event[0] - 1).mT
        which = torch.arange(batch.numel(), device=self.device), index
        samples = self.values.expand(*batch, *event).reshape(-1, *event)[which]
        if self.noise is not None:
            noise = self.noise.expand(*batch, *event).reshape(-1, *event)[which]
            samples = samples + noise.sqrt() * base_samples[..., 1:, :]
        return samples.reshape(self._extended_shape(sample_shape))


@GetSampler.register(WeightedPaths)
def _sampler(posterior: WeightedPaths, sample_shape: torch.Size, *, seed: int | None = None) -> SobolQMCNormalSampler:
    """Quasi-random: the first coordinate takes every function about as often as its weight says."""
    return SobolQMCNormalSampler(sample_shape, seed=seed)

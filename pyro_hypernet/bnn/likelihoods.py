"""Likelihoods: what the outputs of a network say about its targets."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import softplus

# Added to a learnt scale, so that no output can make the density infinite.
_LEAST_SCALE = 1e-6


class Likelihood(ABC):
    """Turns outputs of shape `(N, out)` into the distribution of `N` targets, independent of each other.

    Outputs `(N, *positions, out)`, of tokens, time steps or pixels, have a target at every position.
    """

    @abstractmethod
    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        """The targets' distribution, batch shape `(N, *positions)`; samples the likelihood's own latent sites, if any.

        Args:
            f: The network's outputs, shape `(N, *positions, out)`.
        """

    @abstractmethod
    def check_width(self, width: int) -> None:
        """Refuses a network with the wrong number of outputs.

        Args:
            width: The number of outputs, `out`.

        Raises:
            ValueError: Saying how many are needed.
        """

    def check_targets(self, y: Tensor, width: int) -> None:
        """Refuses targets that the likelihood has no density for; reads their values.

        Args:
            y: Targets, those of all positions one after the other, shape `(N,)`; for Gaussian with several outputs
                `(N, out)`.
            width: The number of outputs, `out`.

        Raises:
            ValueError: Saying what is wrong with the shape or the values.
        """
        expected = (y.shape[0], *self.target_shape(width)) if y.dim() else ("N", *self.target_shape(width))
        if tuple(y.shape) != expected:
            hint = "pass y.squeeze(-1)" if y.shape[1:] == (1,) else f"the network has {width} outputs"
            raise ValueError(f"y must have shape {expected} for {self!r}; got {tuple(y.shape)}: {hint}.")

    def target_shape(self, width: int) -> tuple[int, ...]:
        """Shape of one target, `()` unless a subclass says otherwise.

        Args:
            width: The number of outputs, `out`.
        """
        return ()

    def prepare(self, y: Tensor, f: Tensor) -> Tensor:
        """The targets as the distribution wants them: in the dtype of `f`, shape unchanged.

        Args:
            y: Targets.
            f: Outputs, for their dtype.
        """
        return y.to(f.dtype)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """`y ~ Normal(f, sigma)`; targets `(N,)` for one output, `(N, out)` with the same sigma for several.

    Attributes:
        sigma: The noise's standard deviation: a positive number; or a distribution over one, its prior at the site
            "sigma"; None for the prior LogNormal(-1.5, 0.75), which suits standardised targets.

    Raises:
        ValueError: If a fixed sigma is not positive.
    """

    sigma: float | TorchDistributionMixin | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, (int, float, TorchDistributionMixin, type(None))):
            raise ValueError(f"sigma must be a number, a distribution or None; got {self.sigma!r}.")
        if isinstance(self.sigma, (int, float)) and not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive; got {self.sigma!r}. For learnt noise leave it None.")

    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        sigma = self._sigma(f)
        if f.shape[-1] == 1:
            return dist.Normal(f.squeeze(-1), sigma)
        return dist.Normal(f, sigma).to_event(1)

    def check_width(self, width: int) -> None:
        """Any number of outputs will do."""

    def target_shape(self, width: int) -> tuple[int, ...]:
        return () if width == 1 else (width,)

    def _sigma(self, f: Tensor) -> Tensor:
        if isinstance(self.sigma, (int, float)):
            return f.new_tensor(self.sigma)
        default = dist.LogNormal(f.new_tensor(-1.5), f.new_tensor(0.75))
        return pyro.sample("sigma", default if self.sigma is None else self.sigma)


@dataclass(frozen=True)
class Heteroscedastic(Likelihood):
    """`y ~ Normal(f[:, 0], softplus(f[:, 1]) + 1e-6)`: the network's second output sets the noise."""

    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        return dist.Normal(f[..., 0], softplus(f[..., 1]) + _LEAST_SCALE)

    def check_width(self, width: int) -> None:
        if width != 2:
            raise ValueError(
                f"The heteroscedastic likelihood needs a network with 2 outputs, mean and raw scale; it has {width}."
            )


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Two classes, 0 and 1; the network's only output is the log odds of class 1."""

    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=f.squeeze(-1))

    def check_width(self, width: int) -> None:
        if width != 1:
            raise ValueError(
                f"The bernoulli likelihood needs a network with 1 output, the log odds of class 1; it has {width}: "
                "for one output per class use likelihood='categorical'."
            )

    def check_targets(self, y: Tensor, width: int) -> None:
        super().check_targets(y, width)
        if y.dtype != torch.bool and not bool(((y == 0) | (y == 1)).all()):
            raise ValueError(
                f"y must hold only 0 and 1 for the bernoulli likelihood; its range is {_range(y)}: "
                "for more than two classes use likelihood='categorical'."
            )


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Classes 0 … C-1, integers; the network's C outputs are unnormalised log probabilities."""

    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        return dist.Categorical(logits=f)

    def check_width(self, width: int) -> None:
        if width < 2:
            raise ValueError(
                f"The categorical likelihood needs a network with one output per class; it has {width}: "
                "for two classes and one output use likelihood='bernoulli'."
            )

    def check_targets(self, y: Tensor, width: int) -> None:
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(
                f"y must hold integer class labels for the categorical likelihood; got {y.dtype}: y.long()."
            )
        super().check_targets(y, width)
        if y.numel() and not bool(((y >= 0) & (y < width)).all()):
            raise ValueError(
                f"y must hold class labels from 0 to {width - 1}, for the network has {width} outputs; "
                f"its range is {_range(y)}."
            )

    def prepare(self, y: Tensor, f: Tensor) -> Tensor:
        return y.long()


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts; the network's only output is the log of their rate."""

    def distribution(self, f: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(f.squeeze(-1).exp())

    def check_width(self, width: int) -> None:
        if width != 1:
            raise ValueError(f"The poisson likelihood needs a network with 1 output, the log rate; it has {width}.")

    def check_targets(self, y: Tensor, width: int) -> None:
        super().check_targets(y, width)
        if not bool(((y >= 0) & (y == y.round() if y.is_floating_point() else y >= 0)).all()):
            raise ValueError(f"y must hold counts 0, 1, 2, … for the poisson likelihood; its range is {_range(y)}.")


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": Gaussian,
    "heteroscedastic": Heteroscedastic,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "poisson": Poisson,
}


def resolve_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood, given by itself or by its nickname.

    Args:
        likelihood: A Likelihood, or a key of LIKELIHOODS.

    Raises:
        ValueError: If there is no such nickname, listing those there are.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        return LIKELIHOODS[likelihood]()
    raise ValueError(
        f"likelihood must be one of {', '.join(LIKELIHOODS)}, or a Likelihood such as Gaussian(sigma=0.1); "
        f"got {likelihood!r}."
    )


def _range(y: Tensor) -> str:
    return f"[{y.min().item():.6g}, {y.max().item():.6g}]"

"""Coupling layers: one half of the coordinates passes and decides how the other half moves."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_hypernet.maps.bijection import Bijection, widened

# A log scale stays within ± this bound, softly: no layer can blow up or crush a coordinate in one step.
LOG_SCALE_BOUND = 2.0
# Spline: no bin narrower than this share of the interval, no slope below this.
_LEAST_BIN, _LEAST_SLOPE = 1e-3, 1e-3


def soft_bound(raw: Tensor, bound: float = LOG_SCALE_BOUND) -> Tensor:
    """`bound * tanh(raw / bound)`: the identity near zero, never beyond ± bound.

    Args:
        raw: Any shape.
        bound: Positive.
    """
    return bound * torch.tanh(raw / bound)


class Transformer(ABC):
    """An elementwise bijection of R with given parameters, the identity where they are all zero."""

    @property
    @abstractmethod
    def num_params(self) -> int:
        """How many numbers steer one coordinate."""

    @abstractmethod
    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Maps every coordinate of `x`, shape `(..., m)`, by `params`, shape `(..., m, num_params)`.

        Returns:
            The image and the log derivative of every coordinate, both of shape `(..., m)`.
        """

    @abstractmethod
    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Maps back; returns the preimage and the log derivative of the inverse."""


class Additive(Transformer):
    """`y = x + t`: volume preserving. Source: NICE, Dinh et al. 2015, arXiv 1410.8516."""

    num_params = 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x + params[..., 0], torch.zeros_like(x)

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return y - params[..., 0], torch.zeros_like(y)


class Scaling(Transformer):
    """`y = x exp(s) + t` with softly bounded s.

    Source: RealNVP, Dinh et al. 2017, arXiv 1605.08803; the bound is ours.
    """

    num_params = 2

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = soft_bound(params[..., 0])
        return x * log_scale.exp() + params[..., 1], log_scale

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = soft_bound(params[..., 0])
        return (y - params[..., 1]) * (-log_scale).exp(), -log_scale


class Spline(Transformer):
    """A monotone rational-quadratic spline on [−bound, bound], the identity outside.

    Args:
        num_bins: Number of pieces.
        bound: Where the spline ends.

    Source: Durkan et al. 2019, Neural Spline Flows, arXiv 1906.04032.
    """

    def __init__(self, num_bins: int = 8, bound: float = 4.0) -> None:
        self.num_bins = num_bins
        self.bound = bound

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def forward_and_log_det(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        xs, ys, slopes = self._knots(params)
        inside = x.abs() < self.bound
        x_in = torch.where(inside, x, torch.zeros_like(x))
        (x0, x1), (y0, y1), (d0, d1) = self._bin(xs, x_in, xs, ys, slopes)
        s = (y1 - y0) / (x1 - x0)
        t = (x_in - x0) / (x1 - x0)
        denominator = s + (d1 + d0 - 2 * s) * t * (1 - t)
        y = y0 + (y1 - y0) * (s * t**2 + d0 * t * (1 - t)) / denominator
        log_slope = self._log_slope(s, d0, d1, t, denominator)
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))

    def inverse_and_log_det(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        xs, ys, slopes = self._knots(params)
        inside = y.abs() < self.bound
        y_in = torch.where(inside, y, torch.zeros_like(y))
        (x0, x1), (y0, y1), (d0, d1) = self._bin(ys, y_in, xs, ys, slopes)
        s = (y1 - y0) / (x1 - x0)
        rise = y_in - y0
        bend = d1 + d0 - 2 * s
        a = (y1 - y0) * (s - d0) + rise * bend
        b = (y1 - y0) * d0 - rise * bend
        c = -s * rise
        root = (b**2 - 4 * a * c).clamp(min=0).sqrt()
        t = 2 * c / (-b - root)  # of the two roots the one in [0, 1], in the form without cancellation
        t = t - (a * t**2 + b * t + c) / (2 * a * t + b)  # a Newton step takes back what a small slope loses
        log_slope = self._log_slope(s, d0, d1, t, s + bend * t * (1 - t))
        return torch.where(inside, x0 + t * (x1 - x0), y), torch.where(inside, -log_slope, torch.zeros_like(y))

    def _knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, values and slopes of the knots, shape `(..., num_bins + 1)`."""
        # Softly bounded, as log scales are: no slope is then extreme, and the inverse stays well conditioned.
        widths, heights, slopes = soft_bound(params).split([self.num_bins, self.num_bins, self.num_bins - 1], dim=-1)
        inner = _LEAST_SLOPE + functional.softplus(slopes + math.log(math.expm1(1 - _LEAST_SLOPE)))
        return self._places(widths), self._places(heights), functional.pad(inner, (1, 1), value=1.0)

    def _places(self, raw: Tensor) -> Tensor:
        shares = _LEAST_BIN + (1 - _LEAST_BIN * self.num_bins) * raw.softmax(-1)
        places = self.bound * (2 * shares.cumsum(-1)[..., :-1] - 1)
        return functional.pad(functional.pad(places, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    @staticmethod
    def _bin(places: Tensor, at: Tensor, *knots: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The knots to the left and right of every point."""
        index = (at[..., None] >= places[..., 1:-1]).sum(-1, keepdim=True)
        return [(k.gather(-1, index).squeeze(-1), k.gather(-1, index + 1).squeeze(-1)) for k in knots]

    @staticmethod
    def _log_slope(s: Tensor, d0: Tensor, d1: Tensor, t: Tensor, denominator: Tensor) -> Tensor:
        numerator = d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2
        return 2 * s.log() + numerator.log() - 2 * denominator.log()


def _conditioner(num_inputs: int, num_outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """A multilayer perceptron whose last layer is zero, so that the layer it steers is the identity at the start.

    Args:
        num_inputs: Width of the input.
        num_outputs: Width of the output.
        hidden: Widths of the hidden layers.
    """
    widths = [num_inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    last = nn.Linear(widths[-1], num_outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class Coupling(Bijection):
    """The first half passes; a network of it steers how the second half moves.

    Args:
        dim: D, at least 2.
        transformer: How one coordinate moves.
        hidden: Widths of the network's hidden layers.

    Raises:
        ValueError: If D is less than 2.
    """

    def __init__(self, dim: int, transformer: Transformer, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"A coupling needs at least 2 coordinates; got {dim}.")
        self.transformer = transformer
        self.num_passed = dim // 2
        self.network = _conditioner(self.num_passed, (dim - self.num_passed) * transformer.num_params, hidden)

    @property
    def suits_path_gradient(self) -> bool:
        return not isinstance(self.transformer, Spline)  # whose score jumps about from bin to bin

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        passed, moved = x[..., : self.num_passed], x[..., self.num_passed :]
        moved, log_slopes = self.transformer.forward_and_log_det(moved, self._params(passed))
        return torch.cat([passed, moved], dim=-1), widened(log_slopes).sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        passed, moved = y[..., : self.num_passed], y[..., self.num_passed :]
        moved, log_slopes = self.transformer.inverse_and_log_det(moved, self._params(passed))
        return torch.cat([passed, moved], dim=-1), widened(log_slopes).sum(-1)

    def _params(self, passed: Tensor) -> Tensor:
        return self.network(passed).unflatten(-1, (self.transformer.num_params, -1)).movedim(-2, -1)


class Elementwise(Bijection):
    """One transformer for every coordinate by itself, its parameters learnt: what is left of a coupling where D = 1.

    Args:
        dim: D.
        transformer: How one coordinate moves.
    """

    def __init__(self, dim: int, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.params = nn.Parameter(torch.zeros(dim, transformer.num_params))

    @property
    def suits_path_gradient(self) -> bool:
        return not isinstance(self.transformer, Spline)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slopes = self.transformer.forward_and_log_det(x, self.params.expand((*x.shape, -1)))
        return y, widened(log_slopes).sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slopes = self.transformer.inverse_and_log_det(y, self.params.expand((*y.shape, -1)))
        return x, widened(log_slopes).sum(-1)

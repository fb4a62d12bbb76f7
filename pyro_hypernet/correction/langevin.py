"""Underdamped Langevin dynamics of chains side by side, by gradients of minibatches: SGHMC with a thermostat."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_hypernet.options import check_numbers

Gradient = Callable[[Tensor], Tensor]
# Batches at the starts by which the noise of gradients is measured, and products with the Hessian that find its
# greatest eigenvalue.
_NUM_PILOTS, _NUM_PRODUCTS = 16, 8
# Of the step size: over the root of the greatest eigenvalue, and the most heat that friction has to undo, over what it
# undoes anyway.
_STABLE, _MOST_HEAT = 0.5, 0.1
# How fast the noise of gradients is forgotten, per step.
_FORGET = 0.02


@dataclass(frozen=True)
class SghmcKernel:
    """How `move_by_minibatch` moves.

    Time is in units in which a weight of the width of the starting draws, were it alone, would oscillate with
    frequency one.

    Attributes:
        step_size: Of time, positive; None for one found at the starts: stable along the steepest direction, and so
            short that the noise of minibatches heats little.
        friction: Of momenta, per unit of time; positive.
        corrects_noise: Whether every coordinate has as much more friction as undoes the heat of the minibatches' noise.
        num_cycles: Where positive, after the warm-up the step size falls from four times itself to a quarter along so
            many half cosines, and draws are kept from the latter half of each.
        temperature: Of prior and entropy; None for that of the guide.
        max_seconds: After so long no further step is made.

    Raises:
        ValueError: If a number is out of range.
    """

    step_size: float | None = None
    friction: float = 1.0
    corrects_noise: bool = True
    num_cycles: int = 0
    temperature: float | None = None
    max_seconds: float = math.inf

    def __post_init__(self) -> None:
        check_numbers(self)
        given = [value for value in (self.step_size, self.friction, self.temperature) if value is not None]
        if not all(0 < value < math.inf for value in given) or not self.max_seconds > 0 or self.num_cycles < 0:
            raise ValueError(
                "step_size, friction, temperature and max_seconds must be positive, num_cycles 0 or more; got "
                f"{self.step_size}, {self.friction}, {self.temperature}, {self.max_seconds} and {self.num_cycles}."
            )

    def factor(self, share: float) -> float:
        """Of the step size, after this share of the steps that follow the warm-up."""
        if not self.num_cycles:
            return 1.0
        return 4 ** math.cos(math.pi * (share * self.num_cycles % 1))


class Langevin:
    """Chains that move by the splitting BAOAB, whose positions are exact for Gaussians but for the gradients' noise.

    Args:
        w: Where the chains start, unconstrained, shape `(C, D)`.
        scale: Widths of the weights, which make steps of one size suit all; positive, shape `(D,)`.
        kernel: How to move.
        noise: Variances of the gradients of minibatches, times squared widths, shape `(D,)`.
        num_batches: Of a pass through all data, over which the noise cancels; None where it does not.

    Attributes:
        step_size: In units of time; NaN where `settle` is to find it.
        temperature: Mean of twice the kinetic energy of a coordinate over about the last hundred steps.
        num_returned: How often a chain met a gradient that was not finite, and was put back with another momentum.

    Source: Chen, Fox and Guestrin 2014, arXiv 1402.4102 (SGHMC); Leimkuhler and Matthews 2013, arXiv 1203.5428 (BAOAB).
    """

    def __init__(self, w: Tensor, scale: Tensor, kernel: SghmcKernel, noise: Tensor, num_batches: int | None) -> None:
        self.w, self.scale, self.kernel, self.noise, self.num_batches = w.clone(), scale, kernel, noise, num_batches
        self.step_size = kernel.step_size or math.nan
        self.is_noisy = kernel.corrects_noise and bool((noise > 0).any())
        self.p = torch.randn_like(w)
        self.num_returned = 0
        self._energy = torch.ones((), dtype=w.dtype, device=w.device)
        self._before: Tensor = self.w.clone()
        self._last: Tensor | None = None

    @property
    def temperature(self) -> float:
        """Of the momenta, over what it should be."""
        return float(self._energy)

    @torch.no_grad()
    def step(self, gradient: Gradient, factor: float = 1.0) -> None:
        """One step by one gradient for every chain, of a minibatch's estimate; `factor` is of the step size."""
        h, friction = factor * self.step_size, self.kernel.friction
        g = gradient(self.w)
        if not bool(g.sum().isfinite()):
            g = self._put_back(g)
        self._before.copy_(self.w)
        g = g * self.scale
        self.p.add_(g, alpha=h)
        self.w.addcmul_(self.p, self.scale, value=h / 2)
        if self.is_noisy:
            if self._last is not None:  # differences of what follows each other: twice the variance
                self.noise.lerp_((g - self._last).square().mean(0) / 2, _FORGET)
            self._last = g
            self.p.mul_(torch.exp(-h * (friction + self.heat(h))))
        else:
            self.p.mul_(math.exp(-h * friction))
        self.p.add_(torch.randn_like(self.p), alpha=math.sqrt(-math.expm1(-2 * h * friction)))
        self.w.addcmul_(self.p, self.scale, value=h / 2)
        self._energy.lerp_(self.p.square().mean(), 0.01)

    def heat(self, step_size: float, frequency: float = 1.0) -> Tensor:
        """The friction that undoes the noise of gradients, per unit of time, shape `(D,)`.

        White noise of variance V takes `h V / 2`. Over a pass of n batches that goes through all data noise sums to
        zero: of its spectrum at the frequency f the share `1 − sinc²(f n h / 2)` is left.
        """
        white = step_size / 2 * self.noise
        if self.num_batches is None:
            return white
        angle = frequency * self.num_batches * step_size / 2
        return white * (1 - (math.sin(angle) / angle) ** 2)

    def settle(self, gradient: Gradient) -> None:
        """Finds a step size that is stable along the steepest direction, and heats little, by one minibatch."""
        at, v = gradient(self.w), torch.randn_like(self.w)
        for _ in range(_NUM_PRODUCTS):
            v = (v / v.norm(dim=-1, keepdim=True)).nan_to_num(0.0)
            v = (gradient(self.w + self.scale * v) - at) * self.scale
        steepest = max(1.0, float(v.norm(dim=-1).nan_to_num(0.0, 0.0, 0.0).quantile(0.9)))
        self.step_size = _STABLE / math.sqrt(steepest)
        share = self.noise / self.noise.sum().clamp(min=1e-30)
        # Along the steepest direction noise is stronger by as much as the density is steeper.
        while (
            float((share * self.heat(self.step_size)).sum()) > _MOST_HEAT * self.kernel.friction
            or steepest * float((share * self.heat(self.step_size, math.sqrt(steepest))).sum()) > self.kernel.friction
        ):
            self.step_size *= 0.9

    def _put_back(self, g: Tensor) -> Tensor:
        """Chains whose gradient is not finite go to where they last were, at rest but for new momenta."""
        bad = ~g.isfinite().all(-1)
        self.num_returned += int(bad.sum())
        self.w[bad] = self._before[bad]
        self.p[bad] = torch.randn_like(self.p[bad])
        return g.masked_fill(bad[:, None], 0.0)


def measure_noise(gradients: Callable[[], Gradient], w: Tensor, scale: Tensor, num_batches: int | None) -> Tensor:
    """Variances of the gradients of minibatches at `w`, `(C, D)`, times squared widths, `(D,)`; zeros for one batch."""
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    count = max(2, min(_NUM_PILOTS, num_batches or _NUM_PILOTS))
    for number in range(1, count + 1):
        g = gradients()(w) * scale
        change = g - mean
        mean += change / number
        square += change * (g - mean)
    variance = (square / (count - 1)).nan_to_num(0.0, 0.0, 0.0).mean(0)
    return torch.where(variance > 1e-6 * mean.square().nan_to_num(0.0, 0.0, 0.0).mean(0), variance, 0.0)

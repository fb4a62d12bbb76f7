"""Hamiltonian trajectories of many draws at once, their step size and length adapted as they go."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_hypernet.target import State

TARGET_ACCEPTANCE = 0.8
# How fast the length follows its gradient; a move changes it by a factor of e^.2 at most.
_RATE_OF_LENGTH = 0.2


Density = Callable[[Tensor, float], State]


class Trajectories:
    """Hamiltonian Monte Carlo for a cloud of draws that share a step size and a length.

    The step size follows the mean acceptance. The length follows the gradient of the expected squared change of the
    squared distance to the cloud's centre (the ChEES criterion), over the root of the length, as far as that is more
    than noise; it is jittered, so that no trajectory can be periodic for all draws. Both are adapted with every move
    and by all draws together, which vanishes against the number of draws, while `is_adapting` is true.

    Args:
        dim: Number of weights D.
        max_leapfrogs: Most steps of one trajectory.

    Source: Hoffman, Radul and Sountsov 2021, "An adaptive-MCMC scheme for setting trajectory lengths in HMC"; over the
    root of the length: Wang, Mohamed and de Freitas 2013.
    """

    def __init__(self, dim: int, *, max_leapfrogs: int) -> None:
        self.max_leapfrogs = max_leapfrogs
        self.step_size = 0.5 * max(1, dim) ** -0.25
        self.length = 8 * self.step_size
        self.is_adapting = True
        self.num_leapfrogs = 0
        self.num_moves = 0

    def move(self, density: Density, state: State, beta: float, centre: Tensor, spread: Tensor) -> tuple[State, float]:
        """One trajectory of every draw, accepted or not by its energy.

        Args:
            density: Evaluates weights at a power of the likelihood.
            state: Where the draws are.
            beta: The power of the likelihood.
            centre: Of the cloud, shape `(D,)`.
            spread: The scale of every weight, shape `(D,)`: momenta have its inverse.

        Returns:
            The new state and the mean acceptance.
        """
        momentum = torch.randn_like(state.w)
        rows = state.w.new_empty(len(state.w), 1)
        size = self.step_size * (0.7 + 0.6 * torch.rand_like(rows)) * spread
        end, velocity = state, momentum
        num_steps = self._draw_steps()
        for _ in range(num_steps):
            velocity = velocity + size / 2 * end.gradient
            end = density(end.w + size * velocity, beta)
            velocity = velocity + size / 2 * end.gradient
        self.num_leapfrogs += num_steps
        self.num_moves += 1
        rise = _energy(end, velocity, beta) - _energy(state, momentum, beta)
        chance = rise.nan_to_num(nan=-math.inf, posinf=-math.inf).exp().clamp(max=1)
        accepted = torch.rand_like(chance) < chance
        rate = float(chance.mean())
        time = num_steps * self.step_size
        if self.is_adapting:
            self._adapt(rate, chance, time, (state.w - centre) / spread, (end.w - centre) / spread, velocity)
        return State(*(_choose(accepted, new, old) for new, old in zip(end, state, strict=True))), rate

    def _draw_steps(self) -> int:
        jitter = 0.2 + 1.8 * float(torch.rand(()))
        return min(self.max_leapfrogs, max(1, math.ceil(jitter * self.length / self.step_size)))

    def _adapt(self, rate: float, chance: Tensor, time: float, before: Tensor, after: Tensor, velocity: Tensor) -> None:
        gain = chance * ((after**2).sum(-1) - (before**2).sum(-1)) ** 2 / 4
        growth = chance * ((after**2).sum(-1) - (before**2).sum(-1)) * (after * velocity).sum(-1)
        # The derivative of log(gain / √length) by log length.
        slope = (time * growth - gain / 2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        error = float(slope.std(correction=0)) / len(slope) ** 0.5
        in_errors = float(slope.mean()) / error if error > 0 else 0.0
        self.step_size *= math.exp(rate - TARGET_ACCEPTANCE)
        self.length *= math.exp(_RATE_OF_LENGTH * math.tanh(in_errors / 2))
        self.length = min(max(self.length, self.step_size), self.step_size * self.max_leapfrogs / 1.5)


def _energy(state: State, velocity: Tensor, beta: float) -> Tensor:
    """Log of the joint density of weights and momenta, in nats."""
    return state.log_prior + beta * state.log_likelihood - (velocity**2).sum(-1) / 2


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.view(-1, *(1,) * (new.dim() - 1)), new, old)

"""The posterior itself: tempered sequential Monte Carlo from the prior, with vectorised Hamiltonian moves."""

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.ops.stats import gelman_rubin
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.density import LogJoint, sample_prior, split_density
from pyro_hypernet.layout import Layout
from pyro_hypernet.vectorize import Model, Vectorized, trace_one

# Every new temperature keeps this share of the particles effective.
_ESS_SHARE = 0.5
_TARGET_ACCEPTANCE = 0.8
_MAX_TEMPERATURES = 500
_MIXED_RHAT = 1.05


@dataclass(frozen=True)
class Refined:
    """Draws of the posterior by tempered sequential Monte Carlo.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted.
        log_evidence: log p(data) in nats, averaged over populations.
        log_evidence_error: Its standard error over independent populations, in nats; NaN for one population.
        temperatures: The powers of the likelihood from 0 to 1.
        acceptance: Mean acceptance of the moves at every temperature after the first.
        rhat: A dict from site to R-hat over populations, shape `shape`.
        num_gradients: Gradients evaluated, per particle.
        seconds: Wall time.
    """

    samples: dict[str, Tensor] = field(repr=False)
    log_evidence: float
    log_evidence_error: float
    temperatures: tuple[float, ...] = field(repr=False)
    acceptance: tuple[float, ...] = field(repr=False)
    rhat: dict[str, Tensor] = field(repr=False)
    num_gradients: int
    seconds: float

    @property
    def max_rhat(self) -> float:
        """The worst R-hat over sites; weights of networks may differ between populations by symmetry alone."""
        return max(float(value[value.isfinite()].max()) for value in self.rhat.values())


def refine(
    model: Model,
    *args: Any,
    num_samples: int = 2000,
    num_populations: int = 4,
    num_moves: int = 4,
    num_leapfrogs: int = 16,
    progress: bool = True,
) -> Refined:
    """Carries draws of the prior to the posterior, through powers of the likelihood that rise from 0 to 1.

    Exact as the number of draws grows, multimodal posteriors included, for nothing is left out at the start. Every
    temperature is chosen so that half of the draws stay effective; then the draws are resampled and moved by
    Hamiltonian Monte Carlo, all at once on the captured density, scaled by the draws' spread, the step size adapted.

    Args:
        model: A Pyro model whose latent sites can all be sampled from the prior.
        args: Its arguments, data included.
        num_samples: Number of draws S, over all populations.
        num_populations: Independent populations, which give the errors; a divisor of `num_samples`.
        num_moves: Hamiltonian trajectories of every draw at every temperature.
        num_leapfrogs: Most leapfrog steps of one trajectory; the number is random, from half of it up.
        progress: Whether to show a bar; quiet where the output is no terminal.

    Returns:
        Draws, log evidence and diagnostics.

    Raises:
        ValueError: If a number is out of range, or no draw of the prior has a finite likelihood.

    Source: Del Moral, Doucet and Jasra 2006; adaptive temperatures: Jasra et al. 2011.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> refined = refine(model, torch.ones(3), num_samples=400, progress=False)
        >>> refined.samples["mean"].shape
        torch.Size([400])
    """
    _check_numbers(num_samples, num_populations, num_moves, num_leapfrogs)
    start = time.perf_counter()
    with poutine.block(), torch.no_grad():
        layout = Layout.from_trace(poutine.trace(model).get_trace(*args))
    cloud = _Cloud(_Tempered(model, layout, args), num_samples, num_populations)
    bar = tqdm(total=1.0, disable=None if progress else True, desc="refine", leave=False)
    temperatures, acceptance = [0.0], []
    try:
        while temperatures[-1] < 1 and len(temperatures) < _MAX_TEMPERATURES:
            temperatures.append(cloud.heat(temperatures[-1]))
            acceptance.append(cloud.move(temperatures[-1], num_moves, num_leapfrogs))
            bar.update(temperatures[-1] - temperatures[-2])
    finally:
        bar.close()
    samples = layout.constrain(cloud.w)[0]
    chains = {name: value.unflatten(0, (num_populations, -1)) for name, value in samples.items()}
    error = float(cloud.log_evidence.std()) / num_populations**0.5 if num_populations > 1 else math.nan
    result = Refined(
        samples=samples,
        log_evidence=float(cloud.log_evidence.logsumexp(0)) - math.log(num_populations),
        log_evidence_error=error,
        temperatures=tuple(temperatures),
        acceptance=tuple(acceptance),
        rhat={name: gelman_rubin(value) for name, value in chains.items()} if num_populations > 1 else {},
        num_gradients=cloud.num_gradients,
        seconds=time.perf_counter() - start,
    )
    if temperatures[-1] < 1:
        warnings.warn(
            f"refine gave up after {len(temperatures)} temperatures at {temperatures[-1]:.3g} of 1: the draws are of a "
            "tempered posterior. Use more samples or moves.",
            stacklevel=2,
        )
    return result


class _Tempered:
    """log prior + temperature × log likelihood of flat weights, its parts and its gradient."""

    def __init__(self, model: Model, layout: Layout, args: tuple) -> None:
        self.model = model
        self.layout = layout
        self.args = args
        self._run = Vectorized(self._grad_of_one, differentiable=False)
        LogJoint(model, layout).value_and_grad(self.sample_prior(1), *args)  # the checks of sites, once

    def __call__(self, w: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log prior and log likelihood, both `(S,)`, and the gradient of the tempered sum, `(S, D)`."""
        with torch.no_grad():
            gradient, (_, (log_prior, log_likelihood)) = self._run((w, temperature.expand(len(w))), self.args)
        return log_prior, log_likelihood, gradient

    def sample_prior(self, num_samples: int) -> Tensor:
        """Flat draws of the prior, shape `(S, D)`."""
        return sample_prior(self.model, self.layout, num_samples, self.args)

    def _grad_of_one(self, draw: tuple[Tensor, Tensor], args: tuple, kwargs: dict) -> Any:
        w, temperature = draw

        def tempered(w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            values, log_det = self.layout.constrain(w)
            trace = trace_one(self.model, values, args, kwargs)
            log_prior, log_likelihood = split_density(trace, self.layout, log_det)
            return log_prior + temperature * log_likelihood, (log_prior, log_likelihood)

        return torch.func.grad_and_value(tempered, has_aux=True)(w)


class _Cloud:
    """All draws with their densities, in populations that never mix."""

    def __init__(self, target: _Tempered, num_samples: int, num_populations: int) -> None:
        self.target = target
        self.w = target.sample_prior(num_samples)
        self.shape = (num_populations, num_samples // num_populations)
        self.log_evidence = self.w.new_zeros(num_populations)
        self.step_size = self.w.new_tensor(0.5 * self.w.shape[-1] ** -0.25)
        self.num_gradients = 0
        self.log_prior, self.log_likelihood, self.gradient = self._evaluate(self.w, 0.0)
        self.log_likelihood = self.log_likelihood.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        if not bool(self.log_likelihood.isfinite().any()):
            raise ValueError("No draw of the prior has a finite likelihood: check the data for NaN, or the priors.")

    def heat(self, temperature: float) -> float:
        """Raises the temperature as far as half of the draws stay effective and resamples; returns the new one."""
        low, high = temperature, 1.0
        if self._ess(high - temperature) < _ESS_SHARE * self.log_likelihood.numel():
            for _ in range(60):
                middle = (low + high) / 2
                enough = self._ess(middle - temperature) >= _ESS_SHARE * self.log_likelihood.numel()
                low, high = (middle, high) if enough else (low, middle)
            high = low if low > temperature else high
        log_weights = ((high - temperature) * self.log_likelihood).view(self.shape)
        self.log_evidence = self.log_evidence + log_weights.logsumexp(-1) - math.log(self.shape[1])
        self._resample(log_weights)
        return high

    def move(self, temperature: float, num_moves: int, num_leapfrogs: int) -> float:
        """Moves all draws by Hamiltonian trajectories; returns the mean acceptance."""
        self.log_prior, self.log_likelihood, self.gradient = self._evaluate(self.w, temperature)
        scale = self.w.std(0).clamp(min=1e-6)
        rates = []
        for _ in range(num_moves):
            rate = self._trajectory(temperature, scale, num_leapfrogs)
            rates.append(rate)
            self.step_size = self.step_size * math.exp(rate - _TARGET_ACCEPTANCE)
        return sum(rates) / len(rates)

    def _trajectory(self, temperature: float, scale: Tensor, num_leapfrogs: int) -> float:
        momentum = torch.randn_like(self.w)
        w, velocity, state = self.w, momentum, (self.log_prior, self.log_likelihood, self.gradient)
        steps = int(torch.randint(max(1, num_leapfrogs // 2), num_leapfrogs + 1, ()))
        # Step sizes vary between draws, so that no trajectory can be periodic for all of them.
        size = self.step_size * (0.7 + 0.6 * torch.rand(len(w), 1, dtype=w.dtype, device=w.device))
        for _ in range(steps):
            velocity = velocity + size / 2 * scale * state[2]
            w = w + size * scale * velocity
            state = self._evaluate(w, temperature)
            velocity = velocity + size / 2 * scale * state[2]
        energy = state[0] + temperature * state[1] - (velocity**2).sum(-1) / 2
        before = self.log_prior + temperature * self.log_likelihood - (momentum**2).sum(-1) / 2
        chance = (energy - before).nan_to_num(nan=-math.inf, posinf=-math.inf).exp().clamp(max=1)
        accepted = torch.rand_like(chance) < chance
        self.w = torch.where(accepted[:, None], w, self.w)
        self.log_prior = torch.where(accepted, state[0], self.log_prior)
        self.log_likelihood = torch.where(accepted, state[1], self.log_likelihood)
        self.gradient = torch.where(accepted[:, None], state[2], self.gradient)
        return float(chance.mean())

    def _ess(self, rise: float) -> float:
        """Effective number of draws after raising the temperature, over all populations."""
        log_weights = (rise * self.log_likelihood).log_softmax(0)
        return float((-(2 * log_weights).logsumexp(0)).exp())

    def _resample(self, log_weights: Tensor) -> None:
        """Systematic resampling within every population."""
        shares = log_weights.softmax(-1).cumsum(-1)
        offsets = torch.rand(self.shape[0], 1, dtype=shares.dtype, device=shares.device)
        points = (torch.arange(self.shape[1], device=shares.device) + offsets) / self.shape[1]
        index = torch.searchsorted(shares.contiguous(), points.contiguous()).clamp(max=self.shape[1] - 1)
        flat = (index + self.shape[1] * torch.arange(self.shape[0], device=shares.device)[:, None]).flatten()
        self.w = self.w[flat]

    def _evaluate(self, w: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        self.num_gradients += 1
        return self.target(w, w.new_tensor(temperature))


def _check_numbers(num_samples: int, num_populations: int, num_moves: int, num_leapfrogs: int) -> None:
    if min(num_samples, num_populations, num_moves, num_leapfrogs) < 1 or num_samples % num_populations:
        raise ValueError(
            "num_samples, num_populations, num_moves and num_leapfrogs must be positive and num_samples a multiple of "
            f"num_populations; got {num_samples}, {num_populations}, {num_moves} and {num_leapfrogs}."
        )

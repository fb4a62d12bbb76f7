"""Draws taught back to a guide, so that sampling stays one pass: maximum likelihood of the draws under its density."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.evaluation.draws import draws as draws_of
from pyro_hypernet.evaluation.draws import is_guide, temperature_of
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.shown import Shown
from pyro_hypernet.train.optimiser import LEARNING_RATE, Optim, Optimiser, copies, put, step_shares
from pyro_hypernet.train.step import FlatParameters, Step

# Held-out draws are looked at so many times, and training stops after so many looks that found nothing better.
_LOOKS, _PATIENCE = 50, 10
_LEAST_DRAWS = 10


@dataclass(frozen=True, repr=False)
class Distilled(Shown):
    """How well a guide has learnt draws.

    Attributes:
        nll_before: Mean negative log density of the held-out draws under the guide as it was, in nats.
        nll: The same under the guide as it is now, never more.
        losses: Mean negative log density of the minibatch at every step, in nats, shape `(steps,)`; NaN where skipped.
        stopped_because: "all steps done", "no improvement" or "interrupted".
        seconds: Wall time.
    """

    nll_before: float
    nll: float
    losses: Tensor = field(repr=False)
    stopped_because: str
    seconds: float


def distill(
    guide: Any,
    draws: Any,
    *,
    num_steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = LEARNING_RATE,
    held_out: float = 0.2,
    progress: bool = True,
) -> Distilled:
    """Trains a guide in place on draws from anywhere, such as those of `move_by_minibatch`, `move` or `refine`.

    Minimises `−E log q(w)` over the draws by Adam, which is the Kullback–Leibler divergence of the draws' distribution
    to the guide up to a constant: it covers what the draws cover, where `fit` prefers the guide too narrow. A share of
    the draws is held out, stops training early, and decides which parameters are kept. Draws that follow each other in
    a chain are alike: hold few of many, far apart. A guide cannot be better than its draws, nor than its structure: a
    mean field takes on the draws' widths without their correlations, and at temperature 1 may then predict worse than
    before (`benchmarks/results/moved_by_minibatch.md`); hold its predictions against theirs, by `score`. A guide at
    another temperature than the draws takes theirs on; a rejection that its draws went through is given up.

    Every structure has a density at all weights and can be taught: with `bayesianize(..., parametrization=
    "weight_norm")` weights are the gains alone. Maps of your own need an inverse.

    Args:
        guide: An AutoHypernet, or a mixture of such, that is set up, trained or not; the weights of a mixture stay.
        draws: Results with `.samples`, or whatever else `draws` of this package knows but a guide; 10 draws at least.
        num_steps: Most steps.
        batch_size: Draws in a step.
        learning_rate: Adam's peak step size.
        held_out: Share of the draws that is held out, in (0, 1).
        progress: Whether to show a bar; quiet where the output is no terminal.

    Returns:
        What the held-out draws say.

    Raises:
        TypeError: If the guide is no AutoHypernet or the draws are a guide.
        ValueError: If a number is out of range, the draws are few or of other sites, or the guide has no finite density
            at them.
        RuntimeError: Before `guide.setup`.

    Source: Li, Turner and Liu 2017, arXiv 1702.08343 (approximate inference with amortised MCMC), where moved draws
        teach the sampler that they started from.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> model = lambda: pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> guide = AutoHypernet(model, "linear", "full").setup()
        >>> result = distill(guide, {"w": 3.0 + torch.randn(200, 2)}, num_steps=300, progress=False)
        >>> result.nll < result.nll_before
        True
    """
    parts = _check(guide, draws, num_steps, batch_size, learning_rate, held_out)
    start, layout = time.perf_counter(), parts[0].layout
    w, log_det = layout.unconstrain(draws_of(draws, num_samples=10**9))
    if len(w) < _LEAST_DRAWS:
        raise ValueError(f"distill needs {_LEAST_DRAWS} draws at least; got {len(w)}.")
    w, log_det = w.to(parts[0]._origin), log_det.to(parts[0]._origin)
    order = torch.randperm(len(w), device=w.device)
    kept_out, rest = order.split([size := max(1, round(held_out * len(w))), len(w) - size])
    for part in parts:
        part.reject(None)

    def nll_at(index: Tensor) -> Tensor:
        return (log_det[index] - guide.unconstrained_log_prob(w[index])).mean()

    with torch.no_grad():
        before = float(nll_at(kept_out))
    if not math.isfinite(before):
        raise ValueError(
            f"The guide has the density {-before:.3g} at held-out draws, in nats: draws outside of what its map "
            "reaches, or NaN among them, cannot be learnt."
        )
    shares = {weight: share for part in parts for weight, share in step_shares(part.bijection).items()}
    parameters = FlatParameters([p for p in guide.parameters() if p.requires_grad], shares)
    optim = Optim(learning_rate, clip=math.inf, keep="last")
    run = Optimiser(parameters.vectors, num_steps, optim, shares=parameters.shares)
    try:
        nll, stopped_because = _train(run, parameters, nll_at, (rest, kept_out), batch_size, before, progress=progress)
    finally:
        parameters.release()
    if isinstance(getattr(draws, "temperature", None), float):
        for part in parts:
            part.take_temperature(replace(part.plan, temperature=temperature_of(draws)))
    return Distilled(
        nll_before=before,
        nll=nll,
        losses=torch.tensor(run.losses, dtype=torch.float64),
        stopped_because=stopped_because,
        seconds=time.perf_counter() - start,
    )


def _train(
    run: Optimiser,
    parameters: FlatParameters,
    nll_at: Callable[[Tensor], Tensor],
    split: tuple[Tensor, Tensor],
    batch_size: int,
    best: float,
    *,
    progress: bool,
) -> tuple[float, str]:
    """Steps until the held-out draws gain nothing; the parameters that are best for them are in place whatever happens.

    Returns:
        Their negative log density in nats, and why training stopped.
    """
    rest, kept_out = split
    kept, since_best, every = copies(run.parameters), 0, max(1, run.num_steps // _LOOKS)
    try:
        for number in tqdm(
            range(1, run.num_steps + 1), disable=None if progress else True, desc="distill", leave=False
        ):
            run.step(_step(nll_at(rest[torch.randint(len(rest), (batch_size,), device=rest.device)]), parameters))
            if number % every and number != run.num_steps:
                continue
            with torch.no_grad():
                now = float(nll_at(kept_out))
            since_best += 1
            if now < best:
                best, kept, since_best = now, copies(run.parameters), 0
            if since_best == _PATIENCE:
                return best, "no improvement"
    except KeyboardInterrupt:
        return best, "interrupted"
    finally:
        put(run.parameters, kept)
    return best, "all steps done"


def _step(loss: Tensor, parameters: FlatParameters) -> Step:
    gradients = parameters.gather(torch.autograd.grad(loss, parameters.leaves, allow_unused=True))
    norm = math.sqrt(sum(float(vector.square().sum()) for vector in gradients))
    return Step(float(loss.detach()), 0.0, norm, gradients, None)


def _check(
    guide: Any, draws: Any, num_steps: int, batch_size: int, learning_rate: float, held_out: float
) -> list[AutoHypernet]:
    """The AutoHypernets that the guide is made of."""
    parts = list(getattr(guide, "components", None) or [guide])
    if not all(isinstance(part, AutoHypernet) for part in parts):
        raise TypeError(f"distill teaches an AutoHypernet, or a mixture of such; got {type(guide).__name__}.")
    if is_guide(draws):
        raise TypeError(f"distill takes stored draws; got {type(draws).__name__}. Draw from it first.")
    if num_steps < 1 or batch_size < 1 or not learning_rate > 0 or not 0 < held_out < 1:
        raise ValueError(
            "num_steps, batch_size and learning_rate must be positive, held_out a share in (0, 1); got "
            f"{num_steps}, {batch_size}, {learning_rate} and {held_out}."
        )
    return parts

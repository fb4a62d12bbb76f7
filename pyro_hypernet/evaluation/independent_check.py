"""Whether the posterior has mass where a guide never looks: draws carried from the prior, not from the guide."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pyro_hypernet.evaluation.convergence import function_rhat
from pyro_hypernet.evaluation.draws import log_density_of
from pyro_hypernet.model.modes import find_modes
from pyro_hypernet.sample.refine import HmcKernel, bind_to_refine, carry
from pyro_hypernet.target import Target

_NUM_POPULATIONS = 4
# With more weights nothing started at the prior arrives in a few seconds.
_MOST_WEIGHTS = 20_000
NUM_DRAWS, NUM_MOVES, NUM_LEAPFROGS = 512, 3, 12
# Powers of the likelihood that a run from the prior may take, to guess its cost beforehand.
_LIKELY_POWERS = 25
_FEW_DRAWS = 8
_NUM_MODES, _MODE_STARTS, _MODE_STEPS = 8, 32, 150
# Climbs that ended so many nats below the best have not arrived, or at nothing of weight.
_MODE_DEPTH = 5.0


@dataclass(frozen=True)
class IndependentDraws:
    """Points of high posterior density that owe nothing to the guide.

    Attributes:
        how: "refine", draws of a short tempered run from the prior; "modes", climbed from draws of the prior;
            "given", draws that the caller had; "nothing".
        samples: A dict from site to points of shape `(R, *shape)`; empty for "nothing".
        log_weights: `log p − log q` there, in nats, shape `(R,)`; None where the guide's density is not known.
        log_evidence: Of the tempered run, in nats; NaN else.
        log_evidence_error: Its standard error.
        rhat: Over the run's populations, the worst in function space; NaN else.
        num_populations: Populations that follow each other in the samples; 1 where they are one.
        seconds: Wall time.
        likely_seconds: What a run from the prior was guessed to take; NaN where it was not guessed.
        note: Why nothing was done, or "".
    """

    how: str
    samples: dict[str, Tensor] = field(default_factory=dict, repr=False)
    log_weights: Tensor | None = field(default=None, repr=False)
    log_evidence: float = math.nan
    log_evidence_error: float = math.nan
    rhat: float = math.nan
    num_populations: int = 1
    seconds: float = 0.0
    likely_seconds: float = math.nan
    note: str = ""

    @property
    def has_draws(self) -> bool:
        """Whether these are draws of the posterior, not modes or nothing."""
        return self.how in ("refine", "given")


def find_independently(target: Target, guide: Any, *, max_seconds: float = 20.0, draws: Any = None) -> IndependentDraws:
    """Finds points of the posterior without the guide and asks what the guide's density is there.

    A guide's own draws cannot show what it misses: k-hat of a guide on one of two equal modes is perfect. So a short
    `refine` of 512 draws is run where its cost, guessed from one gradient, stays below `max_seconds`; else gradient
    ascents from draws of the prior.

    Args:
        target: The model with its arguments, data included.
        guide: A trained guide.
        max_seconds: What to spend about.
        draws: A result of `refine`, or a dict of samples of the posterior, to use instead.
    """
    start = time.perf_counter()
    found = _given(draws) if draws is not None else _search(target, max_seconds)
    if found.how == "nothing":
        return found
    log_q = log_density_of(guide, found.samples, *target.args, **target.kwargs)
    return replace(
        found,
        log_weights=None if log_q is None else target.log_density(found.samples) - log_q,
        rhat=function_rhat(target, found.samples, found.num_populations),
        seconds=time.perf_counter() - start,
    )


def _given(draws: Any) -> IndependentDraws:
    samples = getattr(draws, "samples", draws)
    evidence = getattr(draws, "log_evidence", math.nan), getattr(draws, "log_evidence_error", math.nan)
    return IndependentDraws("given", dict(samples), None, *evidence)


def _search(target: Target, max_seconds: float) -> IndependentDraws:
    if target.layout.dim > _MOST_WEIGHTS:
        return IndependentDraws("nothing", note=f"the model has {target.layout.dim} weights, more than {_MOST_WEIGHTS}")
    try:
        starts = target.sample_prior(NUM_DRAWS)
    except (NotImplementedError, RuntimeError) as error:
        return IndependentDraws("nothing", note=f"the prior cannot be sampled ({type(error).__name__})")
    seconds = _seconds_per_gradient(target, starts, max_seconds)
    likely = seconds * _LIKELY_POWERS * NUM_MOVES * 0.75 * NUM_LEAPFROGS
    if likely <= max_seconds:
        try:
            return replace(_short_run(target, max_seconds), likely_seconds=likely)
        except ValueError as error:  # a model that draws minibatches, or whose likelihood is nowhere finite
            return IndependentDraws("nothing", note=str(error).rstrip("."))
    if seconds * _MODE_STEPS * _MODE_STARTS / NUM_DRAWS <= max_seconds:
        return IndependentDraws("modes", _climb(target), likely_seconds=likely)
    note = f"a short run of refine was guessed to take {likely:.0f} s, more than max_seconds={max_seconds:.3g}"
    return IndependentDraws("nothing", note=note, likely_seconds=likely)


def _climb(target: Target) -> dict[str, Tensor]:
    options = {"num_modes": _NUM_MODES, "num_starts": _MODE_STARTS, "num_steps": _MODE_STEPS}
    w = find_modes(target.log_joint, target.args, target.kwargs, **options)
    height = target.log_prob(w)
    return target.layout.constrain(w[height >= height.max() - _MODE_DEPTH])[0]


def _seconds_per_gradient(target: Target, w: Tensor, max_seconds: float) -> float:
    """Seconds of one gradient of all these draws; from a few of them, where that says already that it is too much."""
    few = w[:_FEW_DRAWS]
    guess = min(_seconds(target.value_and_grad, few) for _ in range(2)) * len(w) / len(few)
    if 5 * guess > max_seconds:
        return guess
    return min(_seconds(target, w) for _ in range(5))  # the first captures, the next ones are optimised


def _seconds(function: Callable[[Tensor], Any], w: Tensor) -> float:
    start = time.perf_counter()
    function(w)
    return time.perf_counter() - start


def _short_run(target: Target, max_seconds: float) -> IndependentDraws:
    sizes = {"num_samples": NUM_DRAWS, "num_populations": _NUM_POPULATIONS}
    # A guess of the cost may be wrong by some, and a run that is stopped is lost.
    options = {"num_moves": NUM_MOVES, "kernel": HmcKernel(NUM_LEAPFROGS), "max_seconds": 2 * max_seconds}
    run = carry(bind_to_refine(target.model, target.args, target.kwargs), **sizes, **options)
    if run.betas[-1] < 1 and run.seconds > 2 * max_seconds:
        return IndependentDraws("nothing", note=f"a short run of refine had not ended after {run.seconds:.0f} s")
    evidence = run.log_evidence, run.log_evidence_error
    return IndependentDraws("refine", run.samples, None, *evidence, num_populations=_NUM_POPULATIONS)

"""Whether the posterior has mass where a guide never looks: draws carried from the prior, not from the guide."""

import functools
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from pyro.ops.stats import gelman_rubin
from torch import Tensor

from pyro_hypernet.density import LogJoint, sample_prior
from pyro_hypernet.evaluation.functions import flat_sites, function_values
from pyro_hypernet.evaluation.weighted import layout_of, log_density_of, log_joint_of
from pyro_hypernet.inference.refine import refine
from pyro_hypernet.layout import Layout
from pyro_hypernet.modes import find_modes
from pyro_hypernet.vectorize import Model

NUM_POPULATIONS = 4
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
class Elsewhere:
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


def look_elsewhere(
    model: Model, guide: Any, *args: Any, max_seconds: float = 20.0, draws: Any = None, **kwargs: Any
) -> Elsewhere:
    """Finds points of the posterior without the guide and asks what the guide's density is there.

    A guide's own draws cannot show what it misses: k-hat of a guide on one of two equal modes is perfect. So a short
    `refine` of 512 draws is run where its cost, guessed from one gradient, stays below `max_seconds`; else gradient
    ascents from draws of the prior.

    Args:
        model: The Pyro model.
        guide: A trained guide.
        args: The model's arguments, data included.
        max_seconds: What to spend about.
        draws: A result of `refine`, or a dict of samples of the posterior, to use instead.
        kwargs: The model's keyword arguments.
    """
    start = time.perf_counter()
    if kwargs:
        model = functools.partial(model, **kwargs)
    found = _given(draws) if draws is not None else _search(model, guide, args, max_seconds)
    if found.how == "nothing":
        return found
    log_q = log_density_of(guide, found.samples, *args)
    log_weights = None if log_q is None else log_joint_of(model, found.samples, *args) - log_q
    return Elsewhere(
        found.how,
        found.samples,
        log_weights,
        found.log_evidence,
        found.log_evidence_error,
        function_rhat(model, found.samples, args, found.num_populations),
        found.num_populations,
        time.perf_counter() - start,
        found.likely_seconds,
    )


def _given(draws: Any) -> Elsewhere:
    samples = getattr(draws, "samples", draws)
    evidence = getattr(draws, "log_evidence", math.nan), getattr(draws, "log_evidence_error", math.nan)
    return Elsewhere("given", dict(samples), None, *evidence)


def _search(model: Model, guide: Any, args: tuple, max_seconds: float) -> Elsewhere:
    layout = layout_of(model, args, {}, guide)
    if layout.dim > _MOST_WEIGHTS:
        return Elsewhere("nothing", note=f"the model has {layout.dim} weights, more than {_MOST_WEIGHTS}")
    try:
        starts = sample_prior(model, layout, NUM_DRAWS, args)
    except (NotImplementedError, RuntimeError) as error:
        return Elsewhere("nothing", note=f"the prior cannot be sampled ({type(error).__name__})")
    seconds = _seconds_per_gradient(model, layout, starts, args, max_seconds)
    likely = seconds * _LIKELY_POWERS * NUM_MOVES * 0.75 * NUM_LEAPFROGS
    if likely <= max_seconds:
        try:
            return replace(_short_run(model, args, max_seconds), likely_seconds=likely)
        except ValueError as error:  # a model that draws minibatches, or whose likelihood is nowhere finite
            return Elsewhere("nothing", note=str(error).rstrip("."))
    if seconds * _MODE_STEPS * _MODE_STARTS / NUM_DRAWS <= max_seconds:
        options = {"num_modes": _NUM_MODES, "num_starts": _MODE_STARTS, "num_steps": _MODE_STEPS}
        w = find_modes(model, layout, args, **options)
        height = LogJoint(model, layout)(w, *args)
        w = w[height >= height.max() - _MODE_DEPTH]
        return Elsewhere("modes", layout.constrain(w)[0], likely_seconds=likely)
    note = f"a short run of refine was guessed to take {likely:.0f} s, more than max_seconds={max_seconds:.3g}"
    return Elsewhere("nothing", note=note, likely_seconds=likely)


def _seconds_per_gradient(model: Model, layout: Layout, w: Tensor, args: tuple, max_seconds: float) -> float:
    """Seconds of one gradient of all these draws; from a few of them, where that says already that it is too much."""
    few = w[:_FEW_DRAWS]
    trial = LogJoint(model, layout, mode="eager")
    guess = min(_seconds(trial, few, args) for _ in range(2)) * len(w) / len(few)
    if 5 * guess > max_seconds:
        return guess
    log_joint = LogJoint(model, layout)
    return min(_seconds(log_joint, w, args) for _ in range(5))  # the first captures, the next ones are optimised


def _seconds(log_joint: LogJoint, w: Tensor, args: tuple) -> float:
    start = time.perf_counter()
    log_joint.value_and_grad(w, *args)
    return time.perf_counter() - start


def _short_run(model: Model, args: tuple, max_seconds: float) -> Elsewhere:
    sizes = {"num_samples": NUM_DRAWS, "num_populations": NUM_POPULATIONS}
    # A guess of the cost may be wrong by some, and a run that is stopped is lost.
    options = {"num_moves": NUM_MOVES, "num_leapfrogs": NUM_LEAPFROGS, "max_seconds": 2 * max_seconds}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*refine", UserWarning)  # what it did not reach shows in R-hat
        run = refine(model, *args, **sizes, **options, progress=False)
    if run.betas[-1] < 1 and run.seconds > 2 * max_seconds:
        return Elsewhere("nothing", note=f"a short run of refine had not ended after {run.seconds:.0f} s")
    return Elsewhere(
        "refine", run.samples, None, run.log_evidence, run.log_evidence_error, num_populations=NUM_POPULATIONS
    )


def function_rhat(model: Model, samples: dict[str, Tensor], args: tuple, num_populations: int) -> float:
    """The worst R-hat of populations that follow each other, in function space, or of the sites where there is none.

    Args:
        model: The Pyro model.
        samples: A dict from site to draws of shape `(populations * n, *shape)`.
        args: The model's arguments.
        num_populations: How many there are; NaN for one.
    """
    if num_populations < 2:
        return math.nan
    values = function_values(model, samples, *args)
    values = flat_sites(samples) if values is None else values
    rhat = gelman_rubin(values.unflatten(0, (num_populations, -1)))
    return float(rhat[rhat.isfinite()].max()) if bool(rhat.isfinite().any()) else math.nan

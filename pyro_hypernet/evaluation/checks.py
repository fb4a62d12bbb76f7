"""From figures to words: every check that a verdict rests on, with its thresholds and its remedy."""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.independent_check import IndependentDraws
from pyro_hypernet.evaluation.verdict import BAD, DOUBTFUL, GOOD, Check
from pyro_hypernet.inference.caution import MOST_RISE, rise_at_the_end

RETRAIN = "Train longer, or use a richer guide; or refine(model, *args)."
# Thresholds, chosen on the cases of benchmarks/thresholds_of_the_verdict.py.
HOPELESS_KHAT = 1.0
LEAST_ACCEPTANCE, EXCUSING_ACCEPTANCE = 0.4, 0.8
MOST_GAP = 0.5
MOST_SHIFT, MOST_SPREAD = 0.25, 1.25
MISSED_NATS = 5.0
MOST_MISSED, FAR_TOO_MUCH_MISSED = 0.03, 0.1
MOST_DISTANCE, DISTANCE_OVER_FLOOR = 0.2, 2.0
UNMIXED_RHAT = 1.3
# Errors of estimates are given this many standard errors.
_ERRORS = 4.0


def check_khat(khat: float, num_draws: int, acceptance: float, *, is_alone: bool) -> Check:
    """The tail of the importance weights.

    Args:
        khat: Its Pareto shape.
        num_draws: Number of weights.
        acceptance: Of a chain that the guide proposes to. k-hat speaks of tails alone: where nearly all draws would be
            accepted, the guide is close to the posterior though its tails are too thin to weigh it by.
        is_alone: Whether nothing is known from beyond the guide; then acceptance, blind there, excuses nothing.
    """
    reading = f"k-hat of {num_draws} importance weights is {khat:.2f}: "
    if khat <= 0.5:
        return Check("k-hat", khat, GOOD, reading + "below 0.5, the draws cover the posterior's tails where they are.")
    if khat <= BELIEVABLE_KHAT:
        return Check("k-hat", khat, GOOD, reading + "below 0.7, importance weights can correct what is off.")
    if acceptance >= EXCUSING_ACCEPTANCE and not is_alone:
        text = f"its tails are too thin to weigh it by, but a chain would accept {acceptance:.0%} of its draws."
        return Check("k-hat", khat, GOOD, reading + text)
    if khat <= HOPELESS_KHAT:
        text = "above 0.7, the guide is too narrow somewhere and its weights correct it only in part."
        return Check("k-hat", khat, DOUBTFUL, reading + text, RETRAIN)
    text = "above 1, a few draws stand for everything, and no weights can correct that."
    return Check("k-hat", khat, BAD, reading + text, RETRAIN)


def check_acceptance(acceptance: float) -> Check:
    """How often a Metropolis–Hastings chain would take the guide's proposals."""
    reading = f"A Metropolis–Hastings chain would accept {acceptance:.0%} of its draws."
    if acceptance >= LEAST_ACCEPTANCE:
        return Check("acceptance", acceptance, GOOD, reading)
    return Check("acceptance", acceptance, DOUBTFUL, reading, "metropolis(model, guide, *args) corrects it; " + RETRAIN)


def check_gap(gap: float, error: float) -> Check:
    """What the ELBO lacks to the importance-weighted evidence, an estimate of KL(q || p) from below."""
    reading = f"The ELBO lies {gap:.2f} nats below the importance-weighted evidence."
    if not gap - _ERRORS * error > MOST_GAP:
        return Check("gap", gap, GOOD, reading)
    return Check("gap", gap, DOUBTFUL, reading, "resample(model, guide, *args) uses the weights; " + RETRAIN)


def check_moments(w: Tensor, shares: Tensor, khat: float) -> Check:
    """Means and spreads of single weights under the guide, against those under its importance weights.

    Args:
        w: Draws of the guide in unconstrained space, shape `(S, D)`.
        shares: Their importance weights, summing to one, shape `(S,)`.
        khat: Of these weights; above 0.7 they say nothing.
    """
    if not khat <= BELIEVABLE_KHAT:
        return Check("moments", math.nan, GOOD, "Means and spreads cannot be checked by weights whose k-hat is high.")
    w = w.double()
    mean, sd = w.mean(0), w.std(0)
    right_mean = shares @ w
    right_sd = (shares @ (w - right_mean) ** 2).sqrt().clamp(min=1e-300)
    noise = _ERRORS * float((shares**2).sum().sqrt())
    shift = float(((mean - right_mean).abs() / right_sd).max()) - noise
    logs = (sd / right_sd).log()
    extreme = float(logs[logs.abs().argmax()])
    spread = math.exp(math.copysign(max(0.0, abs(extreme) - noise), extreme))
    if shift > MOST_SHIFT:
        reading = f"Means are off by up to {shift:.2f} sds, by the importance weights."
        return Check("moments", shift, DOUBTFUL, reading, "resample(model, guide, *args) corrects that; " + RETRAIN)
    if not 1 / MOST_SPREAD < spread < MOST_SPREAD:
        how = "wide" if spread > 1 else "narrow"
        reading = f"Spreads are too {how}: {spread:.2f} of what they should be, by the importance weights."
        return Check("moments", spread, DOUBTFUL, reading, "resample(model, guide, *args) corrects that; " + RETRAIN)
    return Check("moments", max(0.0, shift), GOOD, "Means and spreads agree with those under the importance weights.")


def check_elsewhere(found: IndependentDraws, log_evidence: float, *, is_one_copy: bool) -> Check:
    """Whether points of the posterior that owe nothing to the guide are where the guide is.

    Args:
        found: What `find_independently` found.
        log_evidence: By the guide's weights, in nats.
        is_one_copy: Whether the model has symmetric copies of which the guide holds only some.
    """
    name = "mass elsewhere"
    if found.how == "nothing" or found.log_weights is None:
        why = found.note or "the guide's density at given points is not known"
        return Check(name, math.nan, GOOD, f"Not looked for mass that the guide misses: {why}.")
    if is_one_copy:
        text = "Judged in function space alone: the guide holds some of the model's symmetric copies."
        return Check(name, math.nan, GOOD, text)
    missed = float((found.log_weights - log_evidence > MISSED_NATS).double().mean())
    what = "modes climbed from the prior" if found.how == "modes" else "draws carried from the prior to the posterior"
    reading = f"{missed:.0%} of {len(found.log_weights)} {what} lie where the guide has almost no density."
    remedy = "Use num_components= or best_start, or refine(model, *args)."
    if found.how == "modes":
        return Check(name, missed, DOUBTFUL if missed else GOOD, reading, remedy if missed else "")
    if missed <= MOST_MISSED:
        return Check(name, missed, GOOD, reading)
    unsure = found.rhat > UNMIXED_RHAT or missed <= FAR_TOO_MUCH_MISSED
    return Check(name, missed, DOUBTFUL if unsure else BAD, reading, remedy)


def check_functions(values: Tensor, reference: Tensor, found: IndependentDraws) -> Check:
    """What the guide predicts, against draws that owe nothing to it.

    Args:
        values: The functions under the guide, shape `(S, F)`.
        reference: Under the other draws, in their populations, shape `(R, F)`.
        found: Where these come from.
    """
    name = "functions"
    distance = float(wasserstein_over_sd(values, reference))
    floor = _noise_floor(reference, found.num_populations)
    reading = (
        f"Predictions lie {distance:.2f} sds from those of draws that owe nothing to the guide (noise {floor:.2f})."
    )
    if found.rhat > UNMIXED_RHAT:
        return Check(
            name, distance, GOOD, f"Inconclusive: these draws have not mixed, R-hat {found.rhat:.2f}. {reading}"
        )
    if not distance > max(MOST_DISTANCE, DISTANCE_OVER_FLOOR * floor):
        return Check(name, distance, GOOD, reading)
    return Check(name, distance, BAD if distance > 3 * max(MOST_DISTANCE, floor) else DOUBTFUL, reading, RETRAIN)


def check_training(fit: Any) -> Check:
    """Whether the ELBO was still rising when training ended."""
    rise, error = rise_at_the_end(fit.losses)
    reading = f"The ELBO rose by {rise:.2f} nats over the last fifth of the {fit.num_steps} steps."
    if not rise - _ERRORS * error > MOST_RISE:
        return Check("training", rise, GOOD, reading)
    return Check("training", rise, DOUBTFUL, reading, f"Train longer: num_steps={4 * fit.num_steps}.")


def check_range(w: Tensor, prior: Tensor) -> Check:
    """Whether draws of the guide lie where the prior has next to none.

    Args:
        w: Draws of the guide in unconstrained space, shape `(S, D)`.
        prior: Draws of the prior there, shape `(R, D)`.
    """
    low, high = prior.min(0).values, prior.max(0).values
    middle, half = (low + high) / 2, (high - low).clamp(min=1e-12) / 2
    outside = float(((w - middle).abs() > 1.5 * half).to(w).mean(0).max())
    reading = f"Up to {outside:.0%} of the draws of a weight lie outside the range of {len(prior)} prior draws."
    if outside <= 0.5:
        return Check("range", outside, GOOD, reading)
    remedy = "Check the prior's scale against the data's units: prior and data contradict each other."
    return Check("range", outside, DOUBTFUL, reading, remedy)


def _noise_floor(reference: Tensor, num_populations: int) -> float:
    """Distance of every population from all others, averaged; of halves where there are no populations."""
    count = max(2, num_populations)
    parts = reference.tensor_split(count)
    others = [torch.cat(parts[:i] + parts[i + 1 :]) for i in range(count)]
    return sum(float(wasserstein_over_sd(p, o)) for p, o in zip(parts, others, strict=True)) / count

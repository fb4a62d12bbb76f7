"""From figures to words: every check that a verdict rests on, with its thresholds and its remedy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.independent_check import IndependentDraws
from pyro_hypernet.evaluation.verdict import BAD, DOUBTFUL, GOOD, Check
from pyro_hypernet.train.notices import MOST_RISE, rise_at_the_end

RETRAIN = "Train longer, or use a richer guide; or refine(model, *args)."
# Thresholds, chosen on the cases of benchmarks/thresholds_of_the_verdict.py.
HOPELESS_KHAT = 1.0
LEAST_ACCEPTANCE, EXCUSING_ACCEPTANCE = 0.4, 0.8
# Below this a chain of the guide's proposals takes too long to be a remedy.
_CHAIN_ACCEPTANCE = 0.1
MOST_GAP = 0.5
MOST_SHIFT, MOST_SPREAD = 0.25, 1.25
MISSED_NATS = 5.0
MOST_MISSED, FAR_TOO_MUCH_MISSED = 0.03, 0.1
MOST_DISTANCE, DISTANCE_OVER_FLOOR = 0.2, 2.0
UNMIXED_RHAT = 1.3
# Errors of estimates are given this many standard errors.
_ERRORS = 4.0


@dataclass(frozen=True)
class Facts:
    """All that a diagnosis found out, for checks to read.

    Attributes:
        khat: The Pareto shape of the tail of the importance weights.
        num_draws: Number of weights.
        acceptance: Of a Metropolis–Hastings chain that the guide proposes to.
        gap: What the ELBO lacks to the importance-weighted evidence, in nats.
        gap_error: The standard error of the ELBO.
        w: Draws of the guide in unconstrained space, shape `(S, D)`.
        shares: Their importance weights, summing to one, shape `(S,)`.
        prior: Draws of the prior there, shape `(R, D)`; None where it cannot be sampled.
        found: Points that owe nothing to the guide.
        log_evidence: By the guide's weights, in nats.
        is_one_copy: Whether the model has symmetric copies of which the guide holds only some.
        functions: What the model computes from draws of the guide, shape `(S', F)`, and from independent ones, in
            their populations, shape `(R', F)`; None where either is not known.
        fit: How training went; None where that is not known.
        given: Of what k-hat and acceptance are, where not of all weights.
    """

    found: IndependentDraws
    khat: float = math.nan
    num_draws: int = 0
    acceptance: float = math.nan
    gap: float = math.nan
    gap_error: float = math.nan
    w: Tensor | None = None
    shares: Tensor | None = None
    prior: Tensor | None = None
    log_evidence: float = math.nan
    is_one_copy: bool = False
    functions: tuple[Tensor, Tensor] | None = None
    fit: Any = None
    given: str = ""

    @property
    def retrain(self) -> str:
        """What mends a guide that is off."""
        return RETRAIN if not self.given else "Train longer, or use a richer guide or a GuideMixture."


def check_khat(facts: Facts) -> Check:
    """The tail of the importance weights.

    k-hat speaks of tails alone: where a chain would accept nearly all draws, the guide is close to the posterior
    though its tails are too thin to weigh it by. Acceptance, blind beyond the guide, excuses nothing where nothing is
    known from there.
    """
    khat, acceptance, is_alone = facts.khat, facts.acceptance, not facts.found.has_draws
    reading = f"k-hat of {facts.num_draws} importance weights{facts.given} is {khat:.2f}: "
    if khat <= 0.5:
        return Check("k-hat", khat, GOOD, reading + "below 0.5, the draws cover the posterior's tails where they are.")
    if khat <= BELIEVABLE_KHAT:
        return Check("k-hat", khat, GOOD, reading + "below 0.7, importance weights can correct what is off.")
    if acceptance >= EXCUSING_ACCEPTANCE and not is_alone:
        text = f"its tails are too thin to weigh it by, but a chain would accept {acceptance:.0%} of its draws."
        return Check("k-hat", khat, GOOD, reading + text)
    if khat <= HOPELESS_KHAT:
        text = "above 0.7, the guide is too narrow somewhere and its weights correct it only in part."
        return Check("k-hat", khat, DOUBTFUL, reading + text, facts.retrain)
    text = "above 1, a few draws stand for everything, and no weights can correct that."
    return Check("k-hat", khat, BAD, reading + text, facts.retrain)


def check_acceptance(facts: Facts) -> Check:
    """How often a Metropolis–Hastings chain would take the guide's proposals."""
    acceptance = facts.acceptance
    reading = f"A Metropolis–Hastings chain{facts.given} would accept {acceptance:.0%} of its draws."
    is_enough = acceptance >= _CHAIN_ACCEPTANCE and not facts.given
    remedy = ("metropolis(model, guide, *args) corrects it. " if is_enough else "") + facts.retrain
    return _good_if(acceptance >= LEAST_ACCEPTANCE, "acceptance", acceptance, reading, remedy)


def check_gap(facts: Facts) -> Check:
    """What the ELBO lacks to the importance-weighted evidence, an estimate of KL(q || p) from below."""
    gap = facts.gap
    reading = f"The ELBO lies {gap:.2f} nats below the importance-weighted evidence."
    is_good = not gap - _ERRORS * facts.gap_error > MOST_GAP
    remedy = "resample(model, guide, *args) uses the weights. " if facts.khat <= BELIEVABLE_KHAT else ""
    return _good_if(is_good, "gap", gap, reading, remedy + RETRAIN)


def check_moments(facts: Facts) -> Check:
    """Means and spreads of single weights under the guide, against those under its importance weights."""
    if not facts.khat <= BELIEVABLE_KHAT:
        return Check("moments", math.nan, GOOD, "Means and spreads cannot be checked by weights whose k-hat is high.")
    w, shares = facts.w.double(), facts.shares
    mean, sd = w.mean(0), w.std(0)
    right_mean = shares @ w
    right_sd = (shares @ (w - right_mean) ** 2).sqrt().clamp(min=1e-300)
    noise = _ERRORS * float((shares**2).sum().sqrt())
    shift = float(((mean - right_mean).abs() / right_sd).max()) - noise
    logs = (sd / right_sd).log()
    extreme = float(logs[logs.abs().argmax()])
    spread = math.exp(math.copysign(max(0.0, abs(extreme) - noise), extreme))
    remedy = "resample(model, guide, *args) corrects that; " + RETRAIN
    if shift > MOST_SHIFT:
        reading = f"Means are off by up to {shift:.2f} sds, by the importance weights."
        return Check("moments", shift, DOUBTFUL, reading, remedy)
    if not 1 / MOST_SPREAD < spread < MOST_SPREAD:
        how = "wide" if spread > 1 else "narrow"
        reading = f"Spreads are too {how}: {spread:.2f} of what they should be, by the importance weights."
        return Check("moments", spread, DOUBTFUL, reading, remedy)
    return Check("moments", max(0.0, shift), GOOD, "Means and spreads agree with those under the importance weights.")


def check_elsewhere(facts: Facts) -> Check:
    """Whether points of the posterior that owe nothing to the guide are where the guide is."""
    found = facts.found
    name = "mass elsewhere"
    if found.how == "nothing" or found.log_weights is None:
        why = found.note or "the guide's density at given points is not known"
        return Check(name, math.nan, GOOD, f"Not looked for mass that the guide misses: {why}.")
    if facts.is_one_copy:
        text = "Judged in function space alone: the guide holds some of the model's symmetric copies."
        return Check(name, math.nan, GOOD, text)
    missed = float((found.log_weights - facts.log_evidence > MISSED_NATS).double().mean())
    what = "modes climbed from the prior" if found.how == "modes" else "draws carried from the prior to the posterior"
    reading = f"{missed:.0%} of {len(found.log_weights)} {what} lie where the guide has almost no density."
    remedy = "Use num_components= or best_start, or refine(model, *args)."
    if found.how == "modes":
        return _good_if(not missed, name, missed, reading, remedy)
    if missed <= MOST_MISSED:
        return Check(name, missed, GOOD, reading)
    unsure = found.rhat > UNMIXED_RHAT or missed <= FAR_TOO_MUCH_MISSED
    return Check(name, missed, DOUBTFUL if unsure else BAD, reading, remedy)


def check_functions(facts: Facts) -> Check | None:
    """What the guide predicts, against draws that owe nothing to it."""
    if facts.functions is None:
        return None
    (values, reference), found = facts.functions, facts.found
    name, distance = "functions", float(wasserstein_over_sd(values, reference))
    floor, source = _noise_floor(reference, found.num_populations), "draws that owe nothing to the guide"
    reading = f"Predictions lie {distance:.2f} sds from those of {source} (noise {floor:.2f})."
    if found.rhat > UNMIXED_RHAT:
        reading = f"Inconclusive: these draws have not mixed, R-hat {found.rhat:.2f}. {reading}"
        return Check(name, distance, GOOD, reading)
    if not distance > max(MOST_DISTANCE, DISTANCE_OVER_FLOOR * floor):
        return Check(name, distance, GOOD, reading)
    return Check(name, distance, BAD if distance > 3 * max(MOST_DISTANCE, floor) else DOUBTFUL, reading, RETRAIN)


def check_training(facts: Facts) -> Check | None:
    """Whether the ELBO was still rising when training ended."""
    fit = facts.fit
    if fit is None:
        return None
    rise, error = rise_at_the_end(fit.losses)
    if math.isnan(rise):
        few = f"{fit.num_steps} steps are too few to say whether the ELBO was still rising."
        return Check("training", rise, DOUBTFUL, few, "Train longer: num_steps=1000, or a larger budget.")
    reading = f"The ELBO rose by {rise:.2f} nats over the last fifth of the {fit.num_steps} steps."
    is_good = not rise - _ERRORS * error > MOST_RISE
    return _good_if(is_good, "training", rise, reading, f"Train longer: num_steps={4 * fit.num_steps}.")


def check_range(facts: Facts) -> Check | None:
    """Whether draws of the guide lie where the prior has next to none; an improper prior has no range."""
    w, prior = facts.w, facts.prior
    if prior is None:
        return None
    low, high = prior.min(0).values, prior.max(0).values
    middle, half = (low + high) / 2, (high - low).clamp(min=1e-12) / 2
    outside = float(((w - middle).abs() > 1.5 * half).to(w).mean(0).max())
    reading = f"Up to {outside:.0%} of the draws of a weight lie outside the range of {len(prior)} prior draws."
    remedy = "Check the prior's scale against the data's units: prior and data contradict each other."
    return _good_if(outside <= 0.5, "range", outside, reading, remedy)


def check_whole(khat: float, dim: int) -> Check:
    """That weights of whole draws fail where the last layer is then looked at alone."""
    reading = (
        f"k-hat of the weights of all {dim} random coordinates is {khat:.2f}: above 0.7, whole draws are not the "
        "posterior's. Looked at next is the last layer given all others."
    )
    return Check("all coordinates", khat, DOUBTFUL, reading, "Train longer, or use a richer guide or a GuideMixture.")


# In the order in which a diagnosis names them.
CHECKS: list[Callable[[Facts], Check | None]] = [
    check_khat,
    check_moments,
    check_acceptance,
    check_gap,
    check_range,
    check_elsewhere,
    check_functions,
    check_training,
]
# Of them, what can be said of the last layer alone.
LAST_LAYER_CHECKS = [check_khat, check_acceptance, check_training]


def _good_if(is_good: bool, name: str, value: float, reading: str, remedy: str) -> Check:
    return Check(name, value, GOOD, reading) if is_good else Check(name, value, DOUBTFUL, reading, remedy)


def _noise_floor(reference: Tensor, num_populations: int) -> float:
    """Distance of every population from all others, averaged; of halves where there are no populations."""
    count = max(2, num_populations)
    parts = reference.tensor_split(count)
    others = [torch.cat(parts[:i] + parts[i + 1 :]) for i in range(count)]
    return sum(float(wasserstein_over_sd(p, o)) for p, o in zip(parts, others, strict=True)) / count

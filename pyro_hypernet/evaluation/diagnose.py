"""diagnose: everything that can be said of a guide without a reference, as a verdict in words."""

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.checks import CHECKS, LAST_LAYER_CHECKS, Facts, check_whole
from pyro_hypernet.evaluation.convergence import function_values
from pyro_hypernet.evaluation.evidence import Bracket, evidence_bracket
from pyro_hypernet.evaluation.importance import (
    BELIEVABLE_KHAT,
    WeightedDraws,
    bind_to_weigh,
    draw_weighted,
    expected_acceptance,
    finite_log_weights,
    khat_of,
)
from pyro_hypernet.evaluation.independent_check import IndependentDraws, find_independently
from pyro_hypernet.evaluation.last_layer_check import weigh_last_layer
from pyro_hypernet.evaluation.psis import smoothed
from pyro_hypernet.evaluation.streamed import pairs_of
from pyro_hypernet.evaluation.symmetric import symmetries_of
from pyro_hypernet.evaluation.verdict import USE, Check, Diagnosis, diagnosis_of
from pyro_hypernet.evaluation.whole_check import Wholes, weigh_all
from pyro_hypernet.model.called import is_loader
from pyro_hypernet.model.vectorize import Model, outside_of_pyro
from pyro_hypernet.sample.tempering import effective_sample_size
from pyro_hypernet.target import Target
from pyro_hypernet.train.batches import one_pass
from pyro_hypernet.train.notices import remember

_PRIOR_DRAWS = 1000
_FUNCTION_DRAWS = 2000
# The most numbers that all draws together may hold: of larger models fewer draws are taken.
_MOST_NUMBERS = 2**25
# With a loader: draws of all but the last layer, and of that for each.
_NUM_SECTIONS, _MOST_SECTIONED = 4, 250
# Guides of so many random coordinates at most are weighed by all of them first.
MOST_COORDINATES = 1000


@dataclass(frozen=True)
class Examination:
    """A diagnosis with all that was drawn for it.

    Attributes:
        diagnosis: The verdict and its figures.
        bracket: Figures around the log evidence.
        independent: Points that owe nothing to the guide.
    """

    diagnosis: Diagnosis
    bracket: Bracket
    independent: IndependentDraws = field(repr=False)


def diagnose(
    model: Model,
    guide: Any,
    *args: Any,
    fit: Any = None,
    num_samples: int = 10_000,
    max_seconds: float = 20.0,
    draws: Any = None,
    **kwargs: Any,
) -> Diagnosis:
    """Looks at a guide from all sides that need no reference and says whether to use it.

    From the guide's own draws: k-hat, the acceptance of a Metropolis–Hastings chain, the gap between ELBO and
    importance-weighted evidence, means and spreads against those under the weights. From draws that owe nothing to the
    guide (a short `refine` from the prior, where that is affordable, else modes climbed from there): mass that the
    guide misses, and what it predicts. "use it" where all is well; "refine it" where something is off that weights,
    more training or `refine` mend; "do not trust it" where the guide is of no use.

    Data that come by a loader are weighed by in one pass, `diagnose(model, guide, loader)`: up to 1 000 random
    coordinates, such as the norms of a network whose directions are learnt, all together, as without a loader and
    `max_seconds=0`; of a mixture whose components learn parameters each component by itself, medians over these. Where
    their k-hat is above 0.7 that is said, and looked at is the last layer, and so it is where there are more: k-hat
    and acceptance are then those of the last layer given four draws of all others, medians over these, by another pass,
    and the ELBO is of as many. `judged` says which it was. How a guide predicts data that were held out, `score` says.

    Args:
        model: The Pyro model.
        guide: A trained guide with a density.
        args: The model's arguments, data included; or one DataLoader of all data, or a trainer's wrapper of one.
        fit: What `fit` returned, to look at how training went.
        num_samples: Number of draws of the guide; fewer where these have more than 2²⁵ weights together, and 1 000 at
            most with a loader.
        max_seconds: What to spend, about, on looking beyond the guide; 0 for not at all.
        draws: A result of `refine`, or a dict of samples of the posterior, to look beyond the guide with; with a loader
            there is no such look, however many seconds there are.
        kwargs: The model's keyword arguments.

    Returns:
        The verdict, its reasons and its figures.

    Raises:
        TypeError: If `guide` is no guide or a point estimate, or with a loader neither AutoHypernet nor GuideMixture.
        ValueError: If the guide's sites are not the model's, no draw has a finite density, or a loader leaves data out
            or comes with `draws`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoNormal(model, init_scale=0.01)
        >>> _ = guide(torch.tensor(0.0))
        >>> diagnose(model, guide, torch.tensor(0.0)).verdict
        'do not trust it'
    """
    if len(args) == 1 and is_loader(args[0]):
        if draws is not None:
            raise ValueError(
                "With a loader the guide's own draws alone are looked at: pass the data themselves, or no draws=."
            )
        return _diagnose_by_loader(model, guide, args[0], kwargs, fit=fit, num_samples=num_samples)
    options = {"fit": fit, "num_samples": num_samples, "max_seconds": max_seconds, "draws": draws}
    return examine(model, guide, args, kwargs, **options).diagnosis


@torch.no_grad()
def examine(
    model: Model,
    guide: Any,
    args: tuple,
    kwargs: dict | None = None,
    *,
    fit: Any = None,
    num_samples: int = 10_000,
    max_seconds: float = 20.0,
    draws: Any = None,
    num_functions: int = _FUNCTION_DRAWS,
) -> Examination:
    """`diagnose`, with everything that was drawn. Arguments as there, and how many draws to predict from."""
    start = time.perf_counter()
    target = bind_to_weigh(model, guide, args, kwargs or {})
    num_samples = _at_most(num_samples, target.layout.dim)
    proposals = draw_weighted(target, guide, num_samples=num_samples, what="diagnose")
    log_weights = finite_log_weights(proposals.log_weights)
    found = IndependentDraws("nothing", note="there was no time, max_seconds=0")
    if max_seconds > 0 or draws is not None:
        found = find_independently(target, guide, max_seconds=max_seconds, draws=draws)
    is_one_copy = found.log_weights is not None and _holds_some_copies(target, guide)
    usable = found.has_draws and found.log_weights is not None and not is_one_copy
    bracket = evidence_bracket(log_weights, found.log_weights if usable else None)
    known = {"found": found, "is_one_copy": is_one_copy, "fit": fit}
    known |= {"w": target.layout.unconstrain(proposals.samples)[0], "prior": _prior_draws(target)}
    diagnosis = _judge(
        log_weights, bracket, start, **known, functions=_functions(target, proposals, found, num_functions)
    )
    remember(guide, "" if diagnosis.verdict == USE else _warning(diagnosis))
    return Examination(diagnosis, bracket, found)


def _judge(log_weights: Tensor, bracket: Bracket, start: float, **known: Any) -> Diagnosis:
    """The diagnosis of weights of all random coordinates, shape `(S,)`, begun at a time, and what else is known."""
    figures = _figures(log_weights, bracket)
    facts = Facts(
        khat=figures["khat"],
        num_draws=len(log_weights),
        acceptance=figures["acceptance"],
        gap=bracket.lower - figures["elbo"],
        gap_error=figures["elbo_error"],
        shares=_shares(log_weights, figures["khat"]),
        log_evidence=bracket.lower,
        **known,
    )
    checks = [check for check in (judge(facts) for judge in CHECKS) if check is not None]
    return diagnosis_of(tuple(checks), **figures, seconds=time.perf_counter() - start)


@torch.no_grad()
def _diagnose_by_loader(
    model: Model, guide: Any, loader: Any, kwargs: dict[str, Any], *, fit: Any, num_samples: int
) -> Diagnosis:
    start, dim = time.perf_counter(), pairs_of(model, guide)[0][1].layout.dim
    diagnosis, before = None, []
    if dim <= MOST_COORDINATES:
        most = _NUM_SECTIONS * _MOST_SECTIONED
        found = weigh_all(model, guide, loader, kwargs, num_samples=max(2, min(num_samples, most)))
        diagnosis = _of_all(model, guide, loader, kwargs, found, start, fit=fit)
        if not diagnosis.khat <= BELIEVABLE_KHAT:
            before, diagnosis = [check_whole(diagnosis.khat, dim)], None
    if diagnosis is None:
        diagnosis = _of_last_layer(model, guide, loader, kwargs, before, start, fit=fit, num_samples=num_samples)
    remember(guide, "" if diagnosis.verdict == USE else _warning(diagnosis))
    return diagnosis


def _of_all(
    model: Model, guide: Any, loader: Any, kwargs: dict[str, Any], found: Wholes, start: float, *, fit: Any
) -> Diagnosis:
    """The diagnosis by weights of all random coordinates."""
    nothing = IndependentDraws("nothing", note="the data came by a loader")
    if len(found.log_weights) > 1:
        count, dim = found.w.shape[0], found.w.shape[-1]
        judged = f"all {dim} random coordinates of each component (medians over {count})"
        return _of_several(found.log_weights, judged, [], start, fit=fit)
    args, named = next(one_pass(loader, kwargs))
    prior = _prior_draws(bind_to_weigh(model, guide, args, named))
    log_weights = found.log_weights[0]
    return _judge(
        log_weights, evidence_bracket(log_weights, None), start, found=nothing, w=found.w[0], prior=prior, fit=fit
    )


def _of_last_layer(
    model: Model,
    guide: Any,
    loader: Any,
    kwargs: dict[str, Any],
    before: list[Check],
    start: float,
    *,
    fit: Any,
    num_samples: int,
) -> Diagnosis:
    """The diagnosis by weights of the last layer, after checks that were made before."""
    each = max(2, min(num_samples // _NUM_SECTIONS, _MOST_SECTIONED))
    found = weigh_last_layer(model, guide, loader, kwargs, num_sections=_NUM_SECTIONS, num_samples=each)
    judged = (
        f"the last layer's {found.dim} weights given all others (medians over {len(found.log_weights)} draws of these)"
    )
    return _of_several(found.log_weights, judged, before, start, fit=fit)


def _of_several(log_weights: Tensor, judged: str, before: list[Check], start: float, *, fit: Any) -> Diagnosis:
    """The diagnosis of several sets of weights, shape `(M, S)`, by the medians of their figures."""
    rows, bounds = list(log_weights), log_weights.mean(1)
    khat = statistics.median(map(khat_of, rows))
    acceptance = statistics.median(map(expected_acceptance, rows))
    known = {"num_draws": log_weights.shape[1], "fit": fit, "given": f" of {judged}"}
    facts = Facts(IndependentDraws("nothing"), khat=khat, acceptance=acceptance, **known)
    checks = [check for check in (judge(facts) for judge in LAST_LAYER_CHECKS) if check is not None]
    figures = {"khat": khat, "acceptance": acceptance, "num_draws": log_weights.numel()}
    figures |= {"elbo": float(bounds.mean()), "elbo_error": float(bounds.std() / len(bounds) ** 0.5)}
    figures |= {"ess": sum(float(effective_sample_size(row)) for row in rows), "judged": judged}
    return diagnosis_of((*before, *checks), **figures, seconds=time.perf_counter() - start)


def _at_most(num_draws: int, dim: int) -> int:
    return max(2, min(num_draws, _MOST_NUMBERS // max(1, dim)))


def _warning(diagnosis: Diagnosis) -> str:
    """What `predict` says of a guide with this diagnosis."""
    remedy = next((check.remedy for check in diagnosis.checks if check.remedy), "")
    return f"The verdict on this guide is {diagnosis.verdict!r}. {diagnosis.because} {remedy}".rstrip()


def _figures(log_weights: Tensor, bracket: Bracket) -> dict[str, Any]:
    finite = log_weights[log_weights.isfinite()]
    return {
        "elbo": float(log_weights.mean()),
        "elbo_error": float(finite.std()) / math.sqrt(len(log_weights)) if len(finite) > 1 else math.nan,
        "khat": khat_of(log_weights),
        "evidence_lower": bracket.lower,
        "evidence_upper": bracket.upper,
        "ess": float(effective_sample_size(log_weights)),
        "acceptance": expected_acceptance(log_weights),
        "num_draws": len(log_weights),
    }


def _shares(log_weights: Tensor, khat: float) -> Tensor:
    """Importance weights that sum to one, smoothed where they have a tail."""
    return log_weights.softmax(0) if khat == 0 else smoothed(log_weights)[0].exp().to(log_weights.device)


def _prior_draws(target: Target) -> Tensor | None:
    try:
        return target.sample_prior(_at_most(_PRIOR_DRAWS, target.layout.dim))
    except (NotImplementedError, RuntimeError):  # it is improper
        return None


def _functions(
    target: Target, proposals: WeightedDraws, found: IndependentDraws, num_draws: int
) -> tuple[Tensor, Tensor] | None:
    """What the model computes from draws of the guide and from independent ones, where both are known."""
    if not found.has_draws:
        return None
    ours = {name: value[:num_draws] for name, value in proposals.samples.items()}
    values, reference = (function_values(target, samples) for samples in (ours, found.samples))
    if values is None or reference is None or values.shape[1] != reference.shape[1]:
        return None
    return values, reference


def _holds_some_copies(target: Target, guide: Any) -> bool:
    """Whether the model has symmetries that the guide does not have."""
    known = [getattr(part, "knowledge", None) for part in getattr(guide, "components", (guide,))]
    if all(knowledge is not None and knowledge.symmetries.groups for knowledge in known):
        return False
    if target.kwargs:
        return False
    try:
        with outside_of_pyro():
            return symmetries_of(target).log_order > 0
    except ValueError:
        return False

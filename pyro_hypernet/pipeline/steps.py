"""The steps of `infer`, as far as there is time: they take what was reached and return what is reached then."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_hypernet.correction.move import move
from pyro_hypernet.correction.resample import resample
from pyro_hypernet.evaluation.checks import UNMIXED_RHAT
from pyro_hypernet.evaluation.diagnose import Examination, examine
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.independent_check import NUM_DRAWS
from pyro_hypernet.evaluation.verdict import DO_NOT_TRUST, REFINE, USE
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.guide.weigher import NUM_PROPOSALS
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.pipeline.budget import Cost, spell_seconds
from pyro_hypernet.pipeline.forecast import (
    CAUTION,
    ENOUGH_STEPS,
    LEAST_GATHERED,
    LEAST_MOVED,
    LEAST_REFINED,
    LEAST_WEIGHTS,
    MOST_STEPS,
    USUAL_WEIGHTS,
    Forecast,
    fewer,
    parts_of,
    price_of_weights,
    unnoticed,
)
from pyro_hypernet.pipeline.posterior import Posterior, Task
from pyro_hypernet.sample.nuts import nuts
from pyro_hypernet.sample.refine import bind_to_refine, carry, count_moved
from pyro_hypernet.target import Target
from pyro_hypernet.train.fit import Fit, fit
from pyro_hypernet.train.optimiser import Optim

_POPULATIONS = _CHAINS = 4
# Of the budget: for a pilot of the exact engine at most; and how far it has to come to foretell the rest. At every
# power it moves as many draws as the run itself, one graph serving both, but not more than so many.
_PILOT_SHARE, _PILOT_MOVES, _MOST_MOVED, _LEAST_SHARE = 0.08, 2, 128, 0.5
# A long run takes about as many powers as the short one of the diagnosis; one of its draws costs so much more.
_LONG_OVER_SHORT = 4.0
# Of every chain of NUTS; and the R-hat above which chains are not to be trusted.
_WARMUP, _LEAST_CHAIN, UNMIXED_CHAINS = 500, 100, 1.3
# Populations and chains agree below this.
_AGREED_RHAT = 1.1
# Draws to predict from in a diagnosis by 10 000 weights.
_FUNCTION_SHARE = 5


@contextmanager
def silenced(message: str) -> Iterator[None]:
    """Without the warnings whose text begins so, a pattern: what they say is said elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, UserWarning)
        yield


@dataclass(frozen=True)
class Exact:
    """What exact draws are carried through, and what they cost."""

    target: Target
    cost: Cost


def _bind(task: Task) -> Target:
    return bind_to_refine(task.model, task.args, task.kwargs)


def _fly_a_pilot(task: Task) -> Exact:
    """What exact draws cost, by a few of them, carried from the prior in a small part of the budget."""
    start, seconds = task.clock.now(), _PILOT_SHARE * task.clock.budget
    number = _PILOT_MOVES * min(_MOST_MOVED, count_moved(max(task.num_samples, LEAST_REFINED), _POPULATIONS))
    with unnoticed():  # so few draws are to say nothing but their cost
        target = _bind(task)
        sizes = {"num_samples": number, "num_populations": _POPULATIONS, "num_moves": _PILOT_MOVES}
        pilot = carry(target, **sizes, max_seconds=seconds - (task.clock.now() - start))
    share = _share_of_the_way(pilot.betas)
    if share < _LEAST_SHARE:
        raise RuntimeError(
            f"a pilot of {number} draws came to beta {pilot.betas[-1]:.2g} of 1 in {pilot.seconds:.1f} s"
        )
    moving = pilot.num_gradients * pilot.seconds_per_gradient
    return Exact(target, Cost(max(0.0, pilot.seconds - moving), moving / share / number))


def _share_of_the_way(betas: Sequence[float]) -> float:
    """Of the powers of the likelihood from 0 to 1, those that were reached: they go on growing by the last factor."""
    if betas[-1] == 1:
        return 1.0
    if len(betas) < 3 or betas[-2] <= 0:
        return 0.0
    done, growth = len(betas) - 1, betas[-1] / betas[-2]
    return done / (done + math.log(1 / betas[-1]) / math.log(growth))


def choose_engine(task: Task, guide: JointGuide, forecast: Forecast, num_steps: int | None) -> tuple[str, Exact | None]:
    """The engine that is likely to end first, and what a pilot said that exact draws cost."""
    if guide.knowledge is not None and guide.knowledge.is_whole:
        task.note("plan", "a guide, for what is known of the model makes it exact")
        return "guide", None
    training = forecast.step.of(forecast.steps(num_steps)) + forecast.density.of(USUAL_WEIGHTS)
    try:
        exact = _fly_a_pilot(task)
    except Exception as error:  # whatever refine refuses, and what it could not end
        task.note("plan", f"a guide, for exact draws are out of reach: {str(error).rstrip('.')}")
        return "guide", None
    refining = exact.cost.of(task.num_samples)
    engine = "refine" if refining < min(training, CAUTION * forecast.left) else "guide"
    words = f"exact draws by refine would take about {spell_seconds(refining)}, training and judging a guide "
    task.note("plan", f"{engine}: {words}{spell_seconds(training)}")
    return engine, exact


def draw_exactly(task: Task, forecast: Forecast, engine: str, exact: Exact | None) -> Posterior:
    """Draws by "nuts", or by "refine", whose cost a pilot tells if it is not known; none where they are left out."""
    if engine == "nuts":
        return _draw_by_nuts(task, forecast)
    return _draw_by_refine(task, forecast, exact or _fly_a_pilot(task), Posterior())


def _draw_by_nuts(task: Task, forecast: Forecast) -> Posterior:
    """Four chains of the No-U-Turn sampler, in the time that is left."""
    sizes = {"num_samples": max(_LEAST_CHAIN, -(-task.num_samples // _CHAINS)), "num_chains": _CHAINS}
    options = {"warmup_steps": _WARMUP, "max_seconds": CAUTION * forecast.left, "progress": task.progress}
    with silenced("NUTS has not mixed"):  # part of the verdict
        result = task.call(nuts, **sizes, **options)
    count, rhat = result.diverging.numel(), result.decisive_rhat
    figures = f"{count} draws of {_CHAINS} chains of NUTS; the worst R-hat of what the model computes {rhat:.2f}"
    task.note("nuts", f"{figures}; {sum(result.divergences)} divergent transitions")
    verdict = _judge(rhat, UNMIXED_CHAINS, f"It was sampled by NUTS: {figures}, so chains")
    return Posterior(samples=result.samples, source="nuts", **verdict)


def _draw_by_refine(task: Task, forecast: Forecast, exact: Exact, reached: Posterior) -> Posterior:
    """Draws carried from the prior in four populations, as many as there is time for; none if few or not arrived."""
    num_samples = forecast.refined(task.num_samples, exact.cost) // _POPULATIONS * _POPULATIONS
    if num_samples < LEAST_REFINED:
        enough = f"{forecast.left:.0f} s are left, enough for {num_samples} draws; {LEAST_REFINED} are the least"
        task.note("refine", f"left out: {enough}")
        return reached
    sizes = {"num_samples": num_samples, "num_populations": _POPULATIONS}
    refined = carry(exact.target, **sizes, max_seconds=forecast.left, progress=task.progress)
    if refined.betas[-1] < 1:
        stopped = f"it had come to beta {refined.betas[-1]:.2g} of 1 after {refined.seconds:.0f} s"
        task.note("refine", f"left out: {stopped}")
        return reached
    rhat = refined.decisive_rhat
    figures = (
        f"{num_samples} draws carried from the prior by {len(refined.betas)} powers of the likelihood; "
        f"R-hat of {_POPULATIONS} populations in function space {rhat:.2f}"
    )
    task.note("refine", f"{figures}; {_spell_evidence(refined)}")
    what = "The guide was replaced by refined draws" if reached.fit is not None else "No guide was needed"
    verdict = _judge(rhat, UNMIXED_RHAT, f"{what}: {figures}, so populations")
    return replace(reached, source="refined", refined=refined, **_draws_of(refined), **verdict)


def train(task: Task, guide: JointGuide, forecast: Forecast, num_steps: int | None) -> Fit:
    """As many steps as half of the budget allows for."""
    first, *others = parts_of(guide)
    number, usual = 1 + len(others), first.plan.num_particles
    most = number * (num_steps or MOST_STEPS)
    forecast, particles = forecast.with_fewer_draws(usual, min(most, number * ENOUGH_STEPS))
    planned = max(1, forecast.steps(most) // number)
    if num_steps is None or planned < num_steps or particles < usual:
        asked = "" if num_steps in (None, planned) else f", of {num_steps} asked for: the budget allows for no more"
        asked += f", of {particles} draws each instead of {usual}" if particles < usual else ""
        task.note("plan", f"{planned} steps of training at {spell_seconds(forecast.step.each)}{asked}")
    how = {
        "optim": Optim(max_seconds=forecast.training_seconds() / number),
        "plan": Plan(rejection=None, num_particles=particles),
    }
    with silenced("The ELBO was still rising"):  # part of the diagnosis
        options = {"kwargs": task.kwargs, "num_steps": planned, "progress": task.progress}
        result = fit(task.model, guide, task.args, **how, **options)
    task.note("fit", f"{result.num_steps} steps, {result.stopped_because}; ELBO {result.elbo:.2f} nats")
    return result


def choose_draws(task: Task, guide: AutoHypernet, forecast: Forecast, fitted: Fit) -> float:
    """Lets the posterior choose among the guide's draws, as far as the budget allows for what they then cost.

    Returns:
        The share that is kept.
    """
    if fitted.mode == "loop" or not guide.suits_rejection(task.args, task.kwargs):
        return 1.0
    forecast = price_of_weights(task, guide, forecast, NUM_PROPOSALS)
    if not forecast.can_choose(NUM_PROPOSALS):
        seconds = spell_seconds(forecast.proposing(NUM_PROPOSALS))
        task.note("reject", f"left out, every draw is kept: {NUM_PROPOSALS} proposals would take {seconds}")
        return 1.0
    start = task.clock.now()
    choice = guide.reject(task.args, task.kwargs, rates=guide.plan.rejection)
    each = (task.clock.now() - start) / NUM_PROPOSALS
    if choice is not None and not forecast.can_pay(each, guide.rejection.rate):
        rates = [rate for rate in guide.plan.rejection if forecast.can_pay(each, rate)]
        choice = guide.reject(task.args, task.kwargs, rates=rates) if rates else guide.reject(None)
        if choice is None:
            task.note("reject", f"left out, every draw is kept: a proposal takes {spell_seconds(each)}")
    if choice is None:
        return 1.0
    task.note("reject", f"one in {1 / guide.rejection.rate:.0f} draws is kept; ELBO {choice.elbo:.2f} nats")
    return guide.rejection.rate


def diagnose(task: Task, guide: JointGuide, forecast: Forecast, fitted: Fit) -> Examination:
    """Everything that can be said of the guide, by as many weights as there is time for."""
    forecast = price_of_weights(task, guide, forecast, USUAL_WEIGHTS)
    number = max(LEAST_WEIGHTS, forecast.weights(USUAL_WEIGHTS))
    options = {"num_functions": number // _FUNCTION_SHARE, "max_seconds": forecast.looking_seconds()}
    found = examine(task.model, guide, task.args, task.kwargs, fit=fitted, num_samples=number, **options)
    word = fewer(number, USUAL_WEIGHTS, "importance weights")
    task.note("diagnose", f"{found.diagnosis.verdict}: {found.diagnosis.because}" + (f" ({word})" if word else ""))
    return found


def judge_by_diagnosis(found: Examination, reached: Posterior) -> Posterior:
    """What the diagnosis says of the guide's draws."""
    said = {"diagnosis": found.diagnosis, "verdict": found.diagnosis.verdict, "because": found.diagnosis.because}
    evidence = {"log_evidence": found.bracket.lower, "log_evidence_error": found.bracket.lower_error}
    return replace(reached, **said, **evidence)


def resample_draws(task: Task, guide: JointGuide, forecast: Forecast, reached: Posterior) -> Posterior:
    """Draws of the guide by importance weights."""
    usual = 10 * task.num_samples
    number = price_of_weights(task, guide, forecast, usual).weights(usual)
    if number < max(task.num_samples, LEAST_WEIGHTS):
        task.note("resample", f"left out: {number} draws of the guide are what there is time for")
        return reached
    result = task.call(resample, guide, num_samples=task.num_samples, num_proposals=number)
    figures = f"k-hat {result.khat:.2f}, {result.num_distinct} of {task.num_samples} draws differ"
    words = [figures, _spell_evidence(result), fewer(number, usual, "proposals")]
    task.note("resample", "; ".join(filter(None, words)))
    reached = replace(reached, source="resampled", **_draws_of(result))
    if result.khat > BELIEVABLE_KHAT or result.ess < task.num_samples / 10:
        return reached
    because = f"The guide's draws were resampled by their importance weights: {figures}."
    return replace(reached, verdict=USE, because=because)


def refine_instead(
    task: Task, forecast: Forecast, exact: Exact | None, examination: Examination, reached: Posterior
) -> Posterior:
    """Draws carried from the prior instead of the guide's; their cost is a pilot's or by the run of the diagnosis."""
    found = examination.independent
    seconds = found.seconds if found.how == "refine" else found.likely_seconds
    if exact is None and not seconds > 0:
        task.note("refine", f"left out: {found.note}")
        return reached
    exact = exact or Exact(_bind(task), Cost(0.0, _LONG_OVER_SHORT * seconds / NUM_DRAWS))
    return _draw_by_refine(task, forecast, exact, reached)


def move_draws(task: Task, guide: JointGuide, forecast: Forecast, reached: Posterior) -> Posterior:
    """Draws of the guide moved towards the posterior for the time that is left; the verdict stays what it is."""
    number = forecast.moved(task.num_samples)
    if number < LEAST_MOVED:
        task.note("move", f"left out: there is time for {number} draws; {LEAST_MOVED} are the least")
        return reached
    options = {"max_seconds": CAUTION * forecast.left, "progress": task.progress}
    moved = task.call(move, guide, num_samples=number, **options)
    count = len(moved.acceptance)
    if count == 0:
        task.note("move", "left out: no time is left")
        return reached
    words = [f"every draw {count} times, {moved.num_leapfrogs} leapfrog steps in all"]
    task.note("move", "; ".join(filter(bool, [*words, fewer(number, task.num_samples, "draws")])))
    near = f"Its draws were moved {count} times: nearer to the posterior, but nobody says how near."
    return replace(reached, samples=moved.samples, source="moved", because=f"{reached.because} {near}")


def gather(task: Task, guide: JointGuide, forecast: Forecast, reached: Posterior) -> Posterior:
    """Draws, predictions and likelihoods for ArviZ, of as many draws as there is time for."""
    total = len(next(iter(reached.samples.values())))
    count = forecast.gathered(total, _numbers_of_a_draw(guide))
    if count < min(LEAST_GATHERED, total):
        todo = "to_arviz(model, posterior, *args, num_samples=…) makes it"
        task.note("arviz", f"left out: there is time to predict from {count} draws; {todo}")
        return reached
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"guide": reached.guide, "num_samples": count, "num_prior_samples": min(500, count)}
        idata = task.call(to_arviz, reached.samples, **options)
    for warning in caught:
        if "ArviZ cannot hold" in str(warning.message):
            task.note("arviz", str(warning.message))
        else:
            warnings.warn(warning.message, stacklevel=2)
    if count < total:
        task.note("arviz", fewer(count, total, "draws"))
    return replace(reached, idata=idata)


def _draws_of(result: Any) -> dict[str, Any]:
    """Draws and evidence, as a Posterior has them."""
    evidence = {name: getattr(result, name) for name in ("log_evidence", "log_evidence_error")}
    return {"samples": result.samples, **evidence}


def _judge(rhat: float, unmixed: float, words: str) -> dict[str, str]:
    """What the agreement of populations or chains says."""
    verdict = USE if rhat <= _AGREED_RHAT else REFINE if rhat <= unmixed else DO_NOT_TRUST
    agree = "agree" if verdict == USE else "disagree: give more time, budget=, or more draws, num_samples="
    return {"verdict": verdict, "because": f"{words} {agree}."}


def _spell_evidence(result: Any) -> str:
    return f"log evidence {result.log_evidence:.2f} ± {result.log_evidence_error:.2f}"


def _numbers_of_a_draw(guide: JointGuide) -> int:
    """How many numbers predictions from one draw hold."""
    trace = guide.prototype_trace
    nodes = () if trace is None else (node for node in trace.nodes.values() if node["type"] == "sample")
    return sum(node["value"].numel() for node in nodes if isinstance(node["value"], Tensor))

"""infer: one call from a model and its data to draws, the evidence and a verdict."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.budget import Clock, Cost, measure, read_budget, spell_seconds
from pyro_hypernet.correction.move import move
from pyro_hypernet.correction.resample import resample
from pyro_hypernet.density import LogJoint, trace_prior
from pyro_hypernet.evaluation.checks import UNMIXED_RHAT
from pyro_hypernet.evaluation.convergence import function_rhat
from pyro_hypernet.evaluation.diagnose import Examination, examine
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT, weighted_draws
from pyro_hypernet.evaluation.independent_check import NUM_DRAWS
from pyro_hypernet.evaluation.verdict import DO_NOT_TRUST, REFINE, USE, Diagnosis
from pyro_hypernet.forecast import (
    CAUTION,
    LEAST_GATHERED,
    LEAST_MOVED,
    LEAST_REFINED,
    LEAST_STEPS,
    LEAST_WEIGHTS,
    USUAL_WEIGHTS,
    Forecast,
    fewer,
)
from pyro_hypernet.guide import NUM_PROPOSALS, AutoHypernet
from pyro_hypernet.inference.elbo import VectorizedELBO
from pyro_hypernet.inference.fit import Fit, fit
from pyro_hypernet.inference.nuts import nuts
from pyro_hypernet.inference.optimiser import Optim
from pyro_hypernet.inference.refine import Refined, refine
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.plan import Plan
from pyro_hypernet.safeguards import refuse_minibatches
from pyro_hypernet.vectorize import Model, Vectorized, outside_of_pyro, trace_one

ENGINES = ("auto", "guide", "refine", "nuts")
_POPULATIONS = _CHAINS = 4
# Of the budget: for a pilot of the exact engine at most; and what a guide needs to be begun after it.
_PILOT_SHARE, _SHARE_FOR_A_GUIDE = 0.08, 0.4
_PILOT_DRAWS, _PILOT_MOVES = 128, 2
# Of every chain of NUTS; and the R-hat above which chains are not to be trusted.
_WARMUP, _LEAST_CHAIN, UNMIXED_CHAINS = 500, 100, 1.3
# Checks whose trouble importance weights mend, k-hat allowing.
_MENDED_BY_WEIGHTS = {"moments", "acceptance", "gap", "training", "functions"}
# Populations of a refined cloud agree below this.
_AGREED_RHAT = 1.1
# Of the budget, for finding out what things cost; numbers of draws to time.
_PRICING_SHARE, _TIMED_RUNS, _TIMED_DRAWS, _TIMED_WEIGHTS = 0.02, (1, 8, 32), (1, 16, 256), (16, 64, 256)
# Draws to predict from in a diagnosis by 10 000 weights.
_FUNCTION_SHARE = 5


@dataclass(frozen=True)
class Posterior:
    """What `infer` found.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted.
        source: Where they come from: "guide", "resampled", "refined", "moved" or "nuts".
        verdict: On these draws: "use it", "refine it" or "do not trust it".
        because: Why, in one or two sentences.
        diagnosis: Of the guide, whose verdict may differ: draws may have been mended since. None if no guide was
            needed, if Ctrl-C came before, or if it failed, see the log.
        log_evidence: log p(data) in nats; a lower bound in expectation unless the source is "refined".
        log_evidence_error: Its standard error.
        idata: The draws for ArviZ, with predictions and log likelihood; None if Ctrl-C came before, if there was no
            time, or if it failed, see the log. Where the budget is short it holds some of the draws only.
        guide: The trained guide; None if none was needed.
        fit: How training went; None if no guide was needed, or Ctrl-C came before.
        refined: The result of `refine`, where it was run.
        log: What was done: lines with the time, the step and its figures.
        seconds: Wall time.
    """

    samples: dict[str, Tensor] = field(repr=False)
    source: str
    verdict: str
    because: str
    diagnosis: Diagnosis | None = field(repr=False)
    log_evidence: float
    log_evidence_error: float
    idata: Any = field(repr=False)
    guide: AutoHypernet | None = field(repr=False)
    fit: Fit | None = field(repr=False)
    refined: Refined | None = field(repr=False)
    log: tuple[str, ...] = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        return "\n".join([*self.log, f"{self.verdict}: {self.because}"])


def infer(
    model: Model,
    *args: Any,
    budget: str | float = "2 minutes",
    engine: str = "auto",
    guide: AutoHypernet | None = None,
    num_samples: int = 1000,
    num_steps: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Posterior:
    """Fits a model, says whether the result can be believed, and mends it where it cannot, within a budget of time.

    A pilot, a short run of `refine`, says what exact draws would cost. Where that is less than training a guide they
    are made, and judged by whether independent populations agree. Else: 1. Trains an AutoHypernet for at most half of
    the budget. 2. Diagnoses it (`diagnose`). 3. Where the verdict is not "use it": draws by Pareto-smoothed importance
    resampling where the weights allow it and nothing lies elsewhere; else by `refine`, as many as the time that is left
    allows for, if that is at least 200; else the guide's, moved towards the posterior by `move` until the time is up.
    4. Judges what came out.

    Every step is planned by what one of its draws costs, timed before, and takes fewer where the budget is short; the
    log says so, and what it means. What fails after training is left out, with its reason in the log, and Ctrl-C ends
    the step it comes in: all that was reached is returned.

    Args:
        model: A Pyro model with continuous latent sites.
        args: Its arguments, data included.
        budget: Seconds, or words such as "30 seconds", "2 minutes" or "1 hour". It holds within a factor of about 1.5
            on a machine that does nothing else.
        engine: "auto" chooses by cost, and trains a guide that was given; "guide", "refine" or "nuts" overrules it. An
            exact engine that fails or does not converge is followed by the guide, where time is left.
        guide: A guide to train instead of the default.
        num_samples: Draws wanted S; refining may have time for fewer.
        num_steps: Most steps of training, 20 000 if not given; fewer where the budget does not allow for so many.
        say: Called with every line of the log as it is made.
        progress: Whether to show bars.
        kwargs: The model's keyword arguments.

    Returns:
        Draws, evidence, verdict and log. A warning says so where the verdict is not "use it".

    Raises:
        ValueError: If the budget cannot be read or does not allow for 50 steps and a diagnosis of this model, which is
            found out before any of it and names what is needed; if a number is out of range or the engine unknown; if
            the model draws minibatches; or if it cannot be fitted: see `AutoHypernet.setup`.
        FloatingPointError: If training fails: see `fit`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> posterior = infer(model, torch.ones(3), budget="5 minutes", num_steps=300, progress=False)
        >>> posterior.verdict, posterior.samples["mean"].shape
        ('use it', torch.Size([1000]))
    """
    clock = Clock(read_budget(budget))
    if num_samples < 10 or (num_steps is not None and num_steps < 1):
        raise ValueError(
            f"num_samples must be at least 10 and num_steps positive or None; got {num_samples} and {num_steps}."
        )
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}; got {engine!r}.")
    if engine == "auto" and guide is not None:
        engine = "guide"
    guide = AutoHypernet(model) if guide is None else guide
    work = _Work(model, args, kwargs, guide, clock, num_samples, say, progress)
    work.run(engine, num_steps)
    posterior = work.result()
    if posterior.verdict != USE:
        warnings.warn(f"The verdict on this posterior is {posterior.verdict!r}. {posterior.because}", stacklevel=2)
    return posterior


class _Work:
    """The steps of `infer`, each leaving what it reached."""

    def __init__(
        self,
        model: Model,
        args: tuple,
        kwargs: dict[str, Any],
        guide: AutoHypernet,
        clock: Clock,
        num_samples: int,
        say: Callable[[str], None] | None,
        progress: bool,
    ) -> None:
        self.model, self.args, self.kwargs, self.guide, self.clock = model, args, kwargs, guide, clock
        self.bound = partial(model, **kwargs) if kwargs else model
        self.num_samples, self.say, self.progress = num_samples, say, progress
        self.forecast = Forecast(clock)
        self.lines: list[str] = []
        self.fit: Fit | None = None
        self.examination: Examination | None = None
        self.refined: Refined | None = None
        self.exact: Cost | None = None
        self.given_guide: AutoHypernet | None = None
        self.source = "guide"
        self.samples: dict[str, Tensor] = {}
        self.evidence = (float("nan"), float("nan"))
        self.verdict, self.because = DO_NOT_TRUST, "It was interrupted before it could be judged."
        self.idata: Any = None

    def run(self, engine: str, num_steps: int | None) -> None:
        """All steps, or those before Ctrl-C; after the first result none that fails takes it away."""
        least_steps = min(LEAST_STEPS, num_steps or LEAST_STEPS)
        self.check(least_steps)
        self.guide.setup(*self.args, **self.kwargs)
        self.note("setup", self.guide.describe())
        self.price(least_steps)
        try:
            if not self.draw_exactly(engine, num_steps):
                self.by_guide(num_steps)
        except KeyboardInterrupt:
            self.given_guide = self.given_guide if self.samples else self.guide
            self.note("stop", "interrupted; what was reached is kept")
        if not self.samples and not self.attempt("draws", self.draw, "Once more, with every draw kept."):
            self.guide.reject(None)
            self.draw()
        try:
            self.attempt("arviz", self.gather, "See to_arviz(model, posterior, *args).")
        except KeyboardInterrupt:
            self.note("stop", "interrupted before the draws were gathered for ArviZ")

    def draw_exactly(self, engine: str, num_steps: int | None) -> bool:
        """Draws by an exact engine, if one is to be taken; whether that has brought draws that can be used."""
        if engine == "auto":
            engine = self.choose_engine(num_steps)
        if engine == "guide":
            return False
        step = self.draw_by_nuts if engine == "nuts" else self.refine_at_once
        self.attempt(engine, step, "A guide is trained instead.")
        if self.samples and self.verdict != USE and self.forecast.left > _SHARE_FOR_A_GUIDE * self.clock.budget:
            self.note("plan", f"{engine} did not converge; a guide is trained in the time that is left")
            self.samples, self.source = {}, "guide"
        return bool(self.samples)

    def choose_engine(self, num_steps: int | None) -> str:
        """The engine that is likely to end first, by a pilot of the exact one."""
        knowledge = self.guide.knowledge
        if knowledge is not None and knowledge.is_whole:
            self.note("plan", "a guide, for what is known of the model makes it exact")
            return "guide"
        training = self.forecast.step.of(self.forecast.steps(num_steps)) + self.forecast.density.of(USUAL_WEIGHTS)
        try:
            refining = self.fly_a_pilot().of(self.num_samples)
        except Exception as error:  # whatever refine refuses, and what it could not end
            self.note("plan", f"a guide, for exact draws are out of reach: {str(error).rstrip('.')}")
            return "guide"
        engine = "refine" if refining < min(training, CAUTION * self.forecast.left) else "guide"
        words = f"exact draws by refine would take about {spell_seconds(refining)}, training and judging a guide "
        self.note("plan", f"{engine}: {words}{spell_seconds(training)}")
        return engine

    def fly_a_pilot(self) -> Cost:
        """What exact draws cost, by a few of them, carried from the prior in a small part of the budget."""
        seconds = _PILOT_SHARE * self.clock.budget
        options = {"num_samples": _PILOT_DRAWS, "num_moves": _PILOT_MOVES, "max_seconds": seconds, "progress": False}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few draws are to say nothing but their cost
            pilot = refine(self.model, *self.args, **options, **self.kwargs)
        if pilot.betas[-1] < 1:
            raise RuntimeError(
                f"a pilot of {_PILOT_DRAWS} draws came to beta {pilot.betas[-1]:.2g} of 1 in {pilot.seconds:.1f} s"
            )
        moving = pilot.num_gradients * pilot.seconds_per_gradient
        self.exact = Cost(max(0.0, pilot.seconds - moving), moving / _PILOT_DRAWS)
        return self.exact

    def refine_at_once(self) -> None:
        """Exact draws instead of a guide's."""
        cost = self.exact or self.fly_a_pilot()
        self._refine(cost.affordable(CAUTION * self.forecast.left, most=max(self.num_samples, LEAST_REFINED)))

    def draw_by_nuts(self) -> None:
        """Four chains of the No-U-Turn sampler, in the time that is left."""
        num_each = max(_LEAST_CHAIN, -(-self.num_samples // _CHAINS))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NUTS has not mixed", UserWarning)  # part of the verdict
            options = {"num_chains": _CHAINS, "max_seconds": CAUTION * self.forecast.left, "progress": self.progress}
            result = nuts(self.model, *self.args, num_samples=num_each, warmup_steps=_WARMUP, **options, **self.kwargs)
        self.samples, self.source = result.samples, "nuts"
        rhat = result.max_function_rhat if result.function_rhat else result.max_rhat
        count = len(next(iter(result.samples.values())))
        figures = f"{count} draws of {_CHAINS} chains of NUTS; the worst R-hat of what the model computes {rhat:.2f}"
        self.note("nuts", f"{figures}; {int(result.diverging.sum())} divergent transitions")
        self._judge_by_rhat(rhat, f"It was sampled by NUTS: {figures}, so chains", UNMIXED_CHAINS)

    def by_guide(self, num_steps: int | None) -> None:
        """Trains, diagnoses and mends a guide."""
        self.given_guide = self.guide
        self.train(num_steps)
        if not self.attempt("reject", self.choose, "All draws are kept."):
            self.guide.reject(None)
        if self.attempt("diagnose", self.examine, "See diagnose(model, posterior.guide, *args)."):
            self.mend()
        else:
            self.because = "Its diagnosis failed, see the log."

    def attempt(self, step: str, function: Callable[[], None], remedy: str) -> bool:
        """Runs a step; where it fails the log says why, and what was reached before stands."""
        try:
            function()
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.note(step, f"failed and was left out ({type(error).__name__}: {reason}). {remedy}")
            return False
        return True

    def check(self, least_steps: int) -> None:
        """Refuses a model that draws minibatches, and what the budget can never hold, by a run or a few."""
        with torch.random.fork_rng(devices=[]):
            start = self.clock.now()
            try:
                trace = trace_prior(self.bound, self.args)
            except Exception:  # a prior that cannot be sampled, or a model at fault: setting up tells
                return
            refuse_minibatches(trace, "infer")
            try:
                Forecast(self.clock, Cost(0.0, self.clock.now() - start)).refuse_what_cannot_end(
                    least_steps=least_steps
                )
                return
            except ValueError:
                pass  # by one run, of which most may be overhead: several at once tell
        cost = price_of_a_run(self.bound, self.args, self.clock)
        Forecast(self.clock, cost).refuse_what_cannot_end(least_steps=least_steps)

    def price(self, least_steps: int) -> None:
        """Times densities of all data and a step of training, none of which leaves a trace."""
        options = {"seconds": _PRICING_SHARE * self.clock.budget, "now": self.clock.now}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is to be said is said while training
            try:
                w = self.guide.layout.unconstrain(self.guide.sample_posterior(1))[0]
                log_joint = LogJoint(self.bound, self.guide.layout, mode="eager")
                with outside_of_pyro(), torch.no_grad():
                    density = measure(lambda n: log_joint(w.expand(n, -1), *self.args), _TIMED_DRAWS, **options)
                self.forecast.density = density
                self.forecast.step = self._price_of_a_step()
            except Exception as error:  # where the draw has no density; training says whether all is well
                self.note("plan", f"nothing could be timed ({type(error).__name__}); training ends by the clock")
                return
        self.forecast.refuse_what_cannot_end(least_steps=least_steps)

    def _price_of_a_step(self) -> Cost:
        loss, now = VectorizedELBO(self.forecast.num_particles)(self.model, self.guide), self.clock.now
        leaves, taken = list(self.guide.parameters()), []
        # The first captures the density, the next ones let it be optimised.
        while len(taken) < 2 or (len(taken) < 6 and sum(taken[1:]) < 2 * _PRICING_SHARE * self.clock.budget):
            start = now()
            torch.autograd.grad(loss(*self.args, **self.kwargs), leaves, allow_unused=True)
            taken.append(now() - start)
        captures = 2 if self.guide.suits_annealing else 1
        return Cost(captures * (sum(taken[:2]) - 2 * min(taken)), max(1e-4, min(taken)))

    def note(self, step: str, text: str) -> None:
        """Adds a line to the log."""
        line = f"{self.clock.spent:7.1f} s  {step}: {text}"
        self.lines.append(line)
        if self.say is not None:
            self.say(line)

    def train(self, num_steps: int | None) -> None:
        """As many steps as half of the budget allows for."""
        planned = self.forecast.steps(num_steps)
        if num_steps is None or planned < num_steps:
            asked = "" if num_steps is None else f", of {num_steps} asked for: the budget allows for no more"
            each = spell_seconds(self.forecast.step.each)
            self.note("plan", f"{planned} steps of training at {each}{asked}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ELBO was still rising", UserWarning)  # part of the diagnosis
            options = {"plan": Plan(rejection=None), "progress": self.progress}
            options["optim"] = Optim(max_seconds=self.forecast.training_seconds())
            self.fit = fit(self.model, self.guide, self.args, kwargs=self.kwargs, num_steps=planned, **options)
        self.note("fit", f"{self.fit.num_steps} steps, {self.fit.stopped_because}; ELBO {self.fit.elbo:.2f} nats")
        if self.fit.stopped_because == "interrupted":
            raise KeyboardInterrupt

    def choose(self) -> None:
        """Lets the posterior choose among the guide's draws, as far as the budget allows for what they then cost."""
        guide = self.guide
        if self.fit.mode == "loop" or not guide.suits_rejection(self.args, self.kwargs):
            return
        self._affordable_weights(NUM_PROPOSALS)
        if not self.forecast.can_choose(NUM_PROPOSALS):
            seconds = spell_seconds(self.forecast.proposing(NUM_PROPOSALS))
            self.note("reject", f"left out, every draw is kept: {NUM_PROPOSALS} proposals would take {seconds}")
            return
        start = self.clock.now()
        choice = guide.reject(self.args, self.kwargs, rates=guide.plan.rejection)
        each = (self.clock.now() - start) / NUM_PROPOSALS
        if choice is not None and not self.forecast.can_pay(each, guide.rejection.rate):
            rates = [rate for rate in guide.plan.rejection if self.forecast.can_pay(each, rate)]
            choice = guide.reject(self.args, self.kwargs, rates=rates) if rates else guide.reject(None)
            if choice is None:
                self.note("reject", f"left out, every draw is kept: a proposal takes {spell_seconds(each)}")
        if choice is not None:
            self.note("reject", f"one in {1 / guide.rejection.rate:.0f} draws is kept; ELBO {choice.elbo:.2f} nats")

    def examine(self) -> None:
        """Diagnoses the guide."""
        num_weights = max(LEAST_WEIGHTS, self._affordable_weights(USUAL_WEIGHTS))
        options = {"num_samples": num_weights, "num_functions": num_weights // _FUNCTION_SHARE}
        looking = self.forecast.looking_seconds()
        self.examination = examine(
            self.model, self.guide, self.args, self.kwargs, fit=self.fit, max_seconds=looking, **options
        )
        diagnosis, bracket = self.examination.diagnosis, self.examination.bracket
        self.evidence = bracket.lower, bracket.lower_error
        self.verdict, self.because = diagnosis.verdict, diagnosis.because
        word = fewer(num_weights, USUAL_WEIGHTS, "importance weights")
        self.note("diagnose", f"{diagnosis.verdict}: {diagnosis.because}" + (f" ({word})" if word else ""))

    def _affordable_weights(self, usual: int) -> int:
        """Draws of the guide that can be weighed; where that is dear, a few are timed first."""
        rejection = self.guide.rejection
        runs = 2 + (1 / rejection.rate if rejection is not None else 0)
        self.forecast.weight = Cost(self.forecast.density.fixed, runs * self.forecast.density.each)
        if self.forecast.weights(4 * usual) < 4 * usual:
            options = {"seconds": _PRICING_SHARE * self.clock.budget, "now": self.clock.now}
            with torch.random.fork_rng(devices=[]):
                self.forecast.weight = measure(
                    lambda n: weighted_draws(self.model, self.guide, *self.args, num_samples=n, **self.kwargs),
                    _TIMED_WEIGHTS,
                    **options,
                )
        return self.forecast.weights(usual)

    def mend(self) -> None:
        """Corrects the draws, if the verdict asks for it and something can be done."""
        assert self.examination is not None
        diagnosis = self.examination.diagnosis
        if diagnosis.verdict == USE:
            return
        bad = {check.name for check in diagnosis.checks if check.level != "good"}
        if diagnosis.khat <= BELIEVABLE_KHAT and bad <= _MENDED_BY_WEIGHTS:
            self.attempt("resample", self.resample, "The guide's draws stand.")
            return
        self.attempt("refine", self.refine, "The guide's draws stand.")
        if self.source == "guide":
            self.attempt("move", self.move, "The guide's draws stand.")

    def resample(self) -> None:
        """Draws by importance weights."""
        usual = 10 * self.num_samples
        num_proposals = self._affordable_weights(usual)
        if num_proposals < max(self.num_samples, LEAST_WEIGHTS):
            self.note("resample", f"left out: {num_proposals} draws of the guide are what there is time for")
            return
        options = {"num_samples": self.num_samples, "num_proposals": num_proposals}
        result = resample(self.model, self.guide, *self.args, **options, **self.kwargs)
        self.samples, self.source = result.samples, "resampled"
        self.evidence = result.log_evidence, result.log_evidence_error
        figures = f"k-hat {result.khat:.2f}, {result.num_distinct} of {self.num_samples} draws differ"
        word = fewer(num_proposals, usual, "proposals")
        evidence = f"log evidence {result.log_evidence:.2f} ± {result.log_evidence_error:.2f}"
        self.note("resample", "; ".join([figures, evidence, *([word] if word else [])]))
        if result.khat <= BELIEVABLE_KHAT and result.ess >= self.num_samples / 10:
            self.verdict = USE
            self.because = f"The guide's draws were resampled by their importance weights: {figures}."

    def refine(self) -> None:
        """Draws carried from the prior, as many as there is time for."""
        assert self.examination is not None
        found = self.examination.elsewhere
        # A long run takes about as many powers as the short one of the diagnosis, with more draws and moves.
        seconds = found.seconds if found.how == "refine" else found.likely_seconds
        if not seconds > 0:
            self.note("refine", f"left out: {found.note}")
            return
        self._refine(self.forecast.refined(self.num_samples, seconds, NUM_DRAWS))

    def _refine(self, num_samples: int) -> None:
        num_samples -= num_samples % _POPULATIONS
        if num_samples < LEAST_REFINED:
            enough = (
                f"{self.forecast.left:.0f} s are left, enough for {num_samples} draws; {LEAST_REFINED} are the least"
            )
            self.note("refine", f"left out: {enough}")
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*refine", UserWarning)  # part of the verdict
            options = {"num_populations": _POPULATIONS, "max_seconds": self.forecast.left, "progress": self.progress}
            refined = refine(self.model, *self.args, num_samples=num_samples, **options, **self.kwargs)
        if refined.betas[-1] < 1:
            reached = f"it had come to beta {refined.betas[-1]:.2g} of 1 after {refined.seconds:.0f} s"
            self.note("refine", f"left out: {reached}")
            return
        self.refined = refined
        self._judge_refined(refined)

    def move(self) -> None:
        """Draws of the guide moved towards the posterior for the time that is left; the verdict stays what it is."""
        num_samples = self.forecast.moved(self.num_samples)
        if num_samples < LEAST_MOVED:
            self.note("move", f"left out: there is time for {num_samples} draws; {LEAST_MOVED} are the least")
            return
        options = {"max_seconds": CAUTION * self.forecast.left, "progress": self.progress}
        moved = move(self.model, self.guide, *self.args, num_samples=num_samples, **options, **self.kwargs)
        count = len(moved.acceptance)
        if count == 0:
            self.note("move", "left out: no time is left")
            return
        self.samples, self.source = moved.samples, "moved"
        word = fewer(num_samples, self.num_samples, "draws")
        self.note("move", f"every draw {count} times, {moved.num_leapfrogs} leapfrog steps in all{word and '; '}{word}")
        self.because += f" Its draws were moved {count} times: nearer to the posterior, but nobody says how near."

    def draw(self) -> None:
        """The guide's own draws."""
        self.samples = self.guide.sample_posterior(self.num_samples)

    def gather(self) -> None:
        """Draws, predictions and likelihoods for ArviZ, of as many draws as there is time for."""
        total = len(next(iter(self.samples.values())))
        count = self.forecast.gathered(total, _numbers_of_a_draw(self.guide))
        if count < min(LEAST_GATHERED, total):
            todo = "to_arviz(model, posterior, *args, num_samples=…) makes it"
            self.note("arviz", f"left out: there is time to predict from {count} draws; {todo}")
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = {"guide": self.given_guide, "num_samples": count, "num_prior_samples": min(500, count)}
            self.idata = to_arviz(self.model, self.samples, *self.args, **options, **self.kwargs)
        for warning in caught:
            if "ArviZ cannot hold" in str(warning.message):
                self.note("arviz", str(warning.message))
            else:
                warnings.warn(warning.message, stacklevel=2)
        if count < total:
            self.note("arviz", fewer(count, total, "draws"))

    def _judge_refined(self, refined: Refined) -> None:
        rhat = function_rhat(self.bound, refined.samples, self.args, _POPULATIONS)
        count = len(next(iter(refined.samples.values())))
        self.samples, self.source = refined.samples, "refined"
        self.evidence = refined.log_evidence, refined.log_evidence_error
        figures = (
            f"{count} draws carried from the prior by {len(refined.betas)} powers of the likelihood; R-hat of "
            f"{_POPULATIONS} populations in function space {rhat:.2f}"
        )
        self.note("refine", f"{figures}; log evidence {refined.log_evidence:.2f} ± {refined.log_evidence_error:.2f}")
        what = "The guide was replaced by refined draws" if self.fit is not None else "No guide was needed"
        self._judge_by_rhat(rhat, f"{what}: {figures}, so populations", UNMIXED_RHAT)

    def _judge_by_rhat(self, rhat: float, words: str, unmixed: float) -> None:
        self.verdict = USE if rhat <= _AGREED_RHAT else REFINE if rhat <= unmixed else DO_NOT_TRUST
        agree = "agree" if self.verdict == USE else "disagree: give more time, budget=, or more draws, num_samples="
        self.because = f"{words} {agree}."

    def result(self) -> Posterior:
        """What was reached."""
        self.note("done", f"{self.verdict}, draws from: {self.source}")
        return Posterior(
            samples=self.samples,
            source=self.source,
            verdict=self.verdict,
            because=self.because,
            diagnosis=self.examination.diagnosis if self.examination else None,
            log_evidence=self.evidence[0],
            log_evidence_error=self.evidence[1],
            idata=self.idata,
            guide=self.given_guide,
            fit=self.fit,
            refined=self.refined,
            log=tuple(self.lines),
            seconds=self.clock.spent,
        )


def price_of_a_run(model: Model, args: tuple, clock: Clock) -> Cost:
    """What runs of a model with its densities cost, by a few at draws of the prior; nothing where these cannot be run.

    Args:
        model: The Pyro model.
        args: Its arguments.
        clock: The budget, a little of which is spent on this.
    """

    def run(_: Tensor, args: tuple, kwargs: dict) -> Tensor:
        return trace_one(model, {}, args, kwargs).log_prob_sum()

    runs = Vectorized(run, mode="eager", randomness="different")
    options = {"seconds": _PRICING_SHARE * clock.budget, "now": clock.now}
    with torch.random.fork_rng(devices=[]), outside_of_pyro(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = [measure(lambda n: runs(torch.zeros(n), args), _TIMED_RUNS, **options) for _ in range(2)]
            return min(found, key=lambda cost: cost.each)  # what else the machine does can only add to it
        except Exception:  # an improper prior, or a model at fault: setting up tells
            return Cost()


def _numbers_of_a_draw(guide: AutoHypernet) -> int:
    """How many numbers predictions from one draw hold."""
    trace = guide.prototype_trace
    nodes = () if trace is None else (node for node in trace.nodes.values() if node["type"] == "sample")
    return sum(node["value"].numel() for node in nodes if isinstance(node["value"], Tensor))

"""infer: one call from a model and its data to draws, the evidence and a verdict."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_hypernet.budget import Clock, read_budget
from pyro_hypernet.correction.move import move
from pyro_hypernet.correction.resample import resample
from pyro_hypernet.evaluation.checks import UNMIXED_RHAT
from pyro_hypernet.evaluation.diagnose import Examination, examine
from pyro_hypernet.evaluation.diagnostics import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.elsewhere import NUM_DRAWS, function_rhat
from pyro_hypernet.evaluation.verdict import DO_NOT_TRUST, REFINE, USE, Diagnosis
from pyro_hypernet.guide import NUM_PROPOSALS, REJECTION_RATES, AutoHypernet
from pyro_hypernet.inference.fit import ANNEAL, Fit, fit
from pyro_hypernet.inference.refine import Refined, refine
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.vectorize import Model

# Shares of the budget: training, and looking beyond the guide; what is left is for mending.
_TRAINING_SHARE, _LOOKING_SHARE = 0.5, 0.15
# Of the budget, for the draws that diagnosis, samples and pictures take once the posterior chooses among them.
_CHOOSING_SHARE, _DRAWS_TO_COME = 0.2, 15_000
_TRIAL_STEPS, _LEAST_STEPS, _MOST_STEPS = (5, 35), 50, 20_000
_POPULATIONS = 4
# Fewer refined draws are not worth their time; one of a long run costs so much more than one of a short run.
_LEAST_REFINED, _LONG_OVER_SHORT = 200, 4.0
# Checks whose trouble importance weights mend, k-hat allowing.
_MENDED_BY_WEIGHTS = {"moments", "acceptance", "gap", "training", "functions"}
# Populations of a refined cloud agree below this.
_AGREED_RHAT = 1.1
# Of the time that is left, refining is planned to take so much: its cost is a guess.
_CAUTION = 0.7


@dataclass(frozen=True)
class Posterior:
    """What `infer` found.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted.
        source: Where they come from: "guide", "resampled", "refined" or "moved".
        verdict: On these draws: "use it", "refine it" or "do not trust it".
        because: Why, in one or two sentences.
        diagnosis: Of the guide, whose verdict may differ: draws may have been mended since. None if Ctrl-C came before.
        log_evidence: log p(data) in nats; a lower bound in expectation unless the source is "refined".
        log_evidence_error: Its standard error.
        idata: The draws for ArviZ, with predictions and log likelihood; None if Ctrl-C came before.
        guide: The trained guide.
        fit: How training went; None if Ctrl-C came before.
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
    guide: AutoHypernet = field(repr=False)
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
    guide: AutoHypernet | None = None,
    num_samples: int = 1000,
    num_steps: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = True,
) -> Posterior:
    """Fits a model, says whether the result can be believed, and mends it where it cannot, within a budget of time.

    1. Sets up an AutoHypernet and trains it for at most half of the budget. 2. Diagnoses it (`diagnose`). 3. Where
    the verdict is not "use it": draws by Pareto-smoothed importance resampling where the weights allow it and nothing
    lies elsewhere; else by `refine`, as many as the time that is left allows for, if that is at least 200; else the
    guide's, moved towards the posterior by `move` until the time is up. 4. Judges what came out. Ctrl-C ends the step
    it comes in, and all that was reached is returned.

    Args:
        model: A Pyro model with continuous latent sites.
        args: Its arguments, data included.
        budget: Seconds, or words such as "30 seconds", "2 minutes" or "1 hour". Aimed at, not enforced: setting up,
            at least 50 steps of training and a diagnosis are always done.
        guide: A guide to train instead of the default.
        num_samples: Draws wanted S; refining may have time for fewer.
        num_steps: Steps of training, instead of as many as the budget allows for, at most 20 000.
        say: Called with every line of the log as it is made.
        progress: Whether to show bars.

    Returns:
        Draws, evidence, verdict and log. A warning says so where the verdict is not "use it".

    Raises:
        ValueError: If the budget cannot be read, a number is out of range, or the model cannot be fitted: see
            `AutoHypernet.setup`.
        FloatingPointError: If training fails: see `fit`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> posterior = infer(model, torch.ones(3), budget="10 seconds", num_steps=300, progress=False)
        >>> posterior.verdict, posterior.samples["mean"].shape
        ('use it', torch.Size([1000]))
    """
    clock = Clock(read_budget(budget))
    if num_samples < 10 or (num_steps is not None and num_steps < 1):
        raise ValueError(
            f"num_samples must be at least 10 and num_steps positive or None; got {num_samples} and {num_steps}."
        )
    guide = AutoHypernet(model) if guide is None else guide
    work = _Work(model, args, guide, clock, num_samples, say, progress)
    work.run(num_steps)
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
        guide: AutoHypernet,
        clock: Clock,
        num_samples: int,
        say: Callable[[str], None] | None,
        progress: bool,
    ) -> None:
        self.model, self.args, self.guide, self.clock = model, args, guide, clock
        self.num_samples, self.say, self.progress = num_samples, say, progress
        self.lines: list[str] = []
        self.fit: Fit | None = None
        self.examination: Examination | None = None
        self.refined: Refined | None = None
        self.source = "guide"
        self.samples: dict[str, Tensor] = {}
        self.evidence = (float("nan"), float("nan"))
        self.verdict, self.because = DO_NOT_TRUST, "It was interrupted before it could be judged."
        self.idata: Any = None

    def run(self, num_steps: int | None) -> None:
        """All steps, or those before Ctrl-C."""
        self.guide.setup(*self.args)
        self.note("setup", self.guide.describe())
        try:
            self.train(num_steps)
            self.examine()
            self.mend()
        except KeyboardInterrupt:
            self.note("stop", "interrupted; what was reached is kept")
        if not self.samples:
            self.samples = self.guide.sample_posterior(self.num_samples)
        try:
            self.idata = to_arviz(self.model, self.samples, *self.args, guide=self.guide, num_samples=self.num_samples)
        except KeyboardInterrupt:
            self.note("stop", "interrupted before the draws were gathered for ArviZ")

    def note(self, step: str, text: str) -> None:
        """Adds a line to the log."""
        line = f"{self.clock.spent:7.1f} s  {step}: {text}"
        self.lines.append(line)
        if self.say is not None:
            self.say(line)

    def train(self, num_steps: int | None) -> None:
        """As many steps as half of the budget allows for, told by a few of no consequence."""
        anneal = ANNEAL if self.guide.suits_annealing else 1.0
        if num_steps is None:
            per_step = self._seconds_per_step()
            left = _TRAINING_SHARE * self.clock.budget - self.clock.spent
            num_steps = int(min(_MOST_STEPS, max(_LEAST_STEPS, left / per_step)))
            self.note("plan", f"{num_steps} steps of training at {1000 * per_step:.1f} ms")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ELBO was still rising", UserWarning)  # part of the diagnosis
            options = {"anneal": anneal, "rejection": None, "progress": self.progress}
            self.fit = fit(self.model, self.guide, self.args, num_steps=num_steps, **options)
        self.note("fit", f"{self.fit.num_steps} steps, {self.fit.stopped_because}; ELBO {self.fit.elbo:.2f} nats")
        if self.fit.stopped_because == "interrupted":
            raise KeyboardInterrupt
        self.choose()

    def choose(self) -> None:
        """Lets the posterior choose among the guide's draws, as far as the budget allows for what they then cost."""
        guide = self.guide
        if self.fit.mode == "loop" or not guide.suits_rejection(self.args):
            return
        start = time.perf_counter()
        choice = guide.reject(self.args)
        each = (time.perf_counter() - start) / NUM_PROPOSALS
        left = _CHOOSING_SHARE * self.clock.budget
        if choice is not None and _DRAWS_TO_COME * each > left * guide.rejection.rate:
            rates = [rate for rate in REJECTION_RATES if _DRAWS_TO_COME * each <= left * rate]
            choice = guide.reject(self.args, rates=rates) if rates else guide.reject(None)
        if choice is not None:
            self.note("reject", f"one in {1 / guide.rejection.rate:.0f} draws is kept; ELBO {choice.elbo:.2f} nats")

    def examine(self) -> None:
        """Diagnoses the guide."""
        looking = max(0.0, min(_LOOKING_SHARE * self.clock.budget, self.clock.left))
        self.examination = examine(self.model, self.guide, self.args, fit=self.fit, max_seconds=looking)
        diagnosis, bracket = self.examination.diagnosis, self.examination.bracket
        self.evidence = bracket.lower, bracket.lower_error
        self.verdict, self.because = diagnosis.verdict, diagnosis.because
        self.note("diagnose", f"{diagnosis.verdict}: {diagnosis.because}")

    def mend(self) -> None:
        """Corrects the draws, if the verdict asks for it and something can be done."""
        assert self.examination is not None
        diagnosis = self.examination.diagnosis
        if diagnosis.verdict == USE:
            return
        bad = {check.name for check in diagnosis.checks if check.level != "good"}
        if diagnosis.khat <= BELIEVABLE_KHAT and bad <= _MENDED_BY_WEIGHTS:
            self.resample()
        else:
            self.refine()

    def resample(self) -> None:
        """Draws by importance weights."""
        result = resample(self.model, self.guide, *self.args, num_samples=self.num_samples)
        self.samples, self.source = result.samples, "resampled"
        self.evidence = result.log_evidence, result.log_evidence_error
        figures = f"k-hat {result.khat:.2f}, {result.num_distinct} of {self.num_samples} draws differ"
        self.note("resample", f"{figures}; log evidence {result.log_evidence:.2f} ± {result.log_evidence_error:.2f}")
        if result.khat <= BELIEVABLE_KHAT and result.ess >= self.num_samples / 10:
            self.verdict = USE
            self.because = f"The guide's draws were resampled by their importance weights: {figures}."

    def refine(self) -> None:
        """Draws carried from the prior, as many as there is time for."""
        assert self.examination is not None
        found = self.examination.elsewhere
        # A long run takes about as many temperatures as the short one of the diagnosis, with more draws and moves.
        seconds = found.seconds if found.how == "refine" else found.likely_seconds
        if not seconds > 0:
            self.note("refine", f"left out: {found.note}")
            self.move()
            return
        num_samples = self._affordable_draws(seconds)
        if num_samples < _LEAST_REFINED:
            enough = f"{self.clock.left:.0f} s are left, enough for {num_samples} draws; {_LEAST_REFINED} are the least"
            self.note("refine", f"left out: {enough}")
            self.move()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*refine", UserWarning)  # part of the verdict
            self.refined = refine(
                self.model,
                *self.args,
                num_samples=num_samples,
                num_populations=_POPULATIONS,
                progress=self.progress,
            )
        self._judge_refined(self.refined)

    def move(self) -> None:
        """Draws of the guide moved towards the posterior for the time that is left; the verdict stays what it is."""
        if self.clock.left <= 0:
            return
        options = {"max_seconds": _CAUTION * self.clock.left, "progress": self.progress}
        try:
            moved = move(self.model, self.guide, *self.args, num_samples=self.num_samples, **options)
        except ValueError as error:
            self.note("move", f"left out: {error}")
            return
        count = len(moved.acceptance)
        if count == 0:
            self.note("move", "left out: no time is left")
            return
        self.samples, self.source = moved.samples, "moved"
        self.note("move", f"every draw {count} times, {moved.num_leapfrogs} leapfrog steps in all")
        self.because += f" Its draws were moved {count} times: nearer to the posterior, but nobody says how near."

    def _judge_refined(self, refined: Refined) -> None:
        rhat = function_rhat(self.model, refined.samples, self.args, _POPULATIONS)
        count = len(next(iter(refined.samples.values())))
        self.samples, self.source = refined.samples, "refined"
        self.evidence = refined.log_evidence, refined.log_evidence_error
        figures = (
            f"{count} draws carried from the prior in {len(refined.temperatures)} temperatures; R-hat of "
            f"{_POPULATIONS} populations in function space {rhat:.2f}"
        )
        self.note("refine", f"{figures}; log evidence {refined.log_evidence:.2f} ± {refined.log_evidence_error:.2f}")
        self.verdict = USE if rhat <= _AGREED_RHAT else REFINE if rhat <= UNMIXED_RHAT else DO_NOT_TRUST
        agree = "agree" if self.verdict == USE else "disagree: give more time, budget=, or more draws, num_samples="
        self.because = f"The guide was replaced by refined draws: {figures}, so populations {agree}."

    def _affordable_draws(self, seconds: float) -> int:
        per_draw = _LONG_OVER_SHORT * seconds / NUM_DRAWS
        affordable = int(_CAUTION * self.clock.left / per_draw) if self.clock.left > 0 else 0
        wanted = min(max(self.num_samples, _LEAST_REFINED), affordable)
        return wanted - wanted % _POPULATIONS

    def _seconds_per_step(self) -> float:
        """From a few steps of next to no size: a longer fit against a shorter one, for each captures the graph anew."""
        seconds = []
        for num_steps in _TRIAL_STEPS:
            start = time.perf_counter()
            options = {"learning_rate": 1e-9, "keep": "last", "rejection": None, "anneal": 1.0, "progress": False}
            fit(self.model, self.guide, self.args, num_steps=num_steps, **options)
            seconds.append(time.perf_counter() - start)
        return max(1e-4, (seconds[1] - seconds[0]) / (_TRIAL_STEPS[1] - _TRIAL_STEPS[0]))

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
            guide=self.guide,
            fit=self.fit,
            refined=self.refined,
            log=tuple(self.lines),
            seconds=self.clock.spent,
        )

"""infer: one call from a model and its data to draws, the evidence and a verdict."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from pyro_hypernet.evaluation.diagnose import Examination
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT
from pyro_hypernet.evaluation.verdict import USE
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.pipeline import steps
from pyro_hypernet.pipeline.budget import Clock, read_budget
from pyro_hypernet.pipeline.forecast import LEAST_STEPS, Forecast, forecast_by_runs, forecast_by_steps
from pyro_hypernet.pipeline.posterior import Posterior, Task

ENGINES = ("auto", "guide", "refine", "nuts")
# Of the budget: what a guide needs to be begun after an exact engine.
_SHARE_FOR_A_GUIDE = 0.4
# Checks whose trouble importance weights mend, k-hat allowing.
_MENDED_BY_WEIGHTS = {"moments", "acceptance", "gap", "training", "functions"}
_GUIDE_STANDS = "The guide's draws stand."


def infer(
    model: Model,
    *args: Any,
    budget: str | float = "2 minutes",
    engine: str = "auto",
    guide: JointGuide | None = None,
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
        guide: A guide to train instead of the default, or a GuideMixture, all of whose draws are kept.
        num_samples: Draws wanted S; refining may have time for fewer.
        num_steps: Most steps of training, 20 000 if not given; fewer where the budget does not allow for so many.
        say: Called with every line of the log as it is made.
        progress: Whether to show bars.
        kwargs: The model's keyword arguments.

    Returns:
        Draws, evidence, verdict and log. A warning says so where the verdict is not "use it".

    Raises:
        TypeError: If the guide is neither an AutoHypernet nor a GuideMixture.
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
    if not isinstance(guide, JointGuide):
        raise TypeError(
            f"infer trains and mends an AutoHypernet or a GuideMixture; got {type(guide).__name__}. Train others with "
            "SVI, and look at them with diagnose."
        )
    task = Task(model, args, kwargs, clock, num_samples, say, progress)
    forecast, shortage = prepare(task, guide, num_steps)
    if shortage:
        raise ValueError(shortage)
    posterior = pursue(task, guide, forecast, engine, num_steps)
    if posterior.verdict != USE:
        warnings.warn(f"The verdict on this posterior is {posterior.verdict!r}. {posterior.because}", stacklevel=2)
    return posterior


def prepare(task: Task, guide: JointGuide, num_steps: int | None) -> tuple[Forecast, str]:
    """Sets the guide up and finds out what things cost.

    Returns:
        What there is time for, and why the budget is too short for the least of it, or "": that is found out by runs of
        the model before the guide is touched, and again after it is set up.
    """
    least_steps = min(LEAST_STEPS, num_steps or LEAST_STEPS)
    forecast = forecast_by_runs(task)
    if shortage := forecast.shortage(least_steps):
        return forecast, shortage
    guide.setup(*task.args, **task.kwargs)
    task.note("setup", guide.describe().splitlines()[0])
    forecast = forecast_by_steps(task, guide)
    return forecast, forecast.shortage(least_steps)


def pursue(task: Task, guide: JointGuide, forecast: Forecast, engine: str, num_steps: int | None) -> Posterior:
    """All steps, or those before Ctrl-C, of a guide that is set up: no step that fails takes away what was reached."""
    reached = Posterior()
    try:
        for reached in _stages(task, guide, forecast, engine, num_steps):  # noqa: B007 - the last one counts
            pass
    except KeyboardInterrupt:
        task.note("stop", "interrupted; what was reached is kept")
    if not reached.samples:
        reached = replace(reached, samples=draw(task, guide), guide=guide)
    try:
        todo = "See to_arviz(model, posterior, *args)."
        reached = task.attempt("arviz", todo, steps.gather, task, guide, forecast, reached, otherwise=reached)
    except KeyboardInterrupt:
        task.note("stop", "interrupted before the draws were gathered for ArviZ")
    task.note("done", f"{reached.verdict}, draws from: {reached.source}")
    return replace(reached, log=tuple(task.log), seconds=task.clock.spent)


def _stages(
    task: Task, guide: JointGuide, forecast: Forecast, engine: str, num_steps: int | None
) -> Iterator[Posterior]:
    """What is reached, anew after every step: whatever comes then, the last of it stands."""
    reached, exact = Posterior(), None
    if engine == "auto":
        engine, exact = steps.choose_engine(task, guide, forecast, num_steps)
    if engine != "guide":
        todo, given = "A guide is trained instead.", (task, forecast, engine, exact)
        reached = task.attempt(engine, todo, steps.draw_exactly, *given, otherwise=reached)
        yield reached
        if reached.samples:
            if reached.verdict == USE or forecast.left <= _SHARE_FOR_A_GUIDE * task.clock.budget:
                return
            task.note("plan", f"{engine} did not converge; a guide is trained in the time that is left")
    fit = steps.train(task, guide, forecast, num_steps)
    reached = Posterior(guide=guide, fit=fit, refined=reached.refined)
    yield reached
    if fit.stopped_because == "interrupted":
        raise KeyboardInterrupt
    given = (task, guide, forecast, fit)
    chooses = isinstance(guide, AutoHypernet)
    if chooses and task.attempt("reject", "All draws are kept.", steps.choose_draws, *given) is None:
        guide.reject(None)
    found = task.attempt("diagnose", "See diagnose(model, posterior.guide, *args).", steps.diagnose, *given)
    if found is None:
        yield replace(reached, because="Its diagnosis failed, see the log.")
        return
    reached = steps.judge_by_diagnosis(found, reached)
    yield reached
    yield _mend(task, guide, forecast, exact, found, reached)


def _mend(
    task: Task, guide: JointGuide, forecast: Forecast, exact: steps.Exact | None, found: Examination, reached: Posterior
) -> Posterior:
    """Corrects the draws, if the verdict asks for it and something can be done."""
    if reached.verdict == USE:
        return reached
    bad = {check.name for check in found.diagnosis.checks if check.level != "good"}
    given = (task, guide, forecast, reached)
    if found.diagnosis.khat <= BELIEVABLE_KHAT and bad <= _MENDED_BY_WEIGHTS:
        return task.attempt("resample", _GUIDE_STANDS, steps.resample_draws, *given, otherwise=reached)
    instead = (steps.refine_instead, task, forecast, exact, found, reached)
    refined = task.attempt("refine", _GUIDE_STANDS, *instead, otherwise=reached)
    if refined.source != "guide":
        return refined
    return task.attempt("move", _GUIDE_STANDS, steps.move_draws, *given, otherwise=reached)


def draw(task: Task, guide: JointGuide) -> dict[str, Tensor]:
    """The guide's own draws."""
    todo = "Once more, with every draw kept."
    samples = task.attempt("draws", todo, guide.sample_posterior, task.num_samples)
    if samples is None and isinstance(guide, AutoHypernet):
        guide.reject(None)
        samples = guide.sample_posterior(task.num_samples)
    return samples

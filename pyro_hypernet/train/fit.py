"""Training a guide: schedule, clipping, bad steps skipped, the best parameters kept."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.train.asked import Asked, check, check_scales, refuse_wrapped, told_num_data
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.components import InTurn
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.interrupts import Interrupts
from pyro_hypernet.train.kept_run import KeptRun
from pyro_hypernet.train.learner import Learner
from pyro_hypernet.train.notices import after_fit, keep_going
from pyro_hypernet.train.optimiser import Optim, Optimiser, as_optim
from pyro_hypernet.train.processes import Processes
from pyro_hypernet.train.random_states import put_back, snapshot
from pyro_hypernet.train.resume import Checkpoint, RunFolder
from pyro_hypernet.train.training import REMEDY, Trainer
from pyro_hypernet.train.verification import verify


@dataclass(frozen=True, repr=False)
class Fit(Shown):
    """How a fit went.

    Attributes:
        losses: Minus the estimated bound at every step, in nats, shape `(steps,)`; NaN where a step was skipped; of
            data that count as often as at that step, see `anneal`.
        elbo: The bound at the parameters that were kept, in nats, of fresh draws, about a hundredth of those of the
            training; with minibatches the mean over them, of a whole pass where that is short. With rejection the
            bound of the draws that are kept; of a fit that was interrupted the mean of the last or best window.
        seconds: Wall time, of all processes of a run that was gone on with.
        num_skipped: Steps passed over because loss or gradient were not finite, or the bound beyond what is possible.
        stopped_because: "all steps done", "no improvement", "out of time" or "interrupted".
        gradient: "path" or "total"; "total" too where path gradients were given up, see VectorizedELBO.
        mode: How the model ran: "graph", "eager" or "loop".
        compile: How the steps ran at the end: "off", "graph" or "inductor".
        compile_reason: Why so.
        acceptance: The share of proposals that draws keep from now on, see `AutoHypernet.reject`; 1 where all are kept.
    """

    losses: Tensor = field(repr=False)
    elbo: float
    seconds: float
    num_skipped: int
    stopped_because: str
    gradient: str
    mode: str
    compile: str
    compile_reason: str
    acceptance: float = 1.0

    @property
    def num_steps(self) -> int:
        """Steps taken, the skipped ones included."""
        return len(self.losses)


def fit(
    model: Model,
    guide: AutoHypernet | GuideMixture,
    args: tuple | Mapping[str, Any] | Iterable[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 3000,
    elbo: VectorizedELBO | None = None,
    optim: Optim | float | Callable[..., torch.optim.Optimizer] | PyroOptim | None = None,
    plan: Plan | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    """Trains the guide in place, and the model's own `pyro.param`s with it, by Adam on the vectorised ELBO.

    The learning rate rises linearly, then falls along a cosine to zero. Steps whose loss or gradient is not finite are
    skipped and counted; so are those whose bound is above zero although all data are discrete, which proves a fault.
    Ctrl-C or SIGTERM stops the fit and keeps what was reached, and so does an error on the way. The caller's
    `pyro.set_rng_seed` decides.

    Args:
        model: The Pyro model.
        guide: The guide; `setup` is called if need be, else training goes on from its present parameters. The
            components of a GuideMixture are trained in turn, each for `num_steps`, and weigh equally from then on.
        args: The model's arguments as a tuple, or a dict by name; or an iterable of such, or of single tensors (a
            DataLoader), gone through again and again. The model must then scale the likelihood of a minibatch to all
            data, by a plate with `subsample_size` or by `bayesianize(..., num_data=N)`; a network of `bayesianize`
            without `num_data` goes, in this fit, by the size of a DataLoader's data set, or of the part of it that the
            sampler goes through. Every datum counts equally often in a pass, shorter
            batches less than others. In the first pass, and where a pass never ends, all batches are taken to be as
            long as the first.
        kwargs: The model's keyword arguments, the same for all batches.
        num_steps: Number of steps.
        elbo: The bound: its particles, gradient, and how it runs; None for VectorizedELBO().
        optim: How parameters are stepped and kept, and when to stop early: an `Optim`; a number, Adam's peak step size;
            or another optimiser, `torch.optim.AdamW` or `pyro.optim.ClippedAdam({"lr": 1e-3})`, by its own step size.
        plan: What is to be otherwise than in `guide.plan`, this time: `anneal`, `num_particles` and `rejection`, see
            `Plan`. Annealing and rejection of `guide.plan` are for a first fit, and for a guide that was trained on all
            data at once whose model's density is the same at every call; those that are asked for here hold always.
            Annealing keeps hidden units at work that the bound would rather leave at their prior, a local optimum where
            the noise is too large and functions too smooth; below 1 it is tempering from the prior. Source: Sønderby et
            al. 2016, arXiv 1602.02282, who let prior and entropy count less at first; Trippe and Turner 2018, arXiv
            1801.06230, for the optimum.
        checkpoint: A folder in which the run is kept, or a `Checkpoint`, which says how often. The same call goes on
            from there after whatever ended it, in a new process too, a finished run at its end: on a CPU to the same
            losses and parameters, bit for bit, where the call before was the same and the loader's order comes from
            torch's, numpy's or Python's generators or one that it holds. Gone on with are random states and the place
            in the loader, whose batches of this pass are read again; `max_seconds` counts all processes. Another model,
            other data or options are refused. With it `compile="auto"` captures the step without asking the clock, and
            "inductor" goes on up to rounding. The components of a mixture have folders of their own in it.
        progress: Whether to show a bar with the bound; quiet where the output is no terminal.

    Returns:
        Losses, seconds and why it stopped; of a mixture the mean of the components' losses and bounds.

    Raises:
        TypeError: If `args` is none of these, the guide neither an AutoHypernet nor a GuideMixture, or model or guide
            is in a wrapper for several processes.
        OSError: If the folder of `checkpoint` cannot be written to at the start.
        ValueError: If an option is out of its range, the folder of `checkpoint` holds another run, several minibatches
            are not scaled to all data, the model refuses one of them, processes have different models or unequal
            numbers of batches, or whatever `guide.setup` raises.
        RuntimeError: If the model fails at a later batch, or another process of a torch.distributed group is lost.
        FloatingPointError: After too many skipped steps, naming the site whose density is not finite.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoHypernet(model)
        >>> result = fit(model, guide, (torch.ones(3),), num_steps=100, progress=False)
        >>> result.stopped_because
        'all steps done'
    """
    check(guide, num_steps, elbo, plan, kind=JointGuide)
    refuse_wrapped(model)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    with Processes.of_group() as processes:
        if isinstance(guide, GuideMixture):
            options = {"kwargs": kwargs, "num_steps": num_steps, "elbo": elbo, "optim": optim, "plan": plan}
            in_turn = InTurn(model, guide, Batches(args, processes), dict(kwargs or {}))
            return in_turn.fit(partial(fit, **options, progress=progress), checkpoint)
        asked = Asked(num_steps, elbo or VectorizedELBO(), as_optim(optim), plan or Plan())
        folder = processes.share(lambda: RunFolder(checkpoint)) if checkpoint else None
        if folder and folder.saved:
            put_back(folder.saved["start"], args)
        at_start = snapshot(args) if folder else {}
        batches = Batches(args, processes, is_kept=folder is not None)
        guide.reject(None)
        with told_num_data(model, batches), closing(folder) if folder else nullcontext():
            learner = Learner(model, guide, batches, dict(kwargs or {}), asked)
            return _fit(learner, folder, at_start, progress=progress)


def best_start(
    model: Model,
    guide: AutoHypernet,
    args: tuple | Mapping[str, Any] | Iterable[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_restarts: int = 4,
    num_steps: int = 120,
    elbo: VectorizedELBO | None = None,
    optim: Optim | float | None = None,
) -> None:
    """Trains several starts a little and leaves the guide with the best, for `fit` to go on from.

    What the guide has learnt is discarded.

    Args:
        model: The Pyro model.
        guide: The guide.
        args: As in `fit`.
        kwargs: The model's keyword arguments.
        num_restarts: Starts to try.
        num_steps: Steps of each.
        elbo: As in `fit`.
        optim: As in `fit`.

    Raises:
        TypeError: As `fit`.
        ValueError: As `fit`.
    """
    check(guide, num_steps, elbo)
    refuse_wrapped(model)
    if not isinstance(num_restarts, int) or num_restarts < 1:
        raise ValueError(f"num_restarts must be a positive integer; got {num_restarts!r}.")
    with Processes.of_group() as processes:
        batches, kwargs = Batches(args, processes), dict(kwargs or {})
        # The last parameters of a constant step size, neither annealed nor chosen among: bounds to be compared.
        asked = Asked(
            num_steps,
            elbo or VectorizedELBO(),
            replace(as_optim(optim), decay=False, keep="last"),
            Plan(anneal=1.0, rejection=None),
        )
        best, kept = -math.inf, None
        for _ in range(num_restarts):
            first, named = batches.call(kwargs)
            guide.restart(*first, **named)
            try:
                with told_num_data(model, batches):
                    learner = Learner(model, guide, Batches(args, processes), kwargs, asked)
                    result = _fit(learner, None, {}, progress=False)
            except FloatingPointError:
                continue
            if result.stopped_because == "interrupted":
                raise KeyboardInterrupt  # the guide keeps what this start has reached
            if kept is None or result.elbo > best:
                best, kept = result.elbo, {name: tensor.clone() for name, tensor in guide.state_dict().items()}
        if kept is not None:
            guide.load_state_dict(kept)


def _fit(learner: Learner, folder: RunFolder | None, at_start: dict[str, Any], *, progress: bool) -> Fit:
    """Trains from where the guide is, then lets the posterior choose among its draws."""
    processes, chosen, why = learner.processes, None, None
    kept = KeptRun(folder, at_start, learner)
    trainer = Trainer(learner, by_clock=folder is None and processes.size == 1)
    if processes.size > 1:
        processes.check_model(trainer.densities(learner.batches.first))
    parameters = trainer.parameters
    run = Optimiser(parameters.vectors, trainer.num_steps, learner.asked.optim, shares=parameters.shares)
    run.least_loss = trainer.least_loss
    with Interrupts(waits=folder is not None or processes.size > 1) as interrupts:
        try:
            kept.begin(trainer, run)
            reached, stopped_because = _train(trainer, run, kept, interrupts, progress=progress)
            interrupts.waits = processes.size > 1
            if stopped_because != "interrupted":
                reached, stopped_because = _verify(trainer, run, reached, stopped_because)
        finally:
            parameters.release()
        after_fit(learner.guide, run.losses, trainer.trouble, run.num_divergences)
        processes.share_tensors(learner.learnt())
        if stopped_because != "interrupted":
            chosen, why = learner.choose_draws()
    bounds = learner.elbo, trainer.stepper.elbo
    return Fit(
        losses=torch.tensor(run.losses, dtype=torch.float64),
        elbo=chosen.elbo if chosen else reached,
        seconds=time.perf_counter() - kept.start,
        num_skipped=run.num_skipped,
        stopped_because=why or stopped_because,
        gradient="path" if all(elbo.is_path(learner.guide) for elbo in bounds) else "total",
        mode=learner.elbo.runs,
        compile=trainer.stepper.compile,
        compile_reason=trainer.stepper.reason,
        acceptance=learner.guide.rejection.rate if chosen else 1.0,
    )


def _train(
    trainer: Trainer, run: Optimiser, kept: KeptRun, interrupts: Interrupts, *, progress: bool
) -> tuple[float, str]:
    """Steps to the end; the parameters to keep are in place whatever happens.

    Returns:
        The bound of the window that they stand for, and why training stopped.
    """
    processes, optim, first = trainer.processes, run.optim, len(run.losses)
    stopped_because, numbers = "all steps done", range(first, run.num_steps)
    if kept.is_over:
        stopped_because, numbers = "no improvement", range(0)
    is_quiet = None if progress and processes.rank == 0 else True
    bar = tqdm(total=run.num_steps, initial=first, disable=is_quiet, desc="fit", leave=False)
    try:
        for number in numbers:
            is_late = number > 0 and time.perf_counter() > kept.start + optim.max_seconds
            came, is_late = processes.stops(interrupts.came, is_late)
            if came:
                break
            kept.write()
            if is_late:
                stopped_because = "out of time"
                break
            _take_step(trainer, run, number)
            kept.reseed(number + 1)
            if run.window_is_full():
                bar.set_postfix(elbo=f"{-run.close_window():.2f}", refresh=False)
                bar.update(run.window)
                kept.log()
                if optim.patience is not None and run.windows_since_best >= optim.patience:
                    stopped_because = "no improvement"
                    break
        if processes.stops(interrupts.came, False)[0]:
            stopped_because = "interrupted"
        kept.write(stopped_because)
    except KeyboardInterrupt:
        if processes.size > 1:  # the others know of the first one only
            raise
        stopped_because = "interrupted"
    finally:
        bar.close()
        reached = -run.finish()
    return reached, stopped_because


def _take_step(trainer: Trainer, run: Optimiser, number: int) -> None:
    """One step, counted from 0; raises where too many in a row came to nothing."""
    run.is_annealed = trainer.is_annealed(number)
    step, batch = trainer.step(number)
    run.clips_outliers = trainer.is_ragged
    if number == 1:
        check_scales(trainer.guide, trainer.batches, trainer.traits)
    run.step(step)
    if run.skipped_in_a_row and (run.num_skipped & (run.num_skipped - 1)) == 0:  # 1, 2, 4, 8 …: it costs
        trainer.trouble = trainer.find_trouble(step, batch)
    if run.skipped_in_a_row >= run.optim.max_skipped:
        raise FloatingPointError(
            f"{run.optim.max_skipped} steps in a row were not finite; the trouble is in "
            f"{trainer.find_trouble(step, batch)}. {REMEDY} The guide keeps the last finite parameters."
        )


def _verify(trainer: Trainer, run: Optimiser, reached: float, stopped_because: str) -> tuple[float, str]:
    """The bound of fresh draws, and why training stopped."""
    measure = partial(verify, trainer, run.first, len(run.losses), reached)
    if trainer.processes.size > 1:  # an error is one of all
        trainer.processes.share_random_numbers()
        return measure(), stopped_because
    try:
        return keep_going(measure, reached, "Measuring the bound"), stopped_because
    except KeyboardInterrupt:
        return reached, "interrupted"

"""Training a guide: schedule, clipping, bad steps skipped, the best parameters kept."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.inference.anneal import Annealing
from pyro_hypernet.inference.batches import Batches
from pyro_hypernet.inference.caution import after_fit, keep_going, warn_once
from pyro_hypernet.inference.elbo import VectorizedELBO
from pyro_hypernet.inference.optimiser import Optimiser
from pyro_hypernet.inference.step import COMPILES, Step
from pyro_hypernet.inference.training import REMEDY, Trainer, copies
from pyro_hypernet.inference.traits import Traits, find_traits
from pyro_hypernet.inference.verification import verify
from pyro_hypernet.plan import check_anneal, check_rejection
from pyro_hypernet.rejection import Choice
from pyro_hypernet.vectorize import Model

KEEP = ("best", "average", "last")
# The share of the steps after which data count once that are annealed.
_ANNEALED_SHARE = 0.5
# Every restart takes this share of the steps.
_RESTART_SHARE = 0.04


@dataclass(frozen=True)
class Fit:
    """How a fit went.

    Attributes:
        losses: Minus the estimated bound at every step, in nats, shape `(steps,)`; NaN where a step was skipped; of
            data that count as often as at that step, see `anneal`.
        elbo: The bound at the parameters that were kept, in nats, of fresh draws, about a hundredth of those of the
            training; with minibatches the mean over them, of a whole pass where that is short. With rejection the
            bound of the draws that are kept; of a fit that was interrupted the mean of the last or best window.
        seconds: Wall time.
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
    guide: AutoHypernet,
    args: tuple | Iterable[tuple],
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 3000,
    num_particles: int | None = None,
    learning_rate: float = 5e-3,
    warmup: float = 0.02,
    decay: bool = True,
    clip: float = 100.0,
    gradient: str = "auto",
    bound: str = "elbo",
    keep: str = "best",
    patience: int | None = None,
    max_skipped: int = 100,
    max_seconds: float = math.inf,
    num_restarts: int = 1,
    anneal: str | float = "auto",
    mode: str = "graph",
    compile: str = "auto",
    rejection: str | float | None = "auto",
    progress: bool = True,
) -> Fit:
    """Trains the guide in place, and the model's own `pyro.param`s with it, by Adam on the vectorised ELBO.

    The learning rate rises linearly, then falls along a cosine to zero. Steps whose loss or gradient is not finite are
    skipped and counted; so are those whose bound is above zero although all data are discrete, which proves a fault.
    Ctrl-C stops the fit and keeps what was reached, and so does an error on the way. The caller's `pyro.set_rng_seed`
    decides.

    Args:
        model: The Pyro model.
        guide: The guide; `setup` is called if need be, else training goes on from its present parameters.
        args: The model's arguments as a tuple, or an iterable of such tuples (a DataLoader), gone through again and
            again; the model must then scale the likelihood of a minibatch to all data, by a plate with
            `subsample_size` or by `bayesianize(..., num_data=N)`. Every datum counts equally often in a pass, shorter
            batches less than others. In the first pass, and where a pass never ends, all batches are taken to be as
            long as the first.
        kwargs: The model's keyword arguments, the same for all batches.
        num_steps: Number of steps.
        num_particles: Draws in one estimate of the bound; None for those of `guide.plan`, 32 by default.
        learning_rate: Adam's peak step size.
        warmup: Share of the steps over which the step size rises, in [0, 1).
        decay: Whether it then falls to zero along a cosine.
        clip: Greatest norm of the gradient over all parameters; ten times the usual norm, if that is more, where one of
            at most 50 minibatches is shorter than others, which else would count too much.
        gradient: "auto", "path" or "total", see VectorizedELBO.
        bound: "elbo" or "importance_weighted".
        keep: "best": the parameters after the window (1/50 of the run) of least mean loss, or those at the start,
            where fresh draws say that training has made the guide worse, as it can an exact one; "average": their mean
            over the last fifth; "last".
        patience: Stop after this many windows without improvement; None for never.
        max_skipped: Give up after this many skipped steps in a row.
        max_seconds: After so long no further step is begun.
        num_restarts: Starts to try, each for 4 % of the steps; the best goes on for what is left. More than one
            discards what the guide has learnt.
        mode: How the model runs: "graph", "eager" or "loop".
        compile: How a whole step runs, density, map and gradient together, with the same losses up to rounding:
            "off": the guide by Python; "graph": captured; "inductor": compiled by torch's inductor, which takes a
            minute or so; "auto": the one of them that earns its time back within `num_steps`.
        anneal: How often the data count at first; falls geometrically to once at half of the steps. Above 1 keeps
            hidden units at work that the bound would rather leave at their prior, a local optimum where the noise is
            too large and functions too smooth; below 1 is tempering from the prior. "auto": as `guide.plan` says where
            the guide is not trained yet, else 1. Source: Sønderby et al. 2016, arXiv
            1602.02282, who let prior and entropy count less at first; Trippe and Turner 2018, arXiv 1801.06230, for
            the optimum.
        rejection: Whether draws of the trained guide are to be chosen by the posterior, see `AutoHypernet.reject`: a
            share of draws to keep, in (0, 1); None keeps all; "auto" finds it among those of `guide.plan`, if there are
            any, where it was trained on all data at once and the model's density is the same at every call.
        progress: Whether to show a bar with the bound; quiet where the output is no terminal.

    Returns:
        Losses, seconds and why it stopped.

    Raises:
        TypeError: If `args` is neither a tuple nor an iterable of tuples, or the guide is no AutoHypernet.
        ValueError: If an option is out of its range, several minibatches are not scaled to all data, the model refuses
            one of them, or whatever `guide.setup` raises.
        RuntimeError: In several processes of a torch.distributed group, or if the model fails at a later batch.
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
    _check_options(guide, num_steps, learning_rate, warmup, clip, keep, patience, max_skipped, compile, rejection)
    check_anneal(anneal)
    _check_restarts(num_restarts)
    if not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive; got {max_seconds!r}.")
    _refuse_groups()
    batches, kwargs = Batches(args), dict(kwargs or {})
    elbo = VectorizedELBO(1 if num_particles is None else num_particles, gradient=gradient, bound=bound, mode=mode)
    guide.reject(None)
    if num_restarts > 1:
        num_each = max(1, int(_RESTART_SHARE * num_steps))
        num_steps = max(1, num_steps - num_restarts * num_each)
        options = {"num_particles": num_particles, "learning_rate": learning_rate, "clip": clip}
        options |= {"mode": mode, "compile": compile, "gradient": gradient, "num_steps": num_each}
        _choose_start(model, guide, args, kwargs, batches.first, num_restarts, **options)
    guide.setup(*batches.first, **kwargs)
    elbo.num_particles = num_particles or guide.plan.num_particles
    if kwargs:
        model = partial(model, **kwargs)
    traits = find_traits(model, guide, batches.first)
    _check_traits(traits, batches, rejection)
    elbo._prepare(model, guide, batches.first, {})
    start = time.perf_counter()
    annealing = _choose_annealing(anneal, guide, elbo, num_steps)
    options = {"annealing": annealing, "compile": compile, "num_steps": num_steps}
    trainer = Trainer(model, guide, batches, traits, elbo, **options)
    run = Optimiser(trainer.parameters.vectors, num_steps, learning_rate, warmup, decay, clip, keep)
    run.least_loss = trainer.least_loss
    first = copies(run.parameters) if keep == "best" else None
    guide._start = None
    bar = tqdm(total=num_steps, disable=None if progress else True, desc="fit", leave=False)
    try:
        limits = {"num_steps": num_steps, "patience": patience, "max_skipped": max_skipped}
        reached, stopped_because, trouble = _train(trainer, run, traits, bar, **limits, deadline=start + max_seconds)
        if stopped_because != "interrupted":
            reached, stopped_because = _verify(trainer, len(run.losses), first, reached, stopped_because)
    finally:
        trainer.parameters.release()
    after_fit(guide, run.losses, trouble)
    chosen = None
    if _rejects(rejection, guide, batches, kwargs, traits, elbo) and stopped_because != "interrupted":
        chosen, why = _choose_draws(guide, batches.first, kwargs, rejection)
        stopped_because = why or stopped_because
    return Fit(
        losses=torch.tensor(run.losses, dtype=torch.float64),
        elbo=chosen.elbo if chosen else reached,
        seconds=time.perf_counter() - start,
        num_skipped=run.num_skipped,
        stopped_because=stopped_because,
        gradient="path" if elbo._is_path(guide) and trainer.stepper.elbo._is_path(guide) else "total",
        mode=elbo._log_joint.mode,
        compile=trainer.stepper.compile,
        compile_reason=trainer.stepper.reason,
        acceptance=guide.rejection.rate if chosen else 1.0,
    )


def _train(
    trainer: Trainer,
    run: Optimiser,
    traits: Traits,
    bar: tqdm,
    *,
    num_steps: int,
    patience: int | None,
    max_skipped: int,
    deadline: float,
) -> tuple[float, str, str]:
    """Steps to the end; the parameters to keep are in place whatever happens.

    Returns:
        The bound of the window that they stand for, why training stopped, and where skipped steps went wrong.
    """
    stopped_because, trouble = "all steps done", ""
    try:
        for number in range(num_steps):
            if number and time.perf_counter() > deadline:
                stopped_because = "out of time"
                break
            run.is_annealed = trainer.is_annealed(number)
            step, batch = trainer.step(number)
            run.clips_outliers = trainer.is_ragged
            if number == 1:
                _warn_of_scales(trainer, traits)
            run.step(step)
            if run.skipped_in_a_row and (run.num_skipped & (run.num_skipped - 1)) == 0:  # 1, 2, 4, 8 …: it costs
                trouble = _find_trouble(trainer, step, batch)
            if run.skipped_in_a_row >= max_skipped:
                raise FloatingPointError(
                    f"{max_skipped} steps in a row were not finite; the trouble is in "
                    f"{_find_trouble(trainer, step, batch)}. {REMEDY} The guide keeps the last finite parameters."
                )
            if run.window_is_full():
                bar.set_postfix(elbo=f"{-run.close_window():.2f}", refresh=False)
                bar.update(run.window)
                if patience is not None and run.windows_since_best >= patience:
                    stopped_because = "no improvement"
                    break
    except KeyboardInterrupt:
        stopped_because = "interrupted"
    finally:
        bar.close()
        reached = -run.finish()
    return reached, stopped_because, trouble


def _find_trouble(trainer: Trainer, step: Step, batch: tuple) -> str:
    try:
        return trainer.find_trouble(step, batch)
    except Exception:  # the model does not even run there
        return "the density, which raises an error"


def _verify(
    trainer: Trainer, num_steps: int, first: list[Tensor] | None, reached: float, stopped_because: str
) -> tuple[float, str]:
    """The bound of fresh draws, and why training stopped."""
    try:
        bound = keep_going(partial(verify, trainer, first, num_steps), None, "Measuring the bound")
    except KeyboardInterrupt:
        return reached, "interrupted"
    return reached if bound is None else bound, stopped_because


def _choose_annealing(
    anneal: str | float, guide: AutoHypernet, elbo: VectorizedELBO, num_steps: int
) -> Annealing | None:
    if anneal == "auto":
        anneal = guide.plan.anneal if guide.suits_annealing and not elbo._params else 1.0
    return None if anneal == 1 else Annealing(float(anneal), max(1, int(_ANNEALED_SHARE * num_steps)))


def _rejects(
    rejection: str | float | None,
    guide: AutoHypernet,
    batches: Batches,
    kwargs: dict[str, Any],
    traits: Traits,
    elbo: VectorizedELBO,
) -> bool:
    """Whether draws are to be chosen after the fit."""
    if elbo._params or rejection != "auto":
        return rejection is not None and not elbo._params
    has_all_data = batches.is_fixed and not traits.noise
    return has_all_data and elbo._log_joint.mode != "loop" and guide.suits_rejection(batches.first, kwargs)


def _choose_draws(
    guide: AutoHypernet, batch: tuple, kwargs: dict[str, Any], rejection: str | float
) -> tuple[Choice | None, str | None]:
    """Lets the posterior choose among draws; what was learnt is kept whatever happens."""
    is_auto = rejection == "auto"
    try:
        return guide.reject(batch, kwargs, rates=guide.plan.rejection if is_auto else (rejection,)), None
    except KeyboardInterrupt:
        return None, "interrupted"
    except ValueError as error:  # no weight is finite
        if not is_auto:
            warnings.warn(f"Every draw of the guide is kept: {error}", stacklevel=3)
        return None, None
    except Exception as error:
        warnings.warn(f"Every draw of the guide is kept, for choosing failed: {error}", stacklevel=3)
        return None, None


def _choose_start(
    model: Model,
    guide: AutoHypernet,
    args: tuple | Iterable[tuple],
    kwargs: dict[str, Any],
    first: tuple,
    num_restarts: int,
    **options: Any,
) -> None:
    """Trains every start a little and leaves the guide with the best."""
    best, kept = -math.inf, None
    for _ in range(num_restarts):
        guide.restart(*first, **kwargs)
        try:
            settings = {"decay": False, "keep": "last", "rejection": None, "anneal": 1.0, "progress": False}
            result = fit(model, guide, args, kwargs=kwargs, **settings, **options)
        except FloatingPointError:
            continue
        if result.stopped_because == "interrupted":
            raise KeyboardInterrupt  # the guide keeps what this start has reached
        reached = result.elbo
        if kept is None or reached > best:
            best, kept = reached, {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    if kept is not None:
        guide.load_state_dict(kept)


def _check_options(
    guide: Any,
    num_steps: int,
    learning_rate: float,
    warmup: float,
    clip: float,
    keep: str,
    patience: int | None,
    max_skipped: int,
    compile: str,
    rejection: str | float | None,
) -> None:
    if not isinstance(guide, AutoHypernet):
        raise TypeError(
            f"fit trains an AutoHypernet; got {type(guide).__name__}. Train other guides with pyro.infer.SVI, which "
            "takes VectorizedELBO too."
        )
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}; got {keep!r}.")
    if compile not in COMPILES:
        raise ValueError(f"compile must be one of {', '.join(COMPILES)}; got {compile!r}.")
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer; got {num_steps!r}.")
    if not learning_rate > 0 or not clip > 0:
        raise ValueError(f"learning_rate and clip must be positive; got {learning_rate!r} and {clip!r}.")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1); got {warmup!r}.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be a positive number of windows or None; got {patience!r}.")
    check_rejection(rejection)
    if max_skipped < 1:
        raise ValueError(f"max_skipped must be at least 1; got {max_skipped!r}.")


def _check_restarts(num_restarts: int) -> None:
    if not isinstance(num_restarts, int) or not 1 <= num_restarts < 1 / _RESTART_SHARE:
        most = round(1 / _RESTART_SHARE) - 1
        raise ValueError(f"num_restarts must be an integer from 1 to {most}; got {num_restarts!r}.")


def _refuse_groups() -> None:
    """Raises where several processes would each train a guide of its own."""
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        raise RuntimeError(
            f"fit trains in one process, and this is one of a group of {group.get_world_size()}, which would end with "
            "as many different guides. Fit before torch.distributed.init_process_group, or in a process of its own, "
            "and hand the guide on by save and load."
        )


def _check_traits(traits: Traits, batches: Batches, rejection: str | float | None) -> None:
    """Raises where minibatches cannot give the posterior of all data, or rejection has no density to go by."""
    is_several = batches.length is not None and batches.length > 1
    if traits.is_unscaled and is_several:
        raise ValueError(_spell_unscaled(traits, batches))
    if rejection not in ("auto", None) and (traits.noise or not (batches.is_fixed or batches.length == 1)):
        why = traits.noise or "args gives minibatches"
        raise ValueError(
            f"rejection={rejection!r} needs the same density of all data at every call, but {why}. Pass all data as "
            "one tuple, without subsample_size, or leave rejection out."
        )


def _spell_unscaled(traits: Traits, batches: Batches) -> str:
    count, size = "several" if batches.length is None else batches.length, batches.spell_size()
    return (
        f"args gives {count} minibatches, but the likelihood of {', '.join(map(repr, traits.unscaled))} counts every "
        "minibatch once (scale 1): the posterior would be that of one minibatch, far too wide. Scale it to all data: "
        f"bayesianize(..., num_data={size}), or pyro.plate(..., size={size}, subsample_size=len(x))."
    )


def _warn_of_scales(trainer: Trainer, traits: Traits) -> None:
    """At the second step: says what is not certain before, or not certainly wrong."""
    batches = trainer.batches
    if not batches.is_fixed and batches.number > 0 and traits.unscaled:
        warn_once(trainer.guide, "not scaled", _spell_unscaled(traits, batches), stacklevel=4)

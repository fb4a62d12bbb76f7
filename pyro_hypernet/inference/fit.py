"""Training a guide: schedule, clipping, bad steps skipped, the best parameters kept."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from tqdm.auto import tqdm

from pyro_hypernet.density import LogJoint
from pyro_hypernet.guide import REJECTION_RATES, AutoHypernet
from pyro_hypernet.inference.anneal import AnnealedModel
from pyro_hypernet.inference.caution import after_fit
from pyro_hypernet.inference.elbo import VectorizedELBO
from pyro_hypernet.inference.step import COMPILES, FlatParameters, Step, Stepper
from pyro_hypernet.rejection import Choice
from pyro_hypernet.vectorize import Model

KEEP = ("best", "average", "last")
# The loss is smoothed over this many windows of a run to tell the best step and whether it still falls.
_WINDOWS = 50
# The average runs over this last share of the steps.
_AVERAGED_SHARE = 0.2
# How often the data of a network count at first, and the share of the steps after which they count once.
ANNEAL, _ANNEALED_SHARE = 5.0, 0.5
# Every restart takes this share of the steps.
_RESTART_SHARE = 0.04


@dataclass(frozen=True)
class Fit:
    """How a fit went.

    Attributes:
        losses: Minus the estimated bound at every step, in nats, shape `(steps,)`; NaN where a step was skipped; of
            data that count as often as at that step, see `anneal`.
        elbo: The mean bound over the window whose parameters were kept, in nats; with `keep="best"` the greatest of
            50 such means, so a little high: `evaluation.diagnostics.elbo` measures it afresh. With rejection the bound
            of the draws that are kept.
        seconds: Wall time.
        num_skipped: Steps passed over because loss or gradient were not finite.
        stopped_because: "all steps done", "no improvement", "out of time" or "interrupted".
        gradient: "path" or "total".
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
    num_steps: int = 3000,
    num_particles: int = 32,
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
    skipped and counted. Ctrl-C stops the fit and keeps what was reached. The caller's `pyro.set_rng_seed` decides.

    Args:
        model: The Pyro model.
        guide: The guide; `setup` is called if need be, else training goes on from its present parameters.
        args: The model's arguments as a tuple, or an iterable of such tuples (a DataLoader), gone through again and
            again; the model must then scale the likelihood of a minibatch to all data, by a plate with
            `subsample_size` or by `bayesianize(..., num_data=N)`.
        num_steps: Number of steps.
        num_particles: Draws in one estimate of the bound.
        learning_rate: Adam's peak step size.
        warmup: Share of the steps over which the step size rises, in [0, 1).
        decay: Whether it then falls to zero along a cosine.
        clip: Greatest norm of the gradient over all parameters.
        gradient: "auto", "path" or "total", see VectorizedELBO.
        bound: "elbo" or "importance_weighted".
        keep: "best": the parameters after the window (1/50 of the run) of least mean loss; "average": their mean over
            the last fifth; "last".
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
            too large and functions too smooth; below 1 is tempering from the prior. "auto": 5 where the guide treats
            hidden units as interchangeable and is not trained yet, else 1. Source: Sønderby et al. 2016, arXiv
            1602.02282, who let prior and entropy count less at first; Trippe and Turner 2018, arXiv 1801.06230, for
            the optimum.
        rejection: Whether draws of the trained guide are to be chosen by the posterior, see `AutoHypernet.reject`: a
            share of draws to keep, in (0, 1); None keeps all; "auto" finds the share for guides whose hypernet and
            structure are "auto", of up to 2 000 weights, trained on all data at once.
        progress: Whether to show a bar with the bound; quiet where the output is no terminal.

    Returns:
        Losses, seconds and why it stopped.

    Raises:
        TypeError: If `args` is neither a tuple nor an iterable of tuples, or the guide is no AutoHypernet.
        ValueError: If an option is out of its range, or whatever `guide.setup` raises.
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
    _check_annealing(anneal)
    if not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive; got {max_seconds!r}.")
    batches = _batches(args)
    if not isinstance(num_restarts, int) or not 1 <= num_restarts < 1 / _RESTART_SHARE:
        most = round(1 / _RESTART_SHARE) - 1
        raise ValueError(f"num_restarts must be an integer from 1 to {most}; got {num_restarts!r}.")
    elbo = VectorizedELBO(num_particles, gradient=gradient, bound=bound, mode=mode)
    first = next(batches)
    if num_restarts > 1:
        num_each = max(1, int(_RESTART_SHARE * num_steps))
        num_steps = max(1, num_steps - num_restarts * num_each)
        options = {
            "num_particles": num_particles,
            "learning_rate": learning_rate,
            "clip": clip,
            "mode": mode,
            "compile": compile,
        }
        _choose_start(model, guide, args, first, num_restarts, num_steps=num_each, gradient=gradient, **options)
    guide.reject(None)
    guide.setup(*first)
    log_joint = elbo._prepare(model, guide, first, {})
    start = time.perf_counter()
    parameters = FlatParameters([*guide.parameters(), *elbo._params.values()])
    stepper = Stepper(
        model,
        guide,
        elbo,
        parameters,
        compile=compile,
        num_steps=num_steps,
        is_fixed=isinstance(args, tuple),
    )
    run = _Run(parameters.vectors, num_steps, learning_rate, warmup, decay, clip, keep)
    if anneal == "auto":
        anneal = ANNEAL if guide.suits_annealing and not elbo._params else 1.0
    guide._start = None
    annealed = None
    if anneal != 1:
        annealed = AnnealedModel(model, float(anneal), max(1, int(_ANNEALED_SHARE * num_steps)))
        sharp = VectorizedELBO(num_particles, gradient=gradient, bound=bound, mode=mode)
        sharp._prepare(annealed, guide, annealed.arguments(0, first), {})
        options = {"compile": compile, "num_steps": annealed.num_steps, "is_fixed": False}
        annealed_stepper = Stepper(annealed, guide, sharp, parameters, **options)
    bar = tqdm(total=num_steps, disable=None if progress else True, desc="fit", leave=False)
    stopped_because = "all steps done"
    try:
        for number in range(num_steps):
            if number and time.perf_counter() - start > max_seconds:
                stopped_because = "out of time"
                break
            batch = first if number == 0 else next(batches)
            run.is_annealed = annealed is not None and number < annealed.num_steps
            step = annealed_stepper(annealed.arguments(number, batch)) if run.is_annealed else stepper(batch)
            run.step(step)
            if run.skipped_in_a_row >= max_skipped:
                _raise_for_bad_steps(log_joint, step, batch, max_skipped)
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
        kept = run.finish()
        parameters.release()
    after_fit(model, guide, args, first, run.losses)
    chosen = None
    if _rejects(rejection, guide, args, log_joint) and not elbo._params and stopped_because != "interrupted":
        chosen, why = _choose_draws(guide, first, rejection)
        stopped_because = why or stopped_because
    return Fit(
        losses=torch.tensor(run.losses, dtype=torch.float64),
        elbo=chosen.elbo if chosen else -kept,
        seconds=time.perf_counter() - start,
        num_skipped=run.num_skipped,
        stopped_because=stopped_because,
        gradient="path" if elbo._is_path(guide) else "total",
        mode=log_joint.mode,
        compile=stepper.compile,
        compile_reason=stepper.reason,
        acceptance=guide.rejection.rate if chosen else 1.0,
    )


def _rejects(rejection: str | float | None, guide: AutoHypernet, args: Any, log_joint: LogJoint) -> bool:
    """Whether draws are to be chosen after the fit."""
    if rejection != "auto":
        return rejection is not None
    return isinstance(args, tuple) and log_joint.mode != "loop" and guide.suits_rejection(args)


def _choose_draws(guide: AutoHypernet, batch: tuple, rejection: str | float) -> tuple[Choice | None, str | None]:
    """Lets the posterior choose among draws; what was learnt is kept whatever happens."""
    is_auto = rejection == "auto"
    try:
        return guide.reject(batch, rates=REJECTION_RATES if is_auto else (rejection,)), None
    except KeyboardInterrupt:
        return None, "interrupted"
    except ValueError:  # no weight is finite
        if not is_auto:
            raise
        return None, None


def _choose_start(
    model: Model, guide: AutoHypernet, args: tuple | Iterable[tuple], first: tuple, num_restarts: int, **options: Any
) -> None:
    """Trains every start a little and leaves the guide with the best."""
    best, kept = -math.inf, None
    for _ in range(num_restarts):
        guide.restart(*first)
        try:
            settings = {"decay": False, "keep": "last", "rejection": None, "anneal": 1.0, "progress": False}
            result = fit(model, guide, args, **settings, **options)
        except FloatingPointError:
            continue
        if result.stopped_because == "interrupted":
            raise KeyboardInterrupt  # the guide keeps what this start has reached
        reached = result.elbo
        if kept is None or reached > best:
            best, kept = reached, {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    if kept is not None:
        guide.load_state_dict(kept)


class _Run:
    """The optimiser and its schedule, the losses so far, and the parameters to keep."""

    def __init__(
        self,
        vectors: list[Tensor],
        num_steps: int,
        learning_rate: float,
        warmup: float,
        decay: bool,
        clip: float,
        keep: str,
    ) -> None:
        self.parameters = vectors
        self.clip = clip
        self.keep = keep
        self.window = max(1, num_steps // _WINDOWS)
        self.moments = [[torch.zeros_like(vector) for vector in vectors] for _ in range(2)]
        self.counts = [torch.zeros((), device=vector.device) for vector in vectors]
        self.is_fused = all(vector.device.type in ("cpu", "cuda") for vector in vectors)
        self.learning_rate = learning_rate
        self.schedule = _Schedule(num_steps, warmup, decay)
        self.averaged_from = num_steps - max(1, int(_AVERAGED_SHARE * num_steps))
        self.losses: list[float] = []
        self.num_skipped = self.skipped_in_a_row = self.windows_since_best = self.num_averaged = 0
        self.best_loss = math.inf
        self.is_annealed = False
        self.kept: list[Tensor] | None = None

    def step(self, step: Step) -> None:
        """Steps the parameters by Adam; does nothing but count where loss or gradient are not finite."""
        if step.is_finite:
            self._adam(step, self.learning_rate * self.schedule(len(self.losses)))
            self.skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self.skipped_in_a_row += 1
        self.losses.append(step.loss if step.is_finite else math.nan)
        if self.keep == "average" and len(self.losses) > self.averaged_from:
            self._average()

    @torch.no_grad()
    def _adam(self, step: Step, rate: float) -> None:
        options = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "maximize": False}
        gradients, how = list(step.gradients), {"fused": True}
        if not self.is_fused:
            how = {"foreach": True}
        if step.norm > self.clip and self.is_fused:  # the kernel divides by it on its way
            how["grad_scale"] = torch.tensor(
                (step.norm + 1e-6) / self.clip, dtype=torch.float32, device=self.parameters[0].device
            )
        elif step.norm > self.clip:
            gradients = [gradient * (self.clip / (step.norm + 1e-6)) for gradient in gradients]
        adam(self.parameters, gradients, *self.moments, [], self.counts, **how, **options, lr=rate)

    def window_is_full(self) -> bool:
        return len(self.losses) % self.window == 0

    def close_window(self) -> float:
        """Takes stock of the last window: its mean loss, and a copy of the parameters if it is the least so far."""
        finite = [loss for loss in self.losses[-self.window :] if math.isfinite(loss)]
        mean = sum(finite) / len(finite) if finite else math.inf
        self.last_loss = mean
        if self.is_annealed:  # another bound, not to be compared with what comes
            return mean
        self.windows_since_best += 1
        if mean < self.best_loss:
            self.best_loss, self.windows_since_best = mean, 0
            if self.keep == "best":
                self.kept = [parameter.detach().clone() for parameter in self.parameters]
        return mean

    @torch.no_grad()
    def finish(self) -> float:
        """Puts the parameters to keep in place; returns the mean loss of the window that they stand for."""
        if self.kept is not None:
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(kept)
        if not math.isfinite(self.best_loss) and self.losses:
            return self.losses[-1]
        return self.best_loss if self.keep == "best" else getattr(self, "last_loss", math.nan)

    @torch.no_grad()
    def _average(self) -> None:
        self.num_averaged += 1
        if self.kept is None:
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.parameters], 1 / self.num_averaged)


@dataclass(frozen=True)
class _Schedule:
    """The share of the peak step size at every step: a linear rise, then a cosine down to zero."""

    num_steps: int
    warmup: float
    decay: bool

    def __call__(self, step: int) -> float:
        rise = max(1, int(self.warmup * self.num_steps))
        if step < rise:
            return (step + 1) / rise
        if not self.decay:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, self.num_steps - rise))))


def _check_annealing(anneal: str | float) -> None:
    is_number = isinstance(anneal, (int, float)) and not isinstance(anneal, bool)
    if anneal != "auto" and not (is_number and 0 < anneal < math.inf):
        raise ValueError(f'anneal must be "auto" or a positive number, how often the data count; got {anneal!r}.')


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
    if rejection not in ("auto", None) and not (isinstance(rejection, float) and 0 < rejection < 1):
        raise ValueError(f'rejection must be "auto", None or a share of draws to keep, in (0, 1); got {rejection!r}.')
    if max_skipped < 1:
        raise ValueError(f"max_skipped must be at least 1; got {max_skipped!r}.")


def _batches(args: tuple | Iterable[tuple]) -> Iterator[tuple]:
    """Argument tuples without end: the same one, or those of an iterable, again and again."""
    if isinstance(args, tuple):
        while True:
            yield args
    expected = "args must be a tuple of the model's arguments, such as (x, y), or an iterable of such tuples"
    if isinstance(args, Tensor) or not isinstance(args, Iterable):
        raise TypeError(f"{expected}; got {type(args).__name__}.")
    while True:
        empty = True
        for batch in args:
            empty = False
            if not isinstance(batch, (tuple, list)):  # default collation makes lists of tuples
                raise TypeError(f"{expected}; got {type(args).__name__} of {type(batch).__name__}.")
            yield tuple(batch)
        if empty:
            raise ValueError(
                "The iterable of arguments is empty or can be gone through only once: pass a DataLoader or a list."
            )


def _raise_for_bad_steps(log_joint: Any, step: Step, batch: tuple, count: int) -> None:
    w, log_p, log_q = step.particles
    bad = ~(log_p.isfinite() & log_q.isfinite() & w.isfinite().all(-1))
    where = "the gradient, while the density itself is finite"
    if bool(bad.any()):
        row = w[bad.nonzero()[0, 0]]
        if not bool(row.isfinite().all()):
            where = "the guide's own draws"
        else:
            terms = log_joint.site_log_probs(row, *batch)
            names = [name for name, value in terms.items() if not math.isfinite(float(value))]
            where = "the density of site " + ", ".join(map(repr, names)) if names else "the density of the guide"
    raise FloatingPointError(
        f"{count} steps in a row were not finite; the trouble is in {where}. Lower learning_rate, bound the site's "
        "prior or likelihood away from zero, or use float64. The guide keeps the last finite parameters."
    )

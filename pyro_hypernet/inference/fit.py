"""Training a guide: schedule, clipping, bad steps skipped, the best parameters kept."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.inference.caution import after_fit
from pyro_hypernet.inference.elbo import Estimate, VectorizedELBO
from pyro_hypernet.vectorize import Model

KEEP = ("best", "average", "last")
# The loss is smoothed over this many windows of a run to tell the best step and whether it still falls.
_WINDOWS = 50
# The average runs over this last share of the steps.
_AVERAGED_SHARE = 0.2
# Every restart takes this share of the steps.
_RESTART_SHARE = 0.04


@dataclass(frozen=True)
class Fit:
    """How a fit went.

    Attributes:
        losses: Minus the estimated bound at every step, in nats, shape `(steps,)`; NaN where a step was skipped.
        elbo: The mean bound over the window whose parameters were kept, in nats; with `keep="best"` the greatest of
            50 such means, so a little high: `evaluation.diagnostics.elbo` measures it afresh.
        seconds: Wall time.
        num_skipped: Steps passed over because loss or gradient were not finite.
        stopped_because: "all steps done", "no improvement" or "interrupted".
        gradient: "path" or "total".
        mode: How the model ran: "graph", "eager" or "loop".
    """

    losses: Tensor = field(repr=False)
    elbo: float
    seconds: float
    num_skipped: int
    stopped_because: str
    gradient: str
    mode: str

    @property
    def num_steps(self) -> int:
        """Steps taken, the skipped ones included."""
        return len(self.losses)


def fit(
    model: Model,
    guide: AutoHypernet,
    args: tuple | Iterable[tuple],
    *,
    num_steps: int = 5000,
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
    num_restarts: int = 1,
    mode: str = "graph",
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
        num_restarts: Starts to try, each for 4 % of the steps; the best goes on for what is left. More than one
            discards what the guide has learnt.
        mode: How the model runs: "graph", "eager" or "loop".
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
    _check_options(guide, num_steps, learning_rate, warmup, clip, keep, patience, max_skipped)
    batches = _batches(args)
    if not isinstance(num_restarts, int) or not 1 <= num_restarts < 1 / _RESTART_SHARE:
        most = round(1 / _RESTART_SHARE) - 1
        raise ValueError(f"num_restarts must be an integer from 1 to {most}; got {num_restarts!r}.")
    elbo = VectorizedELBO(num_particles, gradient=gradient, bound=bound, mode=mode)
    first = next(batches)
    if num_restarts > 1:
        num_each = max(1, int(_RESTART_SHARE * num_steps))
        num_steps = max(1, num_steps - num_restarts * num_each)
        options = {"num_particles": num_particles, "learning_rate": learning_rate, "clip": clip, "mode": mode}
        _choose_start(model, guide, args, first, num_restarts, num_steps=num_each, gradient=gradient, **options)
    guide.setup(*first)
    log_joint = elbo._prepare(model, guide, first, {})
    parameters = [*guide.parameters(), *elbo._params.values()]
    run = _Run(parameters, num_steps, learning_rate, warmup, decay, clip, keep)
    start = time.perf_counter()
    bar = tqdm(total=num_steps, disable=None if progress else True, desc="fit", leave=False)
    stopped_because = "all steps done"
    try:
        for step in range(num_steps):
            batch = first if step == 0 else next(batches)
            estimate = elbo.estimate(model, guide, *batch)
            finite = run.step(estimate)
            if not finite and run.skipped_in_a_row >= max_skipped:
                _raise_for_bad_steps(log_joint, estimate, batch, max_skipped)
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
    after_fit(model, guide, args, first, run.losses)
    return Fit(
        losses=torch.tensor(run.losses, dtype=torch.float64),
        elbo=-kept,
        seconds=time.perf_counter() - start,
        num_skipped=run.num_skipped,
        stopped_because=stopped_because,
        gradient="path" if elbo._is_path(guide) else "total",
        mode=log_joint.mode,
    )


def _choose_start(
    model: Model, guide: AutoHypernet, args: tuple | Iterable[tuple], first: tuple, num_restarts: int, **options: Any
) -> None:
    """Trains every start a little and leaves the guide with the best."""
    best, kept = -math.inf, None
    for _ in range(num_restarts):
        guide.restart(*first)
        try:
            result = fit(model, guide, args, decay=False, keep="last", progress=False, **options)
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
        parameters: list[Tensor],
        num_steps: int,
        learning_rate: float,
        warmup: float,
        decay: bool,
        clip: float,
        keep: str,
    ) -> None:
        self.parameters = parameters
        self.clip = clip
        self.keep = keep
        self.window = max(1, num_steps // _WINDOWS)
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
        self.learning_rate = learning_rate
        self.schedule = _Schedule(num_steps, warmup, decay)
        self.averaged_from = num_steps - max(1, int(_AVERAGED_SHARE * num_steps))
        self.losses: list[float] = []
        self.num_skipped = self.skipped_in_a_row = self.windows_since_best = self.num_averaged = 0
        self.best_loss = math.inf
        self.kept: list[Tensor] | None = None

    def step(self, estimate: Estimate) -> bool:
        """Steps the parameters; returns whether loss and gradient were finite, and does nothing if not."""
        self.optimizer.zero_grad(set_to_none=True)
        estimate.surrogate.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss = estimate.loss.item()
        finite = math.isfinite(loss) and math.isfinite(norm.item())
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * self.schedule(len(self.losses))
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self.skipped_in_a_row += 1
        self.losses.append(loss if finite else math.nan)
        if self.keep == "average" and len(self.losses) > self.averaged_from:
            self._average()
        return finite

    def window_is_full(self) -> bool:
        return len(self.losses) % self.window == 0

    def close_window(self) -> float:
        """Takes stock of the last window: its mean loss, and a copy of the parameters if it is the least so far."""
        finite = [loss for loss in self.losses[-self.window :] if math.isfinite(loss)]
        mean = sum(finite) / len(finite) if finite else math.inf
        self.windows_since_best += 1
        if mean < self.best_loss:
            self.best_loss, self.windows_since_best = mean, 0
            if self.keep == "best":
                self.kept = [parameter.detach().clone() for parameter in self.parameters]
        self.last_loss = mean
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


def _check_options(
    guide: Any,
    num_steps: int,
    learning_rate: float,
    warmup: float,
    clip: float,
    keep: str,
    patience: int | None,
    max_skipped: int,
) -> None:
    if not isinstance(guide, AutoHypernet):
        raise TypeError(
            f"fit trains an AutoHypernet; got {type(guide).__name__}. Train other guides with pyro.infer.SVI, which "
            "takes VectorizedELBO too."
        )
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}; got {keep!r}.")
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer; got {num_steps!r}.")
    if not learning_rate > 0 or not clip > 0:
        raise ValueError(f"learning_rate and clip must be positive; got {learning_rate!r} and {clip!r}.")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1); got {warmup!r}.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be a positive number of windows or None; got {patience!r}.")
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


def _raise_for_bad_steps(log_joint: Any, estimate: Estimate, batch: tuple, count: int) -> None:
    bad = ~(estimate.log_p.isfinite() & estimate.log_q.isfinite() & estimate.w.isfinite().all(-1))
    where = "the gradient, while the density itself is finite"
    if bool(bad.any()):
        row = estimate.w[bad.nonzero()[0, 0]]
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

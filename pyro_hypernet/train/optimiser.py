"""Adam with its schedule and clipping; bad steps skipped, the best parameters kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.utils import _pytree as pytree

from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.maps.coordinates import Subspace
from pyro_hypernet.maps.linear import LowRank
from pyro_hypernet.options import check_numbers
from pyro_hypernet.train.step import Step, are_long

KEEP = ("best", "average", "last")
LEARNING_RATE = 5e-3
_ASKED = (
    "optim takes a step size, an Optim, an optimiser of Pyro's, or a function from parameters to one of torch's that "
    "steps without a closure"
)
# The loss is smoothed over this many windows of a run to tell the best step and whether it still falls.
_WINDOWS = 50
# Steps of a window at least where parameters are many: at its end they may be copied, at a fifteenth of a step's cost.
_LEAST_WINDOW = 5
# Where short batches have a say, clipping to a fixed norm would undo their weights: so many times the usual norm, whose
# mean forgets at this rate, is an outlier.
_OUTLIER, _FORGET = 10.0, 0.05
# The average runs over this last share of the steps.
_AVERAGED_SHARE = 0.2
# Losses of so many steps tell where a run started, and where it is.
_FIRST = 4
# A rise of fewer nats is no divergence, whatever the loss had fallen by before.
_LEAST_RISE = 1.0
# So many skipped steps in a row are no accident of some draws.
_BACK_OFF_AFTER = 10
# A weight of the hypernetwork that looks at more coordinates than this takes shorter steps.
_MOST_COORDINATES = 2000
# What an Optimiser is given or works out of that; all else is its state.
_GIVEN = (
    *("parameters", "alike", "optim", "num_steps", "window"),
    *("is_fused", "is_long", "method", "rates", "least_loss", "averaged_from"),
)


@dataclass(frozen=True)
class Optim:
    """How `fit` steps the parameters, which it keeps, and when it stops before `num_steps`.

    Args:
        learning_rate: Adam's peak step size; with a method of your own a factor of its step sizes.
        warmup: Share of the steps over which the step size rises, in [0, 1).
        decay: Whether it then falls to zero along a cosine.
        clip: Greatest norm of the gradient over all parameters; ten times the usual norm, if that is more, where one of
            at most 50 minibatches is shorter than others, which else would count too much.
        keep: "best": the parameters after the window (1/50 of the run) of least mean loss, or those at the start,
            where fresh draws say that training has made the guide worse, as it can an exact one; "average": their mean
            over the last fifth; "last".
        patience: Stop after this many windows without improvement; None for never.
        max_skipped: Give up after this many skipped steps in a row.
        max_seconds: After so long no further step is begun.
        method: Another optimiser than Adam: one of Pyro's, as `pyro.optim.ClippedAdam({"lr": 1e-3})`, or a function
            from parameters to one of torch's, such as `torch.optim.AdamW` or `partial(torch.optim.SGD, lr=1e-3)`. It
            steps all parameters as a few long vectors.

    Raises:
        TypeError: If the method is no optimiser.
        ValueError: If an option is out of its range.
    """

    learning_rate: float | None = None
    warmup: float = 0.02
    decay: bool = True
    clip: float = 100.0
    keep: str = "best"
    patience: int | None = None
    max_skipped: int = 100
    max_seconds: float = math.inf
    method: Callable[..., torch.optim.Optimizer] | PyroOptim | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATE if self.method is None else 1.0)
        if self.keep not in KEEP:
            raise ValueError(f"keep must be one of {', '.join(KEEP)}; got {self.keep!r}.")
        if not self.learning_rate > 0 or not self.clip > 0:
            raise ValueError(f"learning_rate and clip must be positive; got {self.learning_rate!r} and {self.clip!r}.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share of the steps in [0, 1); got {self.warmup!r}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be a positive number of windows or None; got {self.patience!r}.")
        if self.max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1; got {self.max_skipped!r}.")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive; got {self.max_seconds!r}.")
        if self.method is not None:
            self.make([torch.zeros(1)])

    def make(self, vectors: list[Tensor]) -> torch.optim.Optimizer:
        """The user's optimiser of these parameters.

        Args:
            vectors: The parameters.
        """
        method, options = self.method, {}
        if isinstance(method, PyroOptim):
            method, options = method.pt_optim_constructor, method.pt_optim_args
            if not isinstance(options, dict):
                raise TypeError(f"{_ASKED}; the options of this one depend on the parameter's name.")
        try:
            made = method(vectors, **options)
        except Exception as error:
            raise TypeError(f"{_ASKED}; {method!r} could not make one: {error}.") from error
        if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
            raise TypeError(f"{_ASKED}; got {made!r}.")
        return made

    def rate(self, step: int, num_steps: int) -> float:
        """The step size, or its factor: a linear rise to the peak, then a cosine down to zero.

        Args:
            step: The number of the step, from 0.
            num_steps: How many steps there will be.
        """
        rise = max(1, int(self.warmup * num_steps))
        if step < rise:
            return self.learning_rate * ((step + 1) / rise)
        if not self.decay:
            return self.learning_rate
        share = min(1.0, (step - rise) / max(1, num_steps - rise))
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * share)))


def as_optim(optim: Any) -> Optim:
    """What `fit` takes: a peak step size for Adam, an optimiser as it is, or an `Optim`."""
    if optim is None or isinstance(optim, Optim):
        return optim or Optim()
    if isinstance(optim, (int, float)) and not isinstance(optim, bool):
        return Optim(float(optim))
    return Optim(method=optim, warmup=0.0, decay=False)


def step_shares(bijection: Bijection) -> dict[Tensor, float]:
    """Of the step size, for weights whose sums run over many coordinates, all of which a step moves in step.

    Without it a step of Adam's would move such a sum by the number of coordinates times the step size. The share falls
    with one over that number: Yang and Hu 2021, arXiv 2011.14522.

    Args:
        bijection: The map of a guide.
    """
    shares = {}
    for part in bijection.modules():
        if isinstance(part, nn.Linear):
            shares[part.weight] = part.in_features
        elif isinstance(part, LowRank):
            shares[part.v] = len(part.v)
        elif isinstance(part, Subspace):
            shares[part.directions] = len(part.directions)
    return {weight: _MOST_COORDINATES / count for weight, count in shares.items() if count > _MOST_COORDINATES}


class Optimiser:
    """Steps the parameters; keeps the losses so far, and the parameters of the best window or their average.

    Args:
        vectors: The parameters.
        num_steps: How many steps there will be.
        optim: How.
        shares: Of Adam's step size that each parameter takes; None for all of it.

    Attributes:
        least_loss: Steps with a loss below are skipped.
        clips_outliers: Whether gradients are clipped to ten times their usual norm where that is more than `clip`.
        losses: Minus the bound at every step, in nats; NaN where skipped.
        num_divergences: How often the loss rose above where it started, and the best parameters came back.
    """

    def __init__(
        self, vectors: list[Tensor], num_steps: int, optim: Optim, *, shares: Sequence[float] | None = None
    ) -> None:
        self.parameters = vectors
        self.alike: dict[float, list[int]] = {}  # from shares to the numbers of the vectors that take them
        for number, share in enumerate(shares or [1.0] * len(vectors)):
            self.alike.setdefault(share, []).append(number)
        self.optim = optim
        self.num_steps = num_steps
        self.is_long = are_long(vectors)
        self.window = max(_LEAST_WINDOW if self.is_long else 1, num_steps // _WINDOWS)
        self.moments: list[list[Tensor]] | None = None  # made at the first step, when what captured it is gone
        self.counts = [torch.zeros((), device=vector.device) for vector in vectors]
        self.is_fused = all(vector.device.type in ("cpu", "cuda") for vector in vectors)
        self.method = None if optim.method is None else optim.make(vectors)
        self.rates = [] if self.method is None else [group["lr"] for group in self.method.param_groups]
        self.least_loss = -math.inf
        self.clips_outliers = False
        self.usual_norm: float | None = None
        self.averaged_from = num_steps - max(1, int(_AVERAGED_SHARE * num_steps))
        self.losses: list[float] = []
        self.num_skipped = self.skipped_in_a_row = self.windows_since_best = self.num_averaged = 0
        self.num_divergences = 0
        self.best_loss = math.inf
        self.is_annealed = self.was_annealed = False
        self.kept: list[Tensor] | None = None
        self.first: list[Tensor] | None = None
        self.caution = 1.0

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step, but for the parameters: plain values, tensors, and lists of them."""
        state = {name: value for name, value in vars(self).items() if name not in _GIVEN}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        return state | {"method": None if self.method is None else self.method.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned, on the parameters' device."""
        state, device = dict(state), self.parameters[0].device
        if (of_method := state.pop("method")) is not None:
            self.method.load_state_dict(of_method)
        losses = state.pop("losses").tolist()
        move = partial(torch.Tensor.to, device=device)
        vars(self).update(pytree.tree_map_only(Tensor, move, state), losses=losses)

    def step(self, step: Step) -> None:
        """Steps the parameters by Adam; does nothing but count where loss or gradient cannot be right."""
        self._begin()
        is_good = step.is_finite and step.loss >= self.least_loss
        if is_good:
            self._update(step, self.caution * self.optim.rate(len(self.losses), self.num_steps))
            self.skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row % _BACK_OFF_AFTER == 0:
                self._back_off()
        self.losses.append(step.loss if is_good else math.nan)
        if self.optim.keep == "average" and len(self.losses) > self.averaged_from:
            self._average()

    def _begin(self) -> None:
        """Copies the parameters before the first step, and makes the moments."""
        if self.moments is not None:
            return
        self.moments = [[torch.zeros_like(vector) for vector in self.parameters] for _ in range(2)]
        if self.optim.keep == "best":
            self.first = copies(self.parameters)

    @torch.no_grad()
    def _back_off(self) -> None:
        """Goes on from the best parameters so far, with half the step size and no momentum."""
        self.caution /= 2
        for state in (*self.moments[0], *self.moments[1], *self.counts):
            state.zero_()
        good = self.first if self.kept is None else self.kept
        if good is not None and self.optim.keep == "best":
            put(self.parameters, good)

    @torch.no_grad()
    def _update(self, step: Step, rate: float) -> None:
        clip = max(self.optim.clip, _OUTLIER * (self.usual_norm or 0.0)) if self.clips_outliers else self.optim.clip
        usual = step.norm if self.usual_norm is None else self.usual_norm
        self.usual_norm = usual + _FORGET * (min(step.norm, _OUTLIER * usual) - usual)
        shrink = (step.norm + 1e-6) / clip if step.norm > clip else None
        if self.method is not None:
            self._step_method(step, rate, shrink)
        else:
            self._step_adam(step, rate, shrink)

    def _step_method(self, step: Step, rate: float, shrink: float | None) -> None:
        for parameter, gradient in zip(self.parameters, step.gradients, strict=True):
            parameter.grad = gradient if shrink is None else gradient / shrink
        for group, own in zip(self.method.param_groups, self.rates, strict=True):
            group["lr"] = own * rate
        self.method.step()

    def _step_adam(self, step: Step, rate: float, shrink: float | None) -> None:
        options = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "maximize": False}
        gradients, how = list(step.gradients), {"fused": True} if self.is_fused else {"foreach": True}
        if shrink is not None and self.is_fused:  # the kernel divides by it on its way
            how["grad_scale"] = torch.tensor(shrink, dtype=torch.float32, device=self.parameters[0].device)
        elif shrink is not None:
            gradients = [gradient / shrink for gradient in gradients]
        state = (self.parameters, gradients, *self.moments)
        for share, numbers in self.alike.items():
            vectors, counts = [[part[n] for n in numbers] for part in state], [self.counts[n] for n in numbers]
            adam(*vectors, [], counts, **how, **options, lr=share * rate)

    def window_is_full(self) -> bool:
        """Whether stock is to be taken."""
        return len(self.losses) % self.window == 0

    def close_window(self) -> float:
        """Takes stock of the last window: its mean loss, and a copy of the parameters if it is the least so far."""
        finite = [loss for loss in self.losses[-self.window :] if math.isfinite(loss)]
        mean = sum(finite) / len(finite) if finite else math.inf
        self.last_loss = mean
        if self.is_annealed:  # another bound, not to be compared with what comes
            self.was_annealed = True
            return mean
        self.windows_since_best += 1
        if self._has_diverged():
            self.num_divergences += 1
            self._back_off()
        if mean < self.best_loss:
            self.best_loss, self.windows_since_best = mean, 0
            if self.optim.keep == "best":
                self._keep()
        return mean

    def _keep(self) -> None:
        """Copies the parameters; of many there is one copy: of the start until it is well beaten, then of the best."""
        if self.is_long and self.first is not None and not self.was_annealed:
            if not self._is_start_beaten():
                return
            self.kept, self.first = self.first, None
        if self.kept is None:
            self.kept = copies(self.parameters)
        else:
            put(self.kept, self.parameters)

    def _has_diverged(self) -> bool:
        """Whether most of the last losses are above all of the first by more than the run had come below them."""
        last, first = self.losses[-max(self.window, _FIRST) :], self.losses[:_FIRST]
        if self.was_annealed or len(self.losses) < 2 * _FIRST or not all(map(math.isfinite, first)):
            return False
        fallen = min(first) - self.best_loss
        limit = max(first) + max(fallen, _LEAST_RISE)
        return fallen > 0 and sum(loss > limit for loss in last) > len(last) / 2

    def _is_start_beaten(self) -> bool:
        """Whether the last losses are all below the first, by more than they scatter."""
        last, first = self.losses[-max(self.window, _FIRST) :], self.losses[:_FIRST]
        if len(self.losses) < 2 * _FIRST or not all(map(math.isfinite, last + first)):
            return False
        return min(first) - max(last) > max(last) - min(last)

    def finish(self) -> float:
        """Puts the parameters to keep in place; returns the mean loss of the window that they stand for."""
        kept, self.kept = self.kept, None
        if kept is not None:
            put(self.parameters, kept)
        if not math.isfinite(self.best_loss) and self.losses:
            return self.losses[-1]
        is_best = self.optim.keep == "best" and kept is not None
        return self.best_loss if is_best else getattr(self, "last_loss", math.nan)

    @torch.no_grad()
    def _average(self) -> None:
        self.num_averaged += 1
        if self.kept is None:
            self.kept = copies(self.parameters)
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.parameters], 1 / self.num_averaged)


def copies(vectors: list[Tensor]) -> list[Tensor]:
    """Copies of parameters."""
    return [vector.detach().clone() for vector in vectors]


@torch.no_grad()
def put(vectors: list[Tensor], values: list[Tensor]) -> None:
    """Sets parameters to these values."""
    for vector, value in zip(vectors, values, strict=True):
        vector.copy_(value)


@torch.no_grad()
def swap(vectors: list[Tensor], values: list[Tensor]) -> None:
    """Exchanges parameters with these values, one vector after the other."""
    for vector, value in zip(vectors, values, strict=True):
        before = vector.clone()
        vector.copy_(value)
        value.copy_(before)

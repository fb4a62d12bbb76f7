"""Adam with its schedule and clipping; bad steps skipped, the best parameters kept."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from pyro_hypernet.inference.step import Step

# The loss is smoothed over this many windows of a run to tell the best step and whether it still falls.
_WINDOWS = 50
# Where short batches have a say, clipping to a fixed norm would undo their weights: so many times the usual norm, whose
# mean forgets at this rate, is an outlier.
_OUTLIER, _FORGET = 10.0, 0.05
# The average runs over this last share of the steps.
_AVERAGED_SHARE = 0.2


class Optimiser:
    """Steps the parameters; keeps the losses so far, and the parameters of the best window or their average.

    Args:
        vectors: The parameters.
        num_steps: How many steps there will be.
        learning_rate: Adam's peak step size.
        warmup: Share of the steps over which it rises.
        decay: Whether it then falls.
        clip: Greatest norm of the gradient.
        keep: "best", "average" or "last".

    Attributes:
        least_loss: Steps with a loss below are skipped.
        clips_outliers: Whether gradients are clipped to ten times their usual norm where that is more than `clip`.
        losses: Minus the bound at every step, in nats; NaN where skipped.
    """

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
        self.schedule = Schedule(num_steps, warmup, decay)
        self.least_loss = -math.inf
        self.clips_outliers = False
        self.usual_norm: float | None = None
        self.averaged_from = num_steps - max(1, int(_AVERAGED_SHARE * num_steps))
        self.losses: list[float] = []
        self.num_skipped = self.skipped_in_a_row = self.windows_since_best = self.num_averaged = 0
        self.best_loss = math.inf
        self.is_annealed = False
        self.kept: list[Tensor] | None = None

    def step(self, step: Step) -> None:
        """Steps the parameters by Adam; does nothing but count where loss or gradient cannot be right."""
        is_good = step.is_finite and step.loss >= self.least_loss
        if is_good:
            self._adam(step, self.learning_rate * self.schedule(len(self.losses)))
            self.skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self.skipped_in_a_row += 1
        self.losses.append(step.loss if is_good else math.nan)
        if self.keep == "average" and len(self.losses) > self.averaged_from:
            self._average()

    @torch.no_grad()
    def _adam(self, step: Step, rate: float) -> None:
        options = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8, "maximize": False}
        gradients, how = list(step.gradients), {"fused": True}
        if not self.is_fused:
            how = {"foreach": True}
        clip = max(self.clip, _OUTLIER * (self.usual_norm or 0.0)) if self.clips_outliers else self.clip
        usual = step.norm if self.usual_norm is None else self.usual_norm
        self.usual_norm = usual + _FORGET * (min(step.norm, _OUTLIER * usual) - usual)
        if step.norm > clip and self.is_fused:  # the kernel divides by it on its way
            how["grad_scale"] = torch.tensor(
                (step.norm + 1e-6) / clip, dtype=torch.float32, device=self.parameters[0].device
            )
        elif step.norm > clip:
            gradients = [gradient * (clip / (step.norm + 1e-6)) for gradient in gradients]
        adam(self.parameters, gradients, *self.moments, [], self.counts, **how, **options, lr=rate)

    def window_is_full(self) -> bool:
        """Whether stock is to be taken."""
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
class Schedule:
    """The share of the peak step size at every step: a linear rise, then a cosine down to zero.

    Attributes:
        num_steps: How many steps there will be.
        warmup: Share of them over which it rises.
        decay: Whether it then falls.
    """

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

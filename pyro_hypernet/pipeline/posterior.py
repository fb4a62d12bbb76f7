"""What `infer` is asked for, and what it found."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_hypernet.evaluation.verdict import DO_NOT_TRUST, Diagnosis
from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.pipeline.budget import Clock
from pyro_hypernet.sample.refine import Refined
from pyro_hypernet.shown import Shown
from pyro_hypernet.train.fit import Fit


@dataclass(frozen=True, repr=False)
class Posterior(Shown):
    """What `infer` found.

    Attributes:
        samples: A dict from site to draws of shape `(S, *shape)`, equally weighted.
        source: Where they come from: "guide", "resampled", "refined", "moved" or "nuts"; "microcanonical" of
            scikit-learn's estimators.
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

    samples: dict[str, Tensor] = field(default_factory=dict, repr=False)
    source: str = "guide"
    verdict: str = DO_NOT_TRUST
    because: str = "It was interrupted before it could be judged."
    diagnosis: Diagnosis | None = field(default=None, repr=False)
    log_evidence: float = math.nan
    log_evidence_error: float = math.nan
    idata: Any = field(default=None, repr=False)
    guide: JointGuide | None = field(default=None, repr=False)
    fit: Fit | None = field(default=None, repr=False)
    refined: Refined | None = field(default=None, repr=False)
    log: tuple[str, ...] = field(default=(), repr=False)
    seconds: float = 0.0

    def __str__(self) -> str:
        return "\n".join([*self.log, f"{self.verdict}: {self.because}"])


@dataclass(frozen=True)
class Task:
    """A model with its arguments, how many draws of its posterior are wanted and by when, and a log of the work.

    Every line of the log is given to `say` as it is made; `progress` tells whether to show bars.
    """

    model: Model
    args: tuple
    kwargs: dict[str, Any]
    clock: Clock
    num_samples: int
    say: Callable[[str], None] | None = None
    progress: bool = True
    log: list[str] = field(default_factory=list)

    def call(self, verb: Callable, *first: Any, **options: Any) -> Any:
        """What a verb such as `refine` or `resample` returns for this model, `first` standing before its arguments."""
        return verb(self.model, *first, *self.args, **options, **self.kwargs)

    def note(self, step: str, text: str) -> None:
        """Adds a line to the log."""
        self.log.append(f"{self.clock.spent:7.1f} s  {step}: {text}")
        if self.say is not None:
            self.say(self.log[-1])

    def attempt(self, step: str, remedy: str, function: Callable, *given: Any, otherwise: Any = None) -> Any:
        """What a function returns for what it is given; where it fails, which the log says, what stands otherwise."""
        try:
            return function(*given)
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            self.note(step, f"failed and was left out ({type(error).__name__}: {reason}). {remedy}")
            return otherwise

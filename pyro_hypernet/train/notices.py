"""Never a silent wrong answer: what fits, guides and draws warn of, once each, with the figure and the remedy."""

import math
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_hypernet.graphs.culprits import first_line, warn_caller

Result = TypeVar("Result")
# Shorter fits are trials, of which nobody expects to have arrived.
_LEAST_STEPS = 2000
# A rise over the last fifth of training, in nats, below which nobody need train on.
MOST_RISE = 1.0
_STANDARD_ERRORS = 4.0
# The share of steps that may be skipped without a word.
MOST_SKIPPED = 0.01

# Verdicts that were not "use it", by guide, to be recalled where the guide is used.
_verdicts: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_said: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def warn_once(subject: Any, kind: str, text: str) -> None:
    """Warns of something about a guide or a result, remembered weakly, unless that has been done.

    Args:
        subject: What the warning is about.
        kind: A word for the trouble, such as "k-hat".
        text: The warning: the figure and the remedy.
    """
    try:
        said = _said.setdefault(subject, set())
    except TypeError:  # no weak references to this
        said = set()
    if kind not in said:
        said.add(kind)
        warn_caller(text)


def remember(guide: Any, text: str) -> None:
    """Keeps a bad verdict on a guide, with its figures and remedy, for `recall`; "" forgets an older one."""
    try:
        _verdicts.pop(guide, None)
        if text:
            _verdicts[guide] = text
        else:
            _said.pop(guide, None)
    except TypeError:  # no weak references to this
        return


def recall(posterior: Any) -> None:
    """Warns, once, where a posterior is a guide with a bad verdict on it that is used all the same."""
    try:
        text = _verdicts.get(posterior)
    except TypeError:  # not hashable, or no weak references
        return
    if text:
        warn_once(posterior, "verdict", text)


def warn_of_bad_numbers(values: dict[str, Any]) -> None:
    """Warns where predictions, `(S, *shape)` by site, are no numbers, naming the site and the share of the draws."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.sum().isfinite()):
            # The sum, one quick pass, is finite unless a value is not, or it overflows.
            bad = ~value.isfinite().reshape(len(value), -1).all(1)
            if bool(bad.any()):
                warn_caller(
                    f"{int(bad.sum())} of {len(bad)} draws predict values of {name!r} that are NaN or infinite: means "
                    "and intervals of them are wrong. Bound the site's parameters, or look at the guide with diagnose.",
                )


def keep_going(function: Callable[[], Result], default: Result, what: str) -> Result:
    """Calls a function whose failure must not cost what was reached before: it is said, and `default` is the result."""
    try:
        return function()
    except Exception as error:
        warn_caller(f"{what} failed: {first_line(error)} What was reached before is kept.")
        return default


def after_fit(guide: Any, losses: list[float], trouble: str, num_divergences: int = 0) -> None:
    """Warns where a fit ended while the ELBO was rising, diverged, or skipped many steps, whose `trouble` is told."""
    remember(guide, "")
    values = torch.tensor(losses, dtype=torch.float64)
    num_skipped = int(values.isnan().sum())
    if num_skipped > MOST_SKIPPED * len(losses):
        warn_once(
            guide,
            "skipped",
            f"{num_skipped} of {len(losses)} steps were skipped, for loss or gradient were not finite; the trouble is "
            f"in {trouble}. What such draws or data say is left out of the guide: drop, impute or mask bad data, "
            "bound the site's prior or likelihood away from zero, lower learning_rate, or use float64.",
        )
    if num_divergences:
        warn_once(
            guide,
            "diverged",
            f"The loss rose above where it had started, {num_divergences} times in {len(losses)} steps; each time "
            "training went on with half the step size, from the best parameters where these are kept. A smaller one "
            "from the start is safer: optim=1e-3.",
        )
    if len(losses) >= _LEAST_STEPS:
        rise, error = rise_at_the_end(values)
        if rise - _STANDARD_ERRORS * error > MOST_RISE:
            warn_once(
                guide,
                "still rising",
                f"The ELBO was still rising when training ended: by {rise:.1f} nats over the last fifth of "
                f"{len(losses)} steps. The guide is not what it can be: train it further, num_steps={4 * len(losses)}.",
            )


def rise_at_the_end(losses: Tensor) -> tuple[float, float]:
    """How much the ELBO rose from the fourth fifth of training to the last, in nats, and the standard error of that."""
    size = len(losses) // 5
    before, after = (part[part.isfinite()].double() for part in (losses[-2 * size :][:size], losses[-size:]))
    if min(len(before), len(after)) < 2:
        return math.nan, math.nan
    error = math.hypot(*(float(part.std()) / math.sqrt(len(part)) for part in (before, after)))
    return float(before.mean() - after.mean()), error

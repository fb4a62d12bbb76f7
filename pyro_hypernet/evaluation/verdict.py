"""The verdict on a guide, in words: use it, refine it, or do not trust it, and why."""

import math
from dataclasses import dataclass, replace
from typing import Any

from pyro_hypernet.shown import Shown

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"
LEVELS = (GOOD, DOUBTFUL, BAD)
USE, REFINE, DO_NOT_TRUST = "use it", "refine it", "do not trust it"
VERDICTS = (USE, REFINE, DO_NOT_TRUST)


@dataclass(frozen=True, repr=False)
class Check(Shown):
    """One thing looked at.

    Attributes:
        name: What was looked at, such as "k-hat".
        value: The figure; NaN where there is none.
        level: "good", "doubtful" or "bad".
        reading: One sentence in plain language, with the figure.
        remedy: What to do; "" where the level is good.
    """

    name: str
    value: float
    level: str
    reading: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}; got {self.level!r}.")

    def __str__(self) -> str:
        return f"[{self.level}] {self.name}: {self.reading}" + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What is known of a guide without a reference.

    Attributes:
        verdict: "use it", "refine it" or "do not trust it".
        because: Why, in one or two sentences with the figures that decided.
        checks: Everything looked at, the worst first.
        elbo: The evidence lower bound in nats.
        elbo_error: Its standard error.
        khat: Pareto shape of the importance weights of q's own draws.
        evidence_lower: Importance-weighted estimate of the log evidence in nats, a lower bound in expectation.
        evidence_upper: An estimate from above in nats, where draws from beyond q were to be had; NaN where not. See
            `evidence.evidence_bracket` for what is a bound and what is not.
        ess: Effective sample size of q's importance weights, of `num_draws`.
        acceptance: Mean acceptance rate of independence Metropolis-Hastings with q as its proposal, in [0, 1].
        num_draws: Number of draws of q behind the figures.
        seconds: Wall-clock time of the diagnosis.
        judged: What k-hat, acceptance and ess are of, in words.
    """

    verdict: str
    because: str
    checks: tuple[Check, ...]
    elbo: float = math.nan
    elbo_error: float = math.nan
    khat: float = math.nan
    evidence_lower: float = math.nan
    evidence_upper: float = math.nan
    ess: float = math.nan
    acceptance: float = math.nan
    num_draws: int = 0
    seconds: float = math.nan
    judged: str = "all random coordinates"

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {self.verdict!r}.")

    def check(self, name: str) -> Check:
        """The check of one name.

        Raises:
            KeyError: If it was not made.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"No check is named {name!r}; there are {[check.name for check in self.checks]}.")

    def to_string(self) -> str:
        """The verdict, why, and one line for every check."""
        return "\n".join([f"{self.verdict}: {self.because}", *(f"  {check}" for check in self.checks)])

    def __str__(self) -> str:
        return self.to_string()


def judge(checks: tuple[Check, ...]) -> tuple[str, str]:
    """The verdict that checks amount to: the worst level decides.

    Args:
        checks: At least one.

    Returns:
        "use it" where all are good, "do not trust it" where one is bad, else "refine it"; and what decided.
    """
    worst = max((check.level for check in checks), key=LEVELS.index)
    deciding = [check for check in checks if check.level == worst]
    verdict = VERDICTS[LEVELS.index(worst)]
    if verdict == USE:
        return verdict, "Nothing that was looked at speaks against it. " + checks[0].reading
    return verdict, " ".join(check.reading for check in deciding[:2])


def diagnosis_of(checks: tuple[Check, ...], **figures: Any) -> Diagnosis:
    """A diagnosis from its checks, the worst first, and its figures by name."""
    verdict, because = judge(checks)
    order = sorted(checks, key=lambda check: -LEVELS.index(check.level))
    return replace(Diagnosis(verdict, because, tuple(order)), **figures)

"""A budget of time: read from words, spent, and what things cost of it."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_UNITS = {"second": 1.0, "sec": 1.0, "s": 1.0, "minute": 60.0, "min": 60.0, "m": 60.0, "hour": 3600.0, "h": 3600.0}
# Of the budget, for finding out what one thing costs: times as much is allowed for the second number that is timed.
PRICING_SHARE, _SECOND_SIZE = 0.02, 10.0


def read_budget(budget: str | float) -> float:
    """Seconds from a number of them, or from words such as "30 seconds", "2 minutes", "1.5 hours".

    Args:
        budget: The number or the words.

    Raises:
        ValueError: If the words are of another kind, or the time is not positive.

    Example:
        >>> read_budget("2 minutes"), read_budget(45)
        (120.0, 45.0)
    """
    seconds = math.nan
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+?)s?\s*", budget.lower())
        seconds = float(match[1]) * _UNITS.get(match[2], math.nan) if match else math.nan
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    if not 0 < seconds < math.inf:
        expected = 'a positive number of seconds, or words such as "30 seconds", "2 minutes" or "1 hour"'
        raise ValueError(f"budget must be {expected}; got {budget!r}.")
    return seconds


@dataclass(frozen=True)
class Cost:
    """What n of something take: `fixed + n * each` seconds.

    Attributes:
        fixed: Seconds, whatever the number.
        each: Seconds for one more.
    """

    fixed: float = 0.0
    each: float = 0.0

    def of(self, number: float) -> float:
        """Seconds for so many."""
        return self.fixed + number * self.each

    def affordable(self, seconds: float, *, most: int) -> int:
        """How many of at most so many can be had in some seconds; 0 where none can."""
        if self.of(most) <= seconds:
            return most
        return max(0, min(most, int((seconds - self.fixed) / self.each))) if self.each > 0 else 0


class Clock:
    """What is left of a budget.

    Args:
        seconds: The budget.
        now: Tells the time in seconds.
    """

    def __init__(self, seconds: float, *, now: Callable[[], float] = time.perf_counter) -> None:
        self.budget = seconds
        self.now = now
        self._start = now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end, negative after it."""
        return self.budget - self.spent

    def measure(self, run: Callable[[int], object], sizes: Sequence[int]) -> Cost:
        """Times a function of a number at growing numbers, as long as the next is likely to stay within its share.

        For the second number up to ten times the share is allowed: one number cannot tell what each costs from what
        all do.

        Args:
            run: The function; each number is run twice, for the first run warms up, and once where once is dear.
            sizes: Growing numbers; the first is always run.
        """
        share, start, taken = PRICING_SHARE * self.budget, self.now(), {}
        for size in sizes:
            if taken:
                last = max(taken)
                allowed = _SECOND_SIZE * share if len(taken) == 1 else share - (self.now() - start)
                if taken[last] * size / last > allowed:
                    break
            taken[size] = self._time(lambda size=size: run(size), until=start + share)
        first, last = min(taken), max(taken)
        if first == last:
            return Cost(0.0, taken[first] / first)
        each = max(0.0, taken[last] - taken[first]) / (last - first)
        return Cost(max(0.0, taken[first] - first * each), each)

    def _time(self, run: Callable[[], object], *, until: float) -> float:
        """The less of two times, of which the second is taken only if it is likely to end before some time."""
        times: list[float] = []
        while len(times) < 2 and (not times or self.now() + times[0] < until):
            begin = self.now()
            run()
            times.append(self.now() - begin)
        return min(times)


def spell_seconds(seconds: float) -> str:
    """Seconds with a unit, such as "1.2 ms"."""
    return f"{float(f'{seconds:.2g}'):g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"


def round_up(seconds: float) -> int:
    """Two digits, upward, with a fifth to spare."""
    scale = 10 ** max(0, math.floor(math.log10(max(seconds, 1.0))) - 1)
    return scale * math.ceil(1.2 * seconds / scale)

"""A budget of time: read from words, and spent."""

import math
import re
import time

_UNITS = {"second": 1.0, "sec": 1.0, "s": 1.0, "minute": 60.0, "min": 60.0, "m": 60.0, "hour": 3600.0, "h": 3600.0}


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
    expected = 'budget must be a positive number of seconds, or words such as "30 seconds", "2 minutes" or "1 hour"'
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+?)s?\s*", budget.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{expected}; got {budget!r}.")
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    else:
        raise ValueError(f"{expected}; got {budget!r}.")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{expected}; got {budget!r}.")
    return seconds


class Clock:
    """What is left of a budget.

    Args:
        seconds: The budget.
    """

    def __init__(self, seconds: float) -> None:
        self.budget = seconds
        self._start = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end, negative after it."""
        return self.budget - self.spent

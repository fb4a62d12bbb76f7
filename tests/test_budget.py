"""Budgets in words and in numbers."""

import pytest

from pyro_hypernet.budget import Clock, read_budget


@pytest.mark.parametrize(
    "budget, seconds",
    [
        ("30 seconds", 30),
        ("2 minutes", 120),
        ("1 hour", 3600),
        ("1.5h", 5400),
        ("45 s", 45),
        ("10min", 600),
        (7, 7),
        (0.5, 0.5),
    ],
)
def test_words_are_read(budget, seconds):
    assert read_budget(budget) == seconds


@pytest.mark.parametrize(
    "budget", ["soon", "2 fortnights", "-3 s", "0 s", 0, -1, float("nan"), float("inf"), None, True, ""]
)
def test_words_that_mean_nothing(budget):
    with pytest.raises(ValueError, match="^budget must be a positive number of seconds"):
        read_budget(budget)


def test_a_clock_runs():
    clock = Clock(10.0)
    assert 0 <= clock.spent < 5
    assert clock.left == pytest.approx(10 - clock.spent, abs=0.1)

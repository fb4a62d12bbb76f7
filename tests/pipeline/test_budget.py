"""Budgets in words and in numbers."""

import pytest

from pyro_hypernet.pipeline.budget import PRICING_SHARE, Clock, Cost, read_budget


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


class Fake:
    """A clock that moves only when told."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time

    def spend(self, seconds):
        self.time += seconds


def test_a_clock_can_be_injected():
    now = Fake()
    clock = Clock(10.0, now=now)
    now.spend(12.0)
    assert (clock.spent, clock.left) == (12.0, -2.0)


@pytest.mark.parametrize("cost", [Cost(1.0, 0.5), Cost(0.0, 2.0), Cost(3.0, 0.0)])
@pytest.mark.parametrize("seconds", [0.5, 4.0, 100.0])
def test_what_is_affordable_is_paid_and_one_more_is_not(cost, seconds):
    number = cost.affordable(seconds, most=50)
    assert number == 0 or cost.of(number) <= seconds
    assert number == 50 or cost.of(number + 1) > seconds


@pytest.mark.parametrize("true", [Cost(0.01, 0.001), Cost(0.0, 0.2), Cost(0.5, 0.0)])
def test_measuring_finds_the_cost(true):
    now = Fake()
    found = Clock(1e8, now=now).measure(lambda n: now.spend(true.of(n)), (1, 16, 256))
    assert found.fixed == pytest.approx(true.fixed, abs=1e-9)
    assert found.each == pytest.approx(true.each, abs=1e-12)


@pytest.mark.parametrize("each", [1e-4, 0.01, 1.0, 100.0])
def test_measuring_keeps_to_its_time_but_for_the_second_number(each):
    now, sizes = Fake(), []
    clock = Clock(2.0 / PRICING_SHARE, now=now)
    found = clock.measure(lambda n: (sizes.append(n), now.spend(n * each)), (1, 16, 256))
    assert now.time <= max(2.0, 2 * each) + (20.0 if 16 in sizes and 256 not in sizes else 0.0)
    assert found.each == pytest.approx(each)
    assert sizes[0] == 1


def test_what_all_cost_is_not_taken_for_what_each_costs():
    """A model whose run is nearly all overhead, and a time that one run fills."""
    now = Fake()
    found = Clock(0.1 / PRICING_SHARE, now=now).measure(lambda n: now.spend(0.05 + 1e-4 * n), (1, 8, 32))
    assert found.each == pytest.approx(1e-4)

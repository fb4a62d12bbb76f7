"""What infer plans holds its budget, told by a clock that moves only as much as things cost: no machine is asked."""

from dataclasses import dataclass, replace

import pytest

from pyro_hypernet.pipeline.budget import Clock, Cost
from pyro_hypernet.pipeline.forecast import LEAST_STEPS, LEAST_WEIGHTS, MOST_STEPS, USUAL_WEIGHTS, Forecast, fewer
from tests.pipeline.test_budget import Fake

# Seconds of one density and of one step of training. By rows of a network on a slow core, and beyond on both sides.
MACHINES = {
    "nothing": (0.0, 1e-4),
    "100 rows": (2e-5, 0.004),
    "1 000 rows": (2e-4, 0.03),
    "8 000 rows": (2e-3, 0.25),
    "20 000 rows": (6e-3, 0.8),
    "100 000 rows": (0.05, 7.0),
    "a million rows": (0.6, 80.0),
}
BUDGETS = [1.0, 10.0, 30.0, 120.0, 3600.0]


@dataclass
class Done:
    """What a simulated run of `infer` did."""

    steps: int = 0
    weights: int = 0
    refined: int = 0
    moved: int = 0
    gathered: int = 0


def refuse(forecast):
    if forecast.shortage():
        raise ValueError(forecast.shortage())


def simulate(density, step, budget, *, wanted=None, overrun=1.0, rate=0.0):
    """The stages of `infer`, each taking what its numbers cost, times `overrun`."""
    now = Fake()
    forecast = Forecast(Clock(budget, now=now), Cost(0.0, density))
    refuse(forecast)
    now.spend(150 * density)
    forecast = replace(forecast, step=Cost(2 * step, step))
    now.spend(3 * step)
    refuse(forecast)
    done = Done(steps=forecast.steps(wanted))
    now.spend(min(forecast.training_seconds(), overrun * forecast.step.of(done.steps)))
    if forecast.can_choose(2**14):
        now.spend(overrun * 2**14 * density)
    runs = 2 + (1 / rate if rate and forecast.can_pay(density, rate) else 0)
    forecast = replace(forecast, weight=Cost(0.0, runs * density))
    done.weights = max(LEAST_WEIGHTS, forecast.weights())
    looking = forecast.looking_seconds()
    now.spend(overrun * done.weights * runs * density + looking)
    left = forecast.left
    done.refined = forecast.refined(1000, Cost(0.0, 4 * 2.0 / 512))
    if done.refined >= 200:
        now.spend(max(0.0, min(left, overrun * 4 * 2.0 * done.refined / 512)))
    else:
        done.moved = forecast.moved(1000)
        now.spend(overrun * done.moved * 3 * 64 * 3 * density)
    done.gathered = forecast.gathered(1000, 10)
    now.spend(overrun * done.gathered * 5 * density)
    return now.time, done


def attempt(*args, **options):
    """What `simulate` returns, or its refusal."""
    try:
        return simulate(*args, **options)
    except ValueError as error:
        return error


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("rate", [0.0, 0.05])
@pytest.mark.parametrize("machine", MACHINES)
def test_the_budget_holds_or_is_refused(machine, budget, rate):
    density, step = MACHINES[machine]
    found = attempt(density, step, budget, rate=rate)
    if isinstance(found, ValueError):
        assert "too short" in str(found)
        return
    seconds, done = found
    assert seconds <= 1.5 * budget
    assert LEAST_STEPS <= done.steps <= MOST_STEPS
    assert LEAST_WEIGHTS <= done.weights <= USUAL_WEIGHTS


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_asked_for_instead_is_enough(machine):
    density, step = MACHINES[machine]
    asked = 0.01
    for _ in range(3):  # once by densities, once more where steps turn out dearer
        found = attempt(density, step, asked)
        if not isinstance(found, ValueError):
            break
        asked = float(str(found).split("Give budget=")[1].split(" ")[0])
    assert found[0] <= 1.5 * asked


def test_a_refusal_costs_nothing_and_names_figure_and_remedies():
    shortage = Forecast(Clock(10.0, now=Fake()), Cost(0.0, 0.05)).shortage()
    for words in ("The budget of 10 s is too short", "50 ms a draw", "Give budget=430 or more", "minibatches"):
        assert words in shortage


def test_an_ample_budget_leaves_everything_as_it_was():
    _, done = simulate(2e-5, 0.004, 120.0, wanted=2000)
    assert done == Done(steps=2000, weights=USUAL_WEIGHTS, refined=1000, gathered=1000)


def test_steps_fill_half_of_the_budget():
    now = Fake()
    forecast = Forecast(Clock(100.0, now=now), step=Cost(0.0, 0.1))
    now.spend(10.0)
    assert forecast.steps(None) == 400
    assert forecast.steps(300) == 300
    assert forecast.steps(500) == 400
    assert forecast.training_seconds() == 50.0
    assert Forecast(Clock(1e6, now=Fake()), step=Cost(0.0, 0.01)).steps(None) == MOST_STEPS


def test_memory_bounds_what_is_gathered():
    assert Forecast(Clock(100.0, now=Fake())).gathered(1000, 10**6) == 134


def test_fewer_draws_have_larger_errors():
    assert fewer(10_000, 10_000, "weights") == ""
    assert fewer(2500, 10_000, "weights").endswith("errors are 2.0 times as large")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_fewer_draws_a_step_are_more_steps_for_the_same_time(machine, budget):
    """Never more draws than planned, as many as asked where there is time, and else about as many steps as needed."""
    forecast = Forecast(Clock(budget, now=lambda: 0.0), step=Cost(0.0, MACHINES[machine][1]))
    cheaper, number = forecast.with_fewer_draws(32, 1000)
    assert 8 <= number <= 32
    assert cheaper.step.each == pytest.approx(forecast.step.each * number / 32)
    assert (number == 32) == (forecast.steps(1000) >= 985)  # draws are whole numbers
    assert cheaper.steps(1000) >= min(950, 3.9 * forecast.step.affordable(budget / 2, most=1000))
    assert forecast.with_fewer_draws(1, 1000)[1] == 1

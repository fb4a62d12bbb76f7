"""What every step of `infer` can afford: numbers of steps and draws from what one of them is found to cost."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_hypernet.evaluation.importance import weighted_draws
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.model.density import trace_prior
from pyro_hypernet.model.validate import refuse_minibatches
from pyro_hypernet.model.vectorize import Vectorized, outside_of_pyro, trace_one
from pyro_hypernet.pipeline.budget import PRICING_SHARE, Clock, Cost, round_up, spell_seconds
from pyro_hypernet.pipeline.posterior import Task
from pyro_hypernet.target import bind_guide
from pyro_hypernet.train.elbo import VectorizedELBO

# Shares of the budget: training; letting the posterior choose among draws; weighing them; looking beyond the guide;
# gathering what is given out. What is left is for mending.
_TRAINING, _CHOOSING, _WEIGHING, _LOOKING, _GATHERING = 0.5, 0.2, 0.15, 0.15, 0.1
# Training is stopped where it takes so many times its share; what takes so many times the budget is not begun.
_PATIENCE = 1.25
LEAST_STEPS, ENOUGH_STEPS, MOST_STEPS = 50, 1000, 20_000
LEAST_WEIGHTS, USUAL_WEIGHTS = 500, 10_000
LEAST_GATHERED = 50
# Fewer moved draws are not worth their time; a trajectory takes up to so many gradients, and a few are needed.
LEAST_MOVED, _LEAPFROGS, _LEAST_MOVES = 100, 64, 3
# Fewer refined draws are not worth their time.
LEAST_REFINED = 200
# Of the time that is left, refining and moving are planned to take so much: their cost is a guess.
CAUTION = 0.7
# Draws that diagnosis, samples and pictures take once the posterior chooses among them.
_DRAWS_TO_COME = 15_000
# Draws in one step of training; a gradient costs about so many densities; setting up a guide, so many of them.
NUM_PARTICLES, _GRADIENT, _SETTING_UP = 32, 3.0, 150
# Draws in one step at least, where time is short.
_LEAST_PARTICLES = 8
# Runs of the model for one draw that is gathered: predictions, likelihoods, densities, and half a draw of the prior.
_RUNS_OF_A_DRAW = 5.0
# The most numbers that all predictions together may hold.
_MOST_NUMBERS = 2**27
# Numbers of runs of the model, of draws and of weights to time.
_TIMED_RUNS, _TIMED_DRAWS, _TIMED_WEIGHTS = (1, 8, 32), (1, 16, 256), (16, 64, 256)
_NOTHING = Cost()


@dataclass(frozen=True)
class Forecast:
    """What there is time for.

    Attributes:
        clock: The budget.
        density: Seconds of the density of all data, by the number of draws.
        step: Seconds of training, by the number of steps.
        weight: Seconds of draws of the trained guide with their weights, by their number.
    """

    clock: Clock
    density: Cost = _NOTHING
    step: Cost = _NOTHING
    weight: Cost = _NOTHING

    def shortage(self, least_steps: int = LEAST_STEPS) -> str:
        """Why the budget does not allow for the least that is always done; empty where it does.

        Before a step was timed, one is taken for what its draws' densities and gradients cost.

        Args:
            least_steps: Steps of training below which there is nothing to diagnose.
        """
        step, setting_up = self.step, 0.0
        if step.each == 0:
            step = Cost(0.0, (1 + _GRADIENT) * NUM_PARTICLES * self.density.each)
            setting_up = self.density.of(_SETTING_UP)
        needed = self.clock.spent + setting_up + step.of(least_steps) + self.density.of(LEAST_WEIGHTS)
        if step.each == 0 or needed <= _PATIENCE * self.clock.budget:
            return ""
        return (
            f"The budget of {self.clock.budget:.3g} s is too short: the density of all data takes about "
            f"{spell_seconds(self.density.each)} a draw and a step of training {spell_seconds(step.each)}, so that "
            f"setting up, {least_steps} steps and a diagnosis by {LEAST_WEIGHTS} draws take about "
            f"{spell_seconds(needed)} here. Give budget={round_up(needed)} or more, or part of the data; or train "
            "on minibatches, by fit(model, guide, loader), and judge the guide by predictions of data held out."
        )

    def steps(self, wanted: int | None) -> int:
        """Steps of training that fit into its share, at most those wanted."""
        most = MOST_STEPS if wanted is None else wanted
        return max(min(LEAST_STEPS, most), self.step.affordable(self._left_of(_TRAINING), most=most))

    def with_fewer_draws(self, num_particles: int, wanted: int) -> tuple["Forecast", int]:
        """Cheaper steps where fewer fit in than a guide needs: many rough ones come farther than a few fine ones.

        Args:
            num_particles: Draws in one step, as planned.
            wanted: Steps that it needs.

        Returns:
            The forecast, and the draws of a step.
        """
        rough = max(_LEAST_PARTICLES, round(num_particles * self.steps(wanted) / wanted))
        number = min(num_particles, rough)
        return replace(self, step=Cost(self.step.fixed, self.step.each * number / num_particles)), number

    def training_seconds(self) -> float:
        """After so long training is to end, whatever was planned."""
        return max(_PATIENCE * self._left_of(_TRAINING), 0.1 * self.clock.budget)

    def can_choose(self, num_proposals: int) -> bool:
        """Whether the posterior can be asked which of so many proposals it wants."""
        return self.proposing(num_proposals) <= min(1.5 * _CHOOSING * self.clock.budget, self.clock.left / 2)

    def proposing(self, num_proposals: int) -> float:
        """Seconds of so many proposals with their weights."""
        return max(self.density.of(num_proposals), self.weight.of(num_proposals))

    def can_pay(self, each: float, rate: float) -> bool:
        """Whether there is time for the draws to come where a proposal takes so many seconds and a share is kept."""
        return _DRAWS_TO_COME * each <= _CHOOSING * self.clock.budget * rate

    def weights(self, most: int = USUAL_WEIGHTS) -> int:
        """Draws of the guide to weigh."""
        return self.weight.affordable(max(_WEIGHING * self.clock.budget, 0.3 * self.clock.left), most=most)

    def looking_seconds(self) -> float:
        """What to spend on looking beyond the guide."""
        return max(0.0, min(_LOOKING * self.clock.budget, self.left))

    @property
    def left(self) -> float:
        """Seconds for mending: what gathering the draws will take is set aside."""
        usual = _RUNS_OF_A_DRAW * self.density.of(1000)
        return self.clock.left - min(_GATHERING * self.clock.budget, usual)

    def refined(self, wanted: int, exact: Cost) -> int:
        """Draws that a run from the prior can carry, by what they cost."""
        return self._mended(exact, max(wanted, LEAST_REFINED))

    def moved(self, wanted: int) -> int:
        """Draws that a few trajectories each can move."""
        return self._mended(Cost(0.0, _LEAST_MOVES * _LEAPFROGS * _GRADIENT * self.density.each), wanted)

    def gathered(self, wanted: int, numbers: int) -> int:
        """Draws to predict from for ArviZ, where one comes with so many numbers."""
        seconds = max(self.clock.left, _GATHERING * self.clock.budget)
        most = max(1, min(wanted, _MOST_NUMBERS // max(1, numbers)))
        return self.density.affordable(seconds / _RUNS_OF_A_DRAW, most=most)

    def _mended(self, cost: Cost, most: int) -> int:
        return cost.affordable(CAUTION * self.left, most=most) if self.left > 0 else 0

    def _left_of(self, share: float) -> float:
        return share * self.clock.budget - self.clock.spent


@contextmanager
def unnoticed() -> Iterator[None]:
    """For trials: no random number is used up, and what is to be warned of is said when it counts."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def fewer(number: int, usual: int, what: str) -> str:
    """A word on fewer draws than usual, and on what that means for errors; empty where they are as many."""
    if number >= usual:
        return ""
    larger = math.sqrt(usual / number)
    return f"{number} {what} instead of {usual}, for want of time: errors are {larger:.1f} times as large"


def forecast_by_runs(task: Task) -> Forecast:
    """What there is time for, by a few runs of the model at draws of its prior; all, where these cannot be run.

    Raises:
        ValueError: If the model draws minibatches.
    """
    with unnoticed():
        try:
            trace = trace_prior(task.model, task.args, task.kwargs)
        except Exception:  # a prior that cannot be sampled, or a model at fault: setting up tells
            return Forecast(task.clock)
    refuse_minibatches(trace, "infer")
    return Forecast(task.clock, price_of_a_run(task))


def forecast_by_steps(task: Task, guide: JointGuide) -> Forecast:
    """What there is time for, by densities of all data and steps of training, none of which leaves a trace."""
    forecast = Forecast(task.clock)
    with unnoticed():
        try:
            forecast = replace(forecast, density=_price_of_a_density(task, guide))
            return replace(forecast, step=_price_of_a_step(task, guide))
        except Exception as error:  # where the draw has no density; training says whether all is well
            task.note("plan", f"nothing could be timed ({type(error).__name__}); training ends by the clock")
            return forecast


def price_of_a_run(task: Task) -> Cost:
    """What runs of a model with its densities cost, by a few at draws of its prior; nothing where none can be run."""

    def run(_: Tensor, args: tuple, kwargs: dict) -> Tensor:
        return trace_one(task.model, {}, args, kwargs).log_prob_sum()

    runs = Vectorized(run, mode="eager", randomness="different")
    with unnoticed(), outside_of_pyro(), torch.no_grad():
        try:
            return task.clock.measure(lambda n: runs(torch.zeros(n), task.args, task.kwargs), _TIMED_RUNS)
        except Exception:  # an improper prior, or a model at fault: setting up tells
            return _NOTHING


def parts_of(guide: JointGuide) -> tuple[AutoHypernet, ...]:
    """The guides that are trained in turn."""
    return guide.components if isinstance(guide, GuideMixture) else (guide,)


def _price_of_a_density(task: Task, guide: JointGuide) -> Cost:
    """What densities of all data cost, at a draw of the guide."""
    w = guide.layout.unconstrain(guide.sample_posterior(1))[0]
    target = bind_guide(task.model, guide, task.args, task.kwargs, mode="eager")
    with outside_of_pyro(), torch.no_grad():
        return task.clock.measure(lambda n: target.log_prob(w.expand(n, -1)), _TIMED_DRAWS)


def _price_of_a_step(task: Task, guide: JointGuide) -> Cost:
    """What steps of training cost, captures included."""
    guide = parts_of(guide)[0]
    loss, leaves = VectorizedELBO(NUM_PARTICLES)(task.model, guide), list(guide.parameters())
    taken: list[float] = []
    # The first captures the density, the next ones let it be optimised.
    while len(taken) < 2 or (len(taken) < 6 and sum(taken[1:]) < 2 * PRICING_SHARE * task.clock.budget):
        start = task.clock.now()
        torch.autograd.grad(loss(*task.args, **task.kwargs), leaves, allow_unused=True)
        taken.append(task.clock.now() - start)
    captures = 2 if guide.suits_annealing else 1
    return Cost(captures * (sum(taken[:2]) - 2 * min(taken)), max(1e-4, min(taken)))


def price_of_weights(task: Task, guide: JointGuide, forecast: Forecast, usual: int) -> Forecast:
    """The forecast with what draws of the guide, as it is now, cost with their weights; timed where that is dear."""
    parts = parts_of(guide)
    rejection = parts[0].rejection
    runs = 1 + len(parts) + (1 / rejection.rate if rejection is not None else 0)
    forecast = replace(forecast, weight=Cost(forecast.density.fixed, runs * forecast.density.each))
    if forecast.weights(4 * usual) == 4 * usual:
        return forecast
    with torch.random.fork_rng(devices=[]):
        weight = task.clock.measure(lambda n: task.call(weighted_draws, guide, num_samples=n), _TIMED_WEIGHTS)
    return replace(forecast, weight=weight)

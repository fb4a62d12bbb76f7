"""What every step of `infer` can afford: numbers of steps and draws from what one of them costs, and words on it."""

import math
from dataclasses import dataclass, field

from pyro_hypernet.budget import Clock, Cost, round_up, spell_seconds

# Shares of the budget: training; letting the posterior choose among draws; weighing them; looking beyond the guide;
# gathering what is given out. What is left is for mending.
_TRAINING, _CHOOSING, _WEIGHING, _LOOKING, _GATHERING = 0.5, 0.2, 0.15, 0.15, 0.1
# Training is stopped where it takes so many times its share; what takes so many times the budget is not begun.
_PATIENCE = 1.25
LEAST_STEPS, MOST_STEPS = 50, 20_000
LEAST_WEIGHTS, USUAL_WEIGHTS = 500, 10_000
LEAST_GATHERED = 50
# Fewer moved draws are not worth their time; a trajectory takes up to so many gradients, and a few are needed.
LEAST_MOVED, _LEAPFROGS, _LEAST_MOVES = 100, 64, 3
# Fewer refined draws are not worth their time; one of a long run costs so much more than one of a short run.
LEAST_REFINED, _LONG_OVER_SHORT = 200, 4.0
# Of the time that is left, refining and moving are planned to take so much: their cost is a guess.
CAUTION = 0.7
# Draws that diagnosis, samples and pictures take once the posterior chooses among them.
_DRAWS_TO_COME = 15_000
# A gradient costs about so many densities; setting up a guide, so many of them.
_GRADIENT, _SETTING_UP = 3.0, 150
# Runs of the model for one draw that is gathered: predictions, likelihoods, densities, and half a draw of the prior.
_RUNS_OF_A_DRAW = 5.0
# The most numbers that all predictions together may hold.
_MOST_NUMBERS = 2**27


@dataclass
class Forecast:
    """What there is time for.

    Attributes:
        clock: The budget.
        density: Seconds of the density of all data, by the number of draws.
        step: Seconds of training, by the number of steps.
        weight: Seconds of draws of the trained guide with their weights, by their number.
        num_particles: Draws in one step of training.
    """

    clock: Clock
    density: Cost = field(default_factory=Cost)
    step: Cost = field(default_factory=Cost)
    weight: Cost = field(default_factory=Cost)
    num_particles: int = 32

    def refuse_what_cannot_end(self, *, least_steps: int = LEAST_STEPS) -> None:
        """Raises a ValueError where the budget does not allow for the least that is always done.

        Before a step was timed, one is taken for what its draws' densities and gradients cost.

        Args:
            least_steps: Steps of training below which there is nothing to diagnose.
        """
        step, setting_up = self.step, 0.0
        if step.each == 0:
            step = Cost(0.0, (1 + _GRADIENT) * self.num_particles * self.density.each)
            setting_up = self.density.of(_SETTING_UP)
        training, judging = step.of(least_steps), self.density.of(LEAST_WEIGHTS)
        needed = self.clock.spent + setting_up + training + judging
        if needed > _PATIENCE * self.clock.budget:
            raise ValueError(
                f"The budget of {self.clock.budget:.3g} s is too short: the density of all data takes about "
                f"{spell_seconds(self.density.each)} a draw and a step of training {spell_seconds(step.each)}, so that "
                f"setting up, {least_steps} steps and a diagnosis by {LEAST_WEIGHTS} draws take about {needed:.2g} s "
                f"here. Give budget={round_up(needed)} or more, or part of the data; or train on minibatches, by "
                "fit(model, guide, loader), and judge the guide by predictions of data held out."
            )

    def steps(self, wanted: int | None) -> int:
        """Steps of training that fit into its share, at most those wanted."""
        most = MOST_STEPS if wanted is None else wanted
        return max(min(LEAST_STEPS, most), self.step.affordable(self._left_of(_TRAINING), most=most))

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

    def refined(self, wanted: int, seconds: float, num_short: int) -> int:
        """Draws that a long run from the prior can carry, where a short one of `num_short` takes so many seconds."""
        affordable = Cost(0.0, _LONG_OVER_SHORT * seconds / num_short).affordable(
            CAUTION * self.left, most=max(wanted, LEAST_REFINED)
        )
        return affordable if self.left > 0 else 0

    def moved(self, wanted: int) -> int:
        """Draws that a few trajectories each can move."""
        each = _LEAST_MOVES * _LEAPFROGS * _GRADIENT * self.density.each
        return Cost(0.0, each).affordable(CAUTION * self.left, most=wanted) if self.left > 0 else 0

    def gathered(self, wanted: int, numbers: int) -> int:
        """Draws to predict from for ArviZ, where one comes with so many numbers."""
        seconds = max(self.clock.left, _GATHERING * self.clock.budget)
        most = max(1, min(wanted, _MOST_NUMBERS // max(1, numbers)))
        return self.density.affordable(seconds / _RUNS_OF_A_DRAW, most=most)

    def _left_of(self, share: float) -> float:
        return share * self.clock.budget - self.clock.spent


def fewer(number: int, usual: int, what: str) -> str:
    """A word on fewer draws than usual, and on what that means for errors; empty where they are as many."""
    if number >= usual:
        return ""
    larger = math.sqrt(usual / number)
    return f"{number} {what} instead of {usual}, for want of time: errors are {larger:.1f} times as large"

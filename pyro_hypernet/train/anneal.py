"""How often data count as a fit goes on."""

from dataclasses import dataclass

# The share of a fit's steps after which data count once that are annealed.
ANNEALED_SHARE = 0.5


@dataclass(frozen=True)
class Annealing:
    """The power of the likelihood at every step: from `start` geometrically to one, which it is after `num_steps`."""

    start: float
    num_steps: int

    def __call__(self, step: int) -> float:
        """Beta at this step, counted from 0."""
        return self.start ** max(0.0, 1 - step / self.num_steps)

"""A model whose data count more, or less, than once."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_hypernet.vectorize import Model


class WeightedModel:
    """The same model with one argument more, which comes first: how often its observations count.

    Args:
        model: The Pyro model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _Counted(weight):
            return self.model(*args, **kwargs)

    @staticmethod
    def arguments(weight: float, batch: tuple) -> tuple:
        """What this model takes.

        Args:
            weight: How often the observations count.
            batch: The arguments of the model as it was.
        """
        device = next((value.device for value in batch if isinstance(value, Tensor)), None)
        return torch.tensor(weight, device=device), *batch


@dataclass(frozen=True)
class Annealing:
    """How often the data count at every step: from `start` geometrically to once.

    Attributes:
        start: How often at the first step.
        num_steps: After how many steps once.
    """

    start: float
    num_steps: int

    def __call__(self, step: int) -> float:
        """How often at this step, counted from 0."""
        return self.start ** max(0.0, 1 - step / self.num_steps)


class _Counted(Messenger):
    """Scales the log density of what is observed."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight

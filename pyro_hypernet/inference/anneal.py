"""A model whose data count more, or less, than once."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_hypernet.vectorize import Model


class AnnealedModel:
    """The same model with one argument more, which comes first: how often its observations count.

    Args:
        model: The Pyro model.
        start: How often they count at the first step.
        num_steps: After how many steps they count once; on the way there the number changes geometrically.
    """

    def __init__(self, model: Model, start: float, num_steps: int) -> None:
        self.model = model
        self.start = start
        self.num_steps = num_steps

    def __call__(self, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _Counted(weight):
            return self.model(*args, **kwargs)

    def arguments(self, step: int, batch: tuple) -> tuple:
        """What this model takes at a step.

        Args:
            step: Its number, from 0.
            batch: The arguments of the model as it was.
        """
        device = next((value.device for value in batch if isinstance(value, Tensor)), None)
        weight = self.start ** max(0.0, 1 - step / self.num_steps)
        return torch.tensor(weight, device=device), *batch


class _Counted(Messenger):
    """Scales the log density of what is observed."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight

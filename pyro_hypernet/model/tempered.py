"""A model whose likelihood is raised to a power, so that its data count more, or less, than once."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_hypernet.model.vectorize import Model


class TemperedModel:
    """The same model with one argument more, which comes first: beta, the power of its likelihood.

    Args:
        model: The Pyro model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, beta: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _Power(beta):
            return self.model(*args, **kwargs)

    @staticmethod
    def arguments(beta: float, batch: tuple) -> tuple:
        """What this model takes.

        Args:
            beta: The power of the likelihood: how often the data count.
            batch: The arguments of the model as it was.
        """
        device = next((value.device for value in batch if isinstance(value, Tensor)), None)
        return torch.tensor(beta, device=device), *batch


class AtTemperature:
    """A model whose data count `1 / temperature` times: called like the model itself, its arguments are the model's.

    Args:
        model: The Pyro model.
        temperature: Of prior and entropy, positive.
    """

    def __init__(self, model: Model, temperature: float) -> None:
        self.model, self.temperature = model, temperature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Power(1 / self.temperature):
            return self.model(*args, **kwargs)


class _Power(Messenger):
    """Scales the log density of what is observed."""

    def __init__(self, beta: Tensor | float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta

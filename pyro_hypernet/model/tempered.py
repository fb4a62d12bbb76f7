"""A model whose likelihood is raised to a power, so that its data count more, or less, than once."""

from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_hypernet.graphs.run import tensors_in
from pyro_hypernet.model.vectorize import Model


class TemperedModel:
    """The same model with one argument more, which comes first: beta, the power of its likelihood."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, beta: Tensor | float, *args: Any, **kwargs: Any) -> Any:
        with _Power(beta):
            return self.model(*args, **kwargs)

    @staticmethod
    def arguments(beta: float, batch: tuple) -> tuple:
        """What this model takes: beta, how often the data count, and the arguments of the model as it was."""
        device = next((value.device for value in tensors_in(batch)), None)
        return torch.tensor(beta, device=device), *batch


def at_temperature(model: Model, temperature: float) -> Model:
    """The model with data that count `1 / temperature` times, called as the model is; itself at temperature 1."""
    return model if temperature == 1 else partial(TemperedModel(model), 1 / temperature)


class _Power(Messenger):
    """Scales the log density of what is observed."""

    def __init__(self, beta: Tensor | float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta

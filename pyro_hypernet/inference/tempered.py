"""Prior times a power of the likelihood, for many draws at once, with its gradient."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_hypernet.density import sample_prior, split_density, zero_density
from pyro_hypernet.inference.moves import State
from pyro_hypernet.layout import Layout
from pyro_hypernet.vectorize import Model, Vectorized, grad_and_value, trace_one

# Rows are evaluated in chunks, so that intermediate results stay in the processor's caches and fit into memory:
# at most so many rows, and about so many numbers of the largest argument for all rows together.
_MAX_ROWS, _LEAST_ROWS = 256, 8
_MAX_NUMBERS = 2**23


class Tempered(ABC):
    """log prior + temperature × log likelihood of coordinates x, from which weights are completed.

    Args:
        model: The Pyro model.
        layout: Its latent sites.
        args: The model's arguments.
        max_rows: Rows to evaluate at once; None for as many as suit the size of the data.
    """

    def __init__(self, model: Model, layout: Layout, args: tuple, *, max_rows: int | None = None) -> None:
        self.model = model
        self.layout = layout
        self.args = args
        self.max_rows = max_rows or _rows_for(args)
        self.num_rows = 0
        self._run = Vectorized(self._of_one, differentiable=False, failed=_no_density)

    def __call__(self, x: Tensor, temperature: float) -> State:
        """Densities and gradient at coordinates of shape `(S, m)`, all rows at one temperature."""
        self.num_rows += len(x)
        rows = math.ceil(len(x) / math.ceil(len(x) / self.max_rows))
        parts = [self._evaluate(part, x.new_full((len(part),), temperature)) for part in x.split(rows)]
        return State(x, *(torch.cat(values) for values in zip(*parts, strict=True)))

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number m of coordinates."""

    @property
    @abstractmethod
    def collapsed(self) -> tuple[str, ...]:
        """Names of the sites that are integrated out."""

    @abstractmethod
    def sample_prior(self, num_samples: int) -> Tensor:
        """Coordinates of draws of the prior, shape `(S, m)`."""

    @abstractmethod
    def coordinates(self, w: Tensor) -> Tensor:
        """Coordinates of shape `(S, m)` of weights of shape `(S, D)`, what is integrated out being left out."""

    @abstractmethod
    def complete(self, x: Tensor) -> Tensor:
        """Weights of shape `(S, D)` for coordinates of shape `(S, m)` at temperature 1."""

    @abstractmethod
    def parts_of_one(
        self, x: Tensor, temperature: Tensor, args: tuple, kwargs: dict
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """For one draw: what to differentiate, and log prior and log likelihood, which are not differentiated.

        Args:
            x: Coordinates, shape `(m,)`.
            temperature: The power of the likelihood, shape `()`.
            args: The model's arguments.
            kwargs: Its keyword arguments.
        """

    def _evaluate(self, x: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            gradient, (_, (log_prior, log_likelihood)) = self._run((x, temperature), self.args)
        return log_prior, log_likelihood, gradient

    def _of_one(self, draw: tuple[Tensor, Tensor], args: tuple, kwargs: dict) -> tuple:
        function = grad_and_value(self.parts_of_one, has_aux=True)
        return function(*draw, args, kwargs)


class Whole(Tempered):
    """The density over all weights: the coordinates are the flat unconstrained weights themselves."""

    @property
    def dim(self) -> int:
        return self.layout.dim

    @property
    def collapsed(self) -> tuple[str, ...]:
        return ()

    def sample_prior(self, num_samples: int) -> Tensor:
        return sample_prior(self.model, self.layout, num_samples, self.args)

    def coordinates(self, w: Tensor) -> Tensor:
        return w

    def complete(self, x: Tensor) -> Tensor:
        return x

    def parts_of_one(
        self, x: Tensor, temperature: Tensor, args: tuple, kwargs: dict
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        values, log_det = self.layout.constrain(x)
        trace = trace_one(self.model, values, args, kwargs)
        log_prior, log_likelihood = split_density(trace, self.layout, log_det)
        return log_prior + temperature * log_likelihood, (log_prior.detach(), log_likelihood.detach())


def _no_density(draw: tuple[Tensor, Tensor], _: tuple | None) -> tuple:
    """What stands for a draw at which the model raises an error."""
    nothing = zero_density(draw[0])
    return torch.zeros_like(draw[0]), (nothing, (nothing, nothing))


def _rows_for(args: tuple) -> int:
    largest = max((arg.numel() for arg in args if isinstance(arg, Tensor)), default=1)
    return max(_LEAST_ROWS, min(_MAX_ROWS, _MAX_NUMBERS // max(1, largest)))

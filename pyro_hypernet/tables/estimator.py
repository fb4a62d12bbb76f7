"""What scikit-learn's regressor and classifier share: a network of tables, its posterior, what draws predict."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.trace_struct import Trace
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.likelihoods import Likelihood
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.pipeline.budget import read_budget
from pyro_hypernet.tables.choose import choose
from pyro_hypernet.tables.engines import ENGINES, find
from pyro_hypernet.tables.tabular import Scaler
from pyro_hypernet.target import Bound
from pyro_hypernet.train.random_states import put_back, snapshot

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
FLOATS = [np.float64, np.float32]
# Predictions of all draws are held for so many numbers at once.
_MOST_NUMBERS = 2**22
# What parameters that are "auto" are chosen from, by short chains, and the share of the budget that these take.
AUTO = "auto"
_CHOICES = {"likelihood": ("gaussian", "heteroscedastic"), "prior_scale": (1.5, 3.0, 6.0)}
_CHOICE_SHARE, _CHOICE_STEPS, _CHOICE_SAMPLES = 1 / 3, 2000, 200


class Estimator(BaseEstimator, ABC):
    """A fully connected network with the posterior of its weights; arguments as of `HypernetRegressor`."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (20,),
        *,
        activation: str = "tanh",
        prior_scale: float | str = 1.5,
        engine: str = "auto",
        budget: str | float | None = "40 seconds",
        num_steps: int | None = None,
        num_samples: int = 1000,
        plan: Plan | None = None,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_scale = prior_scale
        self.engine = engine
        self.budget = budget
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.plan = plan
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Estimator":
        """Finds the posterior.

        Args:
            X: Inputs, shape `(N, d)`: an array or a DataFrame of numbers, not sparse. In float32 all is computed in
                float32.
            y: Targets, shape `(N,)`, or `(N, k)` for a regressor of k outputs.
            sample_weight: Powers of the rows' likelihoods, shape `(N,)`: a row of weight 2 counts as two equal ones,
                one of weight 0 not at all. Unlike elsewhere in scikit-learn their sum matters: twice the weights are
                twice the data.

        Returns:
            The estimator itself.

        Raises:
            TypeError: If X is sparse.
            ValueError: If the data or a parameter are not as they should be, or the budget is too short, see `infer`.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}; got {self.engine!r}.")
        if self.budget is None and self.engine == "auto":
            raise ValueError("engine='auto' compares what engines cost: give it a budget, or name another engine.")
        scale = self.prior_scale
        if isinstance(scale, str) and scale != AUTO:
            raise ValueError(f"prior_scale must be a positive number or 'auto'; got {scale!r}.")
        start = time.perf_counter()
        with _seeded(self.random_state):
            self.chosen_, lines = self._choose(X, y, sample_weight)  # of what is "auto"
            args, kwargs = self.prepare(X, y, sample_weight)
            budget = self.budget
            if lines and budget is not None:  # what the choice has left, half at least
                budget = max(self._seconds - (time.perf_counter() - start), self._seconds / 2)
            amounts = {"budget": budget, "num_steps": self.num_steps, "num_samples": self.num_samples}
            found = find(self.model_, args, kwargs, engine=self.engine, plan=self.plan, **amounts)
            self.posterior_ = replace(found, log=(*lines, *found.log)) if lines else found
        return self

    def prepare(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Reads and standardises data, and makes `model_` for them, which predicts once `posterior_` is set.

        Args: As those of `fit`.

        Returns:
            Arguments and keyword arguments of the model.
        """
        X, y = validate_data(self, X, y, dtype=FLOATS, ensure_min_samples=2, **self._checks)
        kwargs, rows = {}, np.ones(len(X), dtype=bool)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            rows = weight > 0
            if rows.sum() < 2:
                raise ValueError(f"At least 2 rows must have a positive sample_weight; {rows.sum()} have.")
            kwargs = {"y_weight": torch.tensor(weight[rows])}
        x = torch.tensor(X[rows])
        self._x_scaler = Scaler.of(x, *kwargs.values())
        target, likelihood, width = self._learn(y[rows], x.dtype, *kwargs.values())
        net = self._network(x.shape[1], width).to(x.dtype)
        self.model_ = bayesianize(net, likelihood, prior=fan_in(gain=self._value("prior_scale")))
        self._data = (self._x_scaler(x), target), kwargs
        return self._data

    def uncertainty(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """What more data would remove, and what they would not.

        Args:
            X: Inputs, shape `(N, d)`.

        Returns:
            The epistemic and the aleatoric part. Of a regressor variances in squared units of y, `(N,)` or `(N, k)`,
            which add up to the square of `return_std`; of a classifier mutual information and expected entropy in nats,
            `(N,)`, which add up to the entropy of `predict_proba`.
        """
        parts = self._reduce(X, self._parts)
        return parts[0], parts[1]

    def to_arviz(self) -> Any:
        """The posterior with predictions and log likelihood of the data of `fit`, standardised, see `to_arviz`."""
        check_is_fitted(self, "posterior_")
        args, kwargs = self._data
        idata = self.posterior_.idata
        return idata if idata is not None else to_arviz(self.model_, self.posterior_, *args, **kwargs)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.budget is not None  # how far it comes depends on the machine
        return tags

    @property
    @abstractmethod
    def _checks(self) -> dict[str, Any]:
        """Options of validate_data for the targets."""

    @abstractmethod
    def _learn(self, y: np.ndarray, dtype: torch.dtype, weight: Tensor | None = None) -> tuple[Tensor, Likelihood, int]:
        """The targets for the model, their likelihood, and the number of outputs that it takes."""

    @abstractmethod
    def _collect(self, trace: Trace) -> tuple[Tensor, ...]:
        """What one draw predicts of rows, shapes `(N, …)`."""

    @abstractmethod
    def _parts(self, *predicted: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the uncertainty, from what `_predict` gives."""

    def _network(self, num_inputs: int, num_outputs: int) -> nn.Sequential:
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, (int, np.integer)) else list(sizes)
        if not all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be positive integers; got {self.hidden_layer_sizes!r}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}.")
        layers: list[nn.Module] = []
        for before, after in zip([num_inputs, *sizes], sizes, strict=False):
            layers += [nn.Linear(before, int(after)), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, nn.Linear([num_inputs, *sizes][-1], num_outputs))

    def _value(self, name: str) -> Any:
        """Of a parameter, the chosen one where it is "auto"."""
        given = getattr(self, name)
        return self.chosen_[name] if isinstance(given, str) and given == AUTO else given

    def _choose(self, X: Any, y: Any, sample_weight: Any) -> tuple[dict[str, Any], list[str]]:
        """Values of the parameters that are "auto", by short chains, and lines on them for the log."""
        names = [name for name in _CHOICES if isinstance(value := getattr(self, name, None), str) and value == AUTO]
        if not names:
            return {}, []
        X, y = validate_data(self, X, y, dtype=FLOATS, ensure_min_samples=2, **self._checks)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)
        candidates = {name: _CHOICES[name] for name in names}
        if y.ndim > 1 and y.shape[1] > 1:
            candidates |= {name: values[:1] for name, values in candidates.items() if name == "likelihood"}
        amounts = {"budget": None, "num_steps": _CHOICE_STEPS, "num_samples": _CHOICE_SAMPLES}
        if self.budget is not None:
            seconds = _CHOICE_SHARE * self._seconds / sum(map(len, candidates.values()))
            amounts |= {"budget": seconds, "num_steps": None}
        pilot = clone(self).set_params(engine="chains", **amounts)
        return choose(pilot, candidates, X, y, weight, int(torch.randint(2**31 - 1, ())))

    @property
    def _seconds(self) -> float:
        return math.inf if self.budget is None else read_budget(self.budget)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "posterior_")
        return validate_data(self, X, reset=False, dtype=FLOATS)

    def _predict(self, X: np.ndarray) -> tuple[Tensor, ...]:
        """What all draws predict of rows that were checked, shapes `(S, N, …)`."""
        (like, y), _ = self._data
        x = self._x_scaler(torch.tensor(X).to(like))
        args = (x, y[:1].expand(len(x), *y.shape[1:]))  # targets that are given use up no random numbers
        return Bound(self.model_, args, {}).map(self.posterior_.samples, self._collect)

    def _reduce(self, X: Any, reduce: Callable[..., tuple[Tensor, ...]], *of_rows: np.ndarray) -> list[np.ndarray]:
        """What is made of the predictions of all draws, rows in parts, each with its part of other arrays."""
        X = self._checked(X)
        total = len(next(iter(self.posterior_.samples.values())))
        step = max(1, _MOST_NUMBERS // total)
        parts = [
            reduce(*self._predict(X[at : at + step]), *(torch.tensor(one[at : at + step]) for one in of_rows))
            for at in range(0, len(X), step)
        ]
        return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]


@contextmanager
def _seeded(random_state: Any) -> Iterator[None]:
    """Pyro's random numbers by a seed, and a parameter store of their own: afterwards all stands as before."""
    seed = check_random_state(random_state).randint(2**31 - 1)
    before = snapshot()
    try:
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            yield
    finally:
        put_back(before)

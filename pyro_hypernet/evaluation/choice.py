"""Which of several models predicts data that were held out."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_hypernet.evaluation.metrics import log_predictive_of_all
from pyro_hypernet.evaluation.predict import log_likelihood
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.fit import fit
from pyro_hypernet.train.optimiser import Optim


@dataclass(frozen=True, repr=False)
class ModelChoice(Shown):
    """What `choose_model` found.

    Attributes:
        name: Of the model chosen, its key.
        scores: From every name to the log predictive density of the held-out data, in nats per datum.
        errors: From every name to the standard error of its difference from the best, over the data.
        model: The model chosen, as it was given: its guide is still to be fitted, to all data.
        plan: Of its guide: `AutoHypernet(choice.model, plan=choice.plan)`.
    """

    name: Any
    scores: dict[Any, float]
    errors: dict[Any, float]
    model: Model
    plan: Plan

    def __str__(self) -> str:
        return f"model {_spell(self.name)}; {spell_scores(self.scores, self.errors)}"


def choose_model(
    models: Mapping[Any, Model | tuple[Model, Plan]],
    args: tuple | Iterable[tuple],
    held_out: tuple,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 1000,
    num_samples: int = 100,
    elbo: VectorizedELBO | None = None,
    optim: Optim | float | None = None,
) -> ModelChoice:
    """Fits a guide to each of several models and takes the first that predicts held-out data as well as the best.

    As well: no worse than by the standard error of the difference, so put first what you would rather have. This is how
    to choose the width of a prior, the noise, or the parametrization of a large network, of which the bound is no
    judge; for small models the evidence of `refine` needs no data held out. Models that are learnt in fewer steps have
    the better of it: let `num_steps` be those of the fit to come. Models and the parameter store stay as they were;
    each guide is fitted to a copy.

    Args:
        models: A dict from names, of any kind, to Pyro models, or to pairs of a model and its guide's `Plan`; of the
            same data, else their densities cannot be compared.
        args: The models' arguments, data included, or an iterable of such, as in `fit`; without the data held out.
        held_out: Their arguments with the data held out; those of the choice may not serve as test data.
        kwargs: Their keyword arguments.
        num_steps: Steps of each fit.
        num_samples: Draws in each prediction.
        elbo: As in `fit`.
        optim: As in `fit`.

    Returns:
        The model, and what all of them scored.

    Raises:
        TypeError: If `models` is no dict of models, `held_out` no tuple, or as `fit`.
        ValueError: If there are no models, one observes nothing, they observe different data, none has a finite density
            of the data held out, or as `fit`.

    Example:
        >>> import pyro
        >>> from pyro_hypernet import bayesianize, fan_in
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> x, y = torch.randn(30, 2), torch.randn(30)
        >>> models = {gain: bayesianize(net, prior=fan_in(gain=gain)) for gain in (1.0, 4.0)}
        >>> choice = choose_model(models, (x[:20], y[:20]), (x[20:], y[20:]), num_steps=20)
        >>> list(choice.scores)
        [1.0, 4.0]
    """
    if isinstance(held_out, Tensor) or not isinstance(held_out, tuple):
        raise TypeError(f"held_out must be a tuple of the model's arguments; got {type(held_out).__name__}.")
    if not isinstance(models, Mapping):
        raise TypeError(f"models must be a dict from names to Pyro models; got {type(models).__name__}.")
    if not models:
        raise ValueError("models must hold at least one model; got an empty dict.")
    pairs = {name: _pair(name, entry) for name, entry in models.items()}
    kwargs = dict(kwargs or {})
    options = {"kwargs": kwargs, "num_steps": num_steps, "elbo": elbo, "optim": optim, "progress": False}
    densities: dict[Any, Tensor] = {}
    for name, (model, plan) in pairs.items():
        own = copy.deepcopy(model) if isinstance(model, nn.Module) else model
        with pyro.get_param_store().scope():
            guide = AutoHypernet(own, plan=plan)
            fit(own, guide, args, **options)
            density = _predictive(own, guide, held_out, kwargs, num_samples)
        first = next(iter(densities.values()), density)
        if density.shape != first.shape:
            raise ValueError(
                f"Models of the same data are compared; {next(iter(densities))!r} has {len(first)} held-out data, "
                f"{name!r} has {len(density)}."
            )
        densities[name] = density
    scores = {name: float(density.mean()) for name, density in densities.items()}
    finite = [name for name, score in scores.items() if math.isfinite(score)]
    if not finite:
        raise ValueError(f"No model predicts the held-out data at all, their log densities are {scores}: look at them.")
    best = max(finite, key=scores.__getitem__)
    errors = {name: _standard_error(density - densities[best]) for name, density in densities.items()}
    chosen = next(name for name in scores if scores[best] - scores[name] <= errors[name])
    return ModelChoice(chosen, scores, errors, *pairs[chosen])


def spell_scores(scores: Mapping[Any, float], errors: Mapping[Any, float]) -> str:
    """All scores with their errors, on a line."""
    rows = [f"{_spell(name)}: {scores[name]:.4f} ± {errors[name]:.4f}" for name in scores]
    return f"held-out nats per datum at {', '.join(rows)}"


def _spell(name: Any) -> str:
    return f"{name:g}" if isinstance(name, float) else str(name)


def _pair(name: Any, entry: Any) -> tuple[Model, Plan]:
    model, plan = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, Plan())
    if not callable(model) or not isinstance(plan, Plan):
        of_tuple = f"({', '.join(type(each).__name__ for each in entry)})" if isinstance(entry, tuple) else ""
        told = of_tuple or type(entry).__name__
        raise TypeError(f"models must hold Pyro models, or pairs of a model and a Plan; {name!r} is {told}.")
    return model, plan


@torch.no_grad()
def _predictive(model: Model, guide: AutoHypernet, data: tuple, kwargs: dict[str, Any], num_samples: int) -> Tensor:
    """Log predictive density of every datum, shape `(N,)`, in float64."""
    by_site = log_likelihood(partial(model, **kwargs), guide, *data, num_samples=num_samples)
    return log_predictive_of_all(by_site)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0

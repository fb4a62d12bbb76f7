"""The temperature of a posterior, chosen by how well it predicts data that were held out."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
class TemperatureChoice(Shown):
    """What `choose_temperature` found.

    Attributes:
        temperature: The choice.
        scores: From every temperature to the log predictive density of the held-out data, in nats per datum.
        errors: From every temperature to the standard error of its difference from the best, over the data.
        plan: The plan that was asked for, at the temperature chosen: `AutoHypernet(model, plan=choice.plan)`.
    """

    temperature: float
    scores: dict[float, float]
    errors: dict[float, float]
    plan: Plan

    def __str__(self) -> str:
        rows = [f"{t:g}: {self.scores[t]:.4f} ± {self.errors[t]:.4f}" for t in self.scores]
        return f"temperature {self.temperature:g}; held-out nats per datum at {', '.join(rows)}"


def choose_temperature(
    model: Model,
    args: tuple | Iterable[tuple],
    held_out: tuple,
    *,
    temperatures: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01),
    plan: Plan | None = None,
    kwargs: Mapping[str, Any] | None = None,
    num_steps: int = 1000,
    num_samples: int = 100,
    elbo: VectorizedELBO | None = None,
    optim: Optim | float | None = None,
) -> TemperatureChoice:
    """Fits a guide at every temperature and takes the one nearest to 1 that predicts held-out data as well as the best.

    As well: no worse than by the standard error of the difference. Colder posteriors are learnt in fewer steps, so that
    short fits speak for them. The model and the parameter store stay as they were; each guide is fitted to a copy.

    Args:
        model: The Pyro model.
        args: Its arguments, data included, or an iterable of such, as in `fit`; without the data held out.
        held_out: Its arguments with the data held out; those of the choice may not serve as test data.
        temperatures: Positive numbers to choose from.
        plan: How guides are built otherwise, see `Plan`.
        kwargs: The model's keyword arguments.
        num_steps: Steps of each fit.
        num_samples: Draws in each prediction.
        elbo: As in `fit`.
        optim: As in `fit`.

    Returns:
        The temperature, and what all of them scored.

    Raises:
        TypeError: If `held_out` is no tuple, or as `fit`.
        ValueError: If there are no temperatures, one is not positive, the model observes nothing, or as `fit`.

    Source: Wenzel et al. 2020, arXiv 2002.02405, for posteriors at temperatures below 1.
    """
    if isinstance(held_out, Tensor) or not isinstance(held_out, tuple):
        raise TypeError(f"held_out must be a tuple of the model's arguments; got {type(held_out).__name__}.")
    plan, wanted = plan or Plan(), list(temperatures) if isinstance(temperatures, Iterable) else []
    if not wanted:
        raise ValueError(f"temperatures must hold at least one positive number; got {temperatures!r}.")
    plans = {temperature: replace(plan, temperature=temperature) for temperature in wanted}  # which checks them
    kwargs = dict(kwargs or {})
    options = {"kwargs": kwargs, "num_steps": num_steps, "elbo": elbo, "optim": optim, "progress": False}
    densities = {}
    for temperature in wanted:
        own = copy.deepcopy(model) if isinstance(model, nn.Module) else model
        with pyro.get_param_store().scope():
            guide = AutoHypernet(own, plan=plans[temperature])
            fit(own, guide, args, **options)
            densities[temperature] = _predictive(own, guide, held_out, kwargs, num_samples)
    scores = {temperature: float(density.mean()) for temperature, density in densities.items()}
    best = max(scores, key=scores.__getitem__)
    errors = {t: _standard_error(density - densities[best]) for t, density in densities.items()}
    as_good = [t for t in wanted if scores[best] - scores[t] <= errors[t]]
    chosen = min(as_good, key=lambda t: abs(math.log(t)))
    return TemperatureChoice(chosen, scores, errors, plans[chosen])


@torch.no_grad()
def _predictive(model: Model, guide: AutoHypernet, data: tuple, kwargs: dict[str, Any], num_samples: int) -> Tensor:
    """Log predictive density of every datum, shape `(N,)`, in float64."""
    by_site = log_likelihood(partial(model, **kwargs), guide, *data, num_samples=num_samples)
    return log_predictive_of_all(by_site)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0

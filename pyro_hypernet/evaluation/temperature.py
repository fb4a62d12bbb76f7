"""The temperature of a posterior, chosen by how well it predicts data that were held out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyro_hypernet.evaluation.choice import choose_model, spell_scores
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.train.elbo import VectorizedELBO
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
        return f"temperature {self.temperature:g}; {spell_scores(self.scores, self.errors)}"


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
    plan, wanted = plan or Plan(), list(temperatures) if isinstance(temperatures, Iterable) else []
    if not wanted:
        raise ValueError(f"temperatures must hold at least one positive number; got {temperatures!r}.")
    plans = {temperature: replace(plan, temperature=temperature) for temperature in wanted}  # which checks them
    nearest_first = sorted(plans, key=lambda temperature: abs(math.log(temperature)))
    options = {"kwargs": kwargs, "num_steps": num_steps, "num_samples": num_samples, "elbo": elbo, "optim": optim}
    models = {temperature: (model, plans[temperature]) for temperature in nearest_first}
    choice = choose_model(models, args, held_out, **options)
    scores, errors = ({t: found[t] for t in plans} for found in (choice.scores, choice.errors))
    return TemperatureChoice(choice.name, scores, errors, choice.plan)

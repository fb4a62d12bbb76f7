"""The components of a mixture trained one after the other, each as a guide by itself."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.guide.guide_mixture import GuideMixture
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.notices import keep_going, remember
from pyro_hypernet.train.resume import Checkpoint, as_checkpoint


def fit_in_turn(
    fit_one: Callable[..., Any],
    model: Model,
    mixture: GuideMixture,
    batches: Batches,
    kwargs: Mapping[str, Any],
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> Any:
    """Trains every component, and weighs those equally that were trained; those of a fit cut short get no weight.

    Args:
        fit_one: From a model, a guide, `args` and `checkpoint=` to what `fit` returns.
        mixture: The mixture.
        batches: The model's arguments, as of `fit`.
        checkpoint: As in `fit`; every component has a folder in that folder.

    Returns:
        The mean of what they returned, in the form of one: losses step by step, the bound, which the mixture's own
        exceeds by at most log K; and all seconds and skipped steps.
    """
    args, processes = batches.args, batches.processes
    first, named = batches.call(kwargs)
    mixture.setup(*first, **named)  # refuses the model before any work
    remember(mixture, "")
    results: list[Any] = []
    try:
        for number, (own_model, guide) in enumerate(zip(mixture.models_for(model), mixture.components, strict=True)):
            own = None
            if checkpoint is not None:
                whole = as_checkpoint(checkpoint)
                own = replace(whole, folder=Path(whole.folder) / f"component-{number}")
            results.append(fit_one(own_model, guide, args, checkpoint=own))
            if results[-1].stopped_because == "interrupted":
                break
    finally:
        are_trained = torch.tensor([guide.is_trained for guide in mixture.components])
        if bool(are_trained.any()):
            mixture.set_log_weights(torch.zeros(len(are_trained)).where(are_trained, -torch.inf))
            if not bool(are_trained.all()):
                warn_caller(
                    f"Only {int(are_trained.sum())} of {len(are_trained)} components were trained; the others get no "
                    "weight. Another fit trains them."
                )
    mixture.disagreement = processes.share(
        lambda: keep_going(lambda: mixture.measure_disagreement(*first, **named), None, "Comparing the components")
    )
    num_steps = min(len(result.losses) for result in results)
    stops = [result.stopped_because for result in results]
    return replace(
        results[0],
        losses=torch.stack([result.losses[:num_steps] for result in results]).mean(0),
        elbo=sum(result.elbo for result in results) / len(results),
        seconds=sum(result.seconds for result in results),
        num_skipped=sum(result.num_skipped for result in results),
        stopped_because=next((why for why in reversed(stops) if why != stops[0]), stops[0]),
        acceptance=sum(result.acceptance for result in results) / len(results),
    )

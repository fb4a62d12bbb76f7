"""The components of a mixture trained one after the other, each as a guide by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.guide.guide_mixture import GuideMixture
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.notices import keep_going, remember
from pyro_hypernet.train.resume import Checkpoint


@dataclass(frozen=True)
class InTurn:
    """A mixture to be trained, its components one after the other; arguments as of `Learner`."""

    model: Model
    mixture: GuideMixture
    batches: Batches
    kwargs: dict[str, Any]

    def fit(self, fit_one: Callable[..., Any], checkpoint: Checkpoint | None) -> Any:
        """Trains every component, and weighs those equally that were trained; those of a fit cut short get no weight.

        Args:
            fit_one: From a model, a guide, `args` and `checkpoint=` to what `fit` returns.
            checkpoint: Every component has a folder in its folder; None where nothing is kept.

        Returns:
            The mean of what they returned, in the form of one.
        """
        mixture, (first, named) = self.mixture, self.batches.call(self.kwargs)
        mixture.setup(*first, **named)  # refuses the model before any work
        remember(mixture, "")
        models, results = mixture.models_for(self.model), []
        try:
            for number, (model, guide) in enumerate(zip(models, mixture.components, strict=True)):
                own = checkpoint and replace(checkpoint, folder=Path(checkpoint.folder) / f"component-{number}")
                results.append(fit_one(model, guide, self.batches.args, checkpoint=own))
                if results[-1].stopped_because == "interrupted":
                    break
        finally:
            self._weigh()
        compare = partial(mixture.measure_disagreement, *first, **named)
        mixture.disagreement = self.batches.processes.share(
            lambda: keep_going(compare, None, "Comparing the components")
        )
        return _mean_of(results)

    def _weigh(self) -> None:
        are_trained = torch.tensor([guide.is_trained for guide in self.mixture.components])
        if not bool(are_trained.any()):
            return
        self.mixture.set_log_weights(torch.zeros(len(are_trained)).where(are_trained, -torch.inf))
        if not bool(are_trained.all()):
            warn_caller(
                f"Only {int(are_trained.sum())} of {len(are_trained)} components were trained; the others get no "
                "weight. Another fit trains them."
            )


def _mean_of(results: Sequence[Any]) -> Any:
    """Losses step by step, the bound, which the mixture's own exceeds by at most log K, and all seconds."""
    count, num_steps = len(results), min(len(result.losses) for result in results)
    stops = [result.stopped_because for result in results]
    return replace(
        results[0],
        losses=torch.stack([result.losses[:num_steps] for result in results]).mean(0),
        elbo=sum(result.elbo for result in results) / count,
        seconds=sum(result.seconds for result in results),
        num_skipped=sum(result.num_skipped for result in results),
        stopped_because=next((why for why in reversed(stops) if why != stops[0]), stops[0]),
        acceptance=sum(result.acceptance for result in results) / count,
    )

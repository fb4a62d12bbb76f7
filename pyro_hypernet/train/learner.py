"""A guide that learns: made ready with its model and the model's arguments before the first step."""

from functools import partial
from typing import Any

from torch import Tensor

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.rejection import Choice
from pyro_hypernet.model.arguments import ByName
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.train.asked import Asked, check_traits
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.traits import Traits, find_traits


class Learner:
    """All that a fit trains and trains it by; the steps take it in the place of its parts.

    Args:
        model: The Pyro model.
        guide: The guide; it is set up if need be.
        batches: The model's arguments.
        kwargs: Its keyword arguments, the same for all batches.
        asked: What the fit is asked to do.

    Attributes:
        model: The model of a batch, its keyword arguments given.
        traits: Of the model on the first batch.
        plan: The guide's, with what is asked for in its place.
        elbo: The bound, prepared for model and guide.
        anneal: How often the data count at first, times the plan's weight; None for once, as in the end.

    Raises:
        ValueError: As `fit`.
    """

    def __init__(
        self, model: Model, guide: AutoHypernet, batches: Batches, kwargs: dict[str, Any], asked: Asked
    ) -> None:
        self.guide, self.batches, self.kwargs, self.asked = guide, batches, kwargs, asked
        self.processes = batches.processes
        self.first, self.named = batches.call(kwargs)
        guide.setup(*self.first, **self.named)
        self.plan = asked.plan.beside(guide.plan)
        model = partial(model, **kwargs) if kwargs else model
        self.model = ByName(model) if batches.is_named else model
        self.traits = self.find_traits(batches.first)
        check_traits(self.traits, batches, asked.plan.rejection)
        self.elbo = asked.elbo.with_options(
            num_particles=asked.elbo.options["num_particles"] or self.plan.num_particles
        )
        self.elbo.prepare(self.model, guide, batches.first, {})
        self.elbo.share = self.processes.share_of_particles(self.elbo.num_particles, self.elbo.bound)
        self.elbo.skip = self.processes.rank
        self.processes.share_tensors(self.learnt())
        self.anneal: float | None = self.processes.share(self._choose_anneal)

    def find_traits(self, batch: tuple) -> Traits:
        """Of the model on a batch."""
        return find_traits(self.guide.density(self.model), self.guide.places(), batch)

    def learnt(self) -> dict[str, Tensor]:
        """The tensors of the guide, and the model's own parameters, by name."""
        params = {f"param {name}": value for name, value in self.elbo.params.items()}
        return {**self.guide.state_dict(), **params}

    def _choose_anneal(self) -> float | None:
        # Of its own accord only in a first fit, of a model without parameters of its own.
        suits = self.asked.plan.anneal != "auto" or (self.guide.suits_annealing and not self.elbo.params)
        return float(self.plan.anneal) if suits and self.plan.anneal != 1 else None

    def choose_draws(self) -> tuple[Choice | None, str | None]:
        """Lets the posterior choose among the guide's draws, where that is asked for or suits both.

        Returns:
            What was chosen, None where every draw is kept; and "interrupted" where the user did, else None.
        """
        if not self.processes.share(self._rejects):
            return None, None
        chosen, why = self.processes.share(self._reject)
        if chosen and self.processes.rank:
            call = (self.first, self.named)
            self.guide._install(chosen.log_threshold, chosen.log_rate, chosen.rate_error, call)
        return chosen, why

    def _rejects(self) -> bool:
        """Whether draws are to be chosen."""
        rejection = self.asked.plan.rejection
        if self.elbo.params or rejection != "auto":
            return rejection is not None and not self.elbo.params
        has_all_data = self.batches.is_fixed and not self.processes.are_shards and not self.traits.noise
        suits = has_all_data and self.elbo.runs != "loop"
        return suits and self.guide.suits_rejection(self.first, self.named)

    def _reject(self) -> tuple[Choice | None, str | None]:
        """What was learnt is kept whatever happens."""
        try:
            return self.guide.reject(self.first, self.named, rates=self.plan.rejection), None
        except KeyboardInterrupt:
            return None, "interrupted"
        except ValueError as error:  # no weight is finite
            if self.asked.plan.rejection != "auto":
                warn_caller(f"Every draw of the guide is kept: {error}")
        except Exception as error:
            warn_caller(f"Every draw of the guide is kept, for choosing failed: {error}")
        return None, None

"""The steps of a fit, batch after batch, each datum counting equally often, and what they say of themselves."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.graphs.culprits import first_line
from pyro_hypernet.graphs.run import same_random_numbers, tensors_in
from pyro_hypernet.model.called import name_arguments
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.model.tempered import TemperedModel
from pyro_hypernet.train.anneal import ANNEALED_SHARE, Annealing
from pyro_hypernet.train.batches import Shares
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.learner import Learner
from pyro_hypernet.train.optimiser import step_shares
from pyro_hypernet.train.processes import is_known
from pyro_hypernet.train.step import FlatParameters, Step, Stepper
from pyro_hypernet.train.traits import find_error

REMEDY = "Lower learning_rate, bound the site's prior or likelihood away from zero, or use float64."
# A mean of K importance weights exceeds e^20 times their expectation with a probability below e^-20, by Markov's
# inequality; and so much rounding of log q is allowed for every weight, in nats.
_MOST_BOUND, _ROUNDING = 20.0, 1e-5
# Passes of at most so many batches are short: one batch among them has a say.
_SHORT = 50


class Trainer:
    """Evaluates steps: which batch, how often it counts, by which graph.

    Args:
        learner: What is trained, and by what.
        by_clock: See `Stepper`.

    Attributes:
        parameters: All that is trained.
        least_loss: A loss below it cannot be, in nats: of discrete data no bound on the evidence exceeds zero.
        has_one_target: Whether the evidence is one number, the same at all parameters and steps.
        is_ragged: Whether one of few batches is shorter than others.
        stepper: What ran the last step.
        trouble: Where the last step that was looked at went wrong, in words.
    """

    def __init__(self, learner: Learner, *, by_clock: bool = True) -> None:
        guide, elbo = self.guide, self.elbo = learner.guide, learner.elbo
        batches, traits = self.batches, self.traits = learner.batches, learner.traits
        self.model, self.processes = learner.model, learner.processes
        self.weight, self.num_steps, self.annealing = learner.plan.weight, learner.asked.num_steps, None
        if learner.anneal is not None:
            self.annealing = Annealing(learner.anneal, max(1, int(ANNEALED_SHARE * self.num_steps)))
        leaves = [*guide.parameters(), *elbo.params.values()]
        self.parameters = FlatParameters(leaves, step_shares(guide.bijection))
        self.is_ragged, self.trouble, self._by_clock = False, "", by_clock
        self.shares = Shares(traits, batches.first, learner.find_traits)
        if self.processes.are_shards:
            self._size(batches.peek())
        is_plain = elbo.bound == "elbo" and elbo.options["draws"] == "batch" and guide.plan.num_components == 1
        self.has_one_target = is_plain and batches.is_fixed and not traits.noise and not elbo.params
        self.least_loss = -_MOST_BOUND - _ROUNDING * guide.latent_dim if traits.is_discrete else -math.inf
        self.stepper = self._plain = self._make_stepper(self.model, elbo, self.num_steps, is_fixed=batches.is_fixed)
        self._tempered: Stepper | None = None
        if self.annealing is not None:
            self._tempered = self._make_tempered(self.annealing.num_steps)
        guide._start = None  # it is trained from now on
        guide.take_temperature(learner.plan)

    def state_dict(self) -> dict[str, Any]:
        """Where the steps are, before a call of `batches.peek`: plain values and random states."""
        return {
            "batches": self.batches.state_dict(),
            "shares": self.shares.state_dict(),
            "is_ragged": self.is_ragged,
            "trouble": self.trouble,
            "plain": self._plain.state_dict(),
            "tempered": self._tempered and self._tempered.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned, perhaps in another process."""
        self.is_ragged, self.trouble = state["is_ragged"], state["trouble"]
        self._plain.load_state_dict(state["plain"])
        if state["tempered"]:
            self._tempered = self._tempered or self._make_tempered(self.num_steps)
            self._tempered.load_state_dict(state["tempered"])
        self.batches.load_state_dict(state["batches"])
        self.shares.load_state_dict(state["shares"])

    def step(self, number: int) -> tuple[Step, tuple]:
        """Evaluates the next batch.

        Args:
            number: Of the step, from 0.

        Returns:
            The step, and the batch it was made at.

        Raises:
            ValueError: If the model refuses a batch after the first, naming it.
            RuntimeError: If it fails there for another reason.
        """
        batch = next(self.batches)
        try:
            self.stepper, arguments = self._choose(number, batch)
            return self.stepper(arguments), batch
        except Exception as error:
            # Warnings are errors where the caller wants them so.
            if number == 0 or isinstance(error, Warning) or is_known(error):
                raise
            if "linalg." in str(error):  # a matrix that has no factor at some draw: a density of zero
                return Step.failed(), batch
            self._raise_for(number, batch, error)

    def looks(self, count: int) -> list[Callable[[], Step]]:
        """The next batches at full weight, each to be evaluated by a call."""

        def look(stepper: Stepper, arguments: tuple, weight: float) -> Step:
            self.processes.weight = weight
            return stepper.look(arguments)

        chosen = (self._choose(self.num_steps, next(self.batches)) for _ in range(count))
        return [partial(look, *pair, self.processes.weight) for pair in chosen]

    def densities(self, batch: tuple) -> dict[str, float]:
        """The log density of every site at a batch and at weights that are always the same, in nats."""
        origin = self.guide._origin
        try:
            with same_random_numbers([origin]), torch.no_grad():
                torch.manual_seed(0)
                w = 0.3 * torch.randn(origin.shape).to(origin)
                terms = self.elbo.log_joint.site_log_probs(w, *batch)
            return {name: float(value) for name, value in terms.items()}
        except Exception:  # the model does not run there
            return {}

    def is_annealed(self, number: int) -> bool:
        """Whether this step's data count more or less than they should in the end."""
        return self.annealing is not None and number < self.annealing.num_steps

    def find_trouble(self, step: Step, batch: tuple) -> str:
        """Where a step that is not finite went wrong, in words."""
        try:
            found = self._find_trouble(step, batch)
        except Exception:  # the model does not even run there
            found = "the density, which raises an error"
        return self.processes.first_trouble(found)

    def _find_trouble(self, step: Step, batch: tuple) -> str:
        for name, value in name_arguments(self.model, batch, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
                places = f"{int(value.isnan().sum())} of {value.numel()} places"
                return f"argument {name!r}, which holds NaN in {places} of {self.batches.spell(batch)}"
        if step.is_finite:
            return f"a bound of {-step.loss:.3g} nats on the log evidence of discrete data, which is at most zero"
        if step.particles is None:
            return "the density, which raises an error of linear algebra at some draws"
        w, log_p, log_q = step.particles
        bad = ~(log_p.isfinite() & log_q.isfinite() & w.isfinite().all(-1))
        if not bool(bad.any()):
            return "the gradient, while the density itself is finite"
        row = w[bad.nonzero()[0, 0]]
        if not len(row):
            return "the guide's own draws, or the density at them"
        if not bool(row.isfinite().all()):
            return "the guide's own draws"
        terms = self.elbo.log_joint.site_log_probs(row, *batch)
        names = [name for name, value in terms.items() if not math.isfinite(float(value))]
        return "the density of site " + ", ".join(map(repr, names)) if names else "the density of the guide"

    def _choose(self, number: int, batch: tuple) -> tuple[Stepper, tuple]:
        """What evaluates a batch, and the arguments that it takes."""
        share = 1.0
        if not self.batches.is_fixed:
            share = self.shares(batch, self.batches.number, self._size(batch))
            self.is_ragged |= share != 1 and (self.batches.length or self.batches.number) <= _SHORT
        beta = share * self.weight * (self.annealing(number) if self.is_annealed(number) else 1.0)
        if beta == 1:
            return self._plain, batch
        if self._tempered is None:
            self._tempered = self._make_tempered(self.num_steps - number)
        return self._tempered, TemperedModel.arguments(beta, batch)

    def _size(self, batch: tuple) -> float:
        """How large a batch is, with those of other processes, the first being one."""
        return self.processes.meet(batch, self.shares.size(batch))

    def _make_tempered(self, num_steps: int) -> Stepper:
        model, elbo = TemperedModel(self.model), self.elbo.with_options()
        elbo.prepare(model, self.guide, model.arguments(1.0, self.batches.first), {})
        elbo.share, elbo.skip = self.elbo.share, self.elbo.skip
        return self._make_stepper(model, elbo, num_steps, is_fixed=False)

    def _make_stepper(self, model: Model, elbo: VectorizedELBO, num_steps: int, *, is_fixed: bool) -> Stepper:
        options = {"compile": elbo.options["compile"], "num_steps": num_steps, "is_fixed": is_fixed}
        options |= {"by_clock": self._by_clock, "join": self.processes.join}
        return Stepper(model, self.guide, elbo, self.parameters, **options)

    def _raise_for(self, number: int, batch: tuple, error: Exception) -> Any:
        where = f"Step {number} of fit failed at {self.batches.spell(batch)}"
        kept = "The guide keeps what it had learnt."
        if any(leaf.dim() and len(leaf) == 0 for leaf in tensors_in(batch)):
            raise ValueError(f"{where}: it holds no data. Leave empty batches out. {kept}") from error
        cause = find_error(self.model, self.guide, batch) or error
        kind = ValueError if isinstance(cause, (ValueError, IndexError)) else RuntimeError
        raise kind(
            f"{where}: {first_line(cause)} Look at the data of this batch and what the model makes of them. {kept}"
        ) from cause

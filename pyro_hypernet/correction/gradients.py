"""Gradients of minibatches: of a log density at a temperature, each datum counting equally often."""

from functools import partial

from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from pyro_hypernet.correction.langevin import Gradient
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.single_run import outside_of_pyro
from pyro_hypernet.model.tempered import TemperedModel
from pyro_hypernet.train.asked import check_scales, check_traits
from pyro_hypernet.train.batches import Batches, Shares
from pyro_hypernet.train.traits import find_traits


class Gradients:
    """The gradient of the log density that every next minibatch estimates, each datum counting equally often.

    Args:
        log_joint: The density of the Pyro model, its arguments all in the batches.
        w: Weights at which it is tried, shape `(S, D)`.
        batches: Its arguments.
        temperature: Of prior and entropy.

    Attributes:
        num_steps: Minibatches that chains have stepped by.
        latest: The last minibatch.

    Raises:
        ValueError: If several minibatches are not scaled to all data.
    """

    def __init__(self, log_joint: LogJoint, w: Tensor, batches: Batches, temperature: float) -> None:
        self.batches, self.temperature = batches, temperature
        find = partial(find_traits, log_joint, w)
        self.traits = find(batches.first)
        check_traits(self.traits, batches, None)
        self.shares = Shares(self.traits, batches.first, find)
        self.log_joint = log_joint.of(TemperedModel(log_joint.model))
        self.num_batches = self.num_steps = 0

    @property
    def pass_length(self) -> int | None:
        """Batches after which every datum has counted once; None where data are drawn with replacement, or for ever."""
        sampler = getattr(self.batches.args, "sampler", None)
        replaces = isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False)
        draws_by_itself = self.batches.is_fixed and self.traits.noise
        return None if replaces or draws_by_itself else self.batches.length

    def next(self) -> Gradient:
        """The gradient of the next minibatch."""
        self.latest = batch = next(self.batches)
        if self.num_batches == 1:
            check_scales(self, self.batches, self.traits)
        self.num_batches += 1
        share = 1.0 if self.batches.is_fixed else self.shares(batch, self.batches.number)
        return self._of(batch, share)

    def fixed(self) -> Gradient:
        """The gradient of the first minibatch, the model's own random numbers the same at every call."""
        gradient = self._of(self.batches.first, 1.0)

        def same(w: Tensor) -> Tensor:
            with outside_of_pyro(seed=0):
                return gradient(w)

        return same

    def _of(self, batch: tuple, share: float) -> Gradient:
        arguments = TemperedModel.arguments(share / self.temperature, batch)
        return lambda w: self.log_joint.value_and_grad(w, *arguments)[1]

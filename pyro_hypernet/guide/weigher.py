"""The importance weights of a guide's proposals, and the rate of rejection that they speak for."""

import pyro
import torch
from torch import Tensor

from pyro_hypernet.guide.flow import Flow
from pyro_hypernet.guide.rejection import BATCH, SMALL_BATCH, Choice, choose_rate
from pyro_hypernet.model.density import NUM_LOOKS, LogJoint, zero_density
from pyro_hypernet.model.validate import refuse_minibatches, refuse_random_density
from pyro_hypernet.model.vectorize import Vectorized, outside_of_pyro, trace_one

# Proposals that a rate is chosen by, and how near the log evidence its bound is to come, in nats.
NUM_PROPOSALS = 2**14
_GAP = 0.2


class Weigher:
    """The importance weights of a guide's proposals, before rejection, by graphs of the density that are kept."""

    def __init__(self, log_joint: LogJoint, flow: Flow) -> None:
        self.log_joint, self.flow = log_joint, flow
        self._density = Vectorized(log_joint._value_of_one, differentiable=False, failed=lambda w, _: zero_density(w))

    @torch.no_grad()  # which draws are kept is held fixed while others are differentiated
    def __call__(self, arguments: tuple[tuple, dict], eps: Tensor) -> Tensor:
        """log W = log p(data, w) − log q(w) of proposals of shape `(S, D)`, in nats, shape `(S,)`."""
        with outside_of_pyro():
            w, log_det = self.flow.bijection.forward_and_log_det(eps)
            log_p = self._density(w, *arguments)
        return log_p - self.flow.noise.log_prob(eps) + log_det

    @torch.no_grad()
    def choose(self, arguments: tuple[tuple, dict], rates: tuple[float, ...]) -> Choice | None:
        """A rate by enough proposals, see `choose_rate`; None where the bound is near the log evidence without any.

        Raises:
            ValueError: If a plate draws minibatches, the density is another at every call, or no weight is finite.
        """
        self._refuse_noise(arguments)
        parts: list[Tensor] = []
        while BATCH * len(parts) < NUM_PROPOSALS:
            parts.append(self(arguments, self.flow.noise.distribution().sample((BATCH,))).double())
            log_weights = torch.cat(parts)
            choice = choose_rate(log_weights, rates, gap=_GAP)
            if len(rates) > 1 and choice.log_evidence - float(log_weights.mean()) <= _GAP:
                return None
        return choice

    def _refuse_noise(self, arguments: tuple[tuple, dict]) -> None:
        flow = self.flow
        with outside_of_pyro(), pyro.validation_enabled(False):
            values = flow.layout.constrain(flow.bijection.forward_and_log_det(flow.origin)[0])[0]
            refuse_minibatches(trace_one(self.log_joint.model, values, *arguments), "rejection")
            refuse_random_density(self.log_joint, flow.looks(SMALL_BATCH)[:NUM_LOOKS], "rejection", *arguments)

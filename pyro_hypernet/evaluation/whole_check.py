"""Importance weights of all random coordinates by a loader: for guides of few, such as the norms of a network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.importance import finite_log_weights
from pyro_hypernet.evaluation.streamed import Streamed, pairs_of, stream
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.model.chunks import MAX_BYTES
from pyro_hypernet.model.vectorize import Model


@dataclass(frozen=True)
class Wholes:
    """Independent draws of all random coordinates.

    Attributes:
        log_weights: `log p(data, w) − log q(w)` in nats, float64, shape `(M, S)`: M is 1; of a mixture whose components
            learn parameters, each its own, so that there is no density of the mixture, the number of these.
        w: The draws in unconstrained space, shape `(M, S, D)`.
    """

    log_weights: Tensor
    w: Tensor


@torch.no_grad()
def weigh_all(
    model: Model, guide: Any, loader: Any, kwargs: dict[str, Any], *, num_samples: int, max_bytes: int = MAX_BYTES
) -> Wholes:
    """Weighs draws of a guide by one pass over all data: as `weighted_draws` does of data given at once.

    Memory grows with the draws, not with the data.

    Args:
        guide: An AutoHypernet, or a mixture.
        loader: Of the model's arguments, data included; every datum comes once.
        num_samples: Draws S.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.

    Raises:
        TypeError: If the guide is no AutoHypernet or mixture of them.
        ValueError: If the loader leaves data out, data count unequally, the density is another at every call, or no
            draw has a finite density.
    """
    pairs = pairs_of(model, guide)
    is_one = not (isinstance(guide, GuideMixture) and guide.has_own_models)
    parts = [_Whole(own, part, num_samples) for own, part in ([(model, guide)] if is_one else pairs)]
    stream(pairs[0], loader, kwargs, parts, max_bytes)
    log_weights = torch.stack([finite_log_weights(part.log_weights) for part in parts])
    return Wholes(log_weights, torch.stack([part.w for part in parts]))


class _Whole(Streamed):
    """Draws of a guide."""

    def __init__(self, model: Model, guide: JointGuide, num_samples: int) -> None:
        self.w, self.log_q = guide.sample_and_log_prob(num_samples)
        first = guide.components[0] if isinstance(guide, GuideMixture) else guide
        super().__init__(first.density(model, mode="eager"), first.plan.weight, num_samples, self.w)

    def draws(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self.w[rows], self.log_q[rows].double()

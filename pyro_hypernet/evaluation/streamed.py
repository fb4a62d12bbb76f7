"""Log weights of a guide's draws summed over the batches of a loader, in memory that grows with neither."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.model.chunks import count_bytes
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.vectorize import Model, outside_of_pyro
from pyro_hypernet.train.batches import one_pass
from pyro_hypernet.train.loaders import num_shards
from pyro_hypernet.train.traits import find_traits


class Streamed(ABC):
    """Draws, and what is known of their weights so far.

    Args:
        log_joint: The density of the model that they are of, uncaptured.
        weight: How often all data count.
        num_draws: S.
        like: Of the draws' device.

    Attributes:
        log_weights: `log p(data, w) − log q(w)` of the data met so far, in nats, float64, shape `(S,)`.
    """

    def __init__(self, log_joint: LogJoint, weight: float, num_draws: int, like: Tensor) -> None:
        self._log_joint, self._weight = log_joint, weight
        self.log_weights = torch.zeros(num_draws, dtype=torch.float64, device=like.device)
        self._knows_prior = False

    @abstractmethod
    def draws(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Unconstrained weights, shape `(R, D)`, the same at every call, and their log q in nats, shape `(R,)`."""

    def add(self, batch: tuple, kwargs: dict[str, Any], scale: float, max_bytes: int) -> None:
        """Adds the log likelihood of a batch, whose data count so often, and with the first log p(w) − log q(w)."""
        one = self.draws(slice(1))[0][0]
        needed = count_bytes(lambda: self._log_joint.site_log_probs(one, *batch, **kwargs)) + 4 * one.nbytes
        size = max(1, max_bytes // needed)
        with outside_of_pyro(), pyro.validation_enabled(False):
            for start in range(0, len(self.log_weights), size):
                rows = slice(start, start + size)
                w, log_q = self.draws(rows)
                log_prior, log_likelihood = self._log_joint.parts(w, *batch, **kwargs).double().unbind(-1)
                self.log_weights[rows] += self._weight / scale * log_likelihood
                self.log_weights[rows] += 0.0 if self._knows_prior else log_prior - log_q
        self._knows_prior = True


def pairs_of(model: Model, guide: Any) -> list[tuple[Model, AutoHypernet]]:
    """A guide with its model; the components of a mixture each with its own.

    Raises:
        TypeError: If the guide is no AutoHypernet or mixture of them.
    """
    if not isinstance(guide, JointGuide):
        raise TypeError(f"With a loader an AutoHypernet or a GuideMixture is looked at; got {type(guide).__name__}.")
    if isinstance(guide, GuideMixture):
        return list(zip(guide.models_for(model), guide.components, strict=True))
    return [(model, guide)]


def stream(
    pair: tuple[Model, AutoHypernet], loader: Any, kwargs: dict[str, Any], parts: Sequence[Streamed], max_bytes: int
) -> None:
    """Weighs draws by one pass over all data.

    Args:
        pair: A model and its guide, to see by how often data count.
        loader: Of the model's arguments, data included; every datum comes once.
        kwargs: The model's keyword arguments.
        parts: The draws.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.

    Raises:
        ValueError: If the loader leaves data out, data count unequally, or the density is another at every call.
    """
    if num_shards(loader) > 1:
        raise ValueError(
            "A posterior is of all data; this loader gives one process its shard of them: pass a loader of all data "
            "that no DistributedSampler and no trainer of several processes has shared out."
        )
    seen, is_scaled = 0.0, False
    for batch, named in one_pass(loader, kwargs):
        scale = _scale_of(partial(pair[0], **named), pair[1], batch)
        seen, is_scaled = seen + 1 / scale, is_scaled or scale != 1
        for part in parts:
            part.add(batch, named, scale, max_bytes)
    if loader.drop_last or (is_scaled and abs(seen - 1) > 1e-4):
        raise ValueError(
            "A posterior is of all data, and the loader must give each once; "
            + (f"it gives {seen:.1%} of those that the model counts." if is_scaled else "it has drop_last=True.")
        )


def _scale_of(model: Model, guide: AutoHypernet, batch: tuple) -> float:
    """How often the data of a batch count."""
    traits = find_traits(guide.density(model), guide.looks(2), batch)
    scales = set(traits.scales.values())
    if traits.noise or len(scales) != 1 or math.isnan(max(scales)):
        raise ValueError(
            "Draws are weighed by a density that is the same at every call, and data that count equally often; "
            f"here {traits.noise or f'they count {traits.scales}'}."
        )
    return scales.pop()

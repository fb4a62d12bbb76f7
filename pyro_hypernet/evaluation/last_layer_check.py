"""Importance weights of the last layer given draws of all other weights: for guides too large to weigh draws by all."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_hypernet.evaluation.importance import finite_log_weights
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.base import Normal
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.informed.structures import last_layer_sites
from pyro_hypernet.model.chunks import MAX_BYTES, count_bytes
from pyro_hypernet.model.vectorize import Model, outside_of_pyro
from pyro_hypernet.train.batches import one_pass
from pyro_hypernet.train.traits import find_traits


@dataclass(frozen=True)
class Sections:
    """Draws that differ in the noise of the last layer alone, some for every draw of the noise of all other weights.

    Attributes:
        log_weights: `log p(data, w) − log q(w)` in nats, float64, shape `(M, S)`.
        dim: How many weights the last layer has.
    """

    log_weights: Tensor
    dim: int


@torch.no_grad()
def weigh_last_layer(
    model: Model,
    guide: Any,
    loader: DataLoader,
    kwargs: dict[str, Any],
    *,
    num_sections: int,
    num_samples: int,
    max_bytes: int = MAX_BYTES,
) -> Sections:
    """Weighs draws of the last layer given all others, by one pass over all data.

    Draws are `w = T(ε)` with independent noise, so that of the last layer is drawn as ever, given that of all others,
    and `p(data, w) / q(w)` are the importance weights from the guide to the posterior there, up to a constant.
    Where T moves the last layer by itself, as the mean field and the structures "last_layer" and "layerwise" do, only
    that varies; a flow of all weights moves the others along. Memory grows with neither data nor draws, but for the
    noise of the last layer.

    Args:
        guide: An AutoHypernet; or a mixture, whose components are each weighed by themselves.
        loader: Of the model's arguments, data included; every datum comes once.
        num_sections: Draws M of the noise of all other weights, at least one for every component.
        num_samples: Draws S of the last layer for each.
        max_bytes: Memory for the intermediate results of one chunk of draws, in bytes.

    Raises:
        TypeError: If the guide is no AutoHypernet or mixture of them.
        ValueError: If the loader leaves data out, data count unequally, the density or the noise is none that a last
            layer can be weighed by, or no draw of a section has a finite density.
    """
    if not isinstance(guide, JointGuide):
        raise TypeError(f"With a loader an AutoHypernet or a GuideMixture is looked at; got {type(guide).__name__}.")
    guides = guide.components if isinstance(guide, GuideMixture) else (guide,)
    models = guide.models_for(model) if isinstance(guide, GuideMixture) else (model,)
    pairs = list(zip(models, guides, strict=True)) * -(-num_sections // len(guides))
    sections = [_Section(own, part, num_samples) for own, part in pairs]
    seen, is_scaled = 0.0, False
    for batch, named in one_pass(loader, kwargs):
        scale = _scale_of(partial(models[0], **named), guides[0], batch)
        seen, is_scaled = seen + 1 / scale, is_scaled or scale != 1
        for section in sections:
            section.add(batch, named, scale, max_bytes)
    if loader.drop_last or (is_scaled and abs(seen - 1) > 1e-4):
        raise ValueError(
            "A posterior is of all data, and the loader must give each once; "
            + (f"it gives {seen:.1%} of those that the model counts." if is_scaled else "it has drop_last=True.")
        )
    log_weights = torch.stack([finite_log_weights(section.log_weights) for section in sections])
    return Sections(log_weights, len(sections[0].index))


def _scale_of(model: Model, guide: AutoHypernet, batch: tuple) -> float:
    """How often the data of a batch count."""
    traits = find_traits(guide.density(model), guide.looks(2), batch)
    scales = set(traits.scales.values())
    if traits.noise or len(scales) != 1 or math.isnan(max(scales)):
        raise ValueError(
            "A last layer is weighed by a density that is the same at every call, and data that count equally often; "
            f"here {traits.noise or f'they count {traits.scales}'}."
        )
    return scales.pop()


class _Section:
    """Draws of a guide with the same noise of all but the last layer, and what is known of their weights so far."""

    def __init__(self, model: Model, guide: AutoHypernet, num_samples: int) -> None:
        self.flow, self.weight = guide._proposals(), guide.plan.weight
        if not isinstance(self.flow.noise, Normal):
            raise ValueError(
                "The noise of this guide is a mixture, so that of its last layer depends on the others': make it with "
                "num_components=1, or mix guides by a GuideMixture."
            )
        self.log_joint = guide.density(model, mode="eager")
        of_sites = [torch.arange(site.start, site.start + site.size) for site in last_layer_sites(guide.layout)]
        self.index = torch.cat(of_sites).to(self.flow.origin.device)
        self.others = torch.randn_like(self.flow.origin)
        self.noise = torch.randn(num_samples, len(self.index)).to(self.others)
        self.log_weights = self.noise.new_zeros(num_samples, dtype=torch.float64)
        self.knows_prior = False

    def add(self, batch: tuple, kwargs: dict[str, Any], scale: float, max_bytes: int) -> None:
        """Adds the log likelihood of a batch, whose data count so often, and with the first log p(w) − log q(w)."""
        one = self._draws(slice(1))[0][0]
        needed = count_bytes(lambda: self.log_joint.site_log_probs(one, *batch, **kwargs)) + 4 * one.nbytes
        size = max(1, max_bytes // needed)
        with outside_of_pyro(), pyro.validation_enabled(False):
            for start in range(0, len(self.noise), size):
                rows = slice(start, start + size)
                w, log_q = self._draws(rows)
                log_prior, log_likelihood = self.log_joint.parts(w, *batch, **kwargs).double().unbind(-1)
                self.log_weights[rows] += self.weight / scale * log_likelihood
                self.log_weights[rows] += 0.0 if self.knows_prior else log_prior - log_q
        self.knows_prior = True

    def _draws(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Weights, shape `(S, D)`, and their log q in nats, shape `(S,)`."""
        noise = self.noise[rows]
        eps = self.others.expand(len(noise), -1).index_copy(-1, self.index, noise)
        w, log_det = self.flow.bijection.forward_and_log_det(eps)
        return w, self.flow.noise.log_prob(eps) - log_det

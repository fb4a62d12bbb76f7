"""Importance weights of the last layer given draws of all other weights: for guides too large to weigh draws by all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_hypernet.evaluation.importance import finite_log_weights
from pyro_hypernet.evaluation.streamed import Streamed, pairs_of, stream
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.base import Normal
from pyro_hypernet.informed.structures import last_layer_sites
from pyro_hypernet.model.chunks import MAX_BYTES
from pyro_hypernet.model.vectorize import Model


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
    pairs = pairs_of(model, guide)
    sections = [_Section(own, part, num_samples) for own, part in pairs * -(-num_sections // len(pairs))]
    stream(pairs[0], loader, kwargs, sections, max_bytes)
    log_weights = torch.stack([finite_log_weights(section.log_weights) for section in sections])
    return Sections(log_weights, len(sections[0].index))


class _Section(Streamed):
    """Draws of a guide with the same noise of all but the last layer."""

    def __init__(self, model: Model, guide: AutoHypernet, num_samples: int) -> None:
        self.flow = guide._proposals()
        if not isinstance(self.flow.noise, Normal):
            raise ValueError(
                "The noise of this guide is a mixture, so that of its last layer depends on the others': make it with "
                "num_components=1, or mix guides by a GuideMixture."
            )
        super().__init__(guide.density(model, mode="eager"), guide.plan.weight, num_samples, self.flow.origin)
        of_sites = [torch.arange(site.start, site.start + site.size) for site in last_layer_sites(guide.layout)]
        self.index = torch.cat(of_sites).to(self.flow.origin.device)
        self.others = torch.randn_like(self.flow.origin)
        self.noise = torch.randn(num_samples, len(self.index)).to(self.others)

    def draws(self, rows: slice) -> tuple[Tensor, Tensor]:
        noise = self.noise[rows]
        eps = self.others.expand(len(noise), -1).index_copy(-1, self.index, noise)
        w, log_det = self.flow.bijection.forward_and_log_det(eps)
        return w, self.flow.noise.log_prob(eps) - log_det

"""What a posterior says in function space: deterministic sites and the means of observed ones, draw by draw."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.predict import deterministic_nodes, map_in_chunks, predictive_nodes
from pyro_hypernet.target import mean_of
from pyro_hypernet.vectorize import Model

# So many numbers of every draw at most: an even choice of them.
_MOST = 500


@torch.no_grad()
def function_values(model: Model, samples: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor | None:
    """The model's functions for every draw, flat.

    Args:
        model: The Pyro model.
        samples: A dict from every latent site to draws of shape `(S, *shape)`.
        args: The model's arguments.
        kwargs: Its keyword arguments.

    Returns:
        Deterministic sites and means of observed sites (probabilities of classes), side by side and at most 500 of
        them, shape `(S, F)`, double precision; None where the model has neither.
    """

    def collect(trace: Trace) -> dict[str, Tensor]:
        values = {name: node["value"] for name, node in deterministic_nodes(trace).items()}
        for name, node in predictive_nodes(trace, samples).items():
            mean = mean_of(node["fn"])
            if mean is not None:
                values[name] = mean
        return {name: value for name, value in values.items() if value.is_floating_point()}

    values = map_in_chunks(model, samples, args, kwargs, collect=collect)
    if not values:
        return None
    flat = torch.cat([value.reshape(len(value), -1) for value in values.values()], dim=1).double()
    step = -(-flat.shape[1] // _MOST)
    flat = flat[:, ::step]
    return flat[:, flat.isfinite().all(0)]


def flat_sites(samples: Mapping[str, Tensor]) -> Tensor:
    """All sites of a dict of samples side by side, shape `(S, D)`, double precision."""
    return torch.cat(
        [value.flatten(1) if value.dim() > 1 else value[:, None] for value in samples.values()], 1
    ).double()

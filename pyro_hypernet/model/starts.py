"""Where a model's latents start that has a flat prior, of which there are no draws."""

from typing import Any

import torch
from pyro.infer.autoguide import init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.model.density import trace_prior
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.model.supports import transform_to


def start_of(site: dict[str, Any]) -> Tensor:
    """The prior's median, as Pyro has it; where the prior cannot be sampled the point that zeros are mapped to.

    An `init_loc_fn` of Pyro: from a site to its value, shape `shape`, where the prior is flat of the default dtype.
    """
    try:
        return init_to_median(site)
    except NotImplementedError:
        transform = transform_to(site["fn"].support)
        return transform(torch.zeros(transform.inverse_shape(site["fn"].shape())))


def trace_start(model: Model, args: tuple = (), kwargs: dict | None = None) -> Trace:
    """`trace_prior`; at `start_of` where the prior cannot be sampled."""
    try:
        return trace_prior(model, args, kwargs)
    except NotImplementedError:
        return trace_prior(InitMessenger(start_of)(model), args, kwargs)

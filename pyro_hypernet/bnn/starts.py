"""Other values for a network's Bayesian model to start at: drawn anew, or those of another network."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesianize import BayesianNet

_RESETS = ("reset_parameters", "_reset_parameters")


def started_at(model: BayesianNet, start: nn.Module | Mapping[str, Tensor]) -> BayesianNet:
    """The same model, network included, whose `initial_values` are others.

    Args:
        model: What `bayesianize` returned, without weight norm.
        start: A network of the same parameters, trained or not, or a dict from the name of every random parameter to
            its value, such as a `state_dict`.

    Raises:
        TypeError: If `start` is neither.
        ValueError: If a value is missing or of another shape, or the model has weight norm.
    """
    values = dict(start.named_parameters()) if isinstance(start, nn.Module) else start
    if not isinstance(values, Mapping):
        raise TypeError(f"A start must be a network or a dict from name to value; got {type(start).__name__}.")
    if any(site.kind == "scale" for site in model._random):
        raise ValueError(
            'The starts of a model with parametrization="weight_norm" differ in their directions, too, which are point '
            'estimates of the model: use parametrization="weights", or a model for every start.'
        )
    for site in model._random:
        found = values.get(site.parameter)
        if found is None or found.shape != site.value.shape:
            got = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(
                f"A start needs the parameter {site.parameter!r} of shape {tuple(site.value.shape)}; it {got}: give "
                "networks like that of the model."
            )
    new = copy.copy(model)  # the network is the same
    new._random = tuple(
        replace(site, value=values[site.parameter].detach().clone().to(site.value)) for site in model._random
    )
    return new


def reinitialised(model: BayesianNet) -> BayesianNet:
    """The same model, started at values that the network's modules draw anew by their `reset_parameters`.

    Values that no module can draw anew stay.

    Args:
        model: What `bayesianize` returned, without weight norm.

    Raises:
        ValueError: If no value changes, or the model has weight norm.
    """
    net = copy.deepcopy(model.net)
    with torch.no_grad():
        for module in net.modules():
            for reset in filter(None, (getattr(module, name, None) for name in _RESETS)):
                reset()
    new = started_at(model, net)
    old = model.initial_values
    if all(torch.equal(value, old[name]) for name, value in new.initial_values.items()):
        raise ValueError(
            f"No module of {type(model.net).__name__} draws its random parameters anew, for want of a method "
            "reset_parameters: give the starts as networks, GuideMixture.from_starts(model, [net_1, net_2, …])."
        )
    return new

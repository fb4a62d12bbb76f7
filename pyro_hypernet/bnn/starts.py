"""Other values for a network's Bayesian model to start at: drawn anew, or those of another network; models as one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.bnn.priors import RandomTensor
from pyro_hypernet.bnn.weight_norm import norms

_RESETS = ("reset_parameters", "_reset_parameters")


def started_at(model: BayesianNet, start: nn.Module | Mapping[str, Tensor]) -> BayesianNet:
    """The same model, whose `initial_values` are others; with a network of its own where it learns parameters.

    Args:
        model: What `bayesianize` returned.
        start: A network of the same parameters, trained or not, or a dict from the name of every parameter that is
            random or learnt to its value, such as a `state_dict`.

    Raises:
        TypeError: If `start` is neither.
        ValueError: If a value is missing or of another shape.
    """
    values = dict(start.named_parameters()) if isinstance(start, nn.Module) else start
    if not isinstance(values, Mapping):
        raise TypeError(f"A start must be a network or a dict from name to value; got {type(start).__name__}.")
    for name in dict.fromkeys([*(site.parameter for site in model._random), *model._learnt]):
        own, found = model.net.get_parameter(name), values.get(name)
        if found is None or found.shape != own.shape:
            got = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(
                f"A start needs the parameter {name!r} of shape {tuple(own.shape)}; it {got}: give networks like that "
                "of the model."
            )
    new = copy.deepcopy(model) if model._learnt else copy.copy(model)  # else the network is the same
    with torch.no_grad():
        for name in model._learnt:
            new.net.get_parameter(name).copy_(values[name])

    def start_of(site: RandomTensor) -> Tensor:
        value = values[site.parameter].detach()
        return (norms(value, site.axis) if site.kind == "scale" else value.clone()).to(site.value)

    new._random = tuple(replace(site, value=start_of(site)) for site in model._random)
    return new


def reinitialised(model: BayesianNet) -> BayesianNet:
    """The same model, started at values that the network's modules draw anew by their `reset_parameters`.

    Values that no module can draw anew stay.

    Args:
        model: What `bayesianize` returned.

    Raises:
        ValueError: If no value changes.
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


def as_one(models: Sequence[BayesianNet]) -> BayesianNet:
    """Models that differ in what they learn, as one: the site "component", uniform, says by whose values it runs.

    Args:
        models: What `started_at` made of one model, as they are now.
    """
    new = copy.copy(models[0])
    new._members = tuple(models)
    return new

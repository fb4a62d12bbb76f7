"""A network's own parameters in the place of its model's sites."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.bnn.shrinkage import Scaled
from pyro_hypernet.bnn.weight_norm import Normed


@torch.no_grad()
def weights_of(model: BayesianNet, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters in draws of the model's sites: products of scales and directions multiplied out.

    Args:
        model: What `bayesianize` returned.
        samples: A dict from site to draws of shape `(S, *shape)`.

    Returns:
        A dict from the name of every parameter to draws of shape `(S, *shape)`, the same in all where it is not random.

    Example:
        >>> from pyro_hypernet import bayesianize
        >>> model = bayesianize(torch.nn.Linear(3, 1), prior="ard")
        >>> samples = {name: value.expand(20, *value.shape) for name, value in model.initial_values.items()}
        >>> sorted(samples), weights_of(model, samples)["weight"].shape
        (['bias', 'weight.local', 'weight.z'], torch.Size([20, 1, 3]))
    """
    number = len(next(iter(samples.values())))
    found = {name: p.detach().expand(number, *p.shape) for name, p in model.net.named_parameters()}
    for site in model._random:
        prior = model.priors[site.name]
        if isinstance(prior, Scaled):
            value = prior.weights({part: samples[name] for part, name in prior.names(site.name).items()})
        else:
            value = samples[site.name]
        if site.kind == "scale":
            value = torch.stack([Normed(found[site.parameter][0], g, site.axis).weight for g in value])
        found[site.parameter] = value
    return found


def at_its_parameters(model: BayesianNet) -> BayesianNet:
    """The same model, whose sites are the parameters themselves, all of them: to be run at draws of these."""
    plain = copy.copy(model)
    (like,) = model._random[:1]
    random = [(name, p.detach()) for name, p in model.net.named_parameters()]
    plain._random = tuple(replace(like, name=name, parameter=name, value=p, kind="weight") for name, p in random)
    plain.priors = {name: dist.Normal(torch.zeros_like(p), 1.0).to_event(p.dim()) for name, p in random}
    plain._learnt = {}
    return plain

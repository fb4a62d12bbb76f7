"""A torch network as a Pyro model: priors over its parameters, a likelihood for its outputs."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.parameter import is_lazy

from pyro_hypernet.likelihoods import Likelihood, resolve_likelihood

PARAMETRIZATIONS = ("weights", "weight_norm")
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class fan_in:  # noqa: N801, a choice is named as a function is
    """Independent normal priors that keep the outputs of every layer on one scale.

    Weights of two or more axes: `Normal(0, gain / sqrt(fan_in))`, where fan_in counts the weights into one output unit
    or channel; with `parametrization="weight_norm"` their scales g: `Normal(0, gain)`, which gives the weights into a
    unit the same mean squared norm. Biases: `Normal(0, bias_scale)`. Weights of normalisation layers, and other
    parameters of one axis named "weight": `Normal(1, norm_scale)`, for at zero they would silence their layer.

    Attributes:
        gain: Standard deviation of a unit's input for inputs of mean square one, without the bias.
        bias_scale: Standard deviation of biases.
        norm_scale: Standard deviation of normalisation layers' weights.

    Raises:
        ValueError: If one of them is not positive.
    """

    gain: float = 1.0
    bias_scale: float = 1.0
    norm_scale: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive; got {value!r}.")


Prior = str | float | fan_in | dist.TorchDistribution | Mapping[str, Any] | Callable[[str, Tensor], Any]


@dataclass(frozen=True)
class RandomSite:
    """One random tensor of a network.

    Attributes:
        name: Name of the sample statement.
        parameter: Name of the parameter that it makes.
        value: The network's own value: the parameter, or the norms of its directions; shape `shape`.
        kind: "weight", "scale" (weight norm's g), "norm" (a normalisation layer's weight) or "bias".
        fan_in: How many weights lead into one output unit; 1 unless the kind is "weight" or "scale".
    """

    name: str
    parameter: str
    value: Tensor
    kind: str
    fan_in: int


def bayesianize(
    net: nn.Module,
    likelihood: str | Likelihood = "gaussian",
    *,
    prior: Prior = "fan_in",
    sites: str | Sequence[str] = "all",
    parametrization: str = "weights",
    num_data: int | None = None,
) -> "BayesianNet":
    """Turns a network into a Pyro model `model(x, y=None)`; the network itself is copied, never changed.

    The model works on a copy in eval mode, whatever the mode of `net`: dropout is off, batch normalisation uses its
    running statistics, and these stay what they are. Random parameters are sample sites under their own dotted names,
    such as "0.weight". The others are point estimates: `pyro.param`s under the same names, which start at the
    network's values and which SVI or `fit` trains; as always in Pyro, two models share parameters of one name unless
    `pyro.clear_param_store()` comes between. Parameters with `requires_grad=False` stay fixed, unless `sites` names
    them. Outputs are the deterministic site "f", shape `(N, out)`, targets the site "y" in the plate "data".

    Args:
        net: Any module that maps one tensor `(N, ...)` to outputs `(N, out)` or `(N,)`, the latter read as `(N, 1)`.
        likelihood: "gaussian", "heteroscedastic", "bernoulli", "categorical", "poisson", or a Likelihood such as
            `Gaussian(sigma=0.1)`.
        prior: "fan_in", or `fan_in(gain=1.5)`; a number s for `Normal(0, s)` (`Normal(1, s)` for the weights of
            normalisation layers); a distribution, expanded to every site; a function from a site's name and the
            network's value to any of these; or a dict from name patterns ("*.bias") to any of these, the first that
            matches counts.
        sites: The random parameters: "all"; "last_layer", those of the last module that has parameters of its own; or
            a list of name patterns.
        parametrization: "weights"; or "weight_norm", in the manner of Krueger et al.: a parameter w of two or more
            axes becomes `g_k v_k / |v_k|` for every output unit or channel k. Random: g, the sites "<name>.g", and
            biases. Point estimates: the directions v, `pyro.param`s "<name>.v". So the posterior is not one over all
            weights. In the paper biases are learnt too: `sites=["*.weight"]`. Its prior, g ~ Normal(0, 1), is
            `fan_in()`. At its median g = 0 the network is constant: start at `model.initial_values` instead.
        num_data: Size of the whole data set where `x` is a minibatch: the likelihood counts `num_data / len(x)` times.

    Returns:
        The model.

    Raises:
        TypeError: If `net` is no module.
        ValueError: If a choice is unknown, the network has no parameters, a pattern matches none, a parameter has no
            prior, or a prior does not fit its parameter's shape or dtype.

    Source: Krueger, Huang et al., Bayesian Hypernetworks, arXiv 1710.04759, for weight norm.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = bayesianize(net, "gaussian", prior=fan_in(gain=1.5))
        >>> trace = poutine.trace(model).get_trace(torch.randn(20, 3), torch.randn(20))
        >>> list(trace.stochastic_nodes)
        ['0.weight', '0.bias', '2.weight', '2.bias', 'sigma', 'data']
        >>> bayesianize(net, sites="last_layer").site_names
        ('2.weight', '2.bias')
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module; got {type(net).__name__}.")
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization must be one of {', '.join(PARAMETRIZATIONS)}; got {parametrization!r}.")
    if num_data is not None and (not isinstance(num_data, int) or num_data < 1):
        raise ValueError(f"num_data must be a positive integer or None; got {num_data!r}.")
    chosen = resolve_likelihood(likelihood)
    net = copy.deepcopy(net).eval()
    names = _choose(net, sites)
    net.requires_grad_(requires_grad=True) if False else None
    random = [_random_site(net, name, parametrization) for name in names]
    priors = _priors(prior, random)
    return BayesianNet(net, chosen, random, priors, num_data)

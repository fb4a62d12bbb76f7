"""A torch network as a Pyro model: priors over its parameters, a likelihood for its outputs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.bnn.calls import Output, interface_of, pick
from pyro_hypernet.bnn.last_layer import last_layer
from pyro_hypernet.bnn.likelihoods import Likelihood, resolve_likelihood
from pyro_hypernet.bnn.modules import check_modules, kind_of
from pyro_hypernet.bnn.priors import Prior, RandomTensor, assign_priors, check_patterns
from pyro_hypernet.bnn.weight_norm import TRANSPOSED, norms

PARAMETRIZATIONS = ("weights", "weight_norm")


def bayesianize(
    net: nn.Module,
    likelihood: str | Likelihood = "gaussian",
    *,
    prior: Prior = "fan_in",
    sites: str | Sequence[str] = "all",
    parametrization: str = "weights",
    num_data: int | None = None,
    inputs: Sequence[str] | None = None,
    output: Output | None = None,
    class_axis: int = -1,
    ignore_value: float | None = None,
) -> "BayesianNet":
    """Turns a network into a Pyro model `model(x, y=None)`; the network itself is copied, never changed.

    A network of several inputs becomes `model(x1, x2, y=None)`; inputs that it need not have, such as masks, go by
    name. A network with outputs `(N, *positions, out)`, for tokens, time steps or pixels, has a target at every
    position; their log densities within a datum add up. `model(x, y, y_mask=mask)` leaves targets out, those of
    padding, where the mask is False; with `y_weight=` every datum counts so often. Kinds of modules: docs/modules.md.

    The model works on a copy in eval mode, whatever the mode of `net`: dropout is off, batch normalisation uses its
    running statistics, and these stay what they are. Random parameters are sample sites under their own dotted names,
    such as "0.weight". The others are point estimates, which start at the network's values and which SVI or `fit`
    trains: `model.net.get_parameter("0.weight")`. They are the model's own, whatever `pyro.clear_param_store()` does:
    two models share nothing, a deep copy or a pickle starts at the present values and goes its own way, and to start
    afresh is to call `bayesianize` again. In Pyro's parameter store they stand as "BayesianNet.0.weight", with a number
    after "BayesianNet" where another model has that name; `ParamStoreDict.load` puts them back before the first call.
    Parameters with `requires_grad=False` stay fixed, unless `sites` names them. The outputs are the deterministic site
    "f", shape `(N, *positions, out)`, the targets the site "y", both in the plate "data". The model takes one draw at a
    time, to be vmapped; Pyro's vectorised particles it refuses, and `torch.jit` cannot trace it.

    Args:
        net: Any module from tensors `(N, ...)`, or dicts of them, to outputs `(N, *positions, out)`, or `(N,)`, which
            is read as `(N, 1)`.
        likelihood: "gaussian", "heteroscedastic", "bernoulli", "categorical", "poisson", or a Likelihood such as
            `Gaussian(sigma=0.1)`.
        prior: "fan_in", or `fan_in(gain=1.5)`; "ard" or "horseshoe", or `ard(per="output")`, with random scales; a
            number s for `Normal(0, s)` (`Normal(1, s)` for the weights of normalisation layers); a distribution,
            expanded to every site; a function from a site's name and the network's value to any of these; or a dict
            from name patterns ("*.bias") to any of these, of which the first that matches counts.
        sites: The random parameters: "all"; "last_layer", those of the module that acts last, where the network's code
            can be traced for that; or a list of name patterns.
        parametrization: "weights"; or "weight_norm", in the manner of Krueger et al.: a parameter w of two or more
            axes becomes `g_k v_k / |v_k|` for every output unit or channel k. Random: g, at the sites "<name>.g", and
            biases. Point estimates: the directions v, kept in w's own place and announced as "<name>.v"; so this is
            no posterior over all weights. In the paper biases are learnt too: `sites=["*.weight"]`; its
            g ~ Normal(0, 1) is `fan_in()`. At the prior's median, g = 0, the network is constant: start guides at
            `model.initial_values`. A gain that a normalising layer behind it undoes has its prior as its posterior:
            the first call tries all, and with `sites="all"` such weights become point estimates, so that the layer's
            own weights and biases alone are random there. A warning names them; where `sites` names them they stay.
        num_data: Size of the whole data set where `x` is a minibatch: the likelihood counts `num_data / len(x)` times.
        inputs: Names of the inputs that the model takes by position, before y: arguments of the network's forward;
            None for those without a default.
        output: Where the network returns a tuple, dict or dataclass: the outputs' index or name, or a function.
        class_axis: The outputs' axis of classes, or whatever goes into one target: 1 for `(N, C, H, W)`.
        ignore_value: Targets of this value do not count, such as -100, or NaN.

    Returns:
        The model.

    Raises:
        TypeError: If `net` is no module, or `output` no index, name or function.
        ValueError: If a module cannot be run at drawn weights, a choice is unknown, the network has no parameters, its
            last layer cannot be told, a pattern matches none, a parameter has no prior, or a prior does not fit its
            parameter's shape or dtype.

    Source: Krueger, Huang et al., Bayesian Hypernetworks, arXiv 1710.04759, for weight norm.

    Example:
        >>> import torch
        >>> from pyro import poutine
        >>> from pyro_hypernet.bnn.priors import fan_in
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> model = bayesianize(net, "gaussian", prior=fan_in(gain=1.5))
        >>> model.site_names
        ('0.weight', '0.bias', '2.weight', '2.bias')
        >>> poutine.trace(model).get_trace(torch.randn(20, 3)).nodes["y"]["value"].shape
        torch.Size([20])
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
    check_modules(net)
    interface = interface_of(net, inputs, output)
    random = [_random(net, name, parametrization) for name in _choose(net, sites, output)]
    options = {"num_data": num_data, "interface": interface, "class_axis": class_axis, "ignore_value": ignore_value}
    options["leaves_out"] = sites == "all"
    return BayesianNet(net, chosen, random, assign_priors(prior, random), **options)


def _random(net: nn.Module, name: str, parametrization: str) -> RandomTensor:
    owner, leaf = net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    value = net.get_parameter(name).detach()
    axis = 1 if isinstance(owner, TRANSPOSED) and value.dim() > 1 else 0
    weights = value.numel() // value.shape[axis] if value.dim() else 1
    kind = kind_of(owner, leaf, value)
    if kind != "weight":
        return RandomTensor(name, name, value, kind, weights, axis)
    if parametrization == "weights":
        return RandomTensor(name, name, value, "weight", weights, axis)
    gains = norms(value, axis)
    if bool((gains == 0).any()):
        raise ValueError(
            f"Output unit {int(gains.argmin())} of parameter {name!r} has only zero weights, so no direction for "
            "weight norm: start the network elsewhere."
        )
    return RandomTensor(f"{name}.g", name, gains, "scale", weights, axis)


def _choose(net: nn.Module, sites: str | Sequence[str], output: Output | None) -> list[str]:
    """Names of the parameters to be random, in the network's order."""
    parameters = dict(net.named_parameters())
    if not parameters:
        raise ValueError(f"The network, {type(net).__name__}, has no parameters: nothing to be random.")
    if sites == "all":
        chosen = [name for name, value in parameters.items() if value.requires_grad]
        if not chosen:
            raise ValueError(
                "All parameters have requires_grad=False, so stay fixed: name the random ones by sites=[…]."
            )
        return chosen
    if sites == "last_layer":
        return last_layer(net, lambda result: result if output is None else pick(result, output))
    if isinstance(sites, str):
        raise ValueError(f"sites must be 'all', 'last_layer' or a list of name patterns; got {sites!r}.")
    check_patterns("sites", sites, parameters)
    return [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in sites)]

"""A torch network as a Pyro model: priors over its parameters, a likelihood for its outputs."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from pyro_hypernet.bnn.last_layer import find_unused, last_layer
from pyro_hypernet.bnn.likelihoods import Likelihood, resolve_likelihood
from pyro_hypernet.bnn.priors import Prior, RandomTensor, assign_priors, check_patterns
from pyro_hypernet.bnn.weight_norm import TRANSPOSED, Normed, call, find_undone, norms
from pyro_hypernet.maps.hypernets import MAX_TRIANGULAR_DIM
from pyro_hypernet.model.announce import announce, forget_announcements
from pyro_hypernet.model.vectorize import outside_of_pyro

PARAMETRIZATIONS = ("weights", "weight_norm")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *_BATCH_NORMS, *_INSTANCE_NORMS)
# Numbers of inputs at most with which a network is tried, and rows at most with which every gain is.
_MAX_TRIED, _MAX_ROWS = 1_000_000, 8


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
    such as "0.weight". The others are point estimates, which start at the network's values and which SVI or `fit`
    trains: `model.net.get_parameter("0.weight")`. They are the model's own, whatever `pyro.clear_param_store()` does:
    two models share nothing, a deep copy or a pickle starts at the present values and goes its own way, and to start
    afresh is to call `bayesianize` again. In Pyro's parameter store they stand as "BayesianNet.0.weight", with a number
    after "BayesianNet" where another model has that name; `ParamStoreDict.load` puts them back before the first call.
    Parameters with `requires_grad=False` stay fixed, unless `sites` names them. The outputs are the deterministic site
    "f", shape `(N, out)`, the targets the site "y", both in the plate "data". The model takes one draw at a time, to be
    vmapped; Pyro's vectorised particles it refuses, and `torch.jit` cannot trace it.

    Args:
        net: Any module from one tensor `(N, ...)` to outputs `(N, out)`, or `(N,)`, which is read as `(N, 1)`.
        likelihood: "gaussian", "heteroscedastic", "bernoulli", "categorical", "poisson", or a Likelihood such as
            `Gaussian(sigma=0.1)`.
        prior: "fan_in", or `fan_in(gain=1.5)`; a number s for `Normal(0, s)` (`Normal(1, s)` for the weights of
            normalisation layers); a distribution, expanded to every site; a function from a site's name and the
            network's value to any of these; or a dict from name patterns ("*.bias") to any of these, of which the
            first that matches counts.
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

    Returns:
        The model.

    Raises:
        TypeError: If `net` is no module.
        ValueError: If a choice is unknown, the network has no parameters, its last layer cannot be told, a pattern
            matches none, a parameter has no prior, or a prior does not fit its parameter's shape or dtype.

    Source: Krueger, Huang et al., Bayesian Hypernetworks, arXiv 1710.04759, for weight norm.

    Example:
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
    random = [_random(net, name, parametrization) for name in _choose(net, sites)]
    return BayesianNet(net, chosen, random, assign_priors(prior, random), num_data, leaves_out=sites == "all")


class BayesianNet(nn.Module):
    """A Pyro model `model(x, y=None)` made of a network; `bayesianize` makes it and documents it.

    It owns its point estimates: they are the parameters of `model.net`, copied and pickled with it.

    Args:
        net: The network; a copy is kept.
        likelihood: The distribution of the targets.
        random: The random tensors.
        priors: A dict from the name of every random tensor to its prior.
        num_data: Size of the whole data set, or None where `x` is all of it.
        leaves_out: Whether gains that a normalising layer undoes are no longer random from the first call on.

    Attributes:
        net: The copy, in eval mode.
        likelihood: The distribution of the targets.
        priors: A dict from site to prior.
        num_data: As above.
        rows_are_independent: That outputs of a datum come of its own inputs, so that predictions may be made in parts.
    """

    rows_are_independent = True

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        random: "Sequence[RandomTensor]",
        priors: Mapping[str, TorchDistributionMixin],
        num_data: int | None = None,
        *,
        leaves_out: bool = False,
    ) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        made = {site.parameter for site in random}
        self._learnt = {name: name for name, p in self.net.named_parameters() if p.requires_grad and name not in made}
        self._learnt |= {site.parameter: f"{site.parameter}.v" for site in random if site.kind == "scale"}
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in self._learnt)
        self._prefix: str | None = None
        self.likelihood = likelihood
        self.priors = dict(priors)
        self.num_data = num_data
        self._random = tuple(random)
        self._is_tried, self._has_tried_gains, self._on_outputs = False, False, False
        self._leaves_out = leaves_out
        self.eval()

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the random tensors' sites, in the order of the network's parameters."""
        return tuple(site.name for site in self._random)

    @property
    def initial_values(self) -> dict[str, Tensor]:
        """The network's own values: a start for a guide, by `init_loc_fn=init_to_value(values=model.initial_values)`.

        Returns:
            A dict from site to value, shape `shape`; without the likelihood's sigma.
        """
        return {site.name: site.value.clone() for site in self._random}

    @property
    def is_large(self) -> bool:
        """Whether guides start at the network's own values: it has more than 2 000 random weights, or norms of so many.

        Where all norms are at their prior's median, zero, a network is constant and learns nothing.
        """
        has_norms = any(site.kind == "scale" for site in self._random)
        weights = self.net.parameters() if has_norms else self.initial_values.values()
        return sum(weight.numel() for weight in weights) > MAX_TRIANGULAR_DIM

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The network's parameters that draws take the place of, so that the density does not depend on them."""
        return [self.net.get_parameter(site.parameter) for site in self._random if site.kind != "scale"]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Runs the model.

        Args:
            x: Inputs, shape `(N, ...)`.
            y: Targets, shape `(N,)`, or `(N, out)` for Gaussian with several outputs; None to sample them.

        Returns:
            The network's outputs, shape `(N, out)`.

        Raises:
            TypeError: If `x` or `y` is no tensor.
            ValueError: If shapes or dtypes do not fit, or a value is not finite or not one the likelihood can have.
                Values are looked at where they can be: not in captured or vmapped data.
            NotImplementedError: While `torch.jit` traces, as Pyro's Jit ELBOs do.
        """
        if torch.jit.is_tracing():
            raise NotImplementedError(
                "torch.jit cannot trace a network whose parameters are drawn: in the place of a Jit ELBO use "
                "VectorizedELBO, or fit, which capture the whole step."
            )
        for name, value in {"x": x, "y": y}.items():
            if not isinstance(value, Tensor) and (name == "x" or value is not None):
                raise TypeError(f"{name} must be a tensor; got {type(value).__name__}: torch.as_tensor({name}).")
        if _is_readable(x):
            self._check_inputs(x, y)
            self._warn_of_unused(x)
            self._try_gains(x)
        with sdpa_kernel(SDPBackend.MATH):  # of attention's kernels the one that vmap can batch
            f = call(self.net, self._values(), x, on_outputs=self._on_outputs)
        f = f.unsqueeze(-1) if f.dim() == 1 else f
        if _is_readable(x):
            self._check_outputs(f, x, y)
        plate = pyro.plate("data", x.shape[0])
        with plate:
            pyro.deterministic("f", f, event_dim=1)
        fn = self.likelihood.distribution(f)
        scale = 1.0 if self.num_data is None else self.num_data / x.shape[0]
        with poutine.scale(scale=scale), plate:
            pyro.sample("y", fn, obs=None if y is None else self.likelihood.prepare(y, f))
        return f

    def __repr__(self) -> str:
        return f"BayesianNet({type(self.net).__name__}, {self.likelihood!r}, sites={list(self.site_names)})"

    def train(self, mode: bool = True) -> "BayesianNet":
        """Stays in eval mode, whatever is asked for: the density is a function of the weights and the data."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> "BayesianNet":
        like = next(self.net.parameters())
        moved = fn(like.detach()[..., :0] if like.dim() else like.detach())
        if moved.dtype != like.dtype or moved.device != like.device:
            raise TypeError(
                f"The priors are in {like.dtype} on {like.device}: convert the network to {moved.dtype} on "
                f"{moved.device} before bayesianize, not the model."
            )
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        forget_announcements(self)
        return {**self.__dict__, "_prefix": None}

    def _values(self) -> dict[str, Tensor | Normed]:
        """All parameters that are not fixed: sampled, or learnt."""
        learnt = self._announced()
        values: dict[str, Tensor | Normed] = {}
        for site in self._random:
            value = pyro.sample(site.name, self.priors[site.name])
            if value.shape != site.value.shape:
                raise ValueError(
                    f"A value of site {site.name!r} must have shape {tuple(site.value.shape)}; got "
                    f"{tuple(value.shape)}: the network runs one draw at a time. For many use VectorizedELBO and "
                    "predict, which vmap it, or vectorize_particles=False and parallel=False."
                )
            if site.kind == "scale":
                value = Normed(learnt.pop(f"{site.parameter}.v"), value, site.axis)
            values[site.parameter] = value
        return values | learnt

    def _announced(self) -> dict[str, Tensor]:
        """The values of the point estimates, from a dict from statement to value."""
        named = {statement: self.net.get_parameter(name) for name, statement in self._learnt.items()}
        values, self._prefix = announce(named, type(self).__name__, self._prefix)
        return values

    def _check_inputs(self, x: Tensor, y: Tensor | None) -> None:
        like = next(self.net.parameters())
        if x.dim() == 0:
            raise ValueError("x must have shape (N, ...); got a single number.")
        if x.device != like.device or (x.is_floating_point() and x.dtype != like.dtype):
            raise ValueError(
                f"x must be {like.dtype} on {like.device}, like the network; got {x.dtype} on {x.device}: convert it, "
                "or the network before bayesianize."
            )
        _check_finite("x", x)
        if y is not None:
            if y.dim() == 0 or len(y) != len(x):
                raise ValueError(
                    f"x and y must hold the same number of data; their shapes are {tuple(x.shape)} and "
                    f"{tuple(y.shape)}."
                )
            _check_finite("y", y)

    def _warn_of_unused(self, x: Tensor) -> None:
        """At the first call outside of torch.func: says which random parameters the outputs do not depend on."""
        if self._is_tried or torch._C._functorch.maybe_current_level() is not None or torch.is_inference_mode_enabled():
            return
        self._is_tried = True
        rows = x[: max(1, _MAX_TRIED * len(x) // max(1, x.numel()))].detach()
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), outside_of_pyro():
            unused = find_unused(self.net, [site.parameter for site in self._random], rows)
        if unused:
            warnings.warn(
                f"The network's outputs do not depend on its random parameters {unused}, whose posterior is their "
                "prior: leave them out, by sites=[…].",
                stacklevel=5,
            )

    def _try_gains(self, x: Tensor) -> None:
        """At the first call: whether gains may scale outputs, and which a normalising layer undoes."""
        scales = {site.name: site for site in self._random if site.kind == "scale"}
        if self._has_tried_gains or not scales:
            return
        self._has_tried_gains = True
        rows = x[:: max(1, len(x) // _MAX_ROWS)][:_MAX_ROWS].detach()
        # Not at the network's own values: what starts at zero would hide what is behind it.
        others = {site.parameter: site.value + 0.1 for site in self._random if site.kind != "scale"}

        def run(gains: Mapping[str, Tensor], on_outputs: bool = True) -> Tensor:
            normed = {
                s.parameter: Normed(self.net.get_parameter(s.parameter), gains[n], s.axis) for n, s in scales.items()
            }
            with torch.random.fork_rng(devices=[]):
                return call(self.net, {**others, **normed}, rows, on_outputs=on_outputs)

        gains = {name: 1.1 * site.value for name, site in scales.items()}
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), outside_of_pyro(), temporarily_clear_interpreter_stack():
            try:
                f = run(gains)
            except Exception:  # what is wrong with the network, the call itself says; it may want a batch as long as x
                return
            if not isinstance(f, Tensor):
                return
            self._on_outputs = bool((f - run(gains, False)).abs().max() <= 1e-3 * f.abs().max())
            undone = find_undone(run, gains)
        if undone:
            self._leave_out(undone)

    def _leave_out(self, undone: list[str]) -> None:
        """Says that gains have no effect, and makes their weights point estimates unless they were asked for."""
        what = f"A normalising layer undoes the gains {undone}, so that they change no output"
        left = tuple(site for site in self._random if site.name not in undone)
        if not self._leaves_out or not left:
            return warnings.warn(
                f"{what} and their posterior is their prior: leave them out of sites=[…], and put the normalising "
                "layer's own weight and bias there.",
                stacklevel=6,
            )
        warnings.warn(
            f"{what}: they are no sites of the model, and their weights are learnt as point estimates. The weights and "
            "biases of normalising layers are random instead, where they have some. To choose otherwise name all "
            "that is to be random: sites=[…].",
            stacklevel=6,
        )
        for site in self._random:
            if site.name in undone:
                self._learnt[site.parameter] = site.parameter
                del self.priors[site.name]
        self._random = left

    def _check_outputs(self, f: Tensor, x: Tensor, y: Tensor | None) -> None:
        if f.dim() != 2 or f.shape[0] != x.shape[0]:
            raise ValueError(
                f"The network must map x, shape {tuple(x.shape)}, to outputs of shape ({x.shape[0]}, out); "
                f"got {tuple(f.shape)}."
            )
        self.likelihood.check_width(f.shape[1])
        if y is not None and _is_readable(y):
            self.likelihood.check_targets(y, f.shape[1])


def _random(net: nn.Module, name: str, parametrization: str) -> RandomTensor:
    owner, leaf = net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    value = net.get_parameter(name).detach().clone()
    axis = 1 if isinstance(owner, TRANSPOSED) and value.dim() > 1 else 0
    weights = value.numel() // value.shape[axis] if value.dim() else 1
    if leaf == "weight" and (isinstance(owner, _NORMS) or value.dim() < 2):
        return RandomTensor(name, name, value, "norm", weights, axis)
    if value.dim() < 2:
        return RandomTensor(name, name, value, "bias", weights, axis)
    if parametrization == "weights":
        return RandomTensor(name, name, value, "weight", weights, axis)
    gains = norms(value, axis)
    if bool((gains == 0).any()):
        raise ValueError(
            f"Output unit {int(gains.argmin())} of parameter {name!r} has only zero weights, so no direction for "
            "weight norm: start the network elsewhere."
        )
    return RandomTensor(f"{name}.g", name, gains, "scale", weights, axis)


def _choose(net: nn.Module, sites: str | Sequence[str]) -> list[str]:
    """Names of the parameters to be random, in the network's order."""
    parameters = dict(net.named_parameters())
    if not parameters:
        raise ValueError(f"The network, {type(net).__name__}, has no parameters: nothing to be random.")
    lazy = [name for name, value in parameters.items() if is_lazy(value)]
    if lazy:
        raise ValueError(f"Parameters {lazy} have no shape yet: run the network once, net(x), before bayesianize.")
    if sites == "all":
        chosen = [name for name, value in parameters.items() if value.requires_grad]
        if not chosen:
            raise ValueError(
                "All parameters have requires_grad=False, so stay fixed: name the random ones by sites=[…]."
            )
        return chosen
    if sites == "last_layer":
        return last_layer(net)
    if isinstance(sites, str):
        raise ValueError(f"sites must be 'all', 'last_layer' or a list of name patterns; got {sites!r}.")
    check_patterns("sites", sites, parameters)
    return [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in sites)]


def _check_finite(name: str, value: Tensor) -> None:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        count = int((~value.isfinite()).sum())
        raise ValueError(f"{name} holds {count} values that are NaN or infinite: drop those rows or fill them in.")


def _is_readable(value: Tensor) -> bool:
    """Whether values may be looked at: not while a graph is captured, nor in data that are vmapped over."""
    is_captured = get_proxy_mode() is not None or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not is_captured and not torch._C._functorch.is_batchedtensor(value)

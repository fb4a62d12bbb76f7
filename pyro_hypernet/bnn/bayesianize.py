"""A torch network as a Pyro model: priors over its parameters, a likelihood for its outputs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_hypernet.bnn.calls import Call, Interface, Output, check_finite, counted, interface_of, per_datum, pick
from pyro_hypernet.bnn.last_layer import find_unused, last_layer
from pyro_hypernet.bnn.likelihoods import Likelihood, resolve_likelihood
from pyro_hypernet.bnn.local import Local, Spread, find_ways, local, spread
from pyro_hypernet.bnn.modules import Needs, check_modules, copy_of, kind_of, run_network
from pyro_hypernet.bnn.priors import Prior, RandomTensor, assign_priors, check_patterns
from pyro_hypernet.bnn.shrinkage import Scaled
from pyro_hypernet.bnn.weight_norm import TRANSPOSED, Normed, norms, spell_undone, try_gains
from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.maps.hypernets import MAX_TRIANGULAR_DIM
from pyro_hypernet.model.announce import announce, forget_announcements
from pyro_hypernet.model.vectorize import outside_of_pyro

# The site that says by whose learnt parameters several models as one run, see starts.as_one.
COMPONENT = "component"
PARAMETRIZATIONS = ("weights", "weight_norm")
# See benchmarks/results/start_widths.md.
_SHARE_OF_WEIGHTS, _SHARE_OF_NORMS = 0.1, 0.03
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
        interface: How the network is called; None to see by its forward.
        class_axis: As of `bayesianize`.
        ignore_value: As of `bayesianize`.

    Attributes:
        net: The copy, in eval mode.
        likelihood: The distribution of the targets.
        priors: A dict from random tensor to prior.
        num_data: As above.
        rows_are_independent: That outputs of a datum come of its own inputs, so that predictions may be made in parts.
    """

    rows_are_independent = True

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        random: "Sequence[RandomTensor]",
        priors: Mapping[str, TorchDistributionMixin | Scaled],
        num_data: int | None = None,
        *,
        leaves_out: bool = False,
        interface: Interface | None = None,
        class_axis: int = -1,
        ignore_value: float | None = None,
    ) -> None:
        super().__init__()
        self.net = copy_of(net)
        self._needs = Needs.of(self.net)
        self._interface = interface_of(net, None, None) if interface is None else interface
        self._class_axis = class_axis
        self._ignore_value = ignore_value
        made = {site.parameter for site in random}
        self._learnt = {name: name for name, p in self.net.named_parameters() if p.requires_grad and name not in made}
        self._learnt |= {site.parameter: f"{site.parameter}.v" for site in random if site.kind == "scale"}
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in self._learnt)
        self._prefix: str | None = None
        self._members: tuple[BayesianNet, ...] = ()  # see starts.as_one
        self.likelihood = likelihood
        self.priors = dict(priors)
        self.num_data = num_data
        # Of what draws take the place of, the network holds the only copy.
        self._random = tuple(
            site if site.kind == "scale" else replace(site, value=self.net.get_parameter(site.parameter).detach())
            for site in random
        )
        self._is_tried, self._has_tried_gains, self._on_outputs = False, False, False
        self._leaves_out = leaves_out
        self.eval()

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the random tensors' sites, in the order of the network's parameters."""
        return tuple(self.own_values())

    @property
    def initial_values(self) -> dict[str, Tensor]:
        """The network's own values: a start for a guide, by `init_loc_fn=init_to_value(values=model.initial_values)`.

        Returns:
            A dict from site to value, shape `shape`; without the likelihood's sigma.
        """
        return {name: value.clone() for name, value in self.own_values().items()}

    def own_values(self) -> dict[str, Tensor]:
        """As `initial_values`, in the network's own memory: to be read."""
        values: dict[str, Tensor] = {}
        for site in self._random:
            prior = self.priors[site.name]
            values |= prior.start(site.name, site.value) if isinstance(prior, Scaled) else {site.name: site.value}
        return values

    @property
    def is_large(self) -> bool:
        """Whether guides start at the network's own values: it has more than 2 000 random weights, or norms of so many.

        Where all norms are at their prior's median, zero, a network is constant and learns nothing.
        """
        weights = self.net.parameters() if self._has_norms else [site.value for site in self._random]
        return sum(weight.numel() for weight in weights) > MAX_TRIANGULAR_DIM

    @property
    def start_share(self) -> float:
        """Of the prior's standard deviations: how wide guides start around the network's own values, if it is large.

        A norm moves all weights of its unit together, so that the same share of its prior is more noise in the outputs.
        """
        return _SHARE_OF_NORMS if self._has_norms else _SHARE_OF_WEIGHTS

    @property
    def _has_norms(self) -> bool:
        return any(site.kind == "scale" for site in self._random)

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The network's parameters that draws take the place of, so that the density does not depend on them."""
        return [self.net.get_parameter(site.parameter) for site in self._random if site.kind != "scale"]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Runs the model.

        Args:
            args: Inputs, shape `(N, ...)`; and targets y, shape `(N, *positions)`, or `(N, *positions, out)` for
                Gaussian with several outputs. Without them, or with None, they are sampled.
            kwargs: Inputs and y by name; `y_mask`, torch.bool, of the shape of y or without its last axis: True where a
                target counts; `y_weight`, shape `(N,)`, positive: the power of every datum's likelihood.

        Returns:
            The network's outputs, shape `(N, *positions, out)`.

        Raises:
            TypeError: If the inputs are not the network's, or `y` is no tensor.
            ValueError: If shapes or dtypes do not fit, or a value is not finite or not one the likelihood can have.
                Values are looked at where they can be: not in captured or vmapped data.
            NotImplementedError: While `torch.jit` traces, as Pyro's Jit ELBOs do.
        """
        if torch.jit.is_tracing():
            raise NotImplementedError(
                "torch.jit cannot trace a network whose parameters are drawn: in the place of a Jit ELBO use "
                "VectorizedELBO, or fit, which capture the whole step."
            )
        call = self._interface.read(args, kwargs)
        y, mask = counted(call.y, call.y_mask, self._ignore_value)
        is_readable = all(map(_is_readable, call.tensors))
        if is_readable:
            self._interface.check(self.net, call, next(self.net.parameters()))
            _check_counts(call, y)
            self._warn_of_unused(call)
            self._try_gains(call)
        values = self._values()
        if (present := local()) is not None and present.is_looking:
            _find_ways(self, present, call, values)
        f = self._outputs(call, values, on_outputs=self._on_outputs)
        number = call.tensors[0].shape[0]
        if is_readable:
            _check_shape(f, call, self._class_axis)
        positioned = self._by_position(f)
        if is_readable:
            _check_targets(y, f, positioned, self.likelihood, self._class_axis)
        plate = pyro.plate("data", number)
        with plate:
            pyro.deterministic("f", f, event_dim=f.dim() - 1)
        fn = per_datum(self.likelihood.distribution(positioned), mask)
        scale = 1.0 if self.num_data is None else self.num_data / number
        scale = scale if call.y_weight is None else scale * call.y_weight.to(f.dtype)
        with poutine.scale(scale=scale), plate:
            pyro.sample("y", fn, obs=None if y is None else self.likelihood.prepare(y, positioned))
        return f

    def named_arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs and targets by name."""
        return self._interface.arguments(args, kwargs)

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

    def _values(self) -> dict[str, Tensor | Normed | Spread]:
        """All parameters that are not fixed: sampled, or learnt."""
        learnt = self._announced()
        values: dict[str, Tensor | Normed | Spread] = {}
        for site in self._random:
            prior = self.priors[site.name]
            value = prior.sample(site.name) if isinstance(prior, Scaled) else pyro.sample(site.name, prior)
            if value.shape != site.value.shape:
                raise ValueError(
                    f"A value of site {site.name!r} must have shape {tuple(site.value.shape)}; got "
                    f"{tuple(value.shape)}: the network runs one draw at a time. For many use VectorizedELBO and "
                    "predict, which vmap it, or vectorize_particles=False and parallel=False."
                )
            if site.kind == "scale":
                value = Normed(learnt.pop(f"{site.parameter}.v"), value, site.axis)
            values[site.parameter] = value if isinstance(value, Normed) else spread(site.name, value)
        return values | learnt

    def _announced(self) -> dict[str, Tensor]:
        """The values of the point estimates, from a dict from statement to value."""
        if self._members:
            return _learnt_of_one([member.net for member in self._members], self._learnt)
        named = {statement: self.net.get_parameter(name) for name, statement in self._learnt.items()}
        values, self._prefix = announce(named, type(self).__name__, self._prefix)
        return values

    def _outputs(self, call: Call, values: dict[str, Tensor | Normed | Spread], *, on_outputs: bool = False) -> Tensor:
        """The network's outputs at values of its parameters."""
        try:
            result = run_network(self.net, self._needs, values, call.args, call.kwargs, on_outputs=on_outputs)
        except RuntimeError as error:
            _blame_whole_numbers(error, call)
            raise
        f = self._interface.outputs(result)
        return f.unsqueeze(-1) if f.dim() == 1 else f

    def _by_position(self, f: Tensor) -> Tensor:
        """The outputs with the axis of what goes into one target last; of targets with outputs of their own as is."""
        has_own = self.likelihood.target_shape(f.shape[self._class_axis]) != ()
        return f if has_own else f.movedim(self._class_axis, -1)

    def _warn_of_unused(self, call: Call) -> None:
        """At the first call outside of torch.func: says which random parameters the outputs do not depend on."""
        if self._is_tried or torch._C._functorch.maybe_current_level() is not None or torch.is_inference_mode_enabled():
            return
        self._is_tried = True
        x = call.tensors[0]
        few = call.rows(max(1, _MAX_TRIED * len(x) // max(1, x.numel())))
        with torch.random.fork_rng(devices=[]), outside_of_pyro():
            names = [site.parameter for site in self._random]
            unused = find_unused(self.net, names, lambda values: self._outputs(few, values))
        if unused:
            warnings.warn(
                f"The network's outputs do not depend on its random parameters {unused}, whose posterior is their "
                "prior: leave them out, by sites=[…].",
                stacklevel=5,
            )

    def _try_gains(self, call: Call) -> None:
        """At the first call: whether gains may scale outputs, and which a normalising layer undoes."""
        scales = {site.name: site for site in self._random if site.kind == "scale"}
        if self._has_tried_gains or not scales:
            return
        self._has_tried_gains = True
        few, values = call.rows(_MAX_ROWS), {name: self.net.get_parameter(s.parameter) for name, s in scales.items()}
        # Not at the network's own values: what starts at zero would hide what is behind it.
        others = {site.parameter: site.value + 0.1 for site in self._random if site.kind != "scale"}

        def run(gains: Mapping[str, Tensor], on_outputs: bool) -> Tensor:
            normed = {s.parameter: Normed(values[n], gains[n], s.axis) for n, s in scales.items()}
            with torch.random.fork_rng(devices=[]):
                return self._outputs(few, {**others, **normed}, on_outputs=on_outputs)

        with torch.no_grad(), outside_of_pyro(), temporarily_clear_interpreter_stack():
            self._on_outputs, undone = try_gains(run, {name: 1.1 * site.value for name, site in scales.items()})
        left = tuple(site for site in self._random if site.name not in undone)
        leaves_out = self._leaves_out and bool(left)
        if undone:
            warn_caller(spell_undone(undone, leaves_out=leaves_out))
        for site in self._random if leaves_out else ():
            if site.name in undone:
                self._learnt[site.parameter] = site.parameter
                del self.priors[site.name]
        self._random = left if leaves_out else self._random


def _find_ways(model: BayesianNet, present: Local, call: Call, values: Mapping[str, Tensor | Normed | Spread]) -> None:
    """Finds which layers of a network can draw their weights anew for every datum, tried with few data."""
    counts = [count for count in (3, 2) if count <= len(call.tensors[0])] or [1]
    runs = [(n, partial(model._outputs, call.rows(n), values, on_outputs=model._on_outputs)) for n in counts]
    ways, present.has_network = find_ways(model.net, runs), True
    for site in model._random:
        prefix = site.parameter.rpartition(".")[0]
        owner = model.net.get_submodule(prefix)
        names = [f"{prefix}.{leaf}".lstrip(".") for leaf, _ in owner.named_parameters(recurse=False)]
        is_plain = not any(isinstance(values.get(name), Normed) for name in names)
        if owner in ways and is_plain and not isinstance(model.priors[site.name], Scaled):
            present.ways[owner] = present.sites[site.name] = ways[owner]


def _learnt_of_one(nets: Sequence[nn.Module], learnt: Mapping[str, str]) -> dict[str, Tensor]:
    """The point estimates of one of several networks, which the site "component" draws, by statement."""
    like = next(nets[0].parameters())
    chosen = pyro.sample(COMPONENT, dist.Categorical(logits=like.new_zeros(len(nets))))[None]
    every = {statement: torch.stack([net.get_parameter(name) for net in nets]) for name, statement in learnt.items()}
    return {statement: values.index_select(0, chosen)[0] for statement, values in every.items()}


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


def _check_counts(call: Call, y: Tensor | None) -> None:
    """Of inputs, targets and what these count."""
    x, weight = call.tensors[0], call.y_weight
    if y is not None:
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(
                f"x and y must hold the same number of data; their shapes are {tuple(x.shape)} and {tuple(y.shape)}."
            )
        check_finite("y", y)
    if weight is not None and (weight.shape != x.shape[:1] or not bool((weight > 0).all())):
        raise ValueError(
            f"y_weight must hold a positive number for each of {len(x)} data; its shape is {tuple(weight.shape)}, its "
            f"least value {weight.min():.3g}: leave out data that do not count."
        )


def _check_shape(f: Tensor, call: Call, class_axis: int) -> None:
    number = call.tensors[0].shape[0]
    if f.dim() < 2 or f.shape[0] != number or not -f.dim() <= class_axis < f.dim():
        raise ValueError(
            f"The network must map x, shape {tuple(call.tensors[0].shape)}, to outputs of shape ({number}, out), "
            f"or ({number}, *positions, out); got {tuple(f.shape)}."
        )


def _check_targets(y: Tensor | None, f: Tensor, positioned: Tensor, likelihood: Likelihood, class_axis: int) -> None:
    width = positioned.shape[-1]
    likelihood.check_width(width)
    if y is None or not _is_readable(y):
        return
    if f.dim() > 2:
        expected = (*positioned.shape[:-1], *likelihood.target_shape(width))
        if y.shape != expected:
            classes_first = class_axis == -1 and y.shape == (f.shape[0], *f.shape[2:])
            hint = f"; for classes in axis 1 of the outputs, {tuple(f.shape)}, class_axis=1" if classes_first else ""
            raise ValueError(
                f"y must have shape {tuple(expected)} for {likelihood!r}, a target at every position; got "
                f"{tuple(y.shape)}{hint}."
            )
        y = y.flatten(0, positioned.dim() - 2)
    likelihood.check_targets(y, width)


def _blame_whole_numbers(error: RuntimeError, call: Call) -> None:
    """Raises where a network failed for inputs whose type it does not take."""
    whole = [x.dtype for x in call.tensors if not x.is_floating_point() and x.dtype != torch.bool]
    if whole and "type" in str(error):
        raise TypeError(
            f"The network cannot take inputs of {whole[0]}: convert them as for its training, images for example by "
            f"x.float() / 255 ({error})."
        ) from error


def _is_readable(value: Tensor) -> bool:
    """Whether values may be looked at: not while a graph is captured, nor in data that are vmapped over."""
    is_captured = get_proxy_mode() is not None or torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not is_captured and not torch._C._functorch.is_batchedtensor(value)

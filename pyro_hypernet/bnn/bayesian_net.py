"""A network of torch as a Pyro model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from pyro_hypernet.bnn.calls import Call, Interface, counted, interface_of, per_datum
from pyro_hypernet.bnn.data_checks import blame_whole_numbers, check_counts, check_shape, check_targets, is_readable
from pyro_hypernet.bnn.last_layer import find_unused
from pyro_hypernet.bnn.likelihoods import Likelihood
from pyro_hypernet.bnn.local import Local, Spread, find_ways, local, spread
from pyro_hypernet.bnn.modules import Needs, copy_of, run_network
from pyro_hypernet.bnn.priors import RandomTensor
from pyro_hypernet.bnn.shrinkage import Scaled
from pyro_hypernet.bnn.weight_norm import Normed, spell_undone, try_gains
from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.maps.hypernets import MAX_TRIANGULAR_DIM
from pyro_hypernet.model.announce import announce, forget_announcements
from pyro_hypernet.model.vectorize import outside_of_pyro

# The site that says by whose learnt parameters several models as one run, see starts.as_one.
COMPONENT = "component"
# See benchmarks/results/start_widths.md.
_SHARE_OF_WEIGHTS, _SHARE_OF_NORMS = 0.1, 0.03
# Numbers of inputs at most with which a network is tried, and rows at most with which every gain is.
_MAX_TRIED, _MAX_ROWS = 1_000_000, 8


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
        may_look = all(map(is_readable, call.tensors))
        if may_look:
            self._interface.check(self.net, call, next(self.net.parameters()))
            check_counts(call, y)
            self._warn_of_unused(call)
            self._try_gains(call)
        values = self._values()
        if (present := local()) is not None and present.is_looking:
            _find_ways(self, present, call, values)
        f = self._outputs(call, values, on_outputs=self._on_outputs)
        number = call.tensors[0].shape[0]
        if may_look:
            check_shape(f, call, self._class_axis)
        positioned = self._by_position(f)
        if may_look:
            check_targets(y, f, positioned, self.likelihood, self._class_axis)
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
            blame_whole_numbers(error, call)
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

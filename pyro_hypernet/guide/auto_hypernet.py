"""AutoHypernet: an invertible hypernetwork as a Pyro autoguide over all latent sites of a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median
from torch import Tensor

from pyro_hypernet.guide.base import Base, Normal
from pyro_hypernet.guide.copies import copied, leave_rejection_out, pickled, unpickled
from pyro_hypernet.guide.mixture import Mixture
from pyro_hypernet.guide.plan import REJECTION_RATES, Plan, spelt
from pyro_hypernet.guide.rejection import BATCH, SMALL_BATCH, Choice, Rejected, Rejection, choose
from pyro_hypernet.informed.detect import Knowledge, learn, prior_width
from pyro_hypernet.informed.structures import informed, resolve_structure
from pyro_hypernet.maps.bijection import Bijection, in_pieces
from pyro_hypernet.maps.hypernets import resolve_hypernet
from pyro_hypernet.model.announce import announce, stored_names
from pyro_hypernet.model.arguments import Arguments
from pyro_hypernet.model.density import NUM_LOOKS, LogJoint, zero_density
from pyro_hypernet.model.layout import Layout, is_periodic, within_period
from pyro_hypernet.model.modes import find_modes
from pyro_hypernet.model.supports import stable
from pyro_hypernet.model.validate import (
    check_start,
    name_arguments,
    raise_for_nan,
    refuse_dependent_supports,
    refuse_local_latents,
    refuse_minibatches,
    refuse_random_density,
    refuse_vanished_priors,
    refuse_what_cannot_fit,
    spell_bytes,
)
from pyro_hypernet.model.vectorize import Model, Vectorized, outside_of_pyro, trace_one

logger = logging.getLogger(__name__)

# Of every unconstrained weight at the start, where no structure knows better.
DEFAULT_SCALE = 0.1
# Draws behind medians and quantiles, and the most numbers that they may hold.
_QUANTILE_DRAWS, _QUANTILE_NUMBERS = 4096, 2**27
# How near the log evidence rejection wants to come, in nats, and the proposals that it looks at.
REJECTION_GAP, NUM_PROPOSALS = 0.2, 2**14


class AutoHypernet(AutoContinuous):
    """Draws all latent sites of a model at once by sending Gaussian noise through an invertible hypernetwork.

    `w = T(eps)`, `eps ~ N(0, I)`, with the exact density `log q(w) = log N(eps; 0, I) - log|det dT/deps|`. At the
    start, whatever the hypernetwork and the structure, the guide is the mean field N(init_loc, init_scale²), except in
    the structure "informed", which starts from the prior and what is known of the model. With `hypernet="identity"` it
    stays a mean field and equals Pyro's AutoDiagonalNormal. It trains with any of Pyro's ELBOs and
    works wherever an AutoContinuous does. After `fit` the posterior may choose among its draws, see `reject`; the
    density stays exact.

    Source: Krueger, Huang et al., Bayesian Hypernetworks, arXiv 1710.04759; theirs draws scales of weight-normalised
    layers and learns the directions as point values, ours draws every site.

    Args:
        model: A Pyro model with continuous latent sites whose names and shapes never change.
        hypernet: The invertible network: "auto", "identity", "linear", "nice", "coupling", "spline", "iaf", or a
            function from a dimension to a Bijection, such as `functools.partial(coupling, num_layers=8)`.
        structure: The coordinates of weight space that the network moves: "auto", "informed", "full", "layerwise",
            "last_layer", "low_rank", "weight_norm", "multiplicative", or such a function. "informed" builds in what
            `setup` finds out about the model (weights that act linearly, symmetries of hidden units); "auto" takes it
            where there is something to find, up to 2 000 weights, unless `init_loc_fn` or `init_scale` ask for another
            start; see `describe` for what was chosen.
        init_loc_fn: A Pyro initialisation strategy for the centre.
        init_scale: The standard deviation of every unconstrained weight at the start, positive; None for 0.1, and for
            the prior's own widths in the structure "informed".
        num_components: Number of Gaussians in the base distribution; more than one can hold several modes. They start
            at modes found by gradient ascent from the prior, unless `init_scale` is given.
        plan: All of these but `init_loc_fn`, and how `fit` trains the guide, in one value, such as another guide's.

    Raises:
        ValueError: If a nickname is unknown, or a number is out of its range.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, scale), obs=y)
        >>> guide = AutoHypernet(model)
        >>> guide.setup(torch.tensor([1.0, 2.0])).sample_posterior(5)["scale"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: Model,
        hypernet: str | Callable[[int], Bijection] = "auto",
        structure: str | Callable[..., Bijection] = "auto",
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float | None = None,
        num_components: int = 1,
        plan: Plan | None = None,
    ) -> None:
        named = Plan(structure, hypernet, init_scale, num_components)
        if plan is not None and named != Plan():
            raise ValueError(
                f"A plan names hypernet, structure, init_scale and num_components itself; got {named!r} too."
            )
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._asked = named if plan is None else plan
        self._plan: Plan | None = None
        self._uninitialised_model: tuple[Model] | None = (model,)  # None after pickling, where no draw needs it
        self._init_loc_fn = init_loc_fn
        self._layout: Layout | None = None
        self._param_prefix: str | None = None
        self._stored_names: dict[str, bool] = {}  # of the model's own parameters
        self._knowledge: Knowledge | None = None
        self._width: Tensor | None = None
        self._has_default_start = init_loc_fn is init_to_median and self._asked.init_scale is None
        self._density: tuple[Any, Vectorized] | None = None
        self._start: tuple[int, ...] | None = None

    @property
    def plan(self) -> Plan:
        """What the guide is built of, and how `fit` trains it; nothing in it is "auto".

        Raises:
            RuntimeError: Before `setup`.
        """
        if self._plan is None:
            raise RuntimeError("The guide has no plan yet: call guide.setup(*args) or fit first.")
        return self._plan

    @property
    def knowledge(self) -> Knowledge | None:
        """What the structure "informed" has built in; None for other structures, and where nothing was found."""
        return self._knowledge

    @property
    def layout(self) -> Layout:
        """The model's latent sites.

        Raises:
            RuntimeError: Before `setup`.
        """
        if self._layout is None:
            raise RuntimeError("The guide does not know its model's sites yet: call guide.setup(*args) or fit first.")
        return self._layout

    @property
    def bijection(self) -> Bijection:
        """The map T from noise to unconstrained weights.

        Raises:
            RuntimeError: Before `setup`.
        """
        return self._made("map")

    def _made(self, name: str) -> Any:
        if name not in self._modules:
            raise RuntimeError("The guide has no parameters yet: call guide.setup(*args) or fit first.")
        return self._modules[name]

    def setup(self, *args: Any, **kwargs: Any) -> "AutoHypernet":
        """Runs the model once and makes every parameter; a second call only checks that the sites are the same.

        Args:
            args: The model's arguments.
            kwargs: The model's keyword arguments.

        Returns:
            The guide itself; `describe` states its parameters and bytes.

        Raises:
            RuntimeError: If the model has no latent site.
            ValueError: If a site is discrete or lies inside a subsampled plate, the density at the start is not finite,
                the data hold NaN, or the guide would not fit in memory.
        """
        self._setup_prototype(*args, **kwargs)
        return self

    def restart(self, *args: Any, **kwargs: Any) -> "AutoHypernet":
        """Forgets all parameters and makes new ones, from a new draw of the start where it is random."""
        self._its_model()
        self.reject(None)
        if self._layout is not None:
            self.prototype_trace = self._layout = None
        return self.setup(*args, **kwargs)

    def describe(self) -> str:
        """One line on what was built: sites, structure, hypernetwork, parameters and bytes."""
        layout = self.layout
        count = sum(parameter.numel() for parameter in self.parameters())
        itemsize = next(self.parameters()).element_size()
        names = {"structure": self._asked.structure, "hypernet": self._asked.hypernet}
        chosen = (
            f"{name} {spelt(getattr(self.plan, name))}" + (" (chosen by auto)" if asked == "auto" else "")
            for name, asked in names.items()
        )
        return (
            f"AutoHypernet: {self.latent_dim} weights in {len(layout.sites)} sites; {', '.join(chosen)}; "
            f"{count} parameters, "
            f"{spell_bytes(count * itemsize)} ({spell_bytes(4 * count * itemsize)} while Adam trains them)."
            + (f" {self._knowledge}" if self._knowledge else "")
            + f" {self.plan}."
            + (f" One in {1 / self.rejection.rate:.0f} proposals is kept." if self.rejection else "")
        )

    def build(self, layout: Layout, loc: Tensor, knowledge: Knowledge | None = None) -> None:
        """Makes the map and its parameters for these sites.

        Args:
            layout: The latent sites.
            loc: The centre at the start, shape `(D,)`; it fixes dtype and device.
            knowledge: What the structure "informed" is to build in.

        Raises:
            ValueError: If the parameters and their optimiser would not fit in memory.
        """
        self._knowledge, self._plan = knowledge, self._asked.worked_out(layout.dim, knowledge)
        refuse_what_cannot_fit(partial(self._make_map, layout), loc)
        self._layout = layout
        self.latent_dim = layout.dim
        self.register_buffer("_origin", torch.zeros_like(loc))
        self.add_module("map", self._make_map(layout, loc))
        components = self.plan.num_components
        self.add_module("base", Mixture(self._origin, components) if components > 1 else Normal(self._origin))
        self._start = self._fingerprint()

    def get_base_dist(self) -> dist.TorchDistribution:
        """The distribution of the noise on R^D: standard normal, or a learnt mixture of normals, after rejection."""
        return self._noise().distribution()

    def _noise(self) -> Base:
        """What is drawn from: the base, or what rejection leaves of it."""
        proposals, rejection = self._made("base"), self.rejection
        if rejection is None or (torch.jit.is_tracing() and leave_rejection_out(self)):
            return proposals
        return Rejected(proposals, rejection, self._log_weights)

    @property
    def rejection(self) -> Rejection | None:
        """The rejection that draws go through; None where every draw is kept, as while the guide learns."""
        rejection = self._modules.get("keeper")
        # Once the parameters have moved on, it holds no longer.
        return rejection if rejection is not None and rejection.fingerprint == self._fingerprint() else None

    @torch.no_grad()
    def reject(
        self, args: tuple | None, kwargs: dict | None = None, *, rates: Sequence[float] = REJECTION_RATES
    ) -> Choice | None:
        """Lets only those draws through from now on that the posterior wants; the density stays exact.

        Proposals are kept with probability `min(1, W / c)`, W their importance weight: where the guide has too much
        mass it gives some up. A draw then costs `1 / rate` forward passes and densities. The greatest rate is taken
        that brings the bound within a fifth of a nat of the log evidence, as far as the weights show that; if keeping
        every draw does so already, none is rejected. It holds until the parameters change; `fit` calls this at its end.

        Args:
            args: The model's arguments, data included; None keeps every draw again.
            kwargs: The model's keyword arguments.
            rates: Shares of proposals to choose from, in (0, 1); one fixes it.

        Returns:
            What was chosen, and the bound it reaches; None where nothing is rejected.

        Raises:
            ValueError: If a rate is out of its range, a plate draws minibatches, or no proposal has a finite weight.

        Source: Grover et al. 2018, arXiv 1804.01712.
        """
        self._modules.pop("keeper", None)
        if args is None:
            return None
        rates = tuple(rates)
        if not rates or not all(isinstance(rate, (int, float)) and 0 < rate < 1 for rate in rates):
            raise ValueError(f"rates must be shares of draws to keep, between 0 and 1; got {rates!r}.")
        arguments = (tuple(args), kwargs or {})
        with outside_of_pyro(), pyro.validation_enabled(False):
            values = self.layout.constrain(self.bijection.forward_and_log_det(self._origin)[0])[0]
            refuse_minibatches(trace_one(self._its_model(), values, *arguments), "rejection")
            refuse_random_density(
                LogJoint(self._its_model(), self.layout), self.looks(SMALL_BATCH)[:NUM_LOOKS], "rejection", *arguments
            )
        log_weights = self._origin.new_zeros(0, dtype=torch.float64)
        while len(log_weights) < NUM_PROPOSALS:
            more = self._log_weights(arguments, self._made("base").distribution().sample((BATCH,)))
            log_weights = torch.cat([log_weights, more.double()])
            choice = choose(log_weights, rates, gap=REJECTION_GAP)
            if len(rates) > 1 and choice.log_evidence - float(log_weights.mean()) <= REJECTION_GAP:
                return None
        numbers = self._origin.new_tensor([choice.log_threshold, choice.log_rate], dtype=torch.float64)
        self._install(numbers[0], numbers[1], choice.rate_error, arguments)
        return choice

    @property
    def is_trained(self) -> bool:
        """Whether its parameters have been moved from where they start, by `fit`, by SVI or by a file."""
        return self._start is None or self._start != self._fingerprint()

    @property
    def suits_annealing(self) -> bool:
        """Whether `fit` lets the data count otherwise at first of its own accord."""
        return self.plan.anneal != 1 and not self.is_trained

    def suits_rejection(self, args: tuple, kwargs: dict | None = None) -> bool:
        """Whether `fit` lets the posterior choose among draws of its own accord: the plan and the data allow for it.

        Args:
            args: The model's arguments.
            kwargs: Its keyword arguments.
        """
        can_weigh = self._uninitialised_model is not None and Arguments(args, kwargs or {}).can_be_kept()
        return self.plan.rejection is not None and can_weigh

    def _install(
        self, log_threshold: Tensor, log_rate: Tensor, rate_error: float, arguments: tuple[tuple, dict[str, Any]]
    ) -> None:
        shared = next((part for part in self.modules() if isinstance(part, Arguments) and part.are(*arguments)), None)
        kept = Arguments(*arguments, persistent=False) if shared is None else shared
        rejection = Rejection(log_threshold, log_rate, rate_error, kept, is_shared=shared is not None)
        rejection.fingerprint = self._fingerprint()
        self.add_module("keeper", rejection.to(self._origin.device))

    def _fingerprint(self) -> tuple[int, ...]:
        """Changes with every step of the parameters."""
        return tuple(parameter._version for parameter in self.parameters())

    @torch.no_grad()  # which draws are kept is held fixed while others are differentiated
    def _log_weights(self, arguments: tuple[tuple, dict], eps: Tensor) -> Tensor:
        """log p(data, w) − log q(w) of proposals of shape `(S, D)`, rejection aside; shape `(S,)`."""
        model = self._its_model()
        if self._density is None or self._density[0] is not model:
            log_joint = LogJoint(model, self.layout)
            self._density = (
                model,
                Vectorized(log_joint._value_of_one, differentiable=False, failed=lambda w, _: zero_density(w)),
            )
        with outside_of_pyro():
            w, log_det = self.bijection.forward_and_log_det(eps)
            log_p = self._density[1](w, *arguments)
        return log_p - self._made("base").log_prob(eps) + log_det

    def get_transform(self, *args: Any, **kwargs: Any) -> Bijection:
        """The map T from noise to unconstrained weights; does not depend on the arguments."""
        self._announce_parameters()
        return self.bijection

    def sample_and_log_prob(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draws unconstrained weights in one pass, with gradients to all parameters.

        Args:
            num_samples: Number of draws S.

        Returns:
            Draws of shape `(S, D)` and their log q in nats, shape `(S,)`.
        """
        base = self.get_base_dist()
        eps = base.rsample((num_samples,))
        w, log_det = in_pieces(self.get_transform(), eps)
        return w, base.log_prob(eps) - log_det

    def sample_strata(self, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `sample_and_log_prob`, with as many draws from every component of the base, and weights for that.

        Args:
            num_samples: Number of draws S; of K components each gives `S / K`, rounded up.

        Returns:
            Draws of shape `(S, D)`, their log q in nats, and weights that sum to one, both of shape `(S,)`.
        """
        strata = self._noise().sample_strata(num_samples)
        w, log_det = in_pieces(self.get_transform(), strata.eps)
        return w, strata.log_prob - log_det, strata.weights

    def unconstrained_log_prob(self, w: Tensor) -> Tensor:
        """log q of unconstrained weights of shape `(..., D)`, in nats, shape `(...)`."""
        eps, log_det = self.get_transform().inverse_and_log_det(w)
        return self._noise().log_prob(eps) + log_det

    def log_prob(self, samples: Mapping[str, Tensor]) -> Tensor:
        """log q of constrained values, Jacobians included.

        Args:
            samples: A dict from every latent site to values of shape `(..., *shape)`.

        Returns:
            Log density in nats, shape `(...)`.

        Raises:
            ValueError: If names or shapes do not fit the sites.
        """
        w, log_det = self.layout.unconstrain(samples)
        return self.unconstrained_log_prob(w) - log_det

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws all sites independently from the guide.

        Args:
            num_samples: Number of draws S.

        Returns:
            A dict from site to draws of shape `(S, *shape)`, without gradient.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
        w = in_pieces(self.bijection, self.get_base_dist().sample((num_samples,)))[0]
        return self.layout.constrain(w)[0]

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of every unconstrained coordinate, on the sites' supports: a dict from site to `shape`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of every unconstrained coordinate, on the sites' supports.

        From a fixed set of antithetic draws, so equal at every call, and exact medians for affine maps.

        Args:
            quantiles: Q probabilities in [0, 1].
            args: The model's arguments, needed only before `setup`.
            kwargs: Its keyword arguments.

        Returns:
            A dict from site to quantiles of shape `(Q, *shape)`.
        """
        if self._layout is None:
            self.setup(*args, **kwargs)
        probabilities = torch.as_tensor(quantiles, dtype=self._origin.dtype, device=self._origin.device)
        if probabilities.dim() != 1 or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
            raise ValueError(f"quantiles must be a list of probabilities in [0, 1]; got {quantiles!r}.")
        rejection = self.rejection
        wanted = _QUANTILE_DRAWS if rejection is None else _QUANTILE_DRAWS / rejection.rate
        num_draws = 2 * (int(max(64, min(wanted, _QUANTILE_NUMBERS // self.latent_dim))) // 2)
        w = in_pieces(self.bijection, self._noise().place(self._fixed_noise(num_draws)))[0].sort(dim=0).values
        position = probabilities * (len(w) - 1)
        lower = position.floor().long()
        upper = (lower + 1).clamp(max=len(w) - 1)
        return self.layout.constrain(torch.lerp(w[lower], w[upper], (position - lower)[:, None]))[0]

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._layout is not None and self._uninitialised_model is None:  # unpickled without it
            return
        with outside_of_pyro():  # whoever calls the guide, in whatever plates: the model is looked at by itself
            layout = self._look_at_the_model(args, kwargs)
            if self._layout is not None:
                self._layout.check(layout, "this call")
                return
            self._start_at(layout, args, kwargs)
        logger.info(self.describe())

    def _its_model(self) -> Model:
        if self._uninitialised_model is None:
            raise RuntimeError(
                "This guide was unpickled without its model, which draws do not need but this does: make a new guide "
                "with AutoHypernet(model) and load_state_dict, or keep guides with pyro_hypernet.save and load."
            )
        return self._uninitialised_model[0]

    def _look_at_the_model(self, args: tuple, kwargs: dict) -> Layout:
        """Runs the model once, as every AutoContinuous does."""
        try:
            super()._setup_prototype(*args, **kwargs)
        except ValueError:
            raise_for_nan(name_arguments(self._its_model(), args, kwargs))
            raise
        refuse_local_latents(self.prototype_trace)
        if self.master is None:  # NeuTraReparam asks for them before the first call
            self._create_plates(*args, **kwargs)
        layout = Layout.from_trace(self.prototype_trace)
        self._tell_pyro(layout)
        return layout

    def _tell_pyro(self, layout: Layout) -> None:
        """Gives Pyro, which maps draws by the priors' supports, the supports and maps of the layout."""
        for site in layout.sites:
            node = self.prototype_trace.nodes[site.name]
            fn, support = node["fn"], stable(site.support)
            if is_periodic(node):
                node["value"] = within_period(node["value"])
            elif support is site.support:
                continue
            node["fn"] = dist.ImproperUniform(support, fn.batch_shape, fn.event_shape)

    def _start_at(self, layout: Layout, args: tuple, kwargs: dict) -> None:
        """Checks the model at the start and makes every parameter."""
        loc, model = self._init_loc(), self._its_model()
        log_joint = LogJoint(self.model, layout)
        check_start(log_joint, loc, name_arguments(model, args, kwargs), args, kwargs)
        refuse_vanished_priors(model, layout, self.prototype_trace, args, kwargs)
        with torch.random.fork_rng(devices=[]):  # for a file: the prototype hides them
            self._stored_names = stored_names(log_joint.params(loc, *args, **kwargs))
        refuse_dependent_supports(model, layout, loc, args, kwargs)
        with torch.no_grad(), pyro.validation_enabled(False):
            knowledge = self._learn(layout, loc, args, kwargs)
            if self._asked.num_components > 1 and self._asked.init_scale is None:  # modes may be anywhere in the prior
                self._width = prior_width(model, layout, loc, args, kwargs)
        self.build(layout, loc, knowledge)
        if self._width is not None:
            self._spread_components(args, kwargs)

    def _learn(self, layout: Layout, loc: Tensor, args: tuple, kwargs: dict) -> Knowledge | None:
        """What the structure will build in, if it is one that builds anything in."""
        if not self._asked.may_be_informed(layout.dim, has_default_start=self._has_default_start):
            return None
        return learn(self._its_model(), layout, self.prototype_trace, loc, args, kwargs) or None

    @torch.no_grad()
    def _spread_components(self, args: tuple, kwargs: dict) -> None:
        """Starts every component of the base at a mode of its own, as far as there are several."""
        modes = find_modes(self._its_model(), self.layout, args, kwargs, num_modes=self.plan.num_components)
        self._made("base").locs.copy_(self.bijection.inverse_and_log_det(modes.to(self._origin))[0])

    def _make_map(self, layout: Layout, loc: Tensor) -> Bijection:
        hypernet, structure = resolve_hypernet(self.plan.hypernet), resolve_structure(self.plan.structure)
        init_scale = self.plan.init_scale
        if not self._knowledge:
            scale = torch.full_like(loc, init_scale or DEFAULT_SCALE)
            return structure(layout, hypernet, loc, scale if self._width is None else self._width.to(loc))
        width = self._knowledge.width if len(self._knowledge.width) else torch.ones(layout.dim, device="cpu")
        scale = torch.full_like(loc, init_scale) if init_scale else width.to(loc)
        return informed(layout, hypernet, loc, scale, knowledge=self._knowledge)

    def _announce_parameters(self) -> None:
        """Tells Pyro of every parameter; the maps stay plain modules, for Pyro would bind those by class name."""
        named = dict(self.named_parameters())
        values, self._param_prefix = announce(named, self._pyro_name, self._param_prefix)
        for name, parameter in named.items():
            if values[name] is not parameter:
                raise ValueError(
                    f"A handler around the guide puts another value in the place of its parameter {name!r}, as "
                    "poutine.lift does: the map holds its own parameters and would not see it. Put priors on the "
                    "model's parameters, or set the guide's with load_state_dict."
                )

    @torch.no_grad()
    def looks(self, num_draws: int) -> Tensor:
        """Weights that the guide can draw, the same at every call, shape `(num_draws, D)`, `num_draws` even."""
        with pyro.validation_enabled(False):
            return self.bijection.forward_and_log_det(self._made("base").place(self._fixed_noise(num_draws)))[0]

    def _fixed_noise(self, num_draws: int) -> Tensor:
        """Antithetic standard normal draws, the same at every call, shape `(num_draws, D)`, `num_draws` even."""
        generator = torch.Generator("cpu").manual_seed(0)
        half = torch.randn(num_draws // 2, self.latent_dim, generator=generator, device="cpu", dtype=torch.float64)
        return torch.cat([half, -half]).to(self._origin)

    def __getstate__(self) -> dict[str, Any]:
        return pickled(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        unpickled(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoHypernet":
        return copied(self, memo)

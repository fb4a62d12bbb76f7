"""AutoHypernet: an invertible hypernetwork as a Pyro autoguide over all latent sites of a model."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_hypernet.guide.base import Normal
from pyro_hypernet.guide.build import FirstRun, make_map, read_layout
from pyro_hypernet.guide.copies import copied, pickled, unpickled
from pyro_hypernet.guide.flow import Flow
from pyro_hypernet.guide.flow_guide import FlowGuide, known
from pyro_hypernet.guide.in_words import in_words
from pyro_hypernet.guide.mixture import Mixture
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.informed.detect import Knowledge
from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.model.arguments import Arguments
from pyro_hypernet.model.called import blaming_arguments, name_arguments
from pyro_hypernet.model.density import density_of
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.starts import start_of
from pyro_hypernet.model.tempered import at_temperature
from pyro_hypernet.model.validate import raise_for_nan, refuse_what_cannot_fit, spell_bytes
from pyro_hypernet.model.vectorize import Model, outside_of_pyro

logger = logging.getLogger(__name__)


class AutoHypernet(FlowGuide):
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
            "last_layer", "low_rank", "weight_norm", "multiplicative", "patterns", or such a function. "informed" builds
            in what `setup` finds out about the model (weights that act linearly, symmetries of hidden units); "auto"
            takes it where there is something to find, up to 2 000 weights, unless `init_loc_fn` or `init_scale` ask for
            another start; see `describe` for what was chosen.
        init_loc_fn: A Pyro initialisation strategy for the centre; None for `init_to_median`, zero where a prior is
            flat, and for the network's own values, trained or not, where `bayesianize` made the model of one with more
            than 2 000 weights.
        init_scale: The standard deviation of every unconstrained weight at the start, positive; None for 0.1, for the
            prior's own widths in the structure "informed", and for a share of the prior's where the guide starts at a
            network's values.
        num_components: Number of Gaussians in the base distribution; more than one can hold several modes. They start
            at modes found by gradient ascent from the prior, unless `init_scale` is given.
        plan: All of these but `init_loc_fn`, and how `fit` trains the guide, in one value, such as another guide's.

    Raises:
        ValueError: If a nickname is unknown, or a number is out of its range.

    Example:
        >>> import pyro, pyro.distributions as dist
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
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        num_components: int = 1,
        plan: Plan | None = None,
    ) -> None:
        named = Plan(structure, hypernet, init_scale, num_components)
        if plan is not None and named != Plan():
            raise ValueError(
                f"A plan names hypernet, structure, init_scale and num_components itself; got {named!r} too."
            )
        asked = named if plan is None else plan
        is_large = getattr(model, "is_large", False) is True
        is_at_network = init_loc_fn is None and asked.init_scale is None and is_large
        usual = init_to_value(values=model.own_values()) if is_at_network else start_of
        super().__init__(model, init_loc_fn or usual)
        self._asked, self._is_at_network, self._is_large = asked, is_at_network, is_large
        self._plan: Plan | None = None
        self._knowledge: Knowledge | None = None
        self._stored_names: dict[str, bool] = {}  # of the model's own parameters
        self._start: tuple[int, ...] | None = None

    @property
    def plan(self) -> Plan:
        """What the guide is built of, and how `fit` trains it; nothing in it is "auto". RuntimeError before `setup`."""
        return known(self._plan, "has no plan")

    @property
    def temperature(self) -> float:
        """Of the posterior that the guide stands for, 1 for that of Bayes' rule. RuntimeError before `setup`."""
        return float(self.plan.temperature)

    @property
    def knowledge(self) -> Knowledge | None:
        """What the structure "informed" has built in; None for other structures, and where nothing was found."""
        return self._knowledge

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
        """What was built, line by line: sites, parameters and bytes, structure, hypernetwork, training."""
        sites = self.layout.sites
        count = sum(parameter.numel() for parameter in self.parameters())
        size = count * next(self.parameters()).element_size()
        rate = self.rejection.rate if self.rejection else None
        of_network = self.latent_dim if self._is_large else 0
        return (
            f"AutoHypernet: {self.latent_dim} weights in {len(sites)} sites; {count} parameters, "
            f"{spell_bytes(size)} ({spell_bytes(4 * size)} while Adam trains them).\n"
            + in_words(self.plan, self._asked, self._knowledge, rate, of_network)
        )

    def build(
        self, layout: Layout, loc: Tensor, knowledge: Knowledge | None = None, *, width: Tensor | None = None
    ) -> None:
        """Makes the map and its parameters for these sites.

        Args:
            layout: The latent sites.
            loc: The centre at the start, shape `(D,)`; it fixes dtype and device.
            knowledge: What the structure "informed" is to build in.
            width: Standard deviations at the start, shape `(D,)`; None for those of the plan.

        Raises:
            ValueError: If the parameters and their optimiser would not fit in memory.
        """
        plan = self._asked.worked_out(layout.dim, knowledge, is_at_network=self._is_at_network)
        make = partial(make_map, plan, layout, knowledge=knowledge, width=width)
        self._knowledge, self._plan = knowledge, plan
        refuse_what_cannot_fit(make, loc)
        bijection, origin = make(loc), torch.zeros_like(loc)
        base = Normal(origin) if plan.num_components == 1 else Mixture(origin, plan.num_components)
        self._draw_by(Flow(base, bijection, layout, origin))
        self._start = self._fingerprint()

    @property
    def is_trained(self) -> bool:
        """Whether its parameters have been moved from where they start, by `fit`, by SVI or by a file."""
        return self._start is None or self._start != self._fingerprint()

    def take_temperature(self, plan: Plan) -> None:
        """From now on the guide stands for the posterior at the temperature of this plan."""
        if plan.temperature != self.plan.temperature:
            self._plan, self._weigher = replace(self.plan, temperature=plan.temperature), None

    def _weighed_model(self) -> Model:
        return at_temperature(self._its_model(), self.plan.temperature)

    @property
    def suits_annealing(self) -> bool:
        """Whether `fit` lets the data count otherwise at first of its own accord."""
        return self.plan.anneal != 1 and not self.is_trained

    def suits_rejection(self, args: tuple, kwargs: dict | None = None) -> bool:
        """Whether `fit` lets the posterior choose among draws of its own accord: the plan and the data allow for it."""
        can_weigh = self._uninitialised_model is not None and Arguments(args, kwargs or {}).can_be_kept()
        return self.plan.rejection is not None and can_weigh

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        if self._layout is not None and self._uninitialised_model is None:  # unpickled without it
            return
        with outside_of_pyro():  # whoever calls the guide, in whatever plates: the model is looked at by itself
            self._run_model(args, kwargs)
            layout = read_layout(self.prototype_trace)
            if self._layout is not None:
                self._layout.check(layout, "this call")
                return
            model, trace = self._its_model(), self.prototype_trace
            log_joint = density_of(model, layout, mode="eager")
            run = FirstRun(log_joint, self.model, trace, self._init_loc(), args, kwargs)
            self._stored_names = run.check()
            has_default_start = self._init_loc_fn is start_of and self._asked.init_scale is None
            knowledge = run.find_knowledge(self._asked, has_default_start=has_default_start)
            at_network = self._is_at_network
            width = run.width_around_network(model.start_share) if at_network else run.find_width(self._asked)
            self.build(layout, run.loc, knowledge, width=width)
            if self.plan.num_components > 1 and width is not None and not at_network:
                run.spread(self._proposals())
        logger.info(self.describe())

    def _run_model(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """As every AutoContinuous does."""
        try:
            with blaming_arguments(self._its_model(), args, kwargs):
                super()._setup_prototype(*args, **kwargs)
        except ValueError:
            raise_for_nan(name_arguments(self._its_model(), args, kwargs))
            raise
        if self.master is None:  # NeuTraReparam asks for them before the first call
            self._create_plates(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return pickled(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        unpickled(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoHypernet":
        return copied(self, memo)

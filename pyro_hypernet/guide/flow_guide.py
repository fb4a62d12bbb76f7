"""A Pyro autoguide that draws by a flow, and of whose draws the posterior may choose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor

from pyro_hypernet.guide.copies import leave_rejection_out
from pyro_hypernet.guide.flow import Flow, OntoPeriods
from pyro_hypernet.guide.plan import REJECTION_RATES, as_shares
from pyro_hypernet.guide.rejection import Choice, Rejected, Rejection
from pyro_hypernet.guide.weigher import Weigher
from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.model.announce import announce
from pyro_hypernet.model.arguments import Arguments
from pyro_hypernet.model.density import LogJoint, density_of
from pyro_hypernet.model.layout import Layout, is_periodic
from pyro_hypernet.model.vectorize import Model

_T = TypeVar("_T")


class FlowGuide(AutoContinuous):
    """All that a guide does once its noise and its map are made; a subclass makes them, in `_setup_prototype`.

    Args:
        init_loc_fn: A Pyro initialisation strategy for the centre.
    """

    def __init__(self, model: Model, init_loc_fn: Callable[..., Any]) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._uninitialised_model: tuple[Model] | None = (model,)  # None after pickling, where no draw needs it
        self._init_loc_fn = init_loc_fn
        self._layout: Layout | None = None
        self._param_prefix: str | None = None
        self._weigher: Weigher | None = None
        self._densities: dict[str, LogJoint] = {}  # of its own model, by mode

    @property
    def layout(self) -> Layout:
        """The model's latent sites. RuntimeError before `setup`."""
        return known(self._layout, "does not know its model's sites")

    @property
    def bijection(self) -> Bijection:
        """The map T from noise to unconstrained weights. RuntimeError before `setup`."""
        return known(self._modules.get("map"), "has no parameters")

    def density(self, model: Model, *, mode: str = "graph") -> LogJoint:
        """The density of a model at the guide's sites; that of its own is kept, with the graphs that were captured."""
        log_joint, own = density_of(model, self.layout, mode=mode), self._uninitialised_model
        return self._densities.setdefault(mode, log_joint) if own and own[0] is model else log_joint

    def get_base_dist(self) -> dist.TorchDistribution:
        """The distribution of the noise on R^D: standard normal, or a learnt mixture of normals, after rejection."""
        return self._flow().noise.distribution()

    def get_transform(self, *args: Any, **kwargs: Any) -> Bijection:
        """The map T from noise to what Pyro takes for unconstrained weights; does not depend on the arguments."""
        self._announce_parameters()
        trace = self.prototype_trace
        periodic = [] if trace is None else [site for site in self.layout.sites if is_periodic(trace.nodes[site.name])]
        return OntoPeriods(self.bijection, periodic) if periodic else self.bijection

    def sample_and_log_prob(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Unconstrained weights with gradients to all parameters, `(S, D)`, and their log q in nats, `(S,)`."""
        return self._flow(announced=True).sample_and_log_prob(num_samples)

    def sample_strata(self, num_samples: int, share: slice | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `sample_and_log_prob`, of K components each `S / K`, rounded up, and weights that sum to one, `(S,)`.

        With `share` only so many of them, out of the same noise.
        """
        return self._flow(announced=True).sample_strata(num_samples, share)

    def unconstrained_log_prob(self, w: Tensor) -> Tensor:
        """log q of unconstrained weights of shape `(..., D)`, in nats, shape `(...)`."""
        return self._flow(announced=True).log_prob(w)

    def log_prob(self, samples: Mapping[str, Tensor]) -> Tensor:
        """log q of constrained values, `(..., *shape)` by latent site, Jacobians included, in nats, shape `(...)`.

        Raises:
            ValueError: If names or shapes do not fit the sites.
        """
        w, log_det = self.layout.unconstrain(samples)
        return self.unconstrained_log_prob(w) - log_det

    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Independent draws of all sites, a dict from site to `(S, *shape)`, without gradient."""
        return self._flow().sample(num_samples)

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of every unconstrained coordinate, on the sites' supports: a dict from site to `shape`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of every unconstrained coordinate, on the sites' supports: a dict from site to `(Q, *shape)`.

        From a fixed set of antithetic draws, so equal at every call, and exact medians for affine maps. The model's
        arguments are needed only before `setup`.
        """
        if self._layout is None:
            self.setup(*args, **kwargs)
        return self._flow().quantiles(quantiles)

    def looks(self, num_draws: int) -> Tensor:
        """Weights that the guide can draw, the same at every call, shape `(num_draws, D)`, `num_draws` even."""
        return self._proposals().looks(num_draws)

    def places(self) -> Tensor:
        """Weights at which a model can be tried, `(3, D)`: two that the guide can draw, and where it ran at first."""
        nodes = self.prototype_trace.nodes
        start = self.layout.unconstrain({name: nodes[name]["value"].detach() for name in self.layout.names})[0]
        return torch.cat([self.looks(2), start[None]])

    @property
    def rejection(self) -> Rejection | None:
        """The rejection that draws go through; None where every draw is kept, as while the guide learns."""
        rejection = self._modules.get("keeper")
        # Once the parameters have moved on, it holds no longer.
        return rejection if rejection is not None and rejection.fingerprint == self._fingerprint() else None

    def reject(
        self, args: tuple | None, kwargs: dict | None = None, *, rates: Sequence[float] | float = REJECTION_RATES
    ) -> Choice | None:
        """Lets only those draws through from now on that the posterior wants; the density stays exact.

        Proposals are kept with probability `min(1, W / c)`, W their importance weight: where the guide has too much
        mass it gives some up. A draw then costs `1 / rate` forward passes and densities. The greatest rate is taken
        that brings the bound within a fifth of a nat of the log evidence, as far as the weights show that; if keeping
        every draw does so already, none is rejected. It holds until the parameters change; `fit` calls this at its end.

        Args:
            args: The model's arguments, data included; None keeps every draw again.
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
        arguments, shares = (tuple(args), kwargs or {}), as_shares(rates, "rates must be")
        choice = self._weigh().choose(arguments, shares)
        if choice is not None:
            self._install(choice.log_threshold, choice.log_rate, choice.rate_error, arguments)
        return choice

    def _draw_by(self, flow: Flow) -> None:
        """Takes a flow's parameters for its own."""
        self._layout, self.latent_dim, self._weigher, self._densities = flow.layout, flow.layout.dim, None, {}
        self.register_buffer("_origin", flow.origin)
        self.add_module("map", flow.bijection)
        self.add_module("base", flow.noise)

    def _proposals(self) -> Flow:
        """What is drawn by where every draw is kept."""
        base = known(self._modules.get("base"), "has no parameters")
        return Flow(base, self.bijection, self.layout, self._origin)

    def _flow(self, *, announced: bool = False) -> Flow:
        """What is drawn by, its parameters announced to Pyro or not."""
        if announced:
            self._announce_parameters()
        proposals, rejection = self._proposals(), self.rejection
        if rejection is None or (torch.jit.is_tracing() and leave_rejection_out(self)):
            return proposals
        return replace(proposals, noise=Rejected(proposals.noise, rejection, self._weigh()))

    def _weigh(self) -> Weigher:
        if self._weigher is None:
            self._weigher = Weigher(self.density(self._weighed_model()), self._proposals())
        return self._weigher

    def _install(
        self, log_threshold: Tensor | float, log_rate: Tensor | float, rate_error: float, arguments: tuple[tuple, dict]
    ) -> None:
        """Rejects by these numbers from now on, until the parameters change."""
        shared = next((part for part in self.modules() if isinstance(part, Arguments) and part.are(*arguments)), None)
        kept = Arguments(*arguments, persistent=False) if shared is None else shared
        rejection = Rejection(log_threshold, log_rate, rate_error, kept, is_shared=shared is not None)
        rejection.fingerprint = self._fingerprint()
        self.add_module("keeper", rejection.to(self._origin.device))

    def _fingerprint(self) -> tuple[int, ...]:
        """Changes with every step of the parameters."""
        return tuple(parameter._version for parameter in self.parameters())

    def _weighed_model(self) -> Model:
        """Whose density the guide stands for."""
        return self._its_model()

    def _its_model(self) -> Model:
        if self._uninitialised_model is None:
            raise RuntimeError(
                "This guide was unpickled without its model, which draws do not need but this does: make a new guide "
                "with AutoHypernet(model) and load_state_dict, or keep guides with pyro_hypernet.save and load."
            )
        return self._uninitialised_model[0]

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


def known(value: _T | None, lack: str) -> _T:
    """What a guide has after `setup`; before, a RuntimeError says what it lacks."""
    if value is None:
        raise RuntimeError(f"The guide {lack} yet: call guide.setup(*args) or fit first.")
    return value

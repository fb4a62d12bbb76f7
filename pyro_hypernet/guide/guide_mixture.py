"""GuideMixture: guides of one model that started at different places, as one guide with an exact density."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_median, init_to_sample, init_to_value
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_hypernet.bnn.bayesianize import BayesianNet
from pyro_hypernet.bnn.starts import reinitialised, started_at
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.disagreement import Disagreement, disagreement_of
from pyro_hypernet.guide.flow import QUANTILE_DRAWS, QUANTILE_NUMBERS, quantiles_of
from pyro_hypernet.guide.model_state import gather
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.vectorize import Model, outside_of_pyro

# What a Pyro guide notes of its model's first run.
_NOTED = ("prototype_trace", "_prototype_frames", "plates", "_unconstrained_shapes", "_cond_indep_stacks")
_NO_MAP = (
    "A mixture of guides has no one map from noise to weights, so it cannot be what NeuTra runs through: take one "
    "component, mixture.components[0], or several, in as many runs."
)


class GuideMixture(AutoContinuous):
    """Guides of one model, each at a mode of its own, drawn from as one: `q(w) = Σ_k π_k q_k(w)`, an exact density.

    `fit` trains the components in turn, each as it would by itself; then their weights are equal, until `stack` chooses
    them by held-out data, or `set_log_weights` by whatever else: by the bounds, the best for components far apart, as
    `mixture.set_log_weights([result.elbo for result in fits])`. With SVI all components learn together. Predictions,
    weights of draws, `save` and `load` work as for an AutoHypernet; NeuTra, which needs one map, does not.

    Args:
        guides: Two or more guides of one model, trained or not, no guide twice. Models that learn parameters of their
            own, such as the directions of weight norm, are refused: each component would need its own.
        log_weights: Of the components, in nats, up to a constant, shape `(K,)`; None for equal ones.

    Attributes:
        disagreement: How far draws of the components predict otherwise, see `measure_disagreement`; None before.

    Raises:
        TypeError: If a guide is no AutoHypernet.
        ValueError: If there are none, one is given twice, the weights do not fit, the guides are of other sites or at
            other temperatures, or the model has parameters of its own.

    Source: Jaakkola and Jordan 1998, for mixtures as variational posteriors; Lakshminarayanan et al. 2017, arXiv
        1612.01474, for different starts of a network.

    Example:
        >>> from pyro_hypernet import bayesianize, fit, predict
        >>> model = bayesianize(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)), "categorical")
        >>> mixture = GuideMixture.from_starts(model, 3)
        >>> x, y = torch.randn(20, 2), torch.arange(20) % 3
        >>> result = fit(model, mixture, (x, y), num_steps=5, progress=False)
        >>> predict(model, mixture, x, num_samples=30)["f"].shape
        torch.Size([30, 20, 3])
    """

    def __init__(self, guides: Sequence[AutoHypernet], *, log_weights: Sequence[float] | Tensor | None = None) -> None:
        guides = list(guides)
        _check_guides(guides)
        stored = guides[0]._uninitialised_model
        model = stored[0] if stored else lambda *_, **__: guides[0]._its_model()  # which says that it is gone
        super().__init__(model, init_loc_fn=guides[0]._init_loc_fn or init_to_median)
        self.add_module("parts", nn.ModuleList(guides))
        self.register_buffer("_log_weights", torch.zeros(len(guides), dtype=torch.float64))
        self.disagreement: Disagreement | None = None
        self.set_log_weights(self._log_weights if log_weights is None else log_weights)
        if all(guide._layout is not None for guide in guides):
            self._take_over()

    @classmethod
    def from_starts(
        cls, model: Model, starts: int | Sequence[nn.Module | Mapping[str, Tensor]] = 5, *, plan: Plan | None = None
    ) -> "GuideMixture":
        """A mixture of guides of one model that start at different places.

        Args:
            model: The Pyro model.
            starts: How many. A model of `bayesianize` starts at its network's own values, and for the others at values
                that its modules draw anew; any other model at draws of its prior. Or the starts: networks, trained or
                not, or dicts from site to value, shape `shape`.
            plan: How all are built and trained, see `Plan`.

        Raises:
            TypeError: If `starts` is neither.
            ValueError: If there are fewer than one, a start does not fit the model, or no module draws values anew.
        """
        return cls(_guides_from(model, starts, plan))

    @property
    def components(self) -> tuple[AutoHypernet, ...]:
        """The guides."""
        return tuple(self._modules["parts"])

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the components' weights, which sum to one, in nats, float64, shape `(K,)`."""
        return self._log_weights

    def set_log_weights(self, log_weights: Sequence[float] | Tensor) -> None:
        """Weighs the components, in nats, up to a constant, shape `(K,)`; −inf for what is not to be drawn from.

        Raises:
            ValueError: If they are not as many as components, one is NaN or +inf, or all are −inf.
        """
        values = torch.as_tensor(log_weights, dtype=torch.float64, device=self._log_weights.device).detach()
        if values.shape != (len(self.components),) or not bool((values < math.inf).all() and values.max() > -math.inf):
            raise ValueError(
                f"log_weights must be {len(self.components)} numbers, one of them at least finite, none NaN or +inf; "
                f"got {log_weights}."
            )
        self._log_weights = values.log_softmax(0)

    @property
    def layout(self) -> Layout:
        """The model's latent sites. RuntimeError before `setup`."""
        return self.components[0].layout

    def density(self, model: Model, *, mode: str = "graph") -> LogJoint:
        """The density of a model at the guides' sites, see `AutoHypernet.density`."""
        return self.components[0].density(model, mode=mode)

    @property
    def temperature(self) -> float:
        """Of the posterior that the components stand for. RuntimeError before `setup`."""
        return next(part.temperature for _, part in self._drawn())

    def setup(self, *args: Any, **kwargs: Any) -> "GuideMixture":
        """Sets all components up, see `AutoHypernet.setup`, where need be, and returns the mixture."""
        self._setup_prototype(*args, **kwargs)
        return self

    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of every component in proportion, up to one draw, in random order, `(S, *shape)` by site."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
        at = (torch.arange(num_samples, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / num_samples
        shares = self._log_weights.cpu().exp().cumsum(0)
        counts = torch.searchsorted(shares / shares[-1], at).bincount(minlength=len(shares))
        parts = [part.sample_posterior(count) for part, count in self._each(counts)]
        order = torch.randperm(num_samples)
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value[order.to(value.device)] for name, value in values.items()}

    def sample_and_log_prob(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Independent unconstrained weights with gradients to all parameters, `(S, D)`, and their log q, `(S,)`."""
        counts = self._log_weights.exp().multinomial(num_samples, replacement=True)
        w, log_q = self._draw(counts.bincount(minlength=len(self._log_weights)))
        order = torch.randperm(num_samples, device=w.device)
        return w[order], log_q[order]

    def sample_strata(self, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """As many draws of every component that has a weight, one after the other, S in all, rounded up.

        Returns:
            Unconstrained weights, `(S, D)`, their log q in nats, `(S,)`, and shares that sum to one, `(S,)`.
        """
        drawn = self._log_weights > -math.inf
        each = -(-num_samples // int(drawn.sum()))
        w, log_q = self._draw(drawn * each)
        return w, log_q, (self._log_weights[drawn].exp() / each).to(w).repeat_interleave(each)

    def unconstrained_log_prob(self, w: Tensor) -> Tensor:
        """log q of unconstrained weights of shape `(..., D)`, in nats, shape `(...)`."""
        return self._mixed(w, None, None)

    def log_prob(self, samples: Mapping[str, Tensor]) -> Tensor:
        """log q of constrained values, see `AutoHypernet.log_prob`: a dict of `(..., *shape)` to shape `(...)`."""
        w, log_det = self.layout.unconstrain(samples)
        return self.unconstrained_log_prob(w) - log_det

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        """The distribution of unconstrained weights, shape `(D,)`; does not depend on the arguments."""
        return _Weights(self, torch.Size())

    def get_transform(self, *args: Any, **kwargs: Any) -> Any:
        """There is none, as there is no base distribution: NotImplementedError."""
        raise NotImplementedError(_NO_MAP)

    get_base_dist = get_transform

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of every unconstrained coordinate, on the sites' supports: a dict from site to `shape`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of every unconstrained coordinate, on the sites' supports; see `AutoHypernet.quantiles`."""
        if any(part._layout is None for part in self.components):
            self.setup(*args, **kwargs)
        number = max(64, min(QUANTILE_DRAWS, QUANTILE_NUMBERS // self.layout.dim))
        counts = 2 * (self._log_weights.exp() * number / 2).round().long()
        flows = ((part._flow(), count) for part, count in self._each(counts))
        w = torch.cat([flow.looks(2 * round(count / flow.noise.rate / 2)) for flow, count in flows])
        return self.layout.constrain(quantiles_of(w, quantiles))[0]

    def measure_disagreement(self, *args: Any, num_samples: int = 8, **kwargs: Any) -> Disagreement | None:
        """How far draws of different components, and of one, predict otherwise; `describe` then says it.

        Args:
            args: The model's arguments, such as new inputs.
            num_samples: Draws of every component, at least 2.
            kwargs: The model's keyword arguments.

        Returns:
            The measure; None where the model has nothing to predict.
        """
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2; got {num_samples}.")
        parts = [part for _, part in self._drawn()]
        with outside_of_pyro():
            samples = [part.sample_posterior(num_samples) for part in parts]
            self.disagreement = disagreement_of(parts[0]._its_model(), samples, args, kwargs)
        return self.disagreement

    def describe(self) -> str:
        """What is mixed: the weights, how far draws disagree, and what every component is."""
        weights = ", ".join(f"{weight:.3g}" for weight in self._log_weights.exp().tolist())
        told = [str(self.disagreement or ""), *dict.fromkeys(part.describe() for part in self.components)]
        return f"GuideMixture of {len(self.components)} guides, weights {weights}. {' '.join(filter(None, told))}"

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        for part in self.components:
            part.setup(*args, **kwargs)
        self._take_over()

    def _take_over(self) -> None:
        """Checks that the components are of one model, and notes what they know of it."""
        first, *others = self.components
        for part in others:
            first.layout.check(part.layout, "another component")
        if len({part.temperature for _, part in self._drawn()}) > 1:
            raise ValueError(
                "All components must be of one temperature, or there is no density that the mixture stands for; these "
                f"are of {', '.join(f'{part.temperature:g}' for part in self.components)}."
            )
        _refuse_point_estimates(self.components)
        self.latent_dim = first.layout.dim
        for name in _NOTED:
            if name in vars(first):
                vars(self)[name] = vars(first)[name]

    def _drawn(self) -> Iterator[tuple[float, AutoHypernet]]:
        """The components that have a weight, with its logarithm."""
        pairs = zip(self._log_weights.tolist(), self.components, strict=True)
        return ((log_weight, part) for log_weight, part in pairs if log_weight > -math.inf)

    def _each(self, counts: Tensor) -> Iterator[tuple[AutoHypernet, int]]:
        """The components of which there are to be draws, and how many."""
        return ((part, n) for part, n in zip(self.components, counts.tolist(), strict=True) if n)

    def _draw(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """So many draws of every component, shape `(S, D)`, and log q of the mixture, shape `(S,)`."""
        rows = [(part, *part.sample_and_log_prob(count)) for part, count in self._each(counts)]
        log_q = torch.cat([self._mixed(w, part, own) for part, w, own in rows])
        return torch.cat([w for _, w, _ in rows]), log_q

    def _mixed(self, w: Tensor, known: AutoHypernet | None, own: Tensor | None) -> Tensor:
        """log q of weights, the density of one component being known."""
        parts = [
            log_weight + (own if part is known else part.unconstrained_log_prob(w))
            for log_weight, part in self._drawn()
        ]
        return torch.stack(parts, -1).logsumexp(-1)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return _put_together, (list(self.components), self._log_weights, self.disagreement)


# Guides whose draws, densities and sites are known without Pyro.
JointGuide = AutoHypernet | GuideMixture


class _Weights(dist.TorchDistribution):
    """Unconstrained weights drawn by a mixture; as its weights are fixed, gradients go by the paths of components."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own interface
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mixture: GuideMixture, batch_shape: torch.Size) -> None:
        self.mixture = mixture
        super().__init__(batch_shape, torch.Size([mixture.layout.dim]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        return _Weights(self.mixture, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.mixture.unconstrained_log_prob(value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.mixture.sample_and_log_prob(max(1, shape[:-1].numel()))[0].reshape(shape)


def _put_together(guides: list[AutoHypernet], log_weights: Tensor, disagreement: Disagreement | None) -> GuideMixture:
    mixture = GuideMixture(guides, log_weights=log_weights)
    mixture.disagreement = disagreement
    return mixture


def _check_guides(guides: Sequence[Any]) -> None:
    odd = next((guide for guide in guides if not isinstance(guide, AutoHypernet)), None)
    if odd is not None:
        raise TypeError(f"A GuideMixture is made of AutoHypernets; got {type(odd).__name__}.")
    if not guides or len({id(guide) for guide in guides}) < len(guides):
        raise ValueError(
            f"A GuideMixture needs guides, each once; got {len(guides)}, of which "
            f"{len({id(guide) for guide in guides})} are different."
        )


def _guides_from(model: Model, starts: Any, plan: Plan | None) -> list[AutoHypernet]:
    """Arguments and errors as of `GuideMixture.from_starts`."""
    if isinstance(starts, int) and not isinstance(starts, bool):
        if starts < 1:
            raise ValueError(f"starts must be at least 1; got {starts}.")
        if not isinstance(model, BayesianNet):
            return [AutoHypernet(model, init_loc_fn=init_to_sample, plan=plan) for _ in range(starts)]
        models = [model, *(reinitialised(model) for _ in range(starts - 1))]
        return [_guide_at(one, plan) for one in models]
    if isinstance(starts, (str, Mapping)) or not isinstance(starts, Sequence):
        raise TypeError(f"starts must be a number, or a list of networks or dicts; got {type(starts).__name__}.")
    if isinstance(model, BayesianNet):
        return [_guide_at(started_at(model, start), plan) for start in starts]
    if not all(isinstance(start, Mapping) for start in starts):
        raise TypeError("The starts of a model that bayesianize did not make must be dicts from site to value.")
    return [AutoHypernet(model, init_loc_fn=_at(dict(start)), plan=plan) for start in starts]


def _guide_at(model: BayesianNet, plan: Plan | None) -> AutoHypernet:
    """A guide that starts at the values of the model's network, however small that is."""
    return AutoHypernet(model, init_loc_fn=None if model.is_large else _at(model.initial_values), plan=plan)


def _at(values: dict[str, Tensor]) -> Callable[..., Any]:
    return init_to_value(values=values, fallback=init_to_median)


def _refuse_point_estimates(parts: Sequence[AutoHypernet]) -> None:
    """Raises where the components predict by parameters of the model that are not drawn, or by different models."""
    learnt = list(dict.fromkeys(name for part in parts for name in part._stored_names))
    if learnt:
        raise ValueError(
            f"The model learns parameters of its own, {learnt[:4]}, which every component would need its own of; a "
            'mixture keeps draws only. Make them random, as bayesianize does by sites="all" and parametrization='
            '"weights", or fix them by requires_grad_(False), or average the predictions of one model and guide per '
            "start."
        )
    models = [part._uninitialised_model[0] for part in parts if part._uninitialised_model]
    states = [gather(model, {}).tensors for model in {id(model): model for model in models}.values()]
    for state in states[1:]:
        if state.keys() != states[0].keys() or not all(torch.equal(state[key], states[0][key]) for key in state):
            raise ValueError(
                "The components were made for models whose fixed parameters or buffers differ; a mixture is of one "
                "model: make the guides for one, or for copies of it."
            )

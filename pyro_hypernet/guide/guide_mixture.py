"""GuideMixture: guides of one model that started at different places, as one guide with an exact density."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous, init_to_sample, init_to_value
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_hypernet.bnn.bayesian_net import COMPONENT, BayesianNet
from pyro_hypernet.bnn.starts import as_one, reinitialised, started_at
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.disagreement import Disagreement, disagreement_of
from pyro_hypernet.guide.flow import QUANTILE_DRAWS, QUANTILE_NUMBERS
from pyro_hypernet.guide.own_models import have_own_models, log_prob_of_components, own_models, refuse_own_models
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.quantiles import quantiles_of
from pyro_hypernet.model.starts import start_of
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

    Where a network of `bayesianize` learns parameters, such as the directions of weight norm, every component has its
    own: draws have one more site, "component", and `log_prob` is of both, `π_k q_k(w)`. There is no one posterior to
    weigh that by: for k-hat take components with their models, `zip(mixture.models_for(model), mixture.components)`.

    Args:
        guides: Two or more guides of one model, or of copies of one that learns parameters; trained or not, no guide
            twice.
        log_weights: Of the components, in nats, up to a constant, shape `(K,)`; None for equal ones.

    Attributes:
        has_own_models: Whether every component has learnt parameters of its own; known after `setup`.
        disagreement: How far draws of the components predict otherwise, see `measure_disagreement`; None before.

    Raises:
        TypeError: If a guide is no AutoHypernet.
        ValueError: If there are none, one is given twice, the weights do not fit, the guides are of other sites or at
            other temperatures, or the model learns parameters and is not a network of bayesianize for each.

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
        super().__init__(_model_of(guides[0]), init_loc_fn=guides[0]._init_loc_fn or start_of)
        self.add_module("parts", nn.ModuleList(guides))
        self.register_buffer("_log_weights", torch.zeros(len(guides), dtype=torch.float64))
        self.disagreement: Disagreement | None = None
        self.has_own_models = False
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
        _check_log_weights(values, len(self.components))
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

    def models_for(self, model: Model) -> tuple[Model, ...]:
        """The models of the components: the one given, or where they learn parameters their own; see `own_models`."""
        return own_models(self.components, model) if self.has_own_models else (model,) * len(self.components)

    def model_of_draws(self, model: Model) -> Model:
        """What runs draws of the mixture: the model given, or those of the components as one."""
        return as_one(self.models_for(model)) if self.has_own_models else model

    def setup(self, *args: Any, **kwargs: Any) -> "GuideMixture":
        """Sets all components up, see `AutoHypernet.setup`, where need be, and returns the mixture."""
        self._setup_prototype(*args, **kwargs)
        return self

    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        """Draws of every component in proportion, up to one draw, in random order, `(S, *shape)` by site."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
        parts = [self._sampled(part, n) for part, n in self._each(_in_proportion(self._log_weights, num_samples))]
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
        if self.has_own_models and COMPONENT in samples:
            return log_prob_of_components(self.components, self._log_weights, samples)
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
        return self.layout.constrain(quantiles_of(_looks(self), quantiles))[0]

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
        model = self.model_of_draws(self.components[0]._its_model())
        with outside_of_pyro():
            samples = [self._sampled(part, num_samples) for _, part in self._drawn()]
            self.disagreement = disagreement_of(model, samples, args, kwargs)
        return self.disagreement

    def describe(self) -> str:
        """What is mixed: the weights, how far draws disagree, and what every component is."""
        weights = ", ".join(f"{weight:.3g}" for weight in self._log_weights.exp().tolist())
        told = [str(self.disagreement or ""), *dict.fromkeys(part.describe() for part in self.components)]
        return "\n".join([f"GuideMixture of {len(self.components)} guides, weights {weights}.", *filter(None, told)])

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        for part in self.components:
            part.setup(*args, **kwargs)
        self._take_over()

    def _take_over(self) -> None:
        """Checks that the components are of one model, and notes what they know of it."""
        first, *others = self.components
        for part in others:
            first.layout.check(part.layout, "another component")
        _check_temperatures([part.temperature for _, part in self._drawn()])
        self.has_own_models = have_own_models(self.components)
        self.latent_dim = first.layout.dim
        vars(self).update({name: vars(first)[name] for name in _NOTED if name in vars(first)})

    def _drawn(self) -> Iterator[tuple[float, AutoHypernet]]:
        """The components that have a weight, with its logarithm."""
        pairs = zip(self._log_weights.tolist(), self.components, strict=True)
        return ((log_weight, part) for log_weight, part in pairs if log_weight > -math.inf)

    def _each(self, counts: Tensor) -> Iterator[tuple[AutoHypernet, int]]:
        """The components of which there are to be draws, and how many."""
        return ((part, n) for part, n in zip(self.components, counts.tolist(), strict=True) if n)

    def _sampled(self, part: AutoHypernet, count: int) -> dict[str, Tensor]:
        """Draws of one component, which say of which where that has a model of its own."""
        values, number = part.sample_posterior(count), self.components.index(part)
        like = next(iter(values.values()))
        return values | ({COMPONENT: like.new_full((count,), number).long()} if self.has_own_models else {})

    def _draw(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """So many draws of every component, shape `(S, D)`, and log q of the mixture, shape `(S,)`."""
        rows = [(part, *part.sample_and_log_prob(count)) for part, count in self._each(counts)]
        log_q = torch.cat([self._mixed(w, part, own) for part, w, own in rows])
        return torch.cat([w for _, w, _ in rows]), log_q

    def _mixed(self, w: Tensor, known: AutoHypernet | None, own: Tensor | None) -> Tensor:
        """log q of weights, the density of one component being known."""
        refuse_own_models(self.has_own_models)
        parts = [log_w + (own if part is known else part.unconstrained_log_prob(w)) for log_w, part in self._drawn()]
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


def _model_of(guide: AutoHypernet) -> Model:
    """The guide's model, or what says that it is gone."""
    return guide._uninitialised_model[0] if guide._uninitialised_model else lambda *_, **__: guide._its_model()


def _looks(mixture: GuideMixture) -> Tensor:
    """Weights that the components can draw, in proportion and the same at every call, shape `(S, D)`."""
    number = max(64, min(QUANTILE_DRAWS, QUANTILE_NUMBERS // mixture.layout.dim))
    counts = 2 * (mixture.log_weights.exp() * number / 2).round().long()
    flows = ((part._flow(), count) for part, count in mixture._each(counts))
    return torch.cat([flow.looks(2 * round(count / flow.noise.rate / 2)) for flow, count in flows])


def _in_proportion(log_weights: Tensor, num_samples: int) -> Tensor:
    """How many of some draws every component has, up to one, shape `(K,)`."""
    at = (torch.arange(num_samples, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / num_samples
    shares = log_weights.cpu().exp().cumsum(0)
    return torch.searchsorted(shares / shares[-1], at).bincount(minlength=len(shares))


def _check_log_weights(values: Tensor, number: int) -> None:
    if values.shape != (number,) or not bool((values < math.inf).all() and values.max() > -math.inf):
        raise ValueError(
            f"log_weights must be {number} numbers, one of them at least finite, none NaN or +inf; got "
            f"{values.tolist()}."
        )


def _check_temperatures(temperatures: Sequence[float]) -> None:
    if len(set(temperatures)) > 1:
        raise ValueError(
            "All components must be of one temperature, or there is no density that the mixture stands for; these are "
            f"of {', '.join(f'{temperature:g}' for temperature in temperatures)}."
        )


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
    return init_to_value(values=values, fallback=start_of)

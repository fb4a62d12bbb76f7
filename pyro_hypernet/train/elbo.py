"""VectorizedELBO: the evidence lower bound of any model under a guide, all particles in one pass."""

from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_struct import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_hypernet.graphs.cache import describe_shapes
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.density import LogJoint, density_of
from pyro_hypernet.model.single_run import TRANSPARENT, Model, outside_of_pyro
from pyro_hypernet.model.split import SplitJoint
from pyro_hypernet.model.vectorize import MODES
from pyro_hypernet.train.capture import Captured
from pyro_hypernet.train.estimate import Estimate, VectorizedGuide, densities, path_estimate, reduce, total_estimate
from pyro_hypernet.train.local import LocalBound
from pyro_hypernet.train.notices import warn_once

_CHOICES = {
    "gradient": ("auto", "path", "total"),
    "bound": ("elbo", "importance_weighted"),
    "mode": MODES,
    "compile": ("auto", "graph", "inductor", "off"),
    "draws": ("batch", "split", "local"),
}
_NUM_PARTICLES = 8
# Steps of the same shapes before the whole of one is captured; and how many shapes are.
_CAPTURE_AFTER, _MAX_GRAPHS = 30, 4
# Of the density by the map's inverse from that by the map itself, in standard deviations of the log density of a
# Gaussian: with more the score that path gradients take from the inverse is rounding.
MAX_DISCREPANCY = 1.0


class VectorizedELBO(ELBO):
    """The ELBO of any Pyro model under an AutoHypernet, all particles in one pass of the flow and of the model.

    The model is vmapped over particles and captured as a graph (see `LogJoint`), so networks written for one draw,
    such as `PyroModule[nn.Linear]`, work unchanged. Only parameters that the model names by `pyro.param`, `pyro.module`
    or as a PyroModule are learnt.

    Args:
        num_particles: Number of draws K in one estimate; None for 8, and in `fit` for those of `guide.plan`.
        gradient: "total": the gradient of log p − log q as it stands; "path": without the score of q, whose mean is
            zero, so that the variance vanishes where q is exact; "auto": "path" for guides with a cheap inverse and
            a smooth score, so not for IAF and splines. Path gradients go through the inverse of the guide's map: where
            that is lost in rounding, "total" takes their place, with a warning.
        bound: "elbo", or "importance_weighted" for log mean exp of the K weights (its path gradient is DReG).
        mode: How the model runs: "graph", "eager" or "loop".
        compile: How a whole step of `fit` runs, density, map and gradient together, with the same losses up to
            rounding: "off": the guide by Python; "graph": captured; "inductor": compiled by torch's inductor, which
            takes a minute or so; "auto": the one of them that earns its time back. Plain SVI captures a step after a
            while, unless it is "off".
        draws: Which data share a draw of the weights; the expectation is the same. "batch": every particle meets the
            whole batch. "split": each of the K particles meets a part of its own, 1/K of the rows, so that K draws cost
            the model one pass; with any guide, of models whose data are rows in a plate; K as large as the batch is one
            draw for every datum. "local": layers of a network of `bayesianize` draw anew for every datum, dense ones
            by local reparametrisation, convolutions and others by flipout, what is left once a particle; normal priors
            are integrated; for guides of independent normal weights.

    Attributes:
        options: All arguments, by name.
        log_joint: The density of the model that is trained, once `prepare` was called.
        params: The parameters of this model's own, by name.
        share: Which of the particles are evaluated, None for all; the bound is then theirs of a sum over all.
        skip: Random numbers passed over within a step, so that processes with the same draws differ in the rest.

    Raises:
        ValueError: If an option is unknown, the number of particles is not positive, or "draws" and "bound" do not go
            together; once model and guide are known, if they do not allow for such draws.

    Source: Roeder et al. 2017 (path gradients, "sticking the landing"); Tucker et al. 2019 (DReG); Burda et al. 2016;
    Kingma et al. 2015 (local reparametrisation); Wen et al. 2018 (flipout).

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> def model(y):
        ...     mean = pyro.sample("mean", pyro.distributions.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", pyro.distributions.Normal(mean, 1.0), obs=y)
        >>> svi = SVI(model, AutoHypernet(model), pyro.optim.Adam({"lr": 0.01}), VectorizedELBO(num_particles=4))
        >>> isinstance(svi.step(torch.ones(3)), float)
        True
    """

    def __init__(
        self,
        num_particles: int | None = None,
        *,
        gradient: str = "auto",
        bound: str = "elbo",
        mode: str = "graph",
        compile: str = "auto",
        draws: str = "batch",
    ) -> None:
        if num_particles is not None and (not isinstance(num_particles, int) or num_particles < 1):
            raise ValueError(f"num_particles must be a positive integer; got {num_particles!r}.")
        chosen = {"gradient": gradient, "bound": bound, "mode": mode, "compile": compile, "draws": draws}
        for name, value in chosen.items():
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}; got {value!r}.")
        if draws != "batch" and bound != "elbo":
            raise ValueError(f'draws={draws!r} estimates a sum over data: bound={bound!r} needs draws="batch".')
        super().__init__(num_particles=num_particles or _NUM_PARTICLES, vectorize_particles=True)
        self.options = {"num_particles": num_particles, **chosen}
        self.gradient = gradient
        self.bound = bound
        self.mode = mode
        self.log_joint: LogJoint | None = None
        self.params: dict[str, Tensor] = {}
        self.share: slice | None = None
        self.skip = 0
        self._drawing: SplitJoint | LocalBound | None = None
        self._prototype: Trace | None = None
        self._is_distrusted = False
        self._may_capture = mode == "graph" and compile != "off"
        self._counts: dict[Any, int] = {}
        self._steps: dict[Any, Captured] = {}

    def with_options(self, **options: Any) -> "VectorizedELBO":
        """The same bound with some arguments changed, not prepared for any model."""
        return VectorizedELBO(**{**self.options, **options})

    def prepare(self, model: Model, guide: VectorizedGuide, args: tuple, kwargs: dict) -> LogJoint:
        """The density of this model in the guide's layout, kept as long as both stay the same.

        The guide is an AutoHypernet, an AutoNormal, or another of Pyro's AutoContinuous guides, over all latent sites.

        Raises:
            TypeError: If the guide is of another kind.
        """
        if not isinstance(guide, (AutoContinuous, AutoNormal)):
            raise TypeError(
                f"VectorizedELBO needs an AutoHypernet or another AutoContinuous guide over all latent sites; got "
                f"{type(guide).__name__}. For lists of guides, enumerated sites or handlers around the guide use "
                "Pyro's Trace_ELBO or TraceEnum_ELBO, which work with AutoHypernet too."
            )
        if guide.prototype_trace is None:
            guide._setup_prototype(*args, **kwargs)
        is_same = self.log_joint is not None and self.log_joint.model is model
        if not is_same or self._prototype is not guide.prototype_trace:
            self.log_joint = density_of(model, guide, mode=self.mode)
            self._prototype = guide.prototype_trace
            self._counts, self._steps, self._is_distrusted = {}, {}, False
            with torch.no_grad():
                w = densities(guide, args, kwargs)[0](1)[0][0]
            self.params = self.log_joint.params(w, *args, **kwargs)
            self._drawing = _draw_otherwise(self, guide, w, args, kwargs)
        return self.log_joint

    def _joint(self) -> LogJoint | SplitJoint:
        """The density that particles are weighed by."""
        if not isinstance(self._drawing, SplitJoint):
            return self.log_joint
        self._drawing.share = self.share
        return self._drawing

    @property
    def runs(self) -> str:
        """How the model runs, once it was prepared: "graph", "eager" or "loop"."""
        return (self._drawing or self.log_joint).mode

    def estimate(self, model: Model, guide: VectorizedGuide, *args: Any, **kwargs: Any) -> Estimate:
        """Estimates the bound and a surrogate for its gradient; arguments and errors as of `prepare`."""
        self.prepare(model, guide, args, kwargs)
        if isinstance(self._drawing, LocalBound):
            options = {"is_path": self.is_path(guide), "share": self.share, "skip": self.skip}
            return self._drawing.estimate(guide, self.num_particles, args, kwargs, **options)
        sample, log_prob = densities(guide, args, kwargs, self.share)
        log_joint = self._joint()
        particles, options = sample(self.num_particles), {"bound": self.bound, "is_learnt": bool(self.params)}
        if self.is_path(guide):
            return path_estimate(particles, log_prob, log_joint, args, kwargs, **options)
        return total_estimate(particles, log_joint, args, kwargs, **options)

    def is_path(self, guide: VectorizedGuide) -> bool:
        """Whether this guide's gradient goes by paths alone."""
        if self._is_distrusted:
            return False
        if self.gradient == "auto":
            return isinstance(guide, AutoHypernet) and guide.bijection.suits_path_gradient
        return self.gradient == "path"

    def loss(self, model: Model, guide: VectorizedGuide, *args: Any, **kwargs: Any) -> float:
        """Minus the estimated bound, in nats."""
        with torch.no_grad():
            self.prepare(model, guide, args, kwargs)
            if isinstance(self._drawing, LocalBound):
                loss = self.estimate(model, guide, *args, **kwargs).loss.item()
            else:
                w, log_q, weights = densities(guide, args, kwargs, self.share)[0](self.num_particles)
                loss = -reduce(self._joint()(w, *args, **kwargs) - log_q, weights, self.bound).item()
        warn_if_nan(loss, "loss")
        return loss

    def differentiable_loss(self, model: Model, guide: VectorizedGuide, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the estimated bound in nats, shape `()`, with the chosen gradient."""
        estimate = self._trusted(model, guide, args, kwargs)
        warn_if_nan(estimate.loss, "loss")
        return estimate.loss + (estimate.surrogate - estimate.surrogate.detach())

    def loss_and_grads(self, model: Model, guide: VectorizedGuide, *args: Any, **kwargs: Any) -> float:
        """Minus the estimated bound in nats; adds the gradient to every parameter's `.grad`."""
        self.prepare(model, guide, args, kwargs)
        captured = None if kwargs else self._captured(guide, args)
        if captured is not None:
            return self._replay(captured, model, guide, args)
        estimate = self._trusted(model, guide, args, kwargs)
        estimate.surrogate.backward(retain_graph=self.retain_graph)
        loss = estimate.loss.item()
        warn_if_nan(loss, "loss")
        return loss

    def distrust(self, guide: VectorizedGuide, discrepancy: float) -> None:
        """Takes total gradients from now on, for this model and guide, and says so, with an estimate's discrepancy."""
        self._is_distrusted = True
        self._counts, self._steps = {}, {}
        warn_once(
            guide,
            "path",
            f"The guide's density by the inverse of its map is off by {discrepancy:.2g} standard deviations of log q, "
            "which is rounding: training goes on with total gradients, which do without the inverse and are noisier. "
            'Use float64, another structure, or gradient="total" from the start.',
        )

    def _trusted(self, model: Model, guide: VectorizedGuide, args: tuple, kwargs: dict) -> Estimate:
        """An estimate whose gradient is not lost in the inverse."""
        estimate = self.estimate(model, guide, *args, **kwargs)
        if not self.is_path(guide) or float(estimate.discrepancy) <= MAX_DISCREPANCY:
            return estimate
        self.distrust(guide, float(estimate.discrepancy))
        return self.estimate(model, guide, *args, **kwargs)

    def _captured(self, guide: VectorizedGuide, args: tuple) -> Captured | None:
        """The whole estimate with its gradient as one graph, once there were many steps of the same shapes."""
        if not self._may_capture or not isinstance(guide, AutoHypernet) or self.runs != "graph":
            return None
        key = describe_shapes(args)
        if key is None or not all(isinstance(handler, TRANSPARENT) for handler in _PYRO_STACK):
            return None
        if key not in self._steps:
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] <= _CAPTURE_AFTER or len(self._steps) >= _MAX_GRAPHS:
                return None
            leaves = [*guide.parameters(), *self.params.values()]
            function = partial(self._numbers_and_gradients, self.log_joint.model, guide, leaves)
            try:
                with outside_of_pyro():
                    step = Captured(function, leaves, args, is_fixed=False, num_gradients=len(leaves))
            except RuntimeError:
                self._may_capture = False
                return None
            self._steps[key] = step
        step = self._steps[key]
        in_place = all(leaf.data_ptr() == view.data_ptr() for leaf, view in zip(step.leaves, step.views, strict=True))
        return step if in_place else None

    def _numbers_and_gradients(self, model: Model, guide: VectorizedGuide, leaves: list, *args: Any) -> tuple:
        estimate = self.estimate(model, guide, *args)
        gradients = torch.autograd.grad(estimate.surrogate, leaves, allow_unused=True, materialize_grads=True)
        return estimate.numbers(gradients), *gradients

    def _replay(self, captured: Captured, model: Model, guide: AutoHypernet, args: tuple) -> float:
        """A step of the graph, its gradients added to the parameters', which are announced to who listens."""
        guide.get_transform()
        for name in self.params if _PYRO_STACK else ():
            pyro.param(name)
        numbers, *gradients = captured(args)
        loss, discrepancy, _ = numbers.tolist()
        if discrepancy > MAX_DISCREPANCY:
            self.distrust(guide, discrepancy)
            return self.loss_and_grads(model, guide, *args)
        for leaf, gradient in zip(captured.leaves, gradients, strict=True):
            gradient = gradient.clone() if gradient.is_cuda else gradient  # a CUDA graph writes over its results
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        warn_if_nan(loss, "loss")
        return loss

    def _get_trace(self, model: Model, guide: VectorizedGuide, args: tuple, kwargs: dict) -> Any:
        raise TypeError("VectorizedELBO makes no traces; use pyro.infer.Trace_ELBO where traces are needed.")


def _draw_otherwise(
    elbo: VectorizedELBO, guide: VectorizedGuide, w: Tensor, args: tuple, kwargs: dict
) -> SplitJoint | LocalBound | None:
    """What evaluates draws that not all data share, of a bound that knows its density; None where they do.

    Args:
        w: Weights at which the model is tried, shape `(D,)`.
    """
    draws, options = elbo.options["draws"], {"mode": elbo.mode}
    if draws == "batch":
        return None
    if draws == "local":
        return LocalBound(elbo.log_joint, guide, w, args, kwargs, **options)
    num_components = guide.plan.num_components if isinstance(guide, AutoHypernet) else 1
    num_draws = -(-elbo.num_particles // num_components) * num_components
    options |= {"num_draws": num_draws, "is_turned": num_components > 1}
    return SplitJoint(elbo.log_joint, w, args, kwargs, **options)

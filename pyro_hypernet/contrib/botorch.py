"""A BoTorch model made of draws of a posterior, for Bayesian optimisation."""

import copy
import sys
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from botorch.acquisition.objective import PosteriorTransform, ScalarizedPosteriorTransform
from botorch.exceptions.errors import UnsupportedError
from botorch.models.model import FantasizeMixin, Model
from botorch.models.transforms.input import InputStandardize, InputTransform
from botorch.models.transforms.outcome import OutcomeTransform, Standardize
from botorch.models.utils import fantasize
from botorch.posteriors.posterior import Posterior
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.contrib.outcomes import Outcomes
from pyro_hypernet.contrib.paths import WeightedPaths
from pyro_hypernet.evaluation.draws import draws, is_guide
from pyro_hypernet.evaluation.importance import BELIEVABLE_KHAT, khat_of
from pyro_hypernet.infer import infer
from pyro_hypernet.model.vectorize import Model as PyroModel
from pyro_hypernet.pipeline.forecast import unnoticed
from pyro_hypernet.sample.refine import refine

# For refine: at 10 and 30 data, 207 and 253 of 256 draws are effective after so many moves at every power.
_NUM_MOVES, _NUM_POPULATIONS = 4, 4
_WIDTH = 50
# How much wider than one over the root of the fan-in priors of weights are tried, with so many draws each.
_GAINS, _NUM_TRIED = (1.0, 2.0, 4.0), 64


class HypernetModel(Model, FantasizeMixin):
    """Draws of a posterior as a model of BoTorch: for `optimize_acqf` with whatever acquisition function.

    A sample of its posterior is one draw's function, the same at all points (see `WeightedPaths`). The function is the
    mean of the model's one observed site, its variance is the noise. Points are independent given the weights.

    Args:
        model: A Pyro model `model(x, y=None)`, such as one of `bayesianize`.
        posterior: Of that model given the transformed data: a guide, a result of `infer`, `refine` or `nuts`, or a dict
            of draws; see `draws`.
        train_X: Inputs, shape `(N, d)`, as BoTorch has them, not transformed.
        train_Y: Outcomes, shape `(N, m)`, likewise.
        weights: Importance weights of stored draws, up to a constant, shape `(S,)`.
        input_transform: Learns from the data if it is in train mode, as BoTorch's are at first.
        outcome_transform: Likewise.
        num_samples: Most draws to take from the posterior S; all where there are weights.

    Attributes:
        log_weights: Of the draws, normalised, shape `(*batch_shape, S)`: with batch axes after `fantasize`.
        source: Where the draws come from: "given", "refined", "inferred" or "reweighted".

    Raises:
        ValueError: If data, weights or the model's outcomes do not fit each other.

    Example:
        >>> model = bayesianize(nn.Linear(2, 1))
        >>> samples = {"weight": torch.randn(9, 1, 2), "bias": torch.randn(9, 1), "sigma": torch.rand(9)}
        >>> surrogate = HypernetModel(model, samples, torch.rand(4, 2), torch.rand(4, 1))
        >>> surrogate.posterior(torch.rand(3, 2)).rsample(torch.Size([6])).shape
        torch.Size([6, 3, 1])
    """

    likelihood = None  # FantasizeMixin looks for that of a Gaussian process

    def __init__(
        self,
        model: PyroModel,
        posterior: Any,
        train_X: Tensor,
        train_Y: Tensor,
        *,
        weights: Tensor | None = None,
        input_transform: InputTransform | None = None,
        outcome_transform: OutcomeTransform | None = None,
        num_samples: int = 256,
    ) -> None:
        super().__init__()
        _check_data(train_X, train_Y)
        if weights is not None:
            posterior, num_samples = _all_draws(posterior, weights), len(weights)
        if input_transform is not None:
            self.input_transform = input_transform.to(train_X)
        if outcome_transform is not None:
            self.outcome_transform = outcome_transform.to(train_Y)
        self.train_X, self.train_Y, self.source = train_X, train_Y, "given"
        x, y = self._transformed(train_X, train_Y)
        self.eval()
        self.samples = draws(posterior, x, _as_targets(y), num_samples=num_samples)
        equal = torch.ones(len(next(iter(self.samples.values()))))
        self.log_weights = (equal if weights is None else weights).to(train_X).log().log_softmax(-1)
        self._outcomes = Outcomes(model)
        width = self._outcomes.moments(self.samples, x[:1])[0].shape[-1]
        if width != train_Y.shape[-1]:
            raise ValueError(f"The model has {width} outcomes, train_Y {train_Y.shape[-1]} columns.")
        # Which of the model's outcomes these are; None for all as they stand.
        self._outputs: list[int] | None = None
        self._num_outputs = width

    @property
    def num_outputs(self) -> int:
        return self._num_outputs

    @property
    def batch_shape(self) -> torch.Size:
        return self.log_weights.shape[:-1]

    @property
    def ess(self) -> Tensor:
        """Kish's effective number of draws, between 1 and S, shape `batch_shape`."""
        return (-(2 * self.log_weights.detach()).logsumexp(-1)).exp()

    @property
    def khat(self) -> Tensor:
        """Pareto shape of the weights' tail, shape `batch_shape`: above 0.7 they are not to be believed."""
        sets = self.log_weights.detach().reshape(-1, self.log_weights.shape[-1])
        return torch.tensor([khat_of(weights) for weights in sets]).reshape(self.batch_shape)

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The outcomes at X.

        Args:
            X: Shape `(*b, q, d)`.
            output_indices: The outcomes wanted; None for all.
            observation_noise: Whether to add the noise of every draw, taken as normal with that draw's variance; or
                variances in the space of the transformed outcomes, broadcast to `(*b, q, m)`.
            posterior_transform: BoTorch's; together with noise only one that scalarises.

        Returns:
            Over `(*b, q, m)`, `b` broadcast with `batch_shape`, in the dtype of X.

        Raises:
            NotImplementedError: If noise is asked for and the outcome transform cannot undo it, as BoTorch's Log.
            UnsupportedError: If another transform of posteriors is asked for together with noise.
        """
        self.eval()
        values, noise = self._moments(self.transform_inputs(X))
        if isinstance(observation_noise, Tensor):
            values, noise = torch.broadcast_tensors(values, observation_noise.to(X).unsqueeze(-3))
        elif not observation_noise:
            noise = None
        if hasattr(self, "outcome_transform"):
            values, noise = self.outcome_transform.untransform(values, noise, X=X)
        if output_indices is not None:
            values, noise = values[..., output_indices], None if noise is None else noise[..., output_indices]
        if posterior_transform is not None:
            values, noise = _scalarised(posterior_transform, values, noise, X)
        return WeightedPaths(values, self.log_weights.exp().to(X), noise)

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> "HypernetModel":
        """The draws weighed by the likelihood of new observations, with gradients.

        Look at `khat` and `ess` of what is returned: the draws stay where they are. k-hat above 0.7 is warned of, but
        not within `fantasize`, which weighs many observations that may be made.

        Args:
            X: Shape `(*b, n, d)`.
            Y: Shape `(*b, n, m)`, of as many batch axes or more.
            noise: Variances of the noise of transformed outcomes, shaped as Y; None for the model's own likelihood.
            kwargs: For Gaussian processes; not looked at.

        Returns:
            Of the same draws, `batch_shape` broadcast with `b`.

        Raises:
            ValueError: If Y does not fit X or the model.
        """
        if X.shape[-2] != Y.shape[-2] or Y.shape[-1] != self.num_outputs:
            raise ValueError(
                f"Y must have shape (*b, {X.shape[-2]}, {self.num_outputs}) for X of shape {tuple(X.shape)}; got "
                f"{tuple(Y.shape)}."
            )
        self.eval()
        x, y = self._transformed(X, Y)
        log_weights = (self.log_weights + self._log_likelihood(x, y, noise)).log_softmax(-1)
        model = self._with(log_weights=log_weights, source="reweighted")
        if X.dim() == Y.dim() == 2:
            model.train_X, model.train_Y = torch.cat([self.train_X, X]), torch.cat([self.train_Y, Y])
        if fantasize.off() and bool((model.khat > BELIEVABLE_KHAT).any()):
            warnings.warn(
                f"Reweighting cannot follow these observations: k-hat of the weights is {model.khat.max():.2f}, above "
                f"{BELIEVABLE_KHAT}, and {model.ess.min():.1f} of {log_weights.shape[-1]} draws are effective. Use "
                "refit(X, Y) instead, or more draws.",
                stacklevel=2,
            )
        return model

    def refit(self, X: Tensor, Y: Tensor) -> "HypernetModel":
        """The posterior of all data, new ones included, at the least price that will do.

        Draws weighed by the new data are kept while half of them are effective and k-hat is below 0.7; else draws come
        from the prior by `refine`, as in `fit_model`. Transforms stay as they are.

        Args:
            X: New inputs, shape `(n, d)`.
            Y: New outcomes, shape `(n, m)`.

        Returns:
            The model; its `source` says which it was, "reweighted" or "refined".

        Raises:
            UnsupportedError: Of a fantasy, or of some outcomes.
        """
        if self.batch_shape or self._outputs is not None:
            raise UnsupportedError("refit takes a model of all outcomes, without fantasies: refit that, then go on.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Reweighting cannot follow")
            model = self.condition_on_observations(X, Y)
        size = model.log_weights.shape[-1]
        if model.khat <= BELIEVABLE_KHAT and model.ess >= size / 2:
            return model
        posterior = _refine(self._outcomes.model, *self._transformed(model.train_X, model.train_Y), size)
        equal = torch.zeros_like(model.log_weights).log_softmax(-1)
        return model._with(samples=draws(posterior, num_samples=size), log_weights=equal, source="refined")

    def subset_output(self, idcs: list[int]) -> "HypernetModel":
        """The model of some outcomes; their noise counts as normal where it is conditioned.

        Args:
            idcs: Their numbers.
        """
        kept = [range(self.num_outputs)[i] for i in idcs]
        outputs = kept if self._outputs is None else [self._outputs[i] for i in kept]
        model = self._with(_outputs=outputs, _num_outputs=len(kept), train_Y=self.train_Y[:, kept])
        if hasattr(self, "outcome_transform"):
            model.outcome_transform = self.outcome_transform.subset_output(kept)
        return model

    def path(self) -> "HypernetModel":
        """One draw, chosen by the weights, as a model: its `PosteriorMean` maximised is Thompson sampling.

        Raises:
            UnsupportedError: Of a fantasy.
        """
        if self.batch_shape:
            raise UnsupportedError("path takes a model without fantasies.")
        index = self.log_weights.exp().multinomial(1)
        samples = {name: value[index.to(value.device)] for name, value in self.samples.items()}
        return self._with(samples=samples, log_weights=torch.zeros_like(self.log_weights[:1]))

    def _set_transformed_inputs(self) -> None:
        """Nothing, where a Gaussian process transforms its training inputs: draws do not need them."""

    def _transformed(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        Y = self.outcome_transform(Y, X=X)[0] if hasattr(self, "outcome_transform") else Y
        return self.transform_inputs(X), Y

    def _with(self, **changes: Any) -> "HypernetModel":
        """The same with other attributes; what is not changed is shared."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances given every draw, of transformed outcomes, shape `(*b, S, q, m)`."""
        mean, variance = self._outcomes.moments(self.samples, x)
        return (mean, variance) if self._outputs is None else (mean[..., self._outputs], variance[..., self._outputs])

    def _log_likelihood(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        """Of transformed observations under every draw, in nats, shape `(*b, S)`."""
        if noise is None and self._outputs is None:
            return self._outcomes.log_prob(self.samples, x, y)
        mean, variance = self._moments(x)
        scale = (variance if noise is None else noise.to(x).unsqueeze(-3)).sqrt()
        return dist.Normal(mean, scale).log_prob(y.unsqueeze(-3)).sum((-1, -2))


def fit_model(
    train_X: Tensor,
    train_Y: Tensor,
    *,
    model: PyroModel | None = None,
    input_transform: InputTransform | None = None,
    outcome_transform: OutcomeTransform | None = None,
    num_samples: int = 256,
    budget: str | float | None = None,
) -> HypernetModel:
    """Fits a Bayesian network to data, for BoTorch. Minutes are not needed: this is done after every evaluation.

    Args:
        train_X: Inputs, shape `(N, d)`, N of 2 or more.
        train_Y: Outcomes, to be maximised as always in BoTorch, shape `(N, m)`.
        model: A Pyro model `model(x, y=None)`, such as one of `bayesianize`, for transformed data, y of shape `(N,)`
            for one outcome; None for a network with one layer of 50 tanh units and learnt noise, the width of whose
            priors is chosen by the evidence: `fan_in(gain=)` of 1, 2 or 4.
        input_transform: BoTorch's; None to standardise.
        outcome_transform: BoTorch's; None to standardise.
        num_samples: Draws S.
        budget: None for draws by `refine`, seconds for a few dozen data; or the time that `infer` may take to choose
            a way itself, "2 minutes", which for less than half a minute is spent on the choice. The width of priors is
            chosen before, beyond that time.

    Returns:
        The model.

    Raises:
        ValueError: If the data are no two matrices of the same finite rows, or as of `refine` and `infer`.

    Example:
        >>> import pyro
        >>> pyro.set_rng_seed(0)
        >>> x = torch.rand(8, 1, dtype=torch.double)
        >>> surrogate = fit_model(x, torch.sin(6 * x), num_samples=128)
        >>> surrogate.posterior(torch.rand(5, 2, 1, dtype=torch.double)).mean.shape
        torch.Size([5, 2, 1])
    """
    _check_data(train_X, train_Y)
    if len(train_X) < 2:
        raise ValueError("Two rows or more are needed to fit a model; got one.")
    d, m = train_X.shape[-1], train_Y.shape[-1]
    input_transform = InputStandardize(d) if input_transform is None else input_transform
    outcome_transform = Standardize(m) if outcome_transform is None else outcome_transform
    # They learn here, and no more in the model.
    x, (y, _) = input_transform.to(train_X)(train_X), outcome_transform.to(train_Y)(train_Y, X=train_X)
    input_transform.eval(), outcome_transform.eval()
    if model is None:
        model = _by_evidence(nn.Sequential(nn.Linear(d, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, m)).to(train_X), x, y)
    if budget is None:
        posterior = _refine(model, x, y, num_samples)
    else:
        posterior = infer(model, x, _as_targets(y), budget=budget, num_samples=num_samples, progress=False)
    options = {"input_transform": input_transform, "outcome_transform": outcome_transform, "num_samples": num_samples}
    fitted = HypernetModel(model, posterior, train_X, train_Y, **options)
    fitted.source = "refined" if budget is None else "inferred"
    return fitted


def _check_data(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"train_X and train_Y must have shapes (N, d) and (N, m); got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ValueError("train_X and train_Y must be finite: leave rows with NaN or infinities out.")


def _all_draws(posterior: Any, weights: Tensor) -> dict[str, Tensor]:
    """All draws that are stored, one for every weight."""
    if is_guide(posterior):
        raise ValueError("weights belong to stored draws; the posterior is a guide: give guide.sample_posterior(S).")
    samples = draws(posterior, num_samples=sys.maxsize)
    size = len(next(iter(samples.values())))
    if weights.shape != (size,):
        raise ValueError(f"weights must have shape ({size},), one for every draw; got {tuple(weights.shape)}.")
    if not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < float("inf"):
        raise ValueError(f"weights must be finite, not negative, and not all zero; got {weights}.")
    return samples


def _as_targets(y: Tensor) -> Tensor:
    """Outcomes `(N, m)` as a model takes them: `(N,)` for one."""
    return y.squeeze(-1) if y.shape[-1] == 1 else y


def _by_evidence(net: nn.Module, x: Tensor, y: Tensor) -> PyroModel:
    """The network with priors as wide as the data would have them."""
    models = [bayesianize(net, prior=fan_in(gain=gain)) for gain in _GAINS]
    with unnoticed():
        return max(models, key=lambda model: _refine(model, x, y, _NUM_TRIED).log_evidence)


def _refine(model: PyroModel, x: Tensor, y: Tensor, num_samples: int) -> Any:
    num_samples += -num_samples % (_NUM_MOVES * _NUM_POPULATIONS)
    options = {"num_populations": _NUM_POPULATIONS, "num_moves": _NUM_MOVES, "progress": False}
    return refine(model, x, _as_targets(y), num_samples=num_samples, **options)


def _scalarised(
    transform: PosteriorTransform, values: Tensor, noise: Tensor | None, X: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Values and noise, shape `(*b, S, q, m)`, under a transform of outcomes."""
    result = transform.evaluate(values, X.unsqueeze(-3))
    if result.dim() < values.dim():
        result = result.unsqueeze(-1)
    if noise is not None:
        if not isinstance(transform, ScalarizedPosteriorTransform):
            raise UnsupportedError(
                f"{type(transform).__name__} cannot be told what becomes of noise: ask for observation_noise=False."
            )
        noise = (noise @ transform.weights.to(noise) ** 2).unsqueeze(-1)
    return result, noise

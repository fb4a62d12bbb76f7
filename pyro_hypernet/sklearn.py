"""scikit-learn's regressor and classifier: tables in, predictions with their uncertainty out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array
from torch import Tensor

from pyro_hypernet.bnn.likelihoods import Gaussian, Heteroscedastic, Likelihood, resolve_likelihood
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.tables.estimator import FLOATS, Estimator
from pyro_hypernet.tables.tabular import Scaler

# Halvings of the interval in which a quantile lies: below the rounding of the numbers.
_HALVINGS = 60


class HypernetRegressor(MultiOutputMixin, RegressorMixin, Estimator):
    """A Bayesian network for numbers, with normal noise.

    Inputs and targets are standardised inside; all that is given out is in their own units. `predict` is by the draws
    made in `fit`, so that it repeats itself.

    Args:
        hidden_layer_sizes: Units of every hidden layer; () for a linear model.
        activation: "tanh", "relu" or "silu".
        likelihood: "gaussian", whose noise is learnt, for every output its own; "heteroscedastic", where the network
            sets it too; `Gaussian(sigma=0.1)`, in standard deviations of y; or "auto", for the one of the first two
            that a fifth of the rows, held out from short chains, speaks for; they take a third of the budget.
        prior_scale: Standard deviation of a unit's input under the prior, see `fan_in(gain=)`; or "auto", for one of
            1.5, 3 and 6 in the same way, after the likelihood.
        engine: How the posterior is found: "refine" and "nuts" are exact, "guide" trains an AutoHypernet and mends it,
            "mixture" trains three from starts of their own; "chains" runs `microcanonical` from five networks: rough,
            of several modes, not judged, and often the best predictions of tables; "auto" takes what a pilot says is
            cheaper, refining or a guide, and says so in `posterior_.log`; see `infer`.
        budget: Time of a fit, such as "2 minutes"; it holds within a factor of about 1.5. None for no look at the
            clock: `engine`, not "auto", does all of its work and nothing is judged; then a seed gives the same fit
            again.
        num_steps: Most steps of training.
        num_samples: Draws of the posterior, and of all that is predicted.
        plan: How guides are built and trained, see `Plan`; "auto" then trains one; without guides it goes unused.
        random_state: Seed of `fit`, or a RandomState; random numbers elsewhere stay where they stand.

    Attributes:
        posterior_: What `infer` returns: draws of the weights, verdict, evidence, log, guide.
        model_: The Pyro model of standardised data, see `bayesianize`.
        chosen_: Values of the parameters that are "auto".
        n_features_in_, feature_names_in_: As everywhere in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> linear = HypernetRegressor((), engine="guide", budget=None, num_steps=50, random_state=0).fit(X, y)
        >>> mean, std = linear.predict(X[:3], return_std=True)
        >>> mean.shape, bool((std > 50).all())
        ((3,), True)
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (20,),
        *,
        activation: str = "tanh",
        likelihood: str | Likelihood = "gaussian",
        prior_scale: float | str = 1.5,
        engine: str = "auto",
        budget: str | float | None = "40 seconds",
        num_steps: int | None = None,
        num_samples: int = 1000,
        plan: Plan | None = None,
        random_state: Any = None,
    ) -> None:
        amounts = {"budget": budget, "num_steps": num_steps, "num_samples": num_samples}
        how = {"activation": activation, "prior_scale": prior_scale, "engine": engine, "plan": plan}
        super().__init__(hidden_layer_sizes, **how, **amounts, random_state=random_state)
        self.likelihood = likelihood

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, quantiles: Sequence[float] | None = None
    ) -> Any:
        """The mean of the predictive distribution, and one thing more that is asked for.

        Args:
            X: Inputs, shape `(N, d)`.
            return_std: For its standard deviation, noise included, of the shape of the mean.
            return_cov: For the covariance of rows, noise included, `(N, N)`, or `(N, N, k)` of k outputs.
            quantiles: Levels in (0, 1) for its quantiles, `(N, levels)` or `(N, k, levels)`.

        Returns:
            The mean, `(N,)` or `(N, k)`; or a pair of it and what was asked for.

        Raises:
            ValueError: If more than one of them is asked for, or a level is not between 0 and 1.
        """
        if return_std + return_cov + (quantiles is not None) > 1:
            raise ValueError("Ask for one of return_std, return_cov and quantiles at a time; got more.")
        if return_cov:
            loc, scale = self._predict(self._checked(X))
            covariance = torch.einsum("sik,sjk->ijk", loc - loc.mean(0), loc - loc.mean(0)) / len(loc)
            covariance += torch.diag_embed((scale**2).mean(0).T).movedim(0, -1)
            return self._shaped(loc.mean(0)).numpy(), (covariance[..., 0] if self._is_flat else covariance).numpy()
        if quantiles is None:
            mean, epistemic, aleatoric = self._reduce(X, lambda *p: (self._shaped(p[0].mean(0)), *self._parts(*p)))
            return (mean, np.sqrt(epistemic + aleatoric)) if return_std else mean
        levels = torch.tensor(np.asarray(quantiles, dtype=float))
        if levels.dim() != 1 or not bool(((levels > 0) & (levels < 1)).all()):
            raise ValueError(f"quantiles must be a list of numbers between 0 and 1; got {quantiles!r}.")

        def reduce(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return self._shaped(loc.mean(0)), self._shaped(_quantiles(loc, scale, levels.to(loc)))

        mean, found = self._reduce(X, reduce)
        return mean, found

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draws of the predictive distribution, all rows of a draw by the same weights.

        Args:
            X: Inputs, shape `(N, d)`.
            n_samples: Number of draws S.
            random_state: Seed, or a RandomState.

        Returns:
            Draws, `(N, S)`, or `(N, k, S)` of k outputs.
        """
        loc, scale = (part.numpy() for part in self._predict(self._checked(X)))
        random = check_random_state(random_state)
        chosen = random.randint(len(loc), size=n_samples)
        drawn = random.normal(loc[chosen], scale[chosen])
        return np.moveaxis(drawn[..., 0] if self._is_flat else drawn, 0, -1)

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """The log predictive density of every row, of all outputs together.

        Args:
            X: Inputs, shape `(N, d)`.
            y: Targets; None for those of `predict`, which says how sure of them it is.

        Returns:
            In nats, in units of y, shape `(N,)`.
        """
        X = self._checked(X)
        y = self.predict(X) if y is None else check_array(y, ensure_2d=False, dtype=FLOATS)
        if y.shape != (len(X), *(() if self._is_flat else (len(self._y_scaler.loc),))):
            raise ValueError(f"y must hold the targets of {len(X)} rows as in fit; got shape {y.shape}.")

        def reduce(loc: Tensor, scale: Tensor, target: Tensor) -> tuple[Tensor]:
            density = torch.distributions.Normal(loc, scale).log_prob(target.view(loc.shape[1:])).sum(-1)
            return (density.logsumexp(0) - math.log(len(loc)),)

        return self._reduce(X, reduce, y)[0]

    @property
    def _checks(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _learn(self, y: np.ndarray, dtype: torch.dtype, weight: Tensor | None = None) -> tuple[Tensor, Likelihood, int]:
        self._is_flat = y.ndim == 1
        target = torch.tensor(y).to(dtype).reshape(len(y), -1)
        number = target.shape[1]
        self._y_scaler = Scaler.of(target, weight)
        likelihood = resolve_likelihood(self._value("likelihood"))
        if not isinstance(likelihood, Gaussian if number > 1 else (Gaussian, Heteroscedastic)):
            raise ValueError(
                "likelihood must be 'gaussian', 'auto', Gaussian(sigma=…) or, for one output, 'heteroscedastic'; "
                f"got {self.likelihood!r} with {number} outputs."
            )
        if number > 1 and likelihood == Gaussian():
            likelihood = Gaussian(dist.LogNormal(torch.full((number,), -1.5, dtype=dtype), 0.75).to_event(1))
        target = self._y_scaler(target)
        width = number if isinstance(likelihood, Gaussian) else 2
        return target[:, 0] if number == 1 else target, likelihood, width

    def _collect(self, trace: Trace) -> tuple[Tensor, ...]:
        fn = trace.nodes["y"]["fn"]
        loc, scale = (part.reshape(len(part), -1) for part in (fn.mean, fn.variance.sqrt()))
        return self._y_scaler.undo(loc), scale * self._y_scaler.scale

    def _parts(self, *predicted: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = predicted
        return self._shaped(loc.var(0, correction=0)), self._shaped((scale**2).mean(0))

    def _shaped(self, value: Tensor) -> Tensor:
        """Without the axis of outputs, shape `(N, k, …)`, where y had none."""
        return value[:, 0] if self._is_flat else value


class HypernetClassifier(ClassifierMixin, Estimator):
    """A Bayesian network for classes, whatever their names; arguments as of `HypernetRegressor`, without a likelihood.

    Attributes:
        classes_: Names of the classes, sorted.
        posterior_, model_, n_features_in_, feature_names_in_: As of `HypernetRegressor`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> linear = HypernetClassifier((), engine="guide", budget=None, num_steps=50, random_state=0).fit(X, y)
        >>> linear.predict_proba(X[:2]).shape
        (2, 3)
    """

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of every row, shape `(N,)`."""
        index = self.predict_proba(X).argmax(1)
        return self.classes_[index]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, averaged over draws, shape `(N, C)`."""
        return self._reduce(X, lambda p: (p.mean(0),))[0]

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draws of the predictive distribution, shape `(N, n_samples)`, see `HypernetRegressor.sample_y`."""
        (p,) = self._predict(self._checked(X))
        random = check_random_state(random_state)
        p = p.numpy()[random.randint(len(p), size=n_samples)]
        index = (p.cumsum(-1) < random.uniform(size=(*p.shape[:2], 1))).sum(-1)
        return self.classes_[index.clip(max=p.shape[-1] - 1)].T

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """The log predictive probability of every row's class, in nats, `(N,)`; of the likeliest where y is None."""
        p = self.predict_proba(X)
        if y is None:
            return np.log(p.max(1))
        unknown = np.setdiff1d(y, self.classes_)
        if len(y) != len(p) or len(unknown):
            raise ValueError(f"y must hold classes of fit for {len(p)} rows; got {len(y)}, unknown {unknown.tolist()}.")
        return np.log(p[np.arange(len(p)), np.searchsorted(self.classes_, y)])

    @property
    def _checks(self) -> dict[str, Any]:
        return {}

    def _learn(self, y: np.ndarray, dtype: torch.dtype, weight: Tensor | None = None) -> tuple[Tensor, Likelihood, int]:
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"At least two classes are needed; y has one class, {self.classes_[0]!r}.")
        is_binary = len(self.classes_) == 2
        likelihood = resolve_likelihood("bernoulli" if is_binary else "categorical")
        return torch.tensor(index), likelihood, 1 if is_binary else len(self.classes_)

    def _collect(self, trace: Trace) -> tuple[Tensor, ...]:
        return (probabilities(trace.nodes["f"]["value"]),)

    def _parts(self, *predicted: Tensor) -> tuple[Tensor, Tensor]:
        (p,) = predicted
        total, expected = (torch.special.entr(q).sum(-1) for q in (p.mean(0), p))
        return total - expected.mean(0), expected.mean(0)


def probabilities(f: Tensor) -> Tensor:
    """Probabilities of C classes, shape `(..., C)`, from logits, `(..., C)`, or log odds of the second, `(..., 1)`."""
    return f.softmax(-1) if f.shape[-1] > 1 else torch.cat([-f, f], -1).sigmoid()


def _quantiles(loc: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of equal mixtures of normals over the first axis: `(S, *shape)` to `(*shape, levels)`, by bisection."""
    ends = loc[..., None] + scale[..., None] * torch.special.ndtri(levels)
    low, high = ends.amin(0), ends.amax(0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        share = torch.special.ndtr((middle - loc[..., None]) / scale[..., None]).mean(0)
        low, high = torch.where(share < levels, middle, low), torch.where(share < levels, high, middle)
    return (low + high) / 2

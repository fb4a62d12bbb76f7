"""scikit-learn's regressor and classifier: tables in, predictions with their uncertainty out."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.likelihoods import Gaussian, Heteroscedastic, Likelihood, resolve_likelihood
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.correction.microcanonical import Microcanonical, microcanonical
from pyro_hypernet.evaluation.convergence import fits_agree
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.infer import ENGINES as ENGINES_OF_INFER
from pyro_hypernet.infer import infer
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.pipeline.budget import read_budget
from pyro_hypernet.pipeline.posterior import Posterior
from pyro_hypernet.sample.nuts import nuts
from pyro_hypernet.sample.refine import refine
from pyro_hypernet.tables.choose import choose
from pyro_hypernet.tables.tabular import Scaler
from pyro_hypernet.target import Bound
from pyro_hypernet.train.fit import fit
from pyro_hypernet.train.random_states import put_back, snapshot

ENGINES = (*ENGINES_OF_INFER, "mixture", "chains")
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
_FLOATS = [np.float64, np.float32]
# Guides of a mixture; networks that become chains, and their steps where there is no budget, and at most; chains and
# populations of the exact engines where there is no budget; steps of training there.
_STARTS, _NETWORKS, _CHAIN_STEPS, _MOST_STEPS = 3, 5, 10_000, 10**7
_POPULATIONS, _USUAL_STEPS = 4, 3000
# Predictions of all draws are held for so many numbers at once.
_MOST_NUMBERS = 2**22
# Halvings of the interval in which a quantile lies: below the rounding of the numbers.
_HALVINGS = 60
# What parameters that are "auto" are chosen from, by short chains, and the share of the budget that these take.
AUTO = "auto"
_CHOICES = {"likelihood": ("gaussian", "heteroscedastic"), "prior_scale": (1.5, 3.0, 6.0)}
_CHOICE_SHARE, _CHOICE_STEPS, _CHOICE_SAMPLES = 1 / 3, 2000, 200
# Rows at whose predictions chains are compared.
_MOST_ROWS = 100
_ROUGH = "Chains of networks are biased by their steps and stay in their modes; only held-out rows judge them."
_NOT_JUDGED = "Nothing was judged, for there was no budget: diagnose(model_, posterior_, …) judges a guide."


class _Estimator(BaseEstimator, ABC):
    """A fully connected network with the posterior of its weights; arguments as of `HypernetRegressor`."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (20,),
        *,
        activation: str = "tanh",
        prior_scale: float | str = 1.5,
        engine: str = "auto",
        budget: str | float | None = "40 seconds",
        num_steps: int | None = None,
        num_samples: int = 1000,
        plan: Plan | None = None,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_scale = prior_scale
        self.engine = engine
        self.budget = budget
        self.num_steps = num_steps
        self.num_samples = num_samples
        self.plan = plan
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "_Estimator":
        """Finds the posterior.

        Args:
            X: Inputs, shape `(N, d)`: an array or a DataFrame of numbers, not sparse. In float32 all is computed in
                float32.
            y: Targets, shape `(N,)`, or `(N, k)` for a regressor of k outputs.
            sample_weight: Powers of the rows' likelihoods, shape `(N,)`: a row of weight 2 counts as two equal ones,
                one of weight 0 not at all. Unlike elsewhere in scikit-learn their sum matters: twice the weights are
                twice the data.

        Returns:
            The estimator itself.

        Raises:
            TypeError: If X is sparse.
            ValueError: If the data or a parameter are not as they should be, or the budget is too short, see `infer`.
        """
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}; got {self.engine!r}.")
        if self.budget is None and self.engine == "auto":
            raise ValueError("engine='auto' compares what engines cost: give it a budget, or name another engine.")
        scale = self.prior_scale
        if isinstance(scale, str) and scale != AUTO:
            raise ValueError(f"prior_scale must be a positive number or 'auto'; got {scale!r}.")
        start = time.perf_counter()
        with _seeded(self.random_state):
            self.chosen_, lines = self._choose(X, y, sample_weight)  # of what is "auto"
            args, kwargs = self.prepare(X, y, sample_weight)
            budget = self.budget
            if lines and budget is not None:  # what the choice has left, half at least
                budget = max(self._seconds - (time.perf_counter() - start), self._seconds / 2)
            found = self._find(args, kwargs, budget)
            self.posterior_ = replace(found, log=(*lines, *found.log)) if lines else found
        return self

    def prepare(self, X: Any, y: Any, sample_weight: Any = None) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Reads and standardises data, and makes `model_` for them, which predicts once `posterior_` is set.

        Args: As those of `fit`.

        Returns:
            Arguments and keyword arguments of the model.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2, **self._checks)
        kwargs, rows = {}, np.ones(len(X), dtype=bool)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            rows = weight > 0
            if rows.sum() < 2:
                raise ValueError(f"At least 2 rows must have a positive sample_weight; {rows.sum()} have.")
            kwargs = {"y_weight": torch.tensor(weight[rows])}
        x = torch.tensor(X[rows])
        self._x_scaler = Scaler.of(x, *kwargs.values())
        target, likelihood, width = self._learn(y[rows], x.dtype, *kwargs.values())
        net = self._network(x.shape[1], width).to(x.dtype)
        self.model_ = bayesianize(net, likelihood, prior=fan_in(gain=self._value("prior_scale")))
        self._data = (self._x_scaler(x), target), kwargs
        return self._data

    def uncertainty(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """What more data would remove, and what they would not.

        Args:
            X: Inputs, shape `(N, d)`.

        Returns:
            The epistemic and the aleatoric part. Of a regressor variances in squared units of y, `(N,)` or `(N, k)`,
            which add up to the square of `return_std`; of a classifier mutual information and expected entropy in nats,
            `(N,)`, which add up to the entropy of `predict_proba`.
        """
        parts = self._reduce(X, self._parts)
        return parts[0], parts[1]

    def to_arviz(self) -> Any:
        """The posterior with predictions and log likelihood of the data of `fit`, standardised, see `to_arviz`."""
        check_is_fitted(self, "posterior_")
        args, kwargs = self._data
        idata = self.posterior_.idata
        return idata if idata is not None else to_arviz(self.model_, self.posterior_, *args, **kwargs)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.budget is not None  # how far it comes depends on the machine
        return tags

    @property
    @abstractmethod
    def _checks(self) -> dict[str, Any]:
        """Options of validate_data for the targets."""

    @abstractmethod
    def _learn(self, y: np.ndarray, dtype: torch.dtype, weight: Tensor | None = None) -> tuple[Tensor, Likelihood, int]:
        """The targets for the model, their likelihood, and the number of outputs that it takes."""

    @abstractmethod
    def _collect(self, trace: Trace) -> tuple[Tensor, ...]:
        """What one draw predicts of rows, shapes `(N, …)`."""

    @abstractmethod
    def _parts(self, *predicted: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of the uncertainty, from what `_predict` gives."""

    def _network(self, num_inputs: int, num_outputs: int) -> nn.Sequential:
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, (int, np.integer)) else list(sizes)
        if not all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be positive integers; got {self.hidden_layer_sizes!r}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}.")
        layers: list[nn.Module] = []
        for before, after in zip([num_inputs, *sizes], sizes, strict=False):
            layers += [nn.Linear(before, int(after)), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, nn.Linear([num_inputs, *sizes][-1], num_outputs))

    def _value(self, name: str) -> Any:
        """Of a parameter, the chosen one where it is "auto"."""
        given = getattr(self, name)
        return self.chosen_[name] if isinstance(given, str) and given == AUTO else given

    def _choose(self, X: Any, y: Any, sample_weight: Any) -> tuple[dict[str, Any], list[str]]:
        """Values of the parameters that are "auto", by short chains, and lines on them for the log."""
        names = [name for name in _CHOICES if isinstance(value := getattr(self, name, None), str) and value == AUTO]
        if not names:
            return {}, []
        X, y = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2, **self._checks)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)
        candidates = {name: _CHOICES[name] for name in names}
        if y.ndim > 1 and y.shape[1] > 1:
            candidates |= {name: values[:1] for name, values in candidates.items() if name == "likelihood"}
        amounts = {"budget": None, "num_steps": _CHOICE_STEPS, "num_samples": _CHOICE_SAMPLES}
        if self.budget is not None:
            seconds = _CHOICE_SHARE * self._seconds / sum(map(len, candidates.values()))
            amounts |= {"budget": seconds, "num_steps": None}
        pilot = clone(self).set_params(engine="chains", **amounts)
        return choose(pilot, candidates, X, y, weight, int(torch.randint(2**31 - 1, ())))

    @property
    def _seconds(self) -> float:
        return math.inf if self.budget is None else read_budget(self.budget)

    def _find(self, args: tuple, kwargs: dict[str, Tensor], budget: str | float | None) -> Posterior:
        if self.engine == "chains":
            return self._find_by_chains(args, kwargs, math.inf if budget is None else read_budget(budget))
        guide: JointGuide | None = None
        if self.engine == "mixture":
            guide = GuideMixture.from_starts(self.model_, _STARTS, plan=self.plan)
        elif self.plan is not None or budget is None:
            guide = AutoHypernet(self.model_, plan=self.plan)
        if budget is None:
            return self._find_without_budget(guide, args, kwargs)
        engine = "guide" if self.engine == "mixture" else self.engine
        amounts = {"budget": budget, "num_samples": self.num_samples, "num_steps": self.num_steps}
        return infer(self.model_, *args, engine=engine, guide=guide, **amounts, progress=False, **kwargs)

    def _find_by_chains(self, args: tuple, kwargs: dict[str, Tensor], seconds: float) -> Posterior:
        amounts = {"num_samples": self.num_samples, "max_seconds": seconds}
        amounts["num_steps"] = self.num_steps or (_CHAIN_STEPS if self.budget is None else _MOST_STEPS)
        found = microcanonical(self.model_, _NETWORKS, *args, **amounts, progress=False, **kwargs)
        log = (
            f"chains: {found.num_steps} steps of each of {_NETWORKS} in {found.seconds:.1f} s",
            self._agreement(found, args, kwargs),
        )
        return Posterior(found.samples, "microcanonical", because=_ROUGH, log=log, seconds=found.seconds)

    def _agreement(self, found: Microcanonical, args: tuple, kwargs: dict[str, Tensor]) -> str:
        """How far the chains predict the same, for the log."""
        if next(iter(found.samples_by_chain.values())).shape[1] < 2:
            return "chains: one draw of each, too few to compare what they predict"
        x, y = (part[:_MOST_ROWS] for part in args)
        kwargs = {name: part[:_MOST_ROWS] for name, part in kwargs.items()}
        count = min(map(len, found.samples_by_chain.values()))
        chains = [{name: value[c] for name, value in found.samples_by_chain.items()} for c in range(count)]
        rhat = fits_agree(self.model_, chains, x, y, num_samples=len(next(iter(chains[0].values()))), **kwargs).rhat
        how = f"R-hat of predictions over chains: median {float(rhat.median()):.2f}, greatest {float(rhat.max()):.2f}"
        return f"chains: {how} (1.05 is one distribution; above it predictions average over modes)"

    def _find_without_budget(self, guide: JointGuide, args: tuple, kwargs: dict[str, Tensor]) -> Posterior:
        """What one engine finds by itself: the same at every call, for no time is taken."""
        each = math.ceil(self.num_samples / _POPULATIONS)
        options = {"progress": False, **kwargs}
        if self.engine == "refine":
            sizes = {"num_samples": _POPULATIONS * each, "num_populations": _POPULATIONS}
            refined = refine(self.model_, *args, **sizes, **options)
            return Posterior(refined.samples, "refined", because=_NOT_JUDGED, refined=refined)
        if self.engine == "nuts":
            found = nuts(self.model_, *args, num_samples=each, num_chains=_POPULATIONS, **options)
            return Posterior(found.samples, "nuts", because=_NOT_JUDGED)
        steps = self.num_steps or _USUAL_STEPS
        trained = fit(self.model_, guide, args, kwargs=kwargs, num_steps=steps, progress=False)
        samples = draws(guide, num_samples=self.num_samples)
        return Posterior(samples, because=_NOT_JUDGED, guide=guide, fit=trained)

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "posterior_")
        return validate_data(self, X, reset=False, dtype=_FLOATS)

    def _predict(self, X: np.ndarray) -> tuple[Tensor, ...]:
        """What all draws predict of rows that were checked, shapes `(S, N, …)`."""
        (like, y), _ = self._data
        x = self._x_scaler(torch.tensor(X).to(like))
        args = (x, y[:1].expand(len(x), *y.shape[1:]))  # targets that are given use up no random numbers
        return Bound(self.model_, args, {}).map(self.posterior_.samples, self._collect)

    def _reduce(self, X: Any, reduce: Callable[..., tuple[Tensor, ...]], *of_rows: np.ndarray) -> list[np.ndarray]:
        """What is made of the predictions of all draws, rows in parts, each with its part of other arrays."""
        X = self._checked(X)
        total = len(next(iter(self.posterior_.samples.values())))
        step = max(1, _MOST_NUMBERS // total)
        parts = [
            reduce(*self._predict(X[at : at + step]), *(torch.tensor(one[at : at + step]) for one in of_rows))
            for at in range(0, len(X), step)
        ]
        return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]


class HypernetRegressor(MultiOutputMixin, RegressorMixin, _Estimator):
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
        y = self.predict(X) if y is None else check_array(y, ensure_2d=False, dtype=_FLOATS)
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


class HypernetClassifier(ClassifierMixin, _Estimator):
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


@contextmanager
def _seeded(random_state: Any) -> Iterator[None]:
    """Pyro's random numbers by a seed, and a parameter store of their own: afterwards all stands as before."""
    seed = check_random_state(random_state).randint(2**31 - 1)
    before = snapshot()
    try:
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(seed)
            yield
    finally:
        put_back(before)

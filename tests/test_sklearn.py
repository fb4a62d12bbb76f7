"""scikit-learn's own checks, and laws of predictions: in units of y, in parts that add up, by rows that count."""

import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyro
import pytest
import torch
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyro_hypernet import Plan
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.sklearn import HypernetClassifier, HypernetRegressor
from pyro_hypernet.tables.engines import ENGINES
from tests.seeds import seed

# A mean field in few steps: what is tested of an estimator is not how good its guide is.
QUICK = {"engine": "guide", "budget": None, "num_steps": 30, "num_samples": 40, "random_state": seed()}
QUICK |= {"plan": Plan("full", "identity", rejection=None)}
RANDOM = np.random.default_rng(seed())
X = RANDOM.normal(size=(24, 3)) * [1, 10, 0.1] + [0, 5, 0]
Y = 100 + 20 * X[:, 0] + RANDOM.normal(size=24)
TWO = np.stack([Y, -0.01 * Y + 0.001 * RANDOM.normal(size=24)], -1)
NAMES = np.array(["no", "perhaps", "yes"])[np.digitize(X[:, 0], [-0.5, 0.5])]
REGRESSORS = {
    "linear": (HypernetRegressor((), **QUICK), Y),
    "one column": (HypernetRegressor(2, **QUICK), Y[:, None]),
    "two outputs": (HypernetRegressor((2,), **QUICK), TWO),
    "two hidden layers": (HypernetRegressor((2, 3), activation="silu", **QUICK), Y),
    "heteroscedastic": (HypernetRegressor((2,), likelihood="heteroscedastic", **QUICK), Y),
    "known noise": (HypernetRegressor((2,), likelihood=Gaussian(sigma=0.1), **QUICK), Y),
}
CLASSIFIERS = {
    "three classes": (HypernetClassifier((2,), **QUICK), NAMES),
    "two classes": (HypernetClassifier((2,), **QUICK), NAMES == "yes"),
}
pytestmark = pytest.mark.filterwarnings("ignore:The ELBO was still rising")


def fitted(table):
    return {name: clone(estimator).fit(X, y) for name, (estimator, y) in table.items()}


@pytest.fixture(scope="module")
def regressors():
    return fitted(REGRESSORS)


@pytest.fixture(scope="module")
def classifiers():
    return fitted(CLASSIFIERS)


# Steps after which a guide knows enough for those checks that ask for it.
LONGER = {**QUICK, "num_steps": 200, "num_samples": 20}
CHECKED = [HypernetRegressor((), **LONGER), HypernetClassifier((), **LONGER)]
# Of those that fit something, what runs by default.
BY_DEFAULT = {
    "check_sample_weight_equivalence_on_dense_data",
    "check_estimators_pickle",
    "check_fit2d_1sample",
    "check_estimators_unfitted",
    "check_estimator_tags_renamed",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_mixin_order",
}


def checks():
    for estimator in CHECKED:
        for one, check in estimator_checks_generator(estimator):
            name = check.func.__name__
            marks = () if name in BY_DEFAULT else pytest.mark.slow
            yield pytest.param(one, check, id=f"{type(one).__name__}-{name}", marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator, check", list(checks()))
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", REGRESSORS)
def test_parts_of_the_variance_add_up(name, regressors):
    model, y = regressors[name], REGRESSORS[name][1]
    mean, std = model.predict(X, return_std=True)
    again, covariance = model.predict(X, return_cov=True)
    assert mean.shape == std.shape == y.shape
    assert covariance.shape == (len(X), *y.shape) == (len(X), len(X), *y.shape[1:])
    np.testing.assert_allclose(again, mean)
    np.testing.assert_allclose(np.moveaxis(np.diagonal(covariance), -1, 0), std**2)
    epistemic, aleatoric = model.uncertainty(X)
    np.testing.assert_allclose(epistemic + aleatoric, std**2)
    assert (epistemic > 0).all()
    assert (aleatoric > 0).all()


@pytest.mark.parametrize("name", REGRESSORS)
def test_quantiles_are_where_the_distribution_function_has_their_levels(name, regressors):
    model, y, levels = regressors[name], REGRESSORS[name][1], [0.05, 0.5, 0.99]
    _, found = model.predict(X, quantiles=levels)
    assert found.shape == (*y.shape, 3)
    loc, scale = (part.numpy()[..., None] for part in model._predict(X))
    shares = stats.norm.cdf(found.reshape(*loc.shape[1:-1], 3), loc, scale).mean(0)
    np.testing.assert_allclose(shares, np.broadcast_to(levels, shares.shape), rtol=1e-9)


@pytest.mark.parametrize("name", REGRESSORS)
def test_draws_have_the_mean_and_the_covariance(name, regressors):
    """20 000 draws: means within six standard errors, variances within 15 %, 24 rows: false once in a million."""
    model, number = regressors[name], 20_000
    (mean, std), y = model.predict(X, return_std=True), model.sample_y(X, number, random_state=seed())
    assert y.shape == (*mean.shape, number)
    np.testing.assert_array_less(np.abs(y.mean(-1) - mean), 6 * std / number**0.5)
    np.testing.assert_allclose(y.var(-1), std**2, rtol=0.15)


@pytest.mark.parametrize("name", [name for name, (_, y) in REGRESSORS.items() if y is not TWO])
def test_densities_integrate_to_one(name, regressors):
    model, y = regressors[name], REGRESSORS[name][1]
    row = X[:1].repeat(4001, axis=0)
    grid = np.linspace(-400, 600, 4001)
    density = np.exp(model.score_samples(row, grid.reshape(-1, *y.shape[1:])))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["linear", "two outputs", "heteroscedastic"])
def test_units_are_those_of_the_data(name, regressors):
    """Other units of inputs and targets are the same fit, up to rounding."""
    model, (estimator, y) = regressors[name], REGRESSORS[name]
    other = clone(estimator).fit(8 * X - 3, 1000 * y - 7)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(other.predict(8 * X - 3, return_std=True)[0], 1000 * mean - 7, rtol=1e-6)
    np.testing.assert_allclose(other.predict(8 * X - 3, return_std=True)[1], 1000 * std, rtol=1e-6)
    density = other.score_samples(8 * X - 3, 1000 * y - 7) + y[0].size * math.log(1000)
    np.testing.assert_allclose(density, model.score_samples(X, y), rtol=1e-6)


def test_weights_are_repeated_rows():
    """For several outputs; scikit-learn's check says it for one. Rows without weight are as if they were not there."""
    estimator, times = HypernetRegressor((2,), **QUICK), np.arange(len(X)) % 3
    weighted = clone(estimator).fit(X, TWO, sample_weight=times)
    repeated = clone(estimator).fit(X.repeat(times, axis=0), TWO.repeat(times, axis=0))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-7)
    assert len(weighted.to_arviz().observed_data.y) == (times > 0).sum()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_and_their_probabilities(name, classifiers):
    """Frequencies in 20 000 draws within six standard errors."""
    model, y, number = classifiers[name], CLASSIFIERS[name][1], 20_000
    p = model.predict_proba(X)
    assert list(model.classes_) == sorted(set(y))
    assert (model.predict(X) == model.classes_[p.argmax(1)]).all()
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(sum(model.uncertainty(X)), stats.entropy(p, axis=1))
    assert (np.stack(model.uncertainty(X)) > 0).all()
    of_class = np.log(p[np.arange(len(X)), np.searchsorted(model.classes_, y)])
    np.testing.assert_allclose(model.score_samples(X, y), of_class)
    np.testing.assert_allclose(model.score_samples(X), np.log(p.max(1)))
    drawn = model.sample_y(X, number, random_state=seed())
    shares = np.stack([(drawn == one).mean(1) for one in model.classes_], -1)
    np.testing.assert_array_less(np.abs(shares - p), 6 * np.sqrt(p * (1 - p) / number) + 1e-9)


def test_frames_pipelines_searches_and_pickles():
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    estimator = HypernetRegressor((), **QUICK)
    grid = {"hypernetregressor__prior_scale": [0.5, 2]}
    search = GridSearchCV(make_pipeline(StandardScaler(), estimator), grid, cv=2).fit(frame, Y)
    best = search.best_estimator_[-1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(search)).predict(frame), search.predict(frame))
    assert best.prior_scale in (0.5, 2)
    assert list(estimator.fit(frame, Y).feature_names_in_) == ["a", "b", "c"]
    assert cross_val_score(estimator, frame, Y, cv=2).shape == (2,)


def test_nothing_else_changes():
    """Random numbers elsewhere and Pyro's store stand where they stood, and the same seed is the same fit."""
    pyro.set_rng_seed(seed(3))
    pyro.param("mine", torch.zeros(()))
    before, names = pyro.util.get_rng_state(), list(pyro.get_param_store())
    first, second = (clone(REGRESSORS["linear"][0]).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    first.sample_y(X)
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    assert (before["numpy"][1] == after["numpy"][1]).all()
    assert names == list(pyro.get_param_store())
    assert {"posterior", "posterior_predictive", "log_likelihood"} <= set(first.to_arviz().groups())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The populations of refine disagree", "ignore:NUTS has not mixed")
@pytest.mark.parametrize("engine", [name for name in ENGINES if name not in ("auto", "guide")])
def test_every_engine_without_a_budget(engine):
    model = HypernetRegressor((2,), **{**QUICK, "engine": engine}).fit(X, Y)
    assert model.predict(X).shape == Y.shape
    assert (model.posterior_.guide is None) == (engine != "mixture")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The verdict on this posterior")
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_within_a_budget(engine):
    """The log says what was chosen; half an hour is enough on any machine for the little that is asked for."""
    options = {"engine": engine, "budget": "30 minutes", "num_steps": 300, "num_samples": 200, "random_state": seed()}
    model = HypernetRegressor((2,), **options).fit(X, Y)
    assert model.score(X, Y) > 0.9
    assert ("plan: " in str(model.posterior_)) or engine != "auto"


FLAT = REGRESSORS["linear"][0]
REFUSED = {
    "sparse inputs": (lambda: clone(FLAT).fit(sparse.csr_matrix(X), Y), TypeError, "Sparse data was passed"),
    "engine": (lambda: HypernetRegressor(engine="best").fit(X, Y), ValueError, "engine must be one of 'auto', "),
    "auto without a budget": (lambda: HypernetRegressor(budget=None).fit(X, Y), ValueError, "engine='auto' compares"),
    "budget": (lambda: HypernetRegressor(budget="soon").fit(X, Y), ValueError, "budget must be a positive number"),
    "sizes": (lambda: HypernetRegressor((3, 0)).fit(X, Y), ValueError, "hidden_layer_sizes must be positive integers"),
    "activation": (
        lambda: HypernetRegressor(activation="step").fit(X, Y),
        ValueError,
        "activation must be one of tanh",
    ),
    "likelihood": (lambda: HypernetRegressor(likelihood="poisson").fit(X, Y), ValueError, "likelihood must be 'gauss"),
    "two noisy outputs": (
        lambda: HypernetRegressor(likelihood="heteroscedastic").fit(X, TWO),
        ValueError,
        "likelihood must be .* got 'heteroscedastic' with 2 outputs",
    ),
    "no weight": (lambda: clone(FLAT).fit(X, Y, np.arange(24) == 1), ValueError, "At least 2 rows must have a pos"),
    "one class": (lambda: HypernetClassifier().fit(X, Y > 0), ValueError, "At least two classes are needed; y has one"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_says_what_to_do(what):
    run, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        run()


ASKED = {
    "two things": (lambda model: model.predict(X, return_std=True, return_cov=True), "Ask for one of return_std"),
    "a level": (lambda model: model.predict(X, quantiles=[0.5, 1]), "quantiles must be a list of numbers between 0"),
    "targets of other rows": (lambda model: model.score_samples(X, Y[:3]), "y must hold the targets of 24 rows"),
}


@pytest.mark.parametrize("what", ASKED)
def test_questions_without_an_answer(what, regressors):
    run, message = ASKED[what]
    with pytest.raises(ValueError, match=message):
        run(regressors["linear"])


def test_an_unknown_class_has_no_density(classifiers):
    with pytest.raises(ValueError, match=r"y must hold classes of fit for 24 rows; got 24, unknown \['never'"):
        classifiers["three classes"].score_samples(X, ["never"] * 24)


def test_the_package_does_without_scikit_learn():
    code = "import sys, pyro_hypernet; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


@pytest.mark.filterwarnings("ignore:The verdict on this posterior")
def test_the_documentations_example_runs(capsys):
    text = (Path(__file__).parent.parent / "docs" / "sklearn.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    exec(compile(block, "docs/sklearn.md", "exec"), {"__name__": "example"})
    assert "accuracy" in capsys.readouterr().out


# Parameters that are "auto": short chains, for what is tested is who is heard, not how well.
CHOSEN = {"engine": "chains", "budget": None, "num_steps": 100, "num_samples": 40, "random_state": seed()}


@pytest.fixture
def quick_choice(monkeypatch):
    monkeypatch.setattr("pyro_hypernet.tables.estimator._CHOICE_STEPS", 300)
    monkeypatch.setattr("pyro_hypernet.tables.estimator._CHOICE_SAMPLES", 20)
    monkeypatch.setattr("pyro_hypernet.tables.engines._NETWORKS", 2)
    monkeypatch.setattr("pyro_hypernet.correction.microcanonical._CLIMBS", 100)


@pytest.mark.filterwarnings("ignore:Chains were put back")
def test_noise_is_chosen_by_rows_that_are_held_out(quick_choice):
    """The noise's width grows fiftyfold: 2 nats a row between the two, none of 20 seeds below .5."""
    x = np.linspace(-2, 2, 200)[:, None]
    y = np.exp(x[:, 0]) * np.random.default_rng(seed()).normal(size=200)
    model = HypernetRegressor((3,), likelihood="auto", **CHOSEN).fit(x, y)
    assert model.chosen_ == {"likelihood": "heteroscedastic"}
    assert model.get_params()["likelihood"] == "auto"
    assert "40 rows held out" in model.posterior_.log[0]
    _, std = model.predict(x, return_std=True)
    assert std[-40:].mean() > 3 * std[:40].mean()


@pytest.mark.filterwarnings("ignore:Chains were put back")
@pytest.mark.parametrize("case", ["weights", "two outputs", "a class of one row", "by a guide"])
def test_whatever_is_fitted_can_be_chosen(case, quick_choice):
    x, y = np.tile(X, (2, 1)), np.tile(Y, 2)
    options = CHOSEN if case != "by a guide" else QUICK
    if case == "a class of one row":
        model = HypernetClassifier((2,), prior_scale="auto", **options).fit(x, np.arange(48) == 5)
        assert model.predict_proba(x).shape == (48, 2)
        assert model.chosen_["prior_scale"] in (1.5, 3.0, 6.0)
        return
    weight = np.arange(48) % 2 if case == "weights" else None
    y = np.tile(TWO, (2, 1)) if case == "two outputs" else y
    model = HypernetRegressor((2,), likelihood="auto", prior_scale="auto", **options).fit(x, y, weight)
    assert set(model.chosen_) == {"likelihood", "prior_scale"}
    assert np.isfinite(model.score_samples(x, y)).all()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_too_few_rows_are_not_chosen_by():
    model = HypernetRegressor((), likelihood="auto", **CHOSEN).fit(X, Y)
    assert model.chosen_ == {"likelihood": "gaussian"}
    assert "24 rows are too few" in model.posterior_.log[0]


@pytest.mark.parametrize("bad", [{"likelihood": "outo"}, {"prior_scale": "outo"}, {"prior_scale": -1.0}])
def test_words_that_are_not_auto_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        HypernetRegressor((), **CHOSEN).set_params(**bad).fit(X, Y)


@pytest.mark.filterwarnings("ignore")
def test_a_budget_that_the_choice_has_used_up_still_gives_a_fit():
    x, y = np.tile(X, (2, 1)), np.tile(Y, 2)
    options = CHOSEN | {"budget": 0.01, "num_steps": None, "num_samples": 5}
    model = HypernetRegressor((2,), likelihood="auto", **options).fit(x, y)
    assert np.isfinite(model.predict(x)).all()
    assert any("too few to compare" in line for line in model.posterior_.log)

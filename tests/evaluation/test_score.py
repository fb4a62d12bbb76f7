"""Scores of batches are those of all data at once, by the metrics that are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_hypernet import AutoHypernet, bayesianize, predict, score
from pyro_hypernet.evaluation import metrics
from pyro_hypernet.evaluation.predict import log_likelihood
from tests.seeds import seed

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)
CLASSES = {"bernoulli": (1, 2), "categorical": (3, 3)}
TARGETS = {"gaussian": X[:, 0], "bernoulli": (X[:, 0] > 0).double(), "categorical": torch.arange(50) % 3}


def of(likelihood):
    torch.manual_seed(seed(1))
    width = CLASSES.get(likelihood, (1, 1))[0]
    model = bayesianize(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, width)).double(), likelihood)
    samples = {site: value + torch.randn(30, *value.shape).double() for site, value in model.initial_values.items()}
    return model, samples | ({"sigma": torch.rand(30).double() + 0.1} if likelihood == "gaussian" else {})


@pytest.mark.parametrize("size", [50, 7, 1])
@pytest.mark.parametrize("likelihood", TARGETS)
def test_batches_score_as_all_data_do(likelihood, size):
    (model, samples), y = of(likelihood), TARGETS[likelihood]
    found = score(model, samples, zip(X.split(size), y.split(size), strict=True))
    log_p = log_likelihood(model, samples, X, y)["y"]
    assert (found.num_data, found.num_samples) == (50, 30)
    assert found.log_predictive == pytest.approx(-float(metrics.nll(log_p)), rel=1e-9)
    assert found.by_draws == pytest.approx(float(log_p.mean()), rel=1e-9)
    assert found.by_draws < found.log_predictive
    if likelihood not in CLASSES:
        assert found.accuracy is found.ece is found.disagreement is None
        return
    f = predict(model, samples, X, return_sites=["f"])["f"]
    p = f.softmax(-1) if likelihood == "categorical" else torch.cat([1 - f.sigmoid(), f.sigmoid()], -1)
    named = p.argmax(-1)
    pairs = [(named[i] != named[j]).double().mean() for i in range(30) for j in range(i)]
    expected = {
        "accuracy": (p.mean(0).argmax(-1) == y).double().mean(),
        "ece": metrics.ece(p.mean(0), y),
        "entropy": metrics.predictive_entropy(p).mean(),
        "mutual_information": metrics.mutual_information(p).mean(),
        "disagreement": torch.stack(pairs).mean(),
    }
    assert {name: getattr(found, name) for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-9
    )
    assert "two draws disagree" in str(found)


def test_one_hot_labels_count_as_labels():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategorical(logits=x @ w), obs=y)

    samples = {"w": torch.randn(20, 4, 3)}
    labels = TARGETS["categorical"]
    found = score(model, samples, (X.float(), nn.functional.one_hot(labels).float()))
    p = (X.float() @ samples["w"]).softmax(-1).mean(0)
    assert found.accuracy == pytest.approx(float((p.argmax(-1) == labels).float().mean()))


@pytest.mark.parametrize("kind", ["tuples", "dicts", "one dict", "tensors and kwargs"])
def test_batches_are_read_as_fit_reads_them(kind):
    (model, samples), y = of("categorical"), TARGETS["categorical"]
    batches, kwargs = list(zip(X.split(25), y.split(25), strict=True)), {}
    if kind == "dicts":
        batches = [{"x": x, "y": labels} for x, labels in batches]
    elif kind == "one dict":
        batches = {"x": X, "y": y}
    elif kind == "tensors and kwargs":
        batches, kwargs, y = iter(X.split(25)), {"y": y[:25]}, y[:25].repeat(2)
    found = score(model, samples, batches, kwargs=kwargs)
    assert found.log_predictive == pytest.approx(
        -float(metrics.nll(log_likelihood(model, samples, X, y)["y"])), rel=1e-9
    )


def test_an_argument_that_is_given_twice_or_is_none_is_refused():
    model, samples = of("categorical")
    with pytest.raises(TypeError, match="both give the model's argument 'y'"):
        score(model, samples, [{"x": X, "y": TARGETS["categorical"]}], kwargs={"y": TARGETS["categorical"]})
    with pytest.raises(TypeError, match="args must be a tuple"):
        score(model, samples, X)


def test_a_guide_is_scored_by_draws_of_its_own():
    model, _ = of("categorical")
    guide = AutoHypernet(model).setup(X, TARGETS["categorical"])
    assert score(model, guide, (X, TARGETS["categorical"]), num_samples=12).num_samples == 12


def test_nothing_to_score_is_said():
    model, samples = of("categorical")
    with pytest.raises(ValueError, match="There are no batches"):
        score(model, samples, iter([]))
    with pytest.raises(ValueError, match="observes nothing"):
        score(model, samples, (X,))

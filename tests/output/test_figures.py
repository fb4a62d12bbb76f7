"""The numbers behind the pictures are the ones that they claim to be, and a JSON file holds them."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.evaluation.metrics import coverage, ece
from pyro_hypernet.output import figures
from tests.small_models import linear, linear_data


def test_the_trace_is_the_bound_averaged_over_windows():
    losses = torch.arange(2000.0)
    losses[3] = torch.nan
    figure = figures.trace_figure(losses)
    assert len(figure["step"]) == len(figure["elbo"]) == 500
    assert figure["step"][-1] == 2000
    assert figure["elbo"][1] == pytest.approx(-5.5)
    assert figure["elbo"][0] == pytest.approx(-1.0)
    assert figures.trace_figure([3.0, 2.0]) == {"step": [1, 2], "elbo": [-3.0, -2.0]}


def test_the_band_holds_the_quantiles_of_the_function():
    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        pyro.deterministic("f", slope * x)

    samples = {"slope": torch.linspace(-1, 1, 101)}
    band = figures.Band("x", torch.tensor([1.0, 2.0]), (torch.tensor([1.0, 2.0]),))
    line = figures.band_figure(model, {"a": samples}, band, num_samples=101)["lines"]["a"]
    assert line["median"] == pytest.approx([0, 0], abs=1e-6)
    assert line["high"] == pytest.approx([0.9, 1.8], abs=1e-5)
    as_probability = figures.Band("x", torch.tensor([1.0]), (torch.tensor([1.0]),), kind="sigmoid")
    low = figures.band_figure(model, {"a": samples}, as_probability, num_samples=101)["lines"]["a"]["low"]
    assert low == pytest.approx([torch.sigmoid(torch.tensor(-0.9)).item()], abs=1e-5)


def test_marginals_are_densities_of_first_entries():
    posteriors = {"a": {"w": torch.randn(4000, 2, 2)}, "b": {"w": torch.randn(50, 2, 2), "other": torch.randn(50)}}
    found = figures.marginals_figure(posteriors)
    assert list(found) == ["w[0,0]"]
    edges, densities = torch.tensor(found["w[0,0]"]["edges"]), found["w[0,0]"]["densities"]
    assert set(densities) == {"a", "b"}
    for values in densities.values():
        assert float((torch.tensor(values) * edges.diff()).sum()) == pytest.approx(1, abs=1e-3)
    assert figures.marginals_figure({"a": {"constant": torch.ones(9)}})["constant"]["densities"]["a"]


def test_the_check_counts_the_data_and_replicas():
    y = torch.randn(200)
    figure = figures.check_figure(torch.randn(300, 200), y, "y")
    assert sum(figure["observed"]) == 200
    assert not figure["discrete"]
    inside = [
        low <= seen <= high for low, seen, high in zip(*(figure[k] for k in ("low", "observed", "high")), strict=True)
    ]
    # Data from the model: of 12 bins each is outside one time in ten; more than 6 come up once in 10 000 seeds.
    assert sum(inside) >= len(inside) - 6
    classes = figures.check_figure(torch.tensor([[0, 1, 1], [2, 0, 1]]), torch.tensor([0, 2, 2]), "y")
    assert classes["discrete"]
    assert classes["observed"] == [1, 0, 2]
    assert classes["edges"] == [-0.5, 0.5, 1.5, 2.5]


def test_calibration_is_coverage_or_accuracy():
    y, draws = torch.randn(100), torch.randn(400, 100)
    line = figures.calibration_figure({"a": draws}, y, held_out=True)["lines"]["a"]
    assert line["observed"][4] == pytest.approx(float(coverage(draws, y, level=0.5)))
    labels = torch.randint(3, (80,))
    replicated = torch.randint(3, (500, 80))
    figure = figures.calibration_figure({"a": replicated}, labels, held_out=False)
    probabilities = torch.stack([(replicated == k).double().mean(0) for k in range(3)], -1)
    assert figure["kind"] == "classes"
    assert figure["lines"]["a"]["ece"] == pytest.approx(float(ece(probabilities, labels)))


def test_equal_weights_lie_on_the_diagonal_and_one_heavy_weight_holds_all():
    equal = figures.weights_figure(torch.zeros(1000), 0.0)
    assert equal["share"] == pytest.approx(equal["fraction"], abs=1e-5)
    heavy = figures.weights_figure(torch.cat([torch.zeros(999), torch.tensor([100.0])]), float("inf"))
    assert heavy["share"][0] == pytest.approx(1)
    assert heavy["fraction"][0] == pytest.approx(0.001)


def test_an_outlier_has_the_largest_khat():
    x, y = linear_data()
    y = y.clone()
    y[7] += 12.0
    samples = {"slope": 1 + 0.1 * torch.randn(2000, 2), "noise": 0.3 + 0.05 * torch.rand(2000)}
    khat = figures.loo_figure(linear, samples, (x, y), {})["khat"]
    assert len(khat) == 30
    assert max(range(30), key=khat.__getitem__) == 7


@pytest.mark.parametrize(
    ("y", "count"),
    [
        (torch.tensor([0, 1, 1]), 2),
        (torch.tensor([0.0, 2.0]), 3),
        (torch.tensor([0, 0]), 2),
        (torch.tensor([0.5, 1.0]), None),
        (torch.tensor([-1, 1]), None),
        (torch.tensor([0, 50]), None),
        (torch.tensor([0.0, torch.nan]), None),
    ],
)
def test_what_counts_as_classes(y, count):
    assert figures.classes_of(y) == count


def test_all_of_it_is_json():
    found = [
        figures.trace_figure([torch.nan, 1.0]),
        figures.marginals_figure({"a": {"w": torch.randn(9)}}),
        figures.check_figure(torch.randn(5, 4), torch.randn(4), "y"),
        figures.weights_figure(torch.zeros(9), 0.1),
    ]
    assert json.loads(json.dumps(found, allow_nan=False)) == found

"""Every plot draws on the axes that it is given and returns them."""

import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band
from pyro_hypernet.calibration.sbc import Calibration
from pyro_hypernet.evaluation.metrics import calibration_bins, ece
from pyro_hypernet.output import plots

POSTERIORS = {
    "guide": {"scale": torch.rand(50), "weight": torch.randn(50, 2, 2)},
    "NUTS": {"weight": torch.randn(80, 2, 2), "scale": torch.rand(80)},
}
U = {"w": torch.rand(80, dtype=torch.float64), "b": torch.rand(80, dtype=torch.float64) ** 3}
FOUND = Calibration(U, {"w": 0.5, "b": 0.001}, {"w": "uniform", "b": "too high"}, 0.05, 0, 1.0)
SINGLE = {
    "band": lambda ax: plots.predictive_band(
        torch.randn(9), torch.randn(30, 9), ax=ax, data=(torch.zeros(3), torch.ones(3)), label="a"
    ),
    "trace": lambda ax: plots.elbo_trace({"a": [9.0, 3.0, 2.0], "b": torch.tensor([1.0, torch.nan])}, ax=ax),
    "calibration": lambda ax: plots.calibration_curve(torch.rand(5), torch.rand(5), ax=ax, label="a"),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", SINGLE.values(), ids=SINGLE.keys())
def test_a_plot_draws_on_its_axes(draw):
    _, ax = plt.subplots()
    assert draw(ax) is ax
    assert ax.lines
    assert len(plt.get_fignums()) == 1
    assert draw(None).figure is not ax.figure


def test_the_band_is_made_of_the_quantiles_in_order_of_x():
    x, draws = torch.tensor([2.0, 0.0, 1.0]), torch.randn(100, 3)
    ax = plots.predictive_band(x[:, None], draws[..., None], levels=[0.8])
    torch.testing.assert_close(torch.tensor(ax.lines[0].get_xdata()), torch.tensor([0.0, 1.0, 2.0]).double())
    torch.testing.assert_close(torch.tensor(ax.lines[0].get_ydata()), draws.quantile(0.5, 0)[[1, 2, 0]].double())
    assert len(ax.collections) == 1


def test_the_trace_shows_the_elbo_not_the_loss():
    ax = plots.elbo_trace([3.0, 2.0, 1.0])
    assert list(ax.lines[0].get_ydata()) == [-3.0, -2.0, -1.0]


def test_a_long_trace_is_averaged_over_windows():
    losses = torch.arange(2000.0)
    losses[3] = torch.nan
    steps, elbo = plots.elbo_trace(losses).lines[0].get_data()
    assert len(steps) == len(elbo) == 500
    assert steps[-1] == 2000
    assert elbo[:2].tolist() == [-1.0, -5.5]


def test_the_first_steps_do_not_set_the_scale_of_the_trace():
    low, high = plots.elbo_trace([1e6] + [2.0] * 50 + [1.0] * 49).get_ylim()
    assert -3 < low < high < 0


def test_marginals_have_one_axis_for_each_coordinate():
    axes = plots.marginals(POSTERIORS)
    assert [ax.get_xlabel() for ax in axes] == ["scale", *(f"weight[{i},{j}]" for i in range(2) for j in range(2))]
    assert len(axes[0].get_legend().get_texts()) == 2
    figure, own = plt.subplots(2, 2)
    assert list(plots.marginals(POSTERIORS, ["scale", "weight[1,0]"], axes=own)) == list(own.flat)[:2]
    assert figure.axes[1].get_xlabel() == "weight[1,0]"


def test_marginals_take_what_other_posteriors_have_and_names_like_formulas():
    draws = {"a": {"w[0]": torch.randn(9), "$x_{": torch.randn(9, 1)}, "$b_{": {"$x_{": torch.randn(30)}}
    axes = plots.marginals(draws, ["w[0]", "$x_{[0]"], colors={"a": "#ff0000"})
    assert [len(ax.patches) for ax in axes] == [1, 2]
    assert axes[0].patches[0].get_edgecolor() == (1, 0, 0, 1)
    axes[0].figure.canvas.draw()


def test_sbc_draws_the_curve_within_its_band():
    axes = plots.plot_sbc(FOUND)
    assert [ax.get_title() for ax in axes] == ["w", "b: too high"]
    points = ecdf_band(80)[0]
    line = axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), (ecdf(U["w"], points) - points).numpy())
    assert line.get_color() != axes[1].get_lines()[0].get_color()


def test_sbc_draws_on_given_axes():
    _, own = plt.subplots(1, 2)
    axes = plots.plot_sbc(FOUND, ["b"], axes=own)
    assert axes[0] is own[0]
    with pytest.raises(ValueError, match="axes must hold 2 axes"):
        plots.plot_sbc(FOUND, axes=[own[0]])
    with pytest.raises(ValueError, match=r"No entry is named \['c'\]"):
        plots.plot_sbc(FOUND, ["c"])


def test_reliability_draws_accuracy_against_confidence():
    probabilities = torch.rand(300)
    labels = (torch.rand(300) < probabilities).long()
    ax = plots.reliability(probabilities, labels, label="guide")
    confidence, accuracy, _ = calibration_bins(probabilities, labels, num_bins=10)
    x, y = ax.get_lines()[1].get_data()
    np.testing.assert_allclose(x, confidence.numpy())
    np.testing.assert_allclose(y, accuracy.numpy())
    assert ax.get_xlabel() == "confidence"
    assert f"ECE {float(ece(probabilities, labels, num_bins=10)):.3f}" in ax.get_legend().get_texts()[0].get_text()


def test_errors():
    with pytest.raises(ValueError, match="sites names 'bias'"):
        plots.marginals(POSTERIORS, ["bias"])
    with pytest.raises(ValueError, match="20 coordinates to draw"):
        plots.marginals({"a": {"w": torch.randn(5, 20)}})
    with pytest.raises(ValueError, match="axes must hold 2 axes"):
        plots.marginals(POSTERIORS, ["scale", "weight[0,0]"], axes=[plt.subplots()[1]])
    with pytest.raises(ValueError, match=r"sites names 'weight\[2,0\]'; the entries of 'weight' have shape \(2, 2\)"):
        plots.marginals(POSTERIORS, ["weight[2,0]"])
    with pytest.raises(ValueError, match="predictive_band draws one input"):
        plots.predictive_band(torch.randn(5, 2), torch.randn(10, 5))
    with pytest.raises(ValueError, match="expected and observed must both have shape"):
        plots.calibration_curve(torch.rand(3), torch.rand(4))


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="Plots need matplotlib: pip install"):
        plots.elbo_trace([1.0, 2.0])

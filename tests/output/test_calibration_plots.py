"""Pictures hold the figures that they are drawn of."""

import matplotlib
import numpy as np
import pytest
import torch

from pyro_hypernet.calibration.ecdf import ecdf, ecdf_band
from pyro_hypernet.calibration.sbc import Calibration
from pyro_hypernet.evaluation.metrics import calibration_bins, ece
from pyro_hypernet.output.calibration_plots import plot_sbc, reliability

matplotlib.use("Agg")
import matplotlib.pyplot as plt

U = {"w": torch.rand(80, dtype=torch.float64), "b": torch.rand(80, dtype=torch.float64) ** 3}
FOUND = Calibration(U, {"w": 0.5, "b": 0.001}, {"w": "uniform", "b": "too high"}, 0.05, 0, 1.0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_sbc_draws_the_curve_within_its_band():
    axes = plot_sbc(FOUND)
    assert [ax.get_title() for ax in axes] == ["w", "b: too high"]
    points = ecdf_band(80)[0]
    line = axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), (ecdf(U["w"], points) - points).numpy())
    assert line.get_color() != axes[1].get_lines()[0].get_color()


def test_sbc_draws_on_given_axes():
    _, own = plt.subplots(1, 2)
    axes = plot_sbc(FOUND, ["b"], axes=own)
    assert axes[0] is own[0]
    with pytest.raises(ValueError, match="axes must hold 2 axes"):
        plot_sbc(FOUND, axes=[own[0]])
    with pytest.raises(ValueError, match=r"No entry is named \['c'\]"):
        plot_sbc(FOUND, ["c"])


def test_reliability_draws_accuracy_against_confidence():
    probabilities = torch.rand(300)
    labels = (torch.rand(300) < probabilities).long()
    ax = reliability(probabilities, labels, label="guide")
    confidence, accuracy, _ = calibration_bins(probabilities, labels, num_bins=10)
    x, y = ax.get_lines()[1].get_data()
    np.testing.assert_allclose(x, confidence.numpy())
    np.testing.assert_allclose(y, accuracy.numpy())
    assert ax.get_xlabel() == "confidence"
    assert f"ECE {float(ece(probabilities, labels, num_bins=10)):.3f}" in ax.get_legend().get_texts()[0].get_text()

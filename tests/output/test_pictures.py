"""Every picture of a report holds what it claims to, and its readings say what can be seen."""

from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from pyro_hypernet.evaluation.metrics import ece
from pyro_hypernet.output import pictures
from tests.output.records import COLORS, COMPARISON, KHAT, NASTY
from tests.seeds import seed

matplotlib.use("Agg")

X = torch.linspace(0.0, 1.0, 7)
BAND = pictures.Band(NASTY, X, (X,), output=NASTY, data=(X, X))
LABELS, CLASSES = torch.arange(40) % 2, (torch.arange(40) + (torch.arange(50)[:, None] % 5 == 0)) % 2
DRAW = {
    "band": lambda: pictures.draw_band({NASTY: X.expand(9, 7), "other": torch.randn(9, 7)}, BAND, COLORS),
    "intervals": lambda: pictures.draw_calibration(
        {NASTY: torch.randn(50, 20)}, torch.randn(20), COLORS, held_out=True
    ),
    "classes": lambda: pictures.draw_calibration({NASTY: CLASSES}, LABELS, COLORS, held_out=False),
    "check": lambda: pictures.draw_check(torch.randn(30, 20), torch.randn(20), NASTY),
    "forest": lambda: pictures.draw_forest(COMPARISON, COLORS),
    "marginals": lambda: pictures.draw_marginals({NASTY: {NASTY: torch.randn(9, 2)}, "other": {}}, COLORS),
    "trace": lambda: pictures.draw_trace([torch.nan, 4.0, 3.0]),
    "weights": lambda: pictures.draw_weights(torch.cat([torch.zeros(999), torch.tensor([100.0])]), 0.8),
    "loo": lambda: pictures.draw_loo(torch.tensor([-1.0, -torch.inf, -2.0]), KHAT, "guide"),
}


def draw(name):
    with pictures.style():
        return DRAW[name]()


@pytest.mark.parametrize("name", DRAW)
def test_a_picture_is_svg_and_the_same_every_time(name):
    """Also where the user has set a style of their own; pyplot does not hear of it."""
    torch.manual_seed(seed())
    first = draw(name)
    torch.manual_seed(seed())
    with plt.style.context("dark_background"):
        assert draw(name) == first
    assert ElementTree.fromstring(first["svg"]).tag.endswith("svg")
    assert not plt.get_fignums()


def test_readings_are_what_can_be_seen():
    assert draw("band")["names"] == f"{NASTY} and other"
    assert draw("forest")["distances"] == f"{NASTY} 0.50, noise floor 0.20"
    assert draw("trace")["last"] == "-3.00"
    assert draw("weights")["held"] == "100"
    loo = draw("loo")
    assert (loo["count"], loo["bad"], loo["largest"]) == (3, 2, "inf")


def test_calibration_is_coverage_or_accuracy():
    probabilities = torch.stack([(k == CLASSES).double().mean(0) for k in range(2)], -1)
    classes, error = draw("classes"), float(ece(probabilities, LABELS, num_bins=10))
    assert classes["title"] == "Reliability"
    assert classes["reading"] == f"{NASTY}: expected calibration error {error:.3f}, on training data"
    draws = torch.linspace(-1, 1, 101)[:, None].expand(101, 20)
    with pictures.style():
        inside = pictures.draw_calibration({"a": draws}, torch.full((20,), 0.01), {"a": "C0"}, held_out=True)
    assert inside["title"] == "Calibration"
    assert inside["reading"] == "a: worst gap 0.90, on held-out data"  # all data lie in the innermost interval of .1


def test_the_check_counts_the_bins_that_lie_outside():
    y = torch.linspace(-1, 1, 200)
    with pictures.style():
        same = pictures.draw_check(y.expand(30, 200), y, "y")
        other = pictures.draw_check((y * 0).expand(30, 200), y, "y")
        classes = pictures.draw_check(torch.tensor([[0, 1, 1], [2, 0, 1]]), torch.tensor([0, 2, 2]), "y")
    assert same["outside"] == 0
    assert other["outside"] >= other["bins"] - 4
    assert classes["bins"] == 3


def test_bins_are_one_for_each_class_or_have_a_margin():
    assert pictures._bins_of(torch.tensor([0, 2, 2])).tolist() == [-0.5, 0.5, 1.5, 2.5]
    edges = pictures._bins_of(torch.tensor([0.5, 1.5]))
    assert (float(edges[0]), float(edges[-1])) == pytest.approx((0.35, 1.65))
    assert len(pictures._bins_of(torch.full((9,), 0.3))) == 13


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
    assert pictures._count_classes(y) == count


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("identity", lambda f: f[..., -1]),
        ("sigmoid", lambda f: f[..., -1].sigmoid()),
        ("softmax", lambda f: f.softmax(-1)[..., -1]),
    ],
)
def test_a_band_may_show_a_probability(kind, shown, monkeypatch):
    drawn, f = [], torch.randn(40, 7, 3)
    monkeypatch.setattr(pictures, "predictive_band", lambda x, draws, **_: drawn.append(draws))
    with pictures.style():
        pictures.draw_band({"a": f}, pictures.Band("x", X, (X,), column=-1, kind=kind), {"a": "C0"})
    torch.testing.assert_close(drawn[0], shown(f))

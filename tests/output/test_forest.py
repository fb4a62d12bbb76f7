"""The forest shows every distance where it is, its interval about it, and the noise floor behind."""

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pyro_hypernet.evaluation.compare import CANONICAL_SPACE, FUNCTION, FUNCTION_SPACE, WEIGHT_SPACE, Comparison
from pyro_hypernet.output.forest import forest


def row(name, where, space, value):
    interval = {"w1_over_sd_low": value - 0.1, "w1_over_sd_high": value + 0.1}
    return {"name": name, "where": where, "space": space, "w1_over_sd": value, "sd_ratio": 0.9, **interval}


COMPARISON = Comparison(
    tuple(
        row(name, where, space, value + shift)
        for name, value in (("a $cost", 0.5), ("b", 1.5), ("noise floor", 0.2))
        for where, space, shift in (
            (FUNCTION, FUNCTION_SPACE, 0.0),
            ("w_$x$", WEIGHT_SPACE, 0.2),
            ("w_$x$", CANONICAL_SPACE, 0.3),
        )
    ),
    0.95,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_points_lie_at_the_distances_with_their_intervals():
    ax = forest(COMPARISON)
    points = [x for line in ax.lines if line.get_marker() == "o" for x in line.get_xdata()]
    bars = [tuple(bar[:, 0]) for lines in ax.collections for bar in lines.get_segments()]
    assert sorted(points) == pytest.approx([0.5, 0.7, 0.8, 1.5, 1.7, 1.8])
    assert all(any(bar == pytest.approx((x - 0.1, x + 0.1)) for bar in bars) for x in points)
    floors = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert floors[0] == pytest.approx((0.1, 0.2))
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["function space", "w_$x$", "w_$x$ (up to symmetry)"]


def test_names_are_no_formulas():
    ax = forest(COMPARISON)
    texts = [*ax.get_yticklabels(), *ax.figure.legends[0].get_texts()]
    assert not any(text.get_parse_math() for text in texts)
    ax.figure.canvas.draw()


def test_it_draws_on_given_axes_chosen_places_and_another_quantity():
    _, ax = plt.subplots()
    assert forest(COMPARISON, quantity="sd_ratio", places=[FUNCTION], ax=ax) is ax
    assert [text.get_text() for text in ax.get_yticklabels()] == ["function space"]
    assert ax.get_xlabel() == "sd ratio from the reference"
    colors = {"a $cost": "#ff0000", "b": "#0000ff"}
    drawn = {line.get_color() for line in forest(COMPARISON, colors=colors).lines if line.get_marker() == "o"}
    assert drawn == set(colors.values())


def test_errors():
    with pytest.raises(ValueError, match="quantity must be one of w1_over_sd"):
        forest(COMPARISON, quantity="elbo")
    with pytest.raises(ValueError, match=r"places names \['bias'\]"):
        forest(COMPARISON, places=["bias"])
    with pytest.raises(ValueError, match="'agreement' is known in"):
        forest(COMPARISON, quantity="agreement")

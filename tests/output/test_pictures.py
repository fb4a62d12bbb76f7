"""Every figure becomes a picture with words for those who cannot see it."""

from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import pytest

from pyro_hypernet.output.pictures import draw_all
from tests.output.records import COMPARISON, FIGURES

matplotlib.use("Agg")


def test_every_figure_is_drawn_and_described():
    pictures = draw_all(FIGURES, COMPARISON)
    assert len(pictures) == len(FIGURES) + 1
    assert len({picture.title for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
        assert len(picture.alt) > 30
        assert len(picture.caption) > 30
    assert not plt.get_fignums()


def test_readings_stand_in_the_words():
    words = {picture.title: picture.alt for picture in draw_all(FIGURES, COMPARISON)}
    assert "noise floor 0.20" in words["Distance from the reference"]
    assert "calibration error 0.100, on held-out data" in words["Reliability"]
    assert "2 are above 0.7, the largest is inf" in words["Influence of single data"]
    assert "1 % of the draws hold 30 %" in words["Importance weights: k-hat 0.80"]


def test_pictures_are_the_same_every_time():
    some = {name: FIGURES[name] for name in ("band", "marginals")}
    assert draw_all(some, None) == draw_all(some, None)


def test_what_is_not_there_is_not_drawn():
    assert draw_all({}, None) == []
    assert len(draw_all({"trace": FIGURES["trace"]}, None)) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_missing_numbers_are_named(name):
    with pytest.raises(ValueError, match=f"The numbers of figure '{name}' are not complete"):
        draw_all({name: {"nothing": 0}}, None)
    assert not plt.get_fignums()

"""The worst check decides the verdict."""

import pytest

from pyro_hypernet.evaluation.verdict import Check, Diagnosis, diagnosis_of

GOOD = Check("a", 0.1, "good", "A is well.")
DOUBTFUL = Check("b", 2.0, "doubtful", "B is off.", "Mend B.")
BAD = Check("c", 9.0, "bad", "C is broken.", "Replace C.")


@pytest.mark.parametrize(
    "checks, verdict, because",
    [
        ((GOOD,), "use it", "Nothing that was looked at speaks against it. A is well."),
        ((GOOD, DOUBTFUL), "refine it", "B is off."),
        ((GOOD, DOUBTFUL, BAD), "do not trust it", "C is broken."),
    ],
)
def test_the_worst_decides(checks, verdict, because):
    diagnosis = diagnosis_of(checks, khat=0.3)
    assert (diagnosis.verdict, diagnosis.because, diagnosis.khat) == (verdict, because, 0.3)


def test_the_worst_stand_first_and_all_are_spelt_out():
    diagnosis = diagnosis_of((GOOD, BAD, DOUBTFUL))
    assert [check.name for check in diagnosis.checks] == ["c", "b", "a"]
    assert diagnosis.check("b") is DOUBTFUL
    lines = str(diagnosis).splitlines()
    assert lines[0] == "do not trust it: C is broken."
    assert lines[1] == "  [bad] c: C is broken. Replace C."
    with pytest.raises(KeyError, match="No check is named 'd'"):
        diagnosis.check("d")


def test_words_that_are_none():
    with pytest.raises(ValueError, match="level must be one of"):
        Check("a", 0.0, "fine", "")
    with pytest.raises(ValueError, match="verdict must be one of"):
        Diagnosis("maybe", "", ())

"""A record with every kind of content, and names as bad as users' columns can be."""

import math

from pyro_hypernet.evaluation.comparison import Comparison
from pyro_hypernet.evaluation.verdict import Check, Diagnosis
from pyro_hypernet.output.record import Record, Table

NASTY = "<script>alert('x')</script> $cost_{ & \"quoted\" %"

DIAGNOSIS = Diagnosis(
    verdict="refine it",
    because=f"k-hat is 0.8 <b>and</b> {NASTY}",
    checks=(
        Check("k-hat", 0.8, "doubtful", "k-hat is 0.80.", "Use refine(model, *args)."),
        Check("range", math.nan, "good", "Nothing outside."),
        Check("gap", math.inf, "bad", "The gap is infinite.", "Train longer."),
    ),
    elbo=-12.5,
    khat=0.8,
    num_draws=1000,
)


def row(name, space, where, value):
    return {"name": name, "space": space, "where": where, "w1_over_sd": value, "w1_over_sd_low": value - 0.1} | {
        "w1_over_sd_high": value + 0.1,
        "within_floor": value < 0.3,
    }


COMPARISON = Comparison(
    tuple(
        row(name, space, where, value)
        for name, value in ((NASTY, 0.5), ("noise floor", 0.2))
        for space, where in (("function", "function"), ("weights", NASTY), ("weights up to symmetry", NASTY))
    ),
    0.95,
)
LINE = {"low": [0.0, 1.0], "median": [1.0, None], "high": [2.0, 3.0]}
COUNTS = {"observed": [3.0, 1.0], "low": [1.0, 0.0], "median": [2.0, 1.0], "high": [3.0, 2.0]}
FIGURES = {
    "band": {"label": NASTY, "output": NASTY, "x": [0.0, 1.0], "lines": {NASTY: LINE}, "data": [[0.5], [1.0]]},
    "calibration": {
        "kind": "classes",
        "held_out": True,
        "lines": {NASTY: {"expected": [0.5, 0.9], "observed": [0.4, 0.8], "ece": 0.1}},
    },
    "check": {"site": NASTY, "discrete": True, "edges": [-0.5, 0.5, 1.5], **COUNTS},
    "marginals": {NASTY: {"edges": [0.0, 1.0, 2.0], "densities": {NASTY: [0.5, 0.5], "other": [0.1, 0.9]}}},
    "trace": {"step": [10, 20], "elbo": [None, -3.0]},
    "weights": {"khat": 0.8, "fraction": [0.001, 0.01, 1.0], "share": [0.1, 0.3, 1.0]},
    "loo": {"khat": [0.1, "inf", 0.9], "elpd": -3.0, "error": "nan", "source": "guide"},
}
RECORD = Record(
    title=NASTY,
    created="1 May 2026, 12:00 UTC",
    facts=(("Posterior", NASTY), ("Data", "x: 3 × 2")),
    verdict="refine it",
    because=DIAGNOSIS.because,
    diagnosis=DIAGNOSIS,
    comparison=COMPARISON,
    tables=(Table(NASTY, ("guide", NASTY), (("a", "1.0 [0.5, 1.5]"),), NASTY),),
    figures=FIGURES,
    log=(NASTY, "done"),
)

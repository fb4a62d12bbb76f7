"""What a report says, with every kind of content, and names as bad as users' columns can be."""

import torch

from pyro_hypernet.evaluation.compare import Comparison

NASTY = "<script>alert('x')</script> $cost_{ & \"quoted\" %"


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
COLORS = {NASTY: "C0", "other": "C1"}
KHAT = torch.tensor([0.1, torch.inf, 0.9])
SVG = "<svg xmlns='http://www.w3.org/2000/svg'/>"
PICTURES = {
    "band": {"svg": SVG, "label": NASTY, "output": NASTY, "names": NASTY},
    "calibration": {"svg": SVG, "title": "Reliability", "names": NASTY, "reading": f"{NASTY}: worst gap 0.13"},
    "check": {"svg": SVG, "site": NASTY, "outside": 2, "bins": 12},
    "forest": {"svg": SVG, "distances": f"{NASTY} 0.50, noise floor 0.20"},
    "marginals": {"svg": SVG, "count": 1, "weights": NASTY, "names": f"{NASTY} and other"},
    "trace": {"svg": SVG, "steps": 20, "last": "-3.00"},
    "weights": {"svg": SVG, "khat": "0.80", "limits": [0.5, 0.7], "held": "30"},
    "loo": {
        "svg": SVG,
        "source": "guide",
        "count": 3,
        "limit": 0.7,
        "bad": 2,
        "largest": "inf",
        "elpd": "-3.0 ± nan",
    },
}
CONTENT = {
    "title": NASTY,
    "created": "1 May 2026, 12:00 UTC",
    "verdict": "refine it",
    "because": f"k-hat is 0.8 <b>and</b> {NASTY}",
    "verdict_on_guide": "refine it",
    "checks": [
        {"name": "k-hat", "level": "doubtful", "reading": "k-hat is 0.80.", "remedy": "Use refine(model, *args)."},
        {"name": "range", "level": "good", "reading": "Nothing outside.", "remedy": ""},
        {"name": "gap", "level": "bad", "reading": "The gap is infinite.", "remedy": "Train longer."},
    ],
    "facts": [["Posterior", NASTY], ["Data", "x: 3 × 2"]],
    "tables": [
        {
            "title": NASTY,
            "headings": ["guide", NASTY],
            "rows": [["a", "1.0 [0.5, 1.5]"], ["noise floor", "0.2"]],
            "note": NASTY,
        }
    ],
    "figures": [{"label": NASTY, "value": "0.13", "note": NASTY}],
    "pictures": PICTURES,
    "log": [NASTY, "done"],
}
_NOTHING = {"checks": [], "tables": [], "figures": [], "pictures": {}, "log": []}
EMPTY = CONTENT | {"verdict": "", "verdict_on_guide": "", **_NOTHING}

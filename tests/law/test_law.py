"""The law: whatever a Pyro user does with a guide works as it should, or is refused with the remedy.

Draws are finite, of the right shapes, and distributed like `sample_posterior`; densities equal `log_prob`. What is
refused stands in one table, `refused.py`, with its reason and its message.

By default a walk over the cube of styles, idioms and guides that visits every style and every idiom. `-m slow` tries
every style with every idiom, the guides taking turns; `PYRO_HYPERNET_SEED` from 0 to 3 goes over the whole cube.
False alarms: each two-sample test has level 1e-10 and a triple makes at most five, so 4e-6 over the whole cube.
"""

import re
from functools import lru_cache
from pathlib import Path

import pyro
import pytest

from tests.law.bench import GUIDES, Bench, stock
from tests.law.idioms import IDIOMS, due_warnings_ignored
from tests.law.refused import REFUSED, Refusal, matches, refusal_of, table
from tests.law.styles import STYLES
from tests.seeds import SHIFT, seed

DOCUMENT = Path(__file__).parents[2] / "docs" / "idioms.md"
MAKERS = {**GUIDES, "stock": stock}
# Guides of the walk: those that are made quickly come more often.
QUICK = (*3 * ("full", "full", "two components", "full", "default"), "fitted")


@lru_cache(maxsize=4)
def bench_of(style: str, guide: str) -> Bench:
    pyro.set_rng_seed(seed())
    return Bench(STYLES[style](), MAKERS[guide])


def attempt(style: str, idiom: str, guide: str) -> None:
    with due_warnings_ignored(STYLES[style]()):
        bench = bench_of(style, guide)
        with bench.store():
            IDIOMS[idiom](bench)


def hold(style: str, idiom: str, guide: str) -> None:
    """Asserts the law for one triple."""
    refusal = refusal_of(style, idiom, guide)
    if refusal is None:
        attempt(style, idiom, guide)
    else:
        expect_refusal(refusal, style, idiom, guide)


def expect_refusal(refusal: Refusal, style: str, idiom: str, guide: str) -> None:
    """What Pyro's own guide cannot do with a model may nevertheless work with ours."""
    if refusal.by == "Pyro":
        error = fails(style, idiom, guide, refusal)
        assert error is None or re.search(refusal.message, str(error)), f"another error than is due: {error}"
        assert error is None or fails(style, idiom, "stock", refusal), "Pyro's own guide can do this"
        return
    with pytest.raises(refusal.error, match=refusal.message):
        attempt(style, idiom, guide)


def fails(style: str, idiom: str, guide: str, refusal: Refusal) -> Exception | None:
    try:
        attempt(style, idiom, guide)
    except refusal.error as error:
        return error
    return None


# What broke once, and lies off the walk.
MENDED = [
    ("only keywords", "save and load", "full"),
    ("only keywords", "resample", "full"),
    ("only keywords", "metropolis", "full"),
    ("zero-inflated", "Trace_ELBO", "fitted"),
    ("enumerated beside", "log_prob", "fitted"),
    ("enumerated beside", "reject", "default"),
    ("number", "JitTrace_ELBO", "two components"),
]


def walk() -> list[tuple[str, str, str]]:
    """As many triples as there are styles or idioms, every one of both among them."""
    styles, idioms = list(STYLES), list(IDIOMS)
    length = max(len(styles), len(idioms))
    return [
        # 7 has no factor in common with either number, so neighbours in a list do not meet neighbours.
        (styles[i % len(styles)], idioms[7 * (i + SHIFT) % len(idioms)], QUICK[i % len(QUICK)])
        for i in range(length)
    ]


@pytest.mark.parametrize(("style", "idiom", "guide"), [*walk(), *MENDED])
def test_law_on_a_walk(style, idiom, guide):
    hold(style, idiom, guide)


def test_the_walk_visits_all():
    assert {style for style, _, _ in walk()} == set(STYLES)
    assert {idiom for _, idiom, _ in walk()} == set(IDIOMS)
    assert {guide for _, _, guide in walk()} == set(GUIDES)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_law_with_every_idiom(style):
    guides, offset, broken = list(GUIDES), list(STYLES).index(style) + SHIFT, []
    turns = sorted(((offset + number) % len(guides), idiom) for number, idiom in enumerate(IDIOMS))
    for turn, idiom in turns:
        pyro.set_rng_seed(seed())
        try:
            hold(style, idiom, guides[turn])
        except Exception as error:
            broken.append(f"{idiom}, {guides[turn]}: {type(error).__name__}: {str(error)[:300]}")
        except pytest.fail.Exception as error:
            broken.append(f"{idiom}, {guides[turn]}: {error}")
    assert not broken, "\n".join(broken)


def covered(refusal: Refusal) -> list[tuple[str, str, str]]:
    """Triples that this entry refuses, and no entry before it; with one guide, the quickest to make."""
    guide = next(name for name in QUICK if matches(refusal.guides, name))
    triples = ((style, idiom, guide) for idiom in IDIOMS for style in refusal.named)
    return [triple for triple in triples if refusal_of(*triple) is refusal]


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.reason[:50])
def test_what_stands_in_the_table_is_refused(refusal):
    triples = covered(refusal)
    assert triples, "no triple is left to this entry: it outlived its reason, or another one covers it"
    if refusal.by == "Pyro":  # of which some may work with ours: one of the first few must not
        triple = next((triple for triple in triples[:12] if fails(*triple, refusal)), None)
        assert triple is not None, "none of the first is refused any more"
        expect_refusal(refusal, *triple)
    else:
        expect_refusal(refusal, *triples[0])


def test_the_table_in_the_documentation_is_this_one():
    assert DOCUMENT.read_text() == table(), (
        "docs/idioms.md is out of date: python -m tests.law.refused > docs/idioms.md"
    )

"""What the pages show runs: pages from top to bottom, with fewer steps by default; recipes one by one, as doctests."""

import doctest
import re

import pyro
import pytest

from tests.docs.pages import PAGES, code, recipes
from tests.seeds import seed

RECIPES = recipes(PAGES["recipes"].read_text())
# Pages whose code is tried elsewhere, and where.
ELSEWHERE = {
    "recipes": "here, one by one",
    "processes": "tests/train/test_processes.py, in processes of its own",
    "botorch": "tests/contrib/test_botorch.py",
    "sklearn": "tests/test_sklearn.py",
    "index": "tests/test_readme.py, which has README's lines; test_names.py holds them to be the same",
}
ON_PAGES = [name for name, path in PAGES.items() if code(path.read_text()) and name not in ELSEWHERE]
which_short_runs_deserve = pytest.mark.filterwarnings("ignore:The verdict on this guide", "ignore:NUTS has not mixed")
# Which numbers a twentieth of is enough to see whether a page runs, and what a judgement of such fits is made to cost.
LONG = re.compile(r"\b(num_steps|num_samples|warmup_steps|num_simulations|num_draws)=(\d+)")
JUDGED, CHEAPLY = "fit=result", "fit=result, num_samples=200, max_seconds=0.5"


def run(page, pieces, namespace, *, in_short=False):
    """Runs pieces of a page after each other, seeds shifted as all the tests' are."""
    for number, piece in enumerate(pieces):
        piece = re.sub(r"set_rng_seed\((\d+)\)", lambda m: f"set_rng_seed({seed(int(m[1]))})", piece)
        if in_short:
            piece = LONG.sub(lambda m: f"{m[1]}={max(2, int(m[2]) // 20)}", piece).replace(JUDGED, CHEAPLY)
        exec(compile(piece, f"{page}, piece {number}", "exec"), namespace)
    return namespace


@which_short_runs_deserve
@pytest.mark.parametrize("page", ON_PAGES)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, code(PAGES[page].read_text()), {"__name__": page}, in_short=True)


@pytest.mark.slow
@which_short_runs_deserve
@pytest.mark.parametrize("page", ON_PAGES)
def test_a_page_runs_in_full(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, code(PAGES[page].read_text()), {"__name__": page})


@pytest.fixture(scope="module")
def start():
    """What every recipe starts from."""
    pieces = code(PAGES["recipes"].read_text().split("\n## ")[0])
    return run("recipes", pieces, {"__name__": "recipes"})


def test_there_are_forty_recipes():
    assert sum(map(bool, RECIPES.values())) >= 40


@pytest.mark.parametrize("question", [question for question, pieces in RECIPES.items() if pieces])
def test_a_recipe(question, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyro.set_rng_seed(seed())
    text = "\n".join(RECIPES[question])
    test = doctest.DocTestParser().get_doctest(text, dict(start), question, "docs/recipes.md", 0)
    failures = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)

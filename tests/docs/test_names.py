"""What the pages name is there: public names of the package, files that are linked to, scripts, headings."""

import ast
import importlib
import inspect
import re

import pytest

import pyro_hypernet
from tests.docs.pages import FOLDER, PAGES, code

ROOT = FOLDER.parent
DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|module):: (pyro_hypernet\S*)", flags=re.M)
API = {name: DIRECTIVE.findall(path.read_text()) for name, path in PAGES.items() if name.startswith("api/")}

every_page = pytest.mark.parametrize("page", PAGES)


def test_every_public_name_has_a_place_in_the_api():
    listed = [name for names in API.values() for name in names]
    assert len(listed) == len(set(listed))
    assert {f"pyro_hypernet.{name}" for name in pyro_hypernet.__all__} <= set(listed)


@pytest.mark.parametrize("page", API)
def test_the_api_names_what_is_there(page):
    for name in API[page]:
        module, _, attribute = name.rpartition(".")
        assert attribute in dir(importlib.import_module(module)) or importlib.import_module(name)


def anchor(heading):
    """As MyST makes them: GitHub's."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@every_page
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?^```", "", PAGES[page].read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, place = target.partition("#")
        path = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert path.exists(), f"{page} links to {target}"
        if place:
            assert place in map(anchor, re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)), target


@every_page
def test_scripts_that_are_named_exist(page):
    text = PAGES[page].read_text()
    named = re.findall(r"(?:python\s+|`)(?:(benchmarks|docs)/)?(\w+\.py)\b", text)
    missing = [name for folder, name in named if not (ROOT / (folder or "benchmarks") / name).exists()]
    assert set(missing) <= {"train.py"}  # the reader's own


def calls(text):
    """Calls of public names in a page's `running code`, as names with their options."""
    for piece in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?^```", "", text, flags=re.S | re.M)):
        try:
            tree = ast.parse(piece.replace("…", "None"))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in pyro_hypernet.__all__:
                yield ast.unparse(node.func), [keyword.arg for keyword in node.keywords]


@every_page
def test_options_that_are_named_exist(page):
    for name, options in calls(PAGES[page].read_text()):
        parameters = inspect.signature(getattr(pyro_hypernet, name)).parameters.values()
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            assert {*options} <= {parameter.name for parameter in parameters}, f"{page}: {name}"


def test_the_landing_page_has_the_lines_of_the_readme():
    (readme,) = code((ROOT / "README.md").read_text())
    assert code(PAGES["index"].read_text()) == [readme]

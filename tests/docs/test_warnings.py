"""Every warning of the package has a row in *Did it work?*, and every row a warning."""

import ast
import re
from pathlib import Path

from tests.docs.pages import PAGES

PACKAGE = Path(__file__).parent.parent.parent / "pyro_hypernet"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ROWS = re.findall(r"^\| `([^`]+)`", PAGES["did_it_work"].read_text().split("## Every warning")[1], flags=re.M)
# Which argument is the text.
CALLS = {"warnings.warn": 0, "warn_caller": 0, "warn_once": 2, "remember": 1}
# Text that another of these calls gave, or that caught warnings have.
HANDED_ON = {"text", "message", "warning.message", "''"}


def words(*trees: ast.AST) -> str:
    """All text in them."""
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return " ".join(node.value for node in nodes if isinstance(node.value, str))


def named(module: ast.Module, expression: ast.AST) -> list[ast.AST]:
    """Functions and constants of a module that an expression names."""
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    own = {node: {getattr(node, "name", ""), *map(ast.unparse, getattr(node, "targets", []))} for node in module.body}
    return [node for node in module.body if names & own[node]]


def given_warnings() -> dict[str, str]:
    """From where a warning is given to its text, figures left out."""
    found = {}
    for path, module in TREES.items():
        calls = [node for node in ast.walk(module) if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS]
        for call in calls:
            text = call.args[CALLS[ast.unparse(call.func)]]
            if ast.unparse(text) not in HANDED_ON:
                made_by = named(module, text)
                if not words(text) and not made_by:  # by a function of another module
                    made_by = [tree for other in TREES.values() for tree in named(other, text)]
                found[f"{path.relative_to(PACKAGE)}:{call.lineno}"] = words(text, *made_by)
    return found


def test_every_warning_has_a_row_and_every_row_a_warning():
    given = given_warnings()
    unsaid = {place: text for place, text in given.items() if not any(row in text for row in ROWS)}
    assert not unsaid, "docs/did_it_work.md, 'Every warning': add a row for each, by a piece of its text"
    assert not [row for row in ROWS if not any(row in text for text in given.values())]

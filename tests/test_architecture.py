"""The picture of the folders in CONTRIBUTING is the picture of the code."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import pyro_hypernet

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_hypernet"

# Imports point up this list only.
ORDER = [
    "options",
    "shown",
    "graphs",
    "model",
    "maps",
    "informed",
    "bnn",
    "guide",
    "target",
    "train",
    "sample",
    "evaluation",
    "correction",
    "calibration",
    "output",
    "pipeline",
    "infer",
    "contrib",
    "tables",
    "sklearn",
    "jobs",
    "cli",
]
FOLDER_ORDER = ["pyro_hypernet", "models", "tests"]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports must be absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rank(module: str) -> int:
    return ORDER.index(module.split(".")[1])


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_up(path):
    assert dotted(path).split(".")[1] in ORDER, f"{path} has no place in the order of the folders"
    for name in imported(path):
        if name.startswith("pyro_hypernet."):
            assert rank(name) <= rank(dotted(path)), f"{dotted(path)} imports {name}, which stands below it"


def test_no_import_cycle():
    known = {dotted(path) for path in MODULES}
    edges = {dotted(path): {name for name in imported(path) if name in known} for path in MODULES}
    done, stack = set(), []

    def visit(module):
        assert module not in stack, f"import cycle: {' -> '.join([*stack, module])}"
        if module not in done:
            stack.append(module)
            for name in sorted(edges[module]):
                visit(name)
            done.add(stack.pop())

    for module in sorted(edges):
        visit(module)


@pytest.mark.parametrize("folder", FOLDER_ORDER)
def test_folders_are_one_way(folder):
    below = [*FOLDER_ORDER[FOLDER_ORDER.index(folder) + 1 :], "tutorials", "benchmarks"]
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] not in below, f"{path} imports {name}"


def public_members():
    for path in MODULES:
        if "botorch" in {name.split(".")[0] for name in imported(path)} and not importlib.util.find_spec("botorch"):
            continue  # there is none for Python 3.10
        module = importlib.import_module(dotted(path))
        yield dotted(path), module
        for name, member in vars(module).items():
            if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(member) or inspect.isclass(member):
                yield f"{dotted(path)}.{name}", member
            if inspect.isclass(member):
                for key, value in vars(member).items():
                    inherited = any(hasattr(base, key) for base in member.__mro__[1:])
                    is_method = inspect.isfunction(value) or isinstance(value, property)
                    if is_method and not key.startswith("_") and not inherited:
                        yield f"{dotted(path)}.{name}.{key}", value


def test_public_names_are_documented():
    undocumented = [name for name, member in public_members() if not (member.__doc__ or "").strip()]
    assert not undocumented


def test_every_public_name_is_there():
    for name in pyro_hypernet.__all__:
        assert callable(getattr(pyro_hypernet, name))


def test_contributing_shows_the_folders_as_they_are():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    block = next(block for block in blocks if block.startswith("pyro_hypernet/"))
    shown = set(re.findall(r"[\w/]+\.py", block))
    real = {path.name for path in MODULES}
    assert {name.split("/")[-1] for name in shown if "test_" not in name} - {"__init__.py"} == real


# Every exception class of the package, and where it ends: (module, class) to the function that catches it.
CAUGHT = {
    (
        "pyro_hypernet.model.density",
        "_Enough",
    ): "sample_prior, around the one run that the handler that raises it watches"
}


def test_no_internal_exception_reaches_a_user():
    """Such a class is private, raised and caught in one module, and known here."""
    found = set()
    for path in MODULES:
        tree = ast.parse(path.read_text())
        caught = {
            ast.unparse(node.type) for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type
        }
        for node in ast.walk(tree):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(base.endswith(("Exception", "Error", "Warning")) for base in bases):
                found.add((dotted(path), node.name))
                assert node.name.startswith("_"), f"{path}: {node.name} is a public exception"
                assert node.name in caught, f"{path}: {node.name} is not caught where it is raised"
    assert found == set(CAUGHT)
    for _, name in found:
        assert sum(name in re.findall(r"\w+", path.read_text()) for path in MODULES) == 1


# Where the density of a model is built.
DENSITIES = {"pyro_hypernet.model.density.density_of": "at a guide's sites, a run's, or those of a layout"}
# Where a model, or a guide, is traced.
TRACES = {
    "pyro_hypernet.model.single_run.trace_one": "as the handlers of its caller see it",
    "pyro_hypernet.model.single_run.trace_outside": "seen by none of them",
}


def callers_of(name: str) -> list[str]:
    """The functions of the package in which something of this name is called, as often as it is."""
    found = []

    def visit(node: ast.AST, module: str, function: str) -> None:
        function = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            found.append(f"{module}.{function}")
        for child in ast.iter_child_nodes(node):
            visit(child, module, function)

    for path in MODULES:
        visit(ast.parse(path.read_text()), dotted(path), "")
    return found


@pytest.mark.parametrize(
    ("name", "places"), [("LogJoint", DENSITIES), ("get_trace", TRACES)], ids=["densities", "traces"]
)
def test_a_model_is_bound_and_traced_in_few_places(name, places):
    assert sorted(callers_of(name)) == sorted(places)


# Where a model runs within its caller's handlers, because the caller is Pyro.
RUNS_INSIDE = {"pyro_hypernet.model.single_run": {"trace_one"}}


def runs_of_models(tree: ast.AST) -> list[tuple[str, bool]]:
    """For every `poutine.trace` its function, and whether it is entered with all that is under way put aside."""
    found = []

    def visit(node: ast.AST, function: str, is_outside: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            function, is_outside = node.name, False
        if isinstance(node, ast.With):
            is_outside = is_outside or any("outside_of_pyro(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("poutine.trace", "poutine.block"):
            found.append((function, is_outside and node.func.attr == "trace"))
        for child in ast.iter_child_nodes(node):
            visit(child, function, is_outside)

    visit(tree, "", False)
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_model_runs_outside_of_pyro(path):
    """Handlers, plate dimensions and parameter statements of whoever calls do not see a run of ours, nor it them."""
    inside = {name for name, is_outside in runs_of_models(ast.parse(path.read_text())) if not is_outside}
    assert inside <= RUNS_INSIDE.get(dotted(path), set()), f"{dotted(path)} runs a model within its caller's handlers"


def test_a_run_within_handlers_is_found():
    assert runs_of_models(ast.parse("def f():\n    with poutine.block():\n        poutine.trace(g)()")) == [
        ("f", False),
        ("f", False),
    ]
    assert runs_of_models(ast.parse("with outside_of_pyro():\n    poutine.trace(g)()")) == [("", True)]


# Public definitions that no other module uses and nobody can import from the package: its dotted name to why it stands.
USED_BY_OTHERS = {
    "pyro_hypernet.cli.main": "the entry point of the command",
    "pyro_hypernet.contrib.botorch.fit_model": "for users: the core does not import BoTorch",
    "pyro_hypernet.maps.coordinates.Coordinates": "for users: what a structure of their own reads and writes",
    "pyro_hypernet.guide.mixture.DiagonalMixture": "what get_base_dist of several components gives",
    "pyro_hypernet.evaluation.acquisition.acquire": "for users: active learning",
    "pyro_hypernet.evaluation.acquisition.batch_bald": "for users: what a batch tells, beside which data it has",
    "pyro_hypernet.evaluation.attacks.fgsm": "for users: adversarial inputs",
    "pyro_hypernet.evaluation.attacks.logits_of": "for users: what is attacked",
    "pyro_hypernet.evaluation.attacks.pgd": "for users: adversarial inputs",
    "pyro_hypernet.evaluation.scores.told_apart": "for users: strange inputs told from usual ones",
    "pyro_hypernet.maps.foreign.foreign": "for users: a hypernet made of their own flow",
    "pyro_hypernet.output.page.render": "the tests look at pages by it",
    "pyro_hypernet.output.plots.plot_sbc": "for users: the ranks of sbc, drawn",
}


def names_in(path: Path) -> set[str]:
    """All names that a file uses, imports or looks up as attributes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def handed_out(tree: ast.Module) -> set[str]:
    """Names that a user gets without importing them: in what a module's public functions return, or in its tables."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    returned = [node.returns for node in functions if node.returns is not None]
    tables = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return {name.id for root in returned + tables for name in ast.walk(root) if isinstance(name, ast.Name)}


def test_every_public_definition_is_used():
    """What is public is exported, used by another module, or returned; a helper of one module is private."""
    used = {path: names_in(path) for path in PACKAGE.rglob("*.py")}
    unused = set()
    for path in MODULES:
        tree = ast.parse(path.read_text())
        elsewhere = set().union(*(names for other, names in used.items() if other != path))
        known = elsewhere | set(pyro_hypernet.__all__) | handed_out(tree)
        defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        unused |= {f"{dotted(path)}.{name}" for name in defined if not name.startswith("_") and name not in known}
    assert unused == set(USED_BY_OTHERS)


BENCHMARKS = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}


def defined(path: Path) -> set[str]:
    """Names that a file makes or imports at its top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_what_a_benchmark_takes_from_another_is_there(name):
    """None of them is run here, and what moves from one file to another would be missed."""
    for node in ast.walk(ast.parse(BENCHMARKS[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in BENCHMARKS:
            missing = {alias.name for alias in node.names} - defined(BENCHMARKS[node.module])
            assert not missing, f"{name}.py takes {missing} from {node.module}.py, which has no such names"

"""Every seed of the tests comes from one place, wherever it is used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from tests.seeds import SHIFT, seed

TESTS = Path(__file__).parent
SEEDING = {"set_rng_seed", "manual_seed", "manual_seed_all", "default_rng", "RandomState"}
OF_THE_MACHINE = "test_stale_graphs.py"  # there a model draws from a generator that no seed decides, on purpose
AT_IMPORT = float(torch.rand(()))


def seeds_given(tree):
    """Expressions that seed a generator, or that are handed on as `seed=`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "seed")
            if name in SEEDING:
                yield from node.args or [node]  # without an argument the machine decides


def is_ours(expression, path):
    is_call = isinstance(expression, ast.Call)
    if is_call and not expression.args and path.name == OF_THE_MACHINE:
        return True
    return is_call and getattr(expression.func, "id", "") == "seed"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_seeds_by_itself(path):
    strangers = [
        expression.lineno for expression in seeds_given(ast.parse(path.read_text())) if not is_ours(expression, path)
    ]
    assert not strangers, (
        f"{path.name}, lines {strangers}: write seed(n) of tests.seeds for n, or PYRO_HYPERNET_SEED does not shift it"
    )


def test_a_test_and_its_module_start_from_the_seed_of_the_run():
    drawn = float(torch.rand(())), float(np.random.rand())  # noqa: NPY002
    pyro.set_rng_seed(seed())
    assert drawn == (float(torch.rand(())), float(np.random.rand()))  # noqa: NPY002
    pyro.set_rng_seed(seed())
    assert float(torch.rand(())) == AT_IMPORT


@pytest.fixture(scope="module")
def shared():
    return float(torch.rand(()))


def test_a_shared_fixture_draws_the_same_and_leaves_the_state_alone(request):
    """Whether it is made before this test, or in the midst of it."""
    torch.rand(7)
    assert request.getfixturevalue("shared") == AT_IMPORT
    after = float(torch.rand(()))
    pyro.set_rng_seed(seed())
    torch.rand(7)
    assert after == float(torch.rand(()))


def test_the_environment_shifts_every_seed():
    found = set()
    for shift in (0, 1, 19):
        code = "from tests.seeds import seed; print(seed(3))"
        environment = {**os.environ, "PYRO_HYPERNET_SEED": str(shift)}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=TESTS.parent, capture_output=True, check=True
        )
        found.add(int(run.stdout))
    assert found == {3, 10_003, 190_003}
    assert seed(3) == 10_000 * SHIFT + 3

"""What every test and doctest starts from: a fresh parameter store, one thread, and randomness of `tests.seeds`.

Nothing random depends on the order of the tests, or on which of them run: the generators start anew before a test
module is imported, before a fixture of wider scope is made, and before each test.
"""

from importlib.util import find_spec

import pyro
import pytest
import torch
from pyro.util import get_rng_state, set_rng_state

from tests.seeds import SHIFT, seed
from tests.slow import SLOW, matches

_OF_BOTORCH = ["pyro_hypernet/contrib/botorch.py", "pyro_hypernet/contrib/paths.py", "tests/contrib/test_botorch.py"]
collect_ignore = [] if find_spec("botorch") else _OF_BOTORCH

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_pyro(request, monkeypatch):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed())
    if isinstance(request.node, pytest.DoctestItem):  # an example shows its reader a plain seed
        shown = pyro.set_rng_seed
        monkeypatch.setattr(pyro, "set_rng_seed", lambda number: shown(seed(number)))
    yield
    pyro.clear_param_store()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Data that a module draws as it is imported."""
    if isinstance(collector, pytest.Module):
        pyro.set_rng_seed(seed())
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """A fixture that several tests share draws the same whichever of them comes first, and leaves them their state."""
    if fixturedef.scope == "function":
        return (yield)
    state = get_rng_state()
    pyro.set_rng_seed(seed())
    try:
        return (yield)
    finally:
        set_rng_state(state)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks what the table of slow tests names; of all tests, a line of it that names none is an error."""
    found = set()
    for item in items:
        patterns = [pattern for pattern in SLOW if matches(item.nodeid, pattern)]
        found.update(patterns)
        if patterns:
            item.add_marker(pytest.mark.slow)
    if config.args == config.getini("testpaths"):
        missing = [each for each in SLOW if each not in found and not each.startswith(tuple(collect_ignore))]
        if missing:
            raise pytest.UsageError(f"tests/slow.py names tests that are not there: {missing}")


def pytest_terminal_summary(terminalreporter):
    if SHIFT:
        terminalreporter.write_line(f"All seeds were shifted: PYRO_HYPERNET_SEED={SHIFT}")

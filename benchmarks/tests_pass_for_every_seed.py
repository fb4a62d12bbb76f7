"""A test's verdict depends on neither the seed nor the processor: the suite for many seeds and instruction sets.

    python benchmarks/tests_pass_for_every_seed.py [SELECTION ...] [--seeds 0 1 2] [--capabilities default avx2 avx512]
        [--in-turn]

SELECTION is anything that pytest takes: files, folders, names of tests, `-m slow`. The first run of each test watches
whether it draws random numbers or asks for a seed; a test that does neither is run once for each instruction set, the
others for all seeds. With --in-turn seed k has one instruction set, the k-th in turn. Each outcome is a line in a
journal, and a run that was stopped goes on where it was. A line counts as long as the test's file has not changed
since.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
JOURNAL = ROOT / ".pytest_cache" / "seeds.jsonl"
CAPABILITIES = ("default", "avx2", "avx512")
MAX_MESSAGE = 160  # characters


def digest(path: Path) -> str:
    """What stands for the contents of a test's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def generators() -> tuple[bytes, bytes, int]:
    """The state of the three global generators."""
    numpys = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numpys[1].tobytes() + bytes(numpys[2]), hash(random.getstate())


def draws_at_import(path: Path) -> bool:
    """Whether a module of tests makes data as it is imported, by anything that asks for a seed or draws."""
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    words = ("rand", "seed(", "_data(", "normal(", "sample(", "PROBLEMS")
    return any(word in ast.unparse(statement) for statement in statements for word in words)


class Watch:
    """A plugin of pytest: which tests are random, and how each ended."""

    def __init__(self, journal: Path, seed: int, capability: str, done: set[str], known: dict[str, bool]) -> None:
        self.journal, self.seed, self.capability, self.done, self.known = journal, seed, capability, done, known
        self.asked = False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves what is done, and after the first seed what is not random."""
        kept = [item for item in items if item.nodeid not in self.done and self.known.get(item.nodeid, True)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def listen(self) -> None:
        """Notes calls that seed a generator or fork the global one, which leave its state as it was."""
        for owner, name in ((torch, "manual_seed"), (torch.random, "fork_rng"), (np.random, "default_rng")):
            setattr(owner, name, self._noting(getattr(owner, name)))
        from tests import seeds

        seeds.seed = self._noting(seeds.seed)

    def _noting(self, function: Any) -> Any:
        def noted(*args: Any, **options: Any) -> Any:
            self.asked = self.asked or "pyro" not in sys._getframe(1).f_code.co_filename.split(os.sep)[-2:]
            return function(*args, **options)

        return noted

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Draws of the test itself."""
        before, self.asked = generators(), False
        try:
            return (yield)
        finally:
            item.drew = self.asked or generators() != before or self._shares(item) or draws_at_import(item.path)

    @staticmethod
    def _shares(item: pytest.Item) -> bool:
        """Whether the test takes a fixture of the tests' own, which may draw before the test begins."""
        found = getattr(item, "_fixtureinfo", None)
        given = {} if found is None else found.name2fixturedefs
        ours = {name for name, defined in given.items() if "tests/" in defined[-1].baseid}
        return bool(ours - {"double"})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        """Writes the line of a test that is over or has failed."""
        report = yield
        if report.when == "call" or not report.passed:
            message = "" if report.passed or call.excinfo is None else " ".join(str(call.excinfo.value).split())
            line = {"test": item.nodeid, "seed": self.seed, "capability": self.capability, "outcome": report.outcome}
            line |= {"random": getattr(item, "drew", True), "seconds": round(report.duration, 2)}
            line |= {"digest": digest(item.path), "message": message[:MAX_MESSAGE]}
            with self.journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return report


def read(journal: Path) -> list[dict[str, Any]]:
    """Lines of tests whose files are still the same; the last one of each test, seed and instruction set."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    files = {line["test"].split("::")[0] for line in lines}
    now = {name: digest(ROOT / name) for name in files if (ROOT / name).exists()}
    kept = [line for line in lines if now.get(line["test"].split("::")[0]) == line["digest"]]
    return list({(line["test"], line["seed"], line["capability"]): line for line in kept}.values())


def one_run(journal: Path, seed: int, capability: str, selection: list[str]) -> None:
    """Runs what is missing, in this process, whose environment is set."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    lines = read(journal)
    done = {line["test"] for line in lines if (line["seed"], line["capability"]) == (seed, capability)}
    known = {line["test"]: line["random"] for line in lines if line["capability"] == capability}
    watch = Watch(journal, seed, capability, done, known)
    watch.listen()
    pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", *selection], plugins=[watch])


def table(lines: list[dict[str, Any]]) -> str:
    """One row for each seed and instruction set, then the failures by name."""
    rows = [
        "| instructions | seed | tests run | of them random | failed | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    failures: Counter[tuple[str, str]] = Counter()
    for capability, seed in sorted({(line["capability"], line["seed"]) for line in lines}):
        cell = [line for line in lines if (line["capability"], line["seed"]) == (capability, seed)]
        failed = [line for line in cell if line["outcome"] == "failed"]
        numbers = len(cell), sum(line["random"] for line in cell), len(failed), sum(line["seconds"] for line in cell)
        rows.append(f"| {capability} | {seed} | " + " | ".join(f"{number:.0f}" for number in numbers) + " |")
        for line in failed:
            failures[line["test"], line["message"]] += 1
    runs = Counter(line["random"] for line in lines)
    tests = Counter({line["test"]: line["random"] for line in lines}.values())
    text = [
        "Made by tests_pass_for_every_seed.py. A test that draws no random number and asks for no seed is run once for "
        "each instruction set.",
        "",
        f"{tests[True]} random tests: {runs[True]} runs. {tests[False]} tests without randomness: {runs[False]} runs. "
        f"Failures: {sum(failures.values())}.",
        "",
        *rows,
        "",
        "## Failures",
        "",
        *(f"- {count} × `{name}`: {message}" for (name, message), count in failures.most_common()),
    ]
    return "\n".join(text if failures else [*text, "None."]) + "\n"


def main() -> None:
    """One process for each seed and instruction set, then the table of all that the journal holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)), help="(0 to 19)")
    parser.add_argument("--capabilities", nargs="+", default=[], choices=CAPABILITIES, help="all that the machine has")
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--table", type=Path, default=RESULTS / "seeds.md")
    parser.add_argument("--in-turn", action="store_true", help="each seed under one instruction set, not under all")
    parser.add_argument("--quick", action="store_true", help="two seeds of one file")
    parser.add_argument("--only", nargs=2, metavar=("SEED", "CAPABILITY"), help=argparse.SUPPRESS)
    options, selection = parser.parse_known_args()
    journal, seeds = options.journal.absolute(), [0, 1] if options.quick else options.seeds
    selection = ["tests/model/test_density.py"] if options.quick else selection
    journal.parent.mkdir(exist_ok=True, parents=True)
    if options.only:
        one_run(journal, int(options.only[0]), options.only[1], selection)
        return
    best = torch.backends.cpu.get_cpu_capability().lower()
    has = CAPABILITIES[: CAPABILITIES.index(best) + 1] if best in CAPABILITIES else ("default",)
    for seed in seeds:
        sets = options.capabilities or list(has[::-1])
        for capability in [sets[seed % len(sets)]] if options.in_turn else sets:
            environment = {"PYRO_HYPERNET_SEED": str(seed), "ATEN_CPU_CAPABILITY": capability}
            command = [sys.executable, __file__, "--only", str(seed), capability, "--journal", str(journal), *selection]
            subprocess.run(command, env={**os.environ, **environment}, check=False)
            to = RESULTS / "seeds-quick.md" if options.quick else options.table
            to.write_text(table(read(journal)))


if __name__ == "__main__":
    main()

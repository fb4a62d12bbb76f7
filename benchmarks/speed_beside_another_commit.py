"""Steps of `fit` on this commit against those of another, in turn: the default guide, "full", and a million weights.

    python benchmarks/speed_beside_another_commit.py --data FOLDER --old REVISION [--rounds 7] [--only CELLS] [--quick]

The other commit is checked out into a temporary folder. Every commit has a process of its own, which fits when it is
told to; the two take turns, and the first of a round changes. What is timed is `fit` as users call it: the median
interval between two steps after the first 150 (30 at size), and what the steps before took beyond that: the capture.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from data_folder import options_with_data
from timing import keep, kept, median, spell_ratio, table

ROOT = Path(__file__).parent.parent
TASKS = ("toy-gap", "penguins", "moons", "concrete")
GUIDES = ("default", "full")
LARGE = ("low_rank", "weight_norm", "layerwise")
HEADINGS = ["task", "guide", "rounds", "old, ms", "new, ms", "ratio", "seconds before the steady steps"]
STEPS, WARM, LARGE_STEPS, LARGE_WARM = 450, 150, 60, 30


def work(data: str) -> None:
    """Reads names of cells, one a line, and answers each with the milliseconds of a step and seconds of the capture."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    times: list[float] = []
    optimiser = _find("Optimiser", "train.optimiser", "inference.optimiser", "inference.safeguards", "optimiser")
    original = optimiser.step

    def step(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        times.append(time.perf_counter())
        return result

    optimiser.step = step
    for line in sys.stdin:
        times.clear()
        start = time.perf_counter()
        warm = fit_once(data, *line.split())
        gaps = [b - a for a, b in zip(times[warm:], times[warm + 1 :], strict=False)]
        median = statistics.median(gaps)
        print(json.dumps({"ms": 1e3 * median, "capture": times[warm] - start - warm * median}), flush=True)


def _find(name: str, *modules: str) -> Any:
    """A class that other commits keep elsewhere."""
    for module in modules:
        try:
            return getattr(importlib.import_module(f"pyro_hypernet.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {modules}")


def fit_once(data: str, task: str, kind: str) -> int:
    """One fit; returns how many steps are not counted."""
    import pyro
    import torch

    from models.references import read_reference
    from pyro_hypernet import AutoHypernet, bayesianize, fit

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    if task != "large":
        reference = read_reference(data, task)
        guide = AutoHypernet(reference.model, **({} if kind == "default" else {"structure": kind}))
        fit(reference.model, guide, reference.args, num_steps=STEPS, progress=False)
        return WARM
    width = (-22 + math.sqrt(22**2 + 4e6)) / 2
    layers = [(20, int(width)), (int(width), int(width)), (int(width), 1)]
    net = torch.nn.Sequential(*[m for i, o in layers for m in (torch.nn.Linear(i, o), torch.nn.Tanh())][:-1])
    x = torch.randn(128, 20)
    batches = [(x, x.sum(-1)), (-x, -x.sum(-1))]
    model = bayesianize(net, "gaussian", num_data=10_000)
    guide = AutoHypernet(model, "linear" if kind == "layerwise" else "auto", kind)
    options: dict[str, Any] = {"num_steps": LARGE_STEPS, "progress": False}
    try:
        from pyro_hypernet import VectorizedELBO

        fit(model, guide, batches, elbo=VectorizedELBO(1), **options)
    except TypeError:
        fit(model, guide, batches, num_particles=1, **options)
    return LARGE_WARM


def start(root: str, data: str) -> subprocess.Popen:
    """A process that fits on the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--data", data]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=root, text=True, **pipes)


def ask(process: subprocess.Popen, cell: tuple[str, str]) -> dict[str, float] | None:
    """What one fit took; None where that commit cannot run the cell."""
    try:
        process.stdin.write(" ".join(cell) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
        return None


def row(record: dict[str, Any]) -> list[str]:
    """A line of the table."""
    found = {who: record[who] for who in ("old", "new")}
    rounds = str(len(found["new"]))
    if any(None in values for values in found.values()):
        ran = ["does not run" if None in values else "" for values in found.values()]
        return [*record["cell"], rounds, *ran, "", ""]
    ms, capture = ({who: [v[key] for v in vs] for who, vs in found.items()} for key in ("ms", "capture"))
    seconds = " → ".join(f"{median(values):.1f}" for values in capture.values())
    steps = [f"{median(values):.2f}" for values in ms.values()]
    return [*record["cell"], rounds, *steps, spell_ratio(ms["new"], ms["old"]), seconds]


def main() -> None:
    """Times all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", help="the other commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", help="cells such as toy-gap/default; the others stay as they were")
    parser.add_argument("--quick", action="store_true", help="toy-gap, three rounds")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = options_with_data(parser)
    if options.work:
        work(options.data)
        return
    cells = [(task, guide) for task in TASKS for guide in GUIDES] + [("large", kind) for kind in LARGE]
    rounds = options.rounds
    if options.quick:
        cells, rounds = [("toy-gap", "default")], 3
    if options.only:
        cells = [cell for cell in cells if "/".join(cell) in options.only]
    before = [] if options.quick else kept("speed_commits")
    known = {tuple(record["cell"]): record for record in before if record["old_commit"] == options.old}
    with tempfile.TemporaryDirectory() as folder:
        old = str(Path(folder) / "old")
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", old, options.old], check=True)
        try:
            for cell in cells:
                processes = {"old": start(old, options.data), "new": start(str(ROOT), options.data)}
                found: dict[str, list] = {"old": [], "new": []}
                for number in range(rounds):
                    for who in ("old", "new") if number % 2 else ("new", "old"):
                        found[who].append(ask(processes[who], cell))
                for process in processes.values():
                    process.stdin.close()
                    process.wait()
                known[cell] = {"cell": cell, "old_commit": options.old, **found}
                print(row(known[cell]), flush=True)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", old], check=False)
    text = (
        f"Milliseconds per step of `fit`, {options.old} and this commit in turn, one thread; ratio new to old, median "
        "over rounds [least, greatest]; `large`: 10⁶ weights, minibatches of 128, one particle. Made by "
        "speed_beside_another_commit.py.\n\n" + table(HEADINGS, [row(record) for record in known.values()])
    )
    keep("speed_commits", list(known.values()), text, quick=options.quick)


if __name__ == "__main__":
    main()

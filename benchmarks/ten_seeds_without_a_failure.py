"""No run fails: ten seeds of a short fit on every reference, against the best bound of any AutoNormal.

    python benchmarks/ten_seeds_without_a_failure.py --data FOLDER [--tasks NAMES] [--seeds 10] [--steps 500]

The default guide and the default `fit` but for the number of steps, a sixth of the default: less time to recover.
AutoNormal's bounds are those of results/closer.jsonl, the best of Pyro's and NumPyro's at any budget and step size.
"""

import argparse
import math
import warnings
from typing import Any

import pyro
import torch
from data_folder import options_with_data
from timing import keep, kept, median, table

from models.references import NAMES, read_reference
from pyro_hypernet import AutoHypernet, fit
from pyro_hypernet.evaluation.importance import elbo


def one_cell(folder: str, task: str, seed: int, num_steps: int) -> dict[str, Any]:
    """Trains one guide and measures its bound."""
    reference = read_reference(folder, task)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(reference.model)
    result = fit(reference.model, guide, reference.args, num_steps=num_steps, progress=False)
    bound = float(elbo(reference.model, guide, *reference.args, num_samples=2000)[0])
    found = {"task": task, "seed": seed, "steps": num_steps, "elbo": bound, "skipped": result.num_skipped}
    return found | {"seconds": result.seconds, "acceptance": result.acceptance}


def report(records: list[dict[str, Any]]) -> str:
    """One row per task and number of steps."""
    peers = kept("closer")
    rows = []
    for task, steps in dict.fromkeys((r["task"], r["steps"]) for r in records):
        cells = [r for r in records if (r["task"], r["steps"]) == (task, steps)]
        best = max(r["elbo"] for r in peers if r["task"] == task and "AutoNormal" in r["guide"] and "elbo" in r)
        bounds = [r["elbo"] for r in cells]
        spread = f"{median(bounds):.1f} [{min(bounds):.1f}, {max(bounds):.1f}]"
        failed = sum(r["skipped"] > 0 or not math.isfinite(r["elbo"]) for r in cells)
        below = sum(not r["elbo"] > best for r in cells)
        rows.append([task, steps, len(cells), spread, f"{best:.1f}", failed, below])
    headings = [
        "task",
        "steps",
        "seeds",
        "bound",
        "best AutoNormal's",
        "runs with a skipped step or NaN",
        "below AutoNormal",
    ]
    return "Default guide; medians [least, greatest]. Made by ten_seeds_without_a_failure.py.\n\n" + table(
        headings, rows
    )


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="toy-gap, two seeds of 100 steps")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks, seeds, steps = options.tasks, options.seeds, options.steps
    if options.quick:
        tasks, seeds, steps = ["toy-gap"], 2, 100
    records = kept("robust", quick=options.quick)
    done = {(r["task"], r["seed"], r["steps"]) for r in records}
    for task in tasks:
        for seed in range(seeds):
            if (task, seed, steps) not in done:
                records.append(one_cell(options.data, task, seed, steps))
                keep("robust", records, report(records), quick=options.quick)
    keep("robust", records, report(records), quick=options.quick)


if __name__ == "__main__":
    main()

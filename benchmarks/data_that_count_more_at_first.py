"""What it does to let the data count more than once at the start of a fit: bound and W1/sd, with and without rejection.

    python benchmarks/data_that_count_more_at_first.py --data FOLDER [--tasks NAMES] [--anneal 1 5] [--seeds 3]

The default guide, 3 000 steps of 32 particles; rejection at one draw in twenty. Cells in the file are not run again.
"""

import argparse
import warnings
from typing import Any

import pyro
import torch
from data_folder import options_with_data
from timing import keep, kept, median, table

from models.references import NAMES, read_reference
from pyro_hypernet import AutoHypernet, Plan, fit, predict
from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.train.anneal import ANNEALED_SHARE

RATE, DRAWS = 0.05, 4000


def one_cell(folder: str, task: str, anneal: float, seed: int, num_steps: int) -> dict[str, Any]:
    """Trains one guide and measures it."""
    reference = read_reference(folder, task)
    model, args = reference.model, reference.args
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(model)
    result = fit(model, guide, args, num_steps=num_steps, plan=Plan(anneal=anneal, rejection=None), progress=False)
    found: dict[str, Any] = {"task": task, "seed": seed, "anneal": anneal, "share": ANNEALED_SHARE, "steps": num_steps}
    found["seconds"] = result.seconds
    for prefix in ("", "rejected_"):
        f = predict(model, guide, reference.x_test, num_samples=DRAWS, return_sites=["f"])["f"]
        found[prefix + "bound"] = float(elbo(model, guide, *args, num_samples=DRAWS)[0])
        found[prefix + "w1"] = float(wasserstein_over_sd(f, reference.f_test))
        if "sigma" in reference.samples and not prefix:
            found["sigma"] = float(guide.sample_posterior(DRAWS)["sigma"].mean())
        guide.reject(args, rates=(RATE,))
    return found


def report(records: list[dict[str, Any]]) -> str:
    """Medians over the seeds."""
    rows = []
    kinds = {(r["task"], r["anneal"], r["share"], r["steps"], r.get("particles", 32)): [] for r in records}
    for record in records:
        key = record["task"], record["anneal"], record["share"], record["steps"], record.get("particles", 32)
        kinds[key].append(record)
    for (task, anneal, share, steps, particles), cells in kinds.items():
        cell = [task, f"{anneal:g}", f"{share:g}" if anneal != 1 else "", f"{steps} × {particles}", len(cells)]
        for name, digits in (("bound", 1), ("w1", 3), ("rejected_bound", 1), ("rejected_w1", 3), ("sigma", 3)):
            values = [r[name] for r in cells if name in r]
            spread = (
                f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]" if values else ""
            )
            cell.append(spread)
        rows.append(cell)
    headings = ["task", "data count at first", "until, share of steps", "steps × particles", "seeds", "bound", "W1/sd"]
    headings += ["bound, rejection", "W1/sd, rejection", "mean noise"]
    return (
        "Default guide; medians [least, greatest]; rejection at one in twenty. Made by "
        "data_that_count_more_at_first.py; shares other than a half, other numbers of steps: by a loop of the same "
        "steps outside it.\n\n" + table(headings, rows)
    )


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--anneal", nargs="*", type=float, default=[1.0, 5.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="penguins, one seed, 300 steps")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks, seeds, num_steps = (["penguins"], 1, 300) if options.quick else (options.tasks, options.seeds, 3000)
    records = kept("anneal", quick=options.quick)
    done = {(r["task"], r["seed"], r["anneal"], r["steps"]) for r in records if r["share"] == ANNEALED_SHARE}
    for seed in range(seeds):
        for task in tasks:
            for anneal in options.anneal:
                if (task, seed, anneal, num_steps) not in done:
                    records.append(one_cell(options.data, task, anneal, seed, num_steps))
                    records.sort(key=lambda r: (NAMES.index(r["task"]), r["anneal"], r["share"], r["steps"], r["seed"]))
                    keep("anneal", records, report(records), quick=options.quick)
    keep("anneal", records, report(records), quick=options.quick)


if __name__ == "__main__":
    main()

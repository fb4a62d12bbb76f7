"""`refine` against NumPyro's NUTS: distance to long NUTS runs in function space, log evidence, seconds.

Both run in this process, one after the other, with one thread (torch and XLA) or as many as --threads says. Cells are
kept in a JSON-lines file and not run again, so that the table can be made in pieces.

    python benchmarks/refine_is_exact_in_half_the_time_of_nuts.py --data FOLDER [--tasks …] [--seeds 3] [--only-table]
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SAMPLERS = ("numpyro NUTS", "refine")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help="folder that holds references/")
    parser.add_argument("--out", type=Path, default=RESULTS / "refine")
    parser.add_argument("--tasks", nargs="*", help="default: all references and the held-out problems")
    parser.add_argument("--samplers", nargs="*", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=3, help="of refine; NUTS runs once per task")
    parser.add_argument("--threads", type=int, default=1, help="of torch, of XLA and of refine")
    parser.add_argument("--only-table", action="store_true", help="write the table of what was run before")
    return parser.parse_args()


OPTIONS = read_options() if __name__ == "__main__" else argparse.Namespace(threads=1)
# JAX reads this when it is imported.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if OPTIONS.threads == 1 else ""
)

import torch  # noqa: E402
from defaults_are_chosen_from_this_table import noise_floor  # noqa: E402
from held_out import HELD_OUT, read_held_out  # noqa: E402
from peers_numpyro import run_nuts  # noqa: E402

from models.references import NAMES, Reference, read_reference  # noqa: E402
from pyro_hypernet import HmcKernel, predict, refine  # noqa: E402
from pyro_hypernet.evaluation.distances import wasserstein_over_sd  # noqa: E402

TASKS = (*NAMES, *HELD_OUT)
# Tempered SMC in plain torch, of the references' README, and how near to it is near.
LOG_EVIDENCE = {"toy-gap": 4.2, "penguins": -45.2, "moons": -40.7}


def run_cell(reference: Reference, sampler: str, seed: int) -> dict[str, Any]:
    """Runs one sampler and measures it."""
    busy = time.process_time()
    if sampler == "refine":
        torch.manual_seed(seed)
        kernel = HmcKernel(num_threads=OPTIONS.threads)
        refined = refine(reference.model, *reference.args, kernel=kernel, progress=False)
        row = {
            "cpu_seconds": time.process_time() - busy,
            "seconds": refined.seconds,
            "log_evidence": refined.log_evidence,
            "log_evidence_error": refined.log_evidence_error,
            "pooled_rhat": refined.pooled_rhat,
            "ess": refined.ess,
            "temperatures": len(refined.betas) - 1,
            "gradients": refined.num_gradients,
            "acceptance": statistics.mean(refined.acceptance),
            "collapsed": ", ".join(refined.collapsed),
        }
        num_draws = len(next(iter(refined.samples.values())))
        f = predict(reference.model, refined.samples, reference.x_test, num_samples=num_draws, return_sites=["f"])["f"]
    else:
        outcome = run_nuts(reference, seed=seed)
        row = {"cpu_seconds": time.process_time() - busy, "seconds": outcome.seconds, **outcome.notes}
        f = outcome.f
    row["w1_over_sd"] = float(wasserstein_over_sd(f, reference.f_test).mean())
    row["noise_floor"] = noise_floor(reference)
    return row


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The cells run so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(cells: list[dict[str, Any]], threads: int) -> str:
    """One row per task: medians, and the least and greatest of several seeds."""
    headings = ["task", "floor", "W1/sd of NUTS", "W1/sd of refine", "over the floor", "log evidence", "collapsed"]
    headings += ["gradients of refine", "s of NUTS", "s of refine", "refine / NUTS", "CPU s of NUTS", "CPU s of refine"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for task in TASKS:
        ours, theirs = (
            [c for c in cells if (c["task"], c["sampler"], c["threads"]) == (task, sampler, threads)]
            for sampler in ("refine", "numpyro NUTS")
        )
        if ours:
            lines.append(f"| {task} | " + " | ".join(_entries(ours, theirs)) + " |")
    return "\n".join(lines)


def _entries(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    floor = ours[0]["noise_floor"]
    ratio = math.nan
    if theirs:
        ratio = _middle(ours, "seconds") / _middle(theirs, "seconds")
    return [
        f"{floor:.3f}",
        _spell(theirs, "w1_over_sd", ".3f"),
        _spell(ours, "w1_over_sd", ".3f"),
        f"{max(row['w1_over_sd'] for row in ours) / floor:.2f} at most",
        f"{_spell(ours, 'log_evidence', '.2f')} ± {_middle(ours, 'log_evidence_error'):.2f}",
        ours[0]["collapsed"] or "–",
        f"{_middle(ours, 'gradients'):.0f}",
        _spell(theirs, "seconds", ".1f"),
        _spell(ours, "seconds", ".1f"),
        f"{ratio:.2f}",
        _spell(theirs, "cpu_seconds", ".1f"),
        _spell(ours, "cpu_seconds", ".1f"),
    ]


def _middle(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def _spell(rows: list[dict[str, Any]], name: str, how: str) -> str:
    if not rows:
        return "–"
    values = sorted(row[name] for row in rows)
    spread = f" [{values[0]:{how}}, {values[-1]:{how}}]" if len(values) > 1 else ""
    return f"{statistics.median(values):{how}}{spread}"


def report(path: Path) -> str:
    """The tables of a file of cells, as Markdown."""
    cells = read_cells(path)
    parts = [
        f"Made by {Path(__file__).name} from {path.name}. W1/sd: Wasserstein distance to 1 000 NUTS draws in function "
        "space, in sds; the noise floor is one half of those against the other. NUTS: 4 vectorised chains of 1 000 + "
        "2 000, thinned to 1 000 draws; refine: its defaults. Seconds include all compilation; medians [least, "
        "greatest] over seeds. CPU seconds: of the process, which other processes do not lengthen so much.\n\n"
        "Log evidence to meet: "
        + ", ".join(f"{task} {value} ± .4" for task, value in LOG_EVIDENCE.items())
        + ". Held out, with references made by NUTS here: "
        + "; ".join(f"{task}: {problem.description}" for task, problem in HELD_OUT.items())
    ]
    for threads in sorted({cell["threads"] for cell in cells}):
        parts.append(f"## {threads} thread(s)\n\n{table(cells, threads)}")
    return "\n\n".join(parts)


def main(say: Callable[[str], None] = print) -> None:
    """Runs what is missing and writes the table."""
    if OPTIONS.data is None:
        say("No reference posteriors: pass --data FOLDER or set PYRO_HYPERNET_DATA. Nothing was run.")
        return
    torch.set_num_threads(OPTIONS.threads)
    path = OPTIONS.out.with_suffix(".jsonl")
    done = {(c["task"], c["sampler"], c["seed"], c["threads"]) for c in read_cells(path)}
    for task in () if OPTIONS.only_table else OPTIONS.tasks or TASKS:
        cells = [
            (sampler, s) for sampler in OPTIONS.samplers for s in range(OPTIONS.seeds if sampler == "refine" else 1)
        ]
        missing = [(sampler, seed) for sampler, seed in cells if (task, sampler, seed, OPTIONS.threads) not in done]
        if not missing:
            continue
        reference = read_held_out(task, OPTIONS.out.parent) if task in HELD_OUT else read_reference(OPTIONS.data, task)
        for sampler, seed in missing:
            key = {"task": task, "sampler": sampler, "seed": seed, "threads": OPTIONS.threads}
            cell = key | run_cell(reference, sampler, seed)
            with path.open("a") as file:
                file.write(json.dumps(cell) + "\n")
            say(json.dumps(cell))
    text = report(path)
    OPTIONS.out.with_suffix(".md").write_text(text + "\n")
    say(text)


if __name__ == "__main__":
    main()

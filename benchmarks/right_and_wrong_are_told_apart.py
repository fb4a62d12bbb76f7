"""Verdicts on guides known to be good or bad: none of the bad ones may be called good.

Thresholds were chosen with `--set calibration`; the claim rests on `--set held-out`, whose cases had no part in that.

python benchmarks/right_and_wrong_are_told_apart.py [--set held-out] [--seeds 1] [--only WORD] [--quick]
"""

import argparse
import json
import time
from pathlib import Path

import pyro
import torch
from guides_good_and_bad import SETS, Case

from pyro_hypernet.evaluation.diagnose import diagnose

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("guide", "is", "seed", "verdict", "right", "k-hat", "accepted", "gap", "decided by", "seconds")


def judge(case: Case, seed: int) -> tuple[dict, list[dict]]:
    """One row, and all checks behind it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, args, guide, fit = case.make()
    start = time.perf_counter()
    diagnosis = diagnose(model, guide, *args, fit=fit)
    row = {
        "guide": case.name,
        "is": "good" if case.is_good else "bad",
        "seed": seed,
        "verdict": diagnosis.verdict,
        "right": (diagnosis.verdict == "use it") == case.is_good,
        "k-hat": round(diagnosis.khat, 2),
        "accepted": round(diagnosis.acceptance, 2),
        "gap": round(diagnosis.evidence_lower - diagnosis.elbo, 2),
        "decided by": ", ".join(check.name for check in diagnosis.checks if check.level != "good"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    checks = [{"name": c.name, "value": c.value, "level": c.level, "reading": c.reading} for c in diagnosis.checks]
    return row, checks


def _read(path: Path) -> dict[tuple[str, int], dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["guide"], row["seed"]): row for row in map(json.loads, lines)}


def main() -> None:
    """Runs all cases and writes a table, and a line of JSON for every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="held-out")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep the rows that the .jsonl file holds already")
    parser.add_argument("--quick", action="store_true", help="cases without training alone; to a file of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in SETS[options.set] if options.only in case.name]
    if options.quick:
        cases = [case for case in cases if case.name.startswith(("exact", "too", "one mode of two", "1 sd"))]
    out = options.out or RESULTS / f"verdicts-{options.set}{'-quick' if options.quick else ''}.md"
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    wrong = {"good": 0, "bad": 0}
    done = _read(out.with_suffix(".jsonl")) if options.resume else {}
    with out.with_suffix(".jsonl").open("a" if options.resume else "w") as log:
        for case in cases:
            for seed in range(options.seeds):
                row = done.get((case.name, seed))
                if row is None:
                    row, checks = judge(case, seed)
                    log.write(json.dumps({**row, "checks": checks}) + "\n")
                    log.flush()
                wrong[row["is"]] += not row["right"]
                lines.append(f"| {' | '.join(str(row[column]) for column in COLUMNS)} |")
                print(lines[-1], flush=True)
    summary = f"Bad guides called good: {wrong['bad']}. Good guides not called good: {wrong['good']}. One thread, CPU."
    print(summary)
    if not options.only:
        out.write_text(summary + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""AutoHypernet against the autoguides of Pyro and NumPyro, and `refine` against NUTS, on small Bayesian networks.

Every cell is one run, judged by its ELBO and by its distance to long NUTS runs in function space. Cells are kept in a
JSON-lines file and not run again, so that the tables can be made in pieces; a run that fails is a cell too.

    python benchmarks/closer_to_nuts_than_any_autoguide.py --data FOLDER [--seeds 3] [--quick] [--only-table]
"""

import argparse
import json
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from defaults_are_chosen_from_this_table import noise_floor
from peers import OUR_NAMES, PEERS, SAMPLERS
from peers_pyro import Outcome

from models.references import NAMES, Reference, read_reference
from pyro_hypernet.evaluation.distances import sd_ratio, wasserstein_over_sd
from pyro_hypernet.evaluation.metrics import agreement, total_variation

RESULTS = Path(__file__).parent / "results"
DEFAULT = "default"
QUICK = ("AutoHypernet", "pyro AutoNormal", "numpyro AutoMultivariateNormal")
# Of these tasks the test targets mean nothing.
NO_TARGETS = ("moons",)
HEADINGS = ("guide", "step size", "ELBO", "± se", "k-hat", "W1/sd", "sd ratio")
# Whose data leave a gap, in which a mean field is too sure.
IN_BETWEEN = "toy-gap"
FOR_CLASSIFIERS = ("agreement", "TV")
LAST_HEADINGS = ("test log density", "seconds", "failed")


class Key(NamedTuple):
    """What names a cell; `budget` is "default" or STEPSxPARTICLES, `rate` None for the guide's own."""

    task: str
    guide: str
    budget: str
    rate: float | None
    seed: int


def run_cell(key: Key, reference: Reference) -> dict[str, Any]:
    """Runs one guide and measures it; an exception becomes the entry "failed"."""
    steps, particles = (None, None) if key.budget == DEFAULT else map(int, key.budget.split("x"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = PEERS[key.guide](reference, steps, particles, key.rate, key.seed)
        return _measure(outcome, reference)
    except Exception as error:  # whatever a peer raises is a result
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def _measure(outcome: Outcome, reference: Reference) -> dict[str, Any]:
    row = {
        "elbo": outcome.bound,
        "elbo_error": outcome.bound_error,
        "khat": outcome.khat,
        "w1_over_sd": float(wasserstein_over_sd(outcome.f, reference.f_test)),
        "sd_ratio": float(sd_ratio(outcome.f, reference.f_test)),
        "seconds": outcome.seconds,
    }
    if reference.name == IN_BETWEEN:
        row["gap_sd_ratio"] = float(sd_ratio(*(f[:, _gap(reference)] for f in (outcome.f, reference.f_test))))
    if reference.is_classifier:
        ours, theirs = _probabilities(outcome.f), _probabilities(reference.f_test)
        row["agreement"] = float(agreement(ours, theirs))
        row["total_variation"] = float(total_variation(ours, theirs))
    if reference.name not in NO_TARGETS:
        row["log_density"] = outcome.log_density
    row |= outcome.notes
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _gap(reference: Reference) -> torch.Tensor:
    """Which test inputs lie in the widest gap between the data, shape `(n,)`."""
    x = reference.args[0][:, 0].sort().values
    at = (x[1:] - x[:-1]).argmax()
    inputs = reference.x_test[:, 0]
    return (inputs > x[at]) & (inputs < x[at + 1])


def _probabilities(f: torch.Tensor) -> torch.Tensor:
    """Class probabilities, `(n, C)` or `(n,)`, averaged over draws of logits of shape `(S, n, C)` or `(S, n, 1)`."""
    return f.softmax(-1).mean(0) if f.shape[-1] > 1 else f.squeeze(-1).sigmoid().mean(0)


def keys(options: argparse.Namespace) -> Iterator[Key]:
    """The cells that were asked for, in the order to run them: all guides once before any for the second time."""
    budgets = [*([] if options.no_defaults else [DEFAULT]), *options.budgets]
    for seed in range(options.seeds):
        for budget in budgets:
            for task in options.tasks:
                for guide in options.guides:
                    for rate in _rates(guide, budget, seed, options.rates):
                        yield Key(task, guide, budget, rate, seed)


def _rates(guide: str, budget: str, seed: int, rates: list[float]) -> list[float | None]:
    if guide in SAMPLERS:
        return [None] if budget == DEFAULT and (seed == 0 or guide != "numpyro NUTS") else []
    if guide in OUR_NAMES:
        return [None]
    return [] if budget == DEFAULT else list(rates)


def read_cells(path: Path) -> dict[Key, dict[str, Any]]:
    """The cells run so far."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {Key(*(row[name] for name in Key._fields)): row for row in rows}


def table(cells: dict[Key, dict[str, Any]], task: str, budget: str) -> str:
    """One row per guide in Markdown, each at the step size of its best median ELBO."""
    of_task = {key: row for key, row in cells.items() if key[0] == task and key[2] == budget}
    of_classifiers = FOR_CLASSIFIERS if any("agreement" in row for row in of_task.values()) else ()
    has_gap = any("gap_sd_ratio" in row for row in of_task.values())
    headings = [*HEADINGS, *of_classifiers, *(["sd ratio in the gap"] * has_gap), *LAST_HEADINGS]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for guide in PEERS:
        by_rate: dict[float | None, list[dict[str, Any]]] = {}
        for key, row in of_task.items():
            if key.guide == guide:
                by_rate.setdefault(key.rate, []).append(row)
        if by_rate:
            entries = _entries(by_rate, bool(of_classifiers), has_gap)
            lines.append(f"| {guide} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _entries(by_rate: dict[float | None, list[dict[str, Any]]], is_classifier: bool, has_gap: bool) -> list[str]:
    every = [row for rows in by_rate.values() for row in rows]
    rate = max(by_rate, key=lambda rate: statistics.median(_bound_or_worst(row) for row in by_rate[rate]))
    good = [row for row in by_rate[rate] if "failed" not in row]
    middle = ["elbo_error", "khat", "w1_over_sd", "sd_ratio", *(("agreement", "total_variation") * is_classifier)]
    return [
        "own" if rate is None else f"{rate:g}",
        _spell(good, "elbo", ".1f"),
        *(_spell(good, name, ".2f" if name in ("elbo_error", "khat", "sd_ratio") else ".3f") for name in middle),
        *([_spell(good, "gap_sd_ratio", ".2f")] * has_gap),
        _spell(good, "log_density", ".3f"),
        _spell(good, "seconds", ".0f"),
        f"{sum('failed' in row for row in every)} of {len(every)}",
    ]


def _bound_or_worst(row: dict[str, Any]) -> float:
    bound = row.get("elbo")
    return -math.inf if bound is None else bound


def _spell(rows: list[dict[str, Any]], name: str, how: str) -> str:
    values = sorted(row[name] for row in rows if row.get(name) is not None)
    if not values:
        return "–"
    wants_spread = len(values) > 1 and name not in ("elbo_error", "seconds")
    spread = f" [{values[0]:{how}}, {values[-1]:{how}}]" if wants_spread else ""
    return f"{statistics.median(values):{how}}{spread}"


def report(path: Path, references: dict[str, Reference]) -> str:
    """All tables of a file of cells, as Markdown."""
    cells = read_cells(path)
    seeds = 1 + max((key.seed for key in cells), default=-1)
    parts = [
        "One thread each (torch and XLA), CPU; seconds are compilation and training; "
        f"{seeds} seed(s): medians [least, greatest]. Made by {Path(__file__).name} from {path.name}.\n"
        "Each guide at the step size of its best median ELBO (10 000 draws); 'failed' counts the runs of all step "
        "sizes; 'own': the guide's default.\n\n"
        "W1/sd: Wasserstein distance to 1 000 NUTS draws in function space, in sds; the noise floor is one half of "
        "those against the other. DAIS: ELBO and k-hat are of its own bound, on an extended space. refine: the ELBO "
        "column holds the log evidence. numpyro NUTS: an independent run of the sampler that made the reference."
    ]
    for task, reference in references.items():
        budgets = dict.fromkeys(key.budget for key in cells if key.task == task)
        for budget in sorted(
            budgets, key=lambda name: (name != DEFAULT, int(name.split("x")[0].replace(DEFAULT, "0")))
        ):
            what = "own defaults" if budget == DEFAULT else "{} steps, {} particles".format(*budget.split("x"))
            parts.append(f"## {task}, {what}\n\nNoise floor of W1/sd: {noise_floor(reference):.3f}.")
            parts.append(table(cells, task, budget))
    return "\n\n".join(parts)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help="folder that holds references/")
    parser.add_argument("--out", type=Path, default=RESULTS / "closer")
    parser.add_argument("--tasks", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--guides", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--budgets", nargs="*", default=["5000x8", "20000x16"], help="STEPSxPARTICLES")
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-2, 3e-3, 1e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-defaults", action="store_true", help="only the budgets, not each guide's own default")
    parser.add_argument("--only-table", action="store_true", help="write the tables of what was run before")
    parser.add_argument("--quick", action="store_true", help="penguins, three guides, 500 steps; to a file of its own")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.guides, options.seeds = ["penguins"], list(QUICK), 1
        options.budgets, options.rates = ["500x8"], [1e-2]
        options.out = options.out.with_name(options.out.name + "-quick")
    return options


def main(say: Callable[[str], None] = print) -> None:
    """Runs what is missing and writes the tables."""
    options = read_options()
    if options.data is None:
        say("No reference posteriors: pass --data FOLDER or set PYRO_HYPERNET_DATA. Nothing was run.")
        return
    torch.set_num_threads(1)
    path = options.out.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    references = {name: read_reference(options.data, name) for name in NAMES if name in options.tasks}
    for key in () if options.only_table else keys(options):
        if options.quick and key.budget == DEFAULT:
            continue
        if key in read_cells(path):
            continue
        cell = key._asdict() | run_cell(key, references[key.task])
        with path.open("a") as file:
            file.write(json.dumps(cell) + "\n")
        say(json.dumps(cell))
    text = report(path, references)
    options.out.with_suffix(".md").write_text(text + "\n")
    say(text)


if __name__ == "__main__":
    main()

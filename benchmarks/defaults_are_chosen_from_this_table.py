"""Which hypernetwork, width, step size and gradient come closest to NUTS: the table behind the defaults.

Every cell is one fit, judged by its ELBO (10 000 draws) and by W1/sd to long NUTS runs in function space. Cells are
kept in a JSON-lines file and not run again, so that the table can be made in pieces.

    python benchmarks/defaults_are_chosen_from_this_table.py --data FOLDER [--seeds 3] [--quick]
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from data_folder import options_with_data

from models.references import NAMES, Reference, read_reference
from pyro_hypernet import AutoHypernet, Optim, Plan, VectorizedELBO, fit, predict
from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.maps.hypernets import coupling, iaf, spline

RESULTS = Path(__file__).parent / "results"

# What differs from AutoHypernet(model) and fit(model, guide, args): options of the guide, options of fit.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean field": ({"hypernet": "identity"}, {}),
    "linear": ({"hypernet": "linear"}, {}),
    "4 couplings (default)": ({"hypernet": coupling}, {}),
    "8 particles": ({"hypernet": coupling}, {"elbo": VectorizedELBO(8)}),
    "total gradient": ({"hypernet": coupling}, {"elbo": VectorizedELBO(gradient="total")}),
    "step size 1e-2": ({"hypernet": coupling}, {"optim": 1e-2}),
    "averaged": ({"hypernet": coupling}, {"optim": Optim(keep="average")}),
    "8 couplings": ({"hypernet": partial(coupling, num_layers=8)}, {}),
    "4 IAF": ({"hypernet": iaf}, {}),
    "4 splines": ({"hypernet": spline}, {}),
    "128 wide": ({"hypernet": partial(coupling, hidden=(128,))}, {}),
    "no linear layer": ({"hypernet": partial(coupling, mix="none")}, {}),
    "step size 2e-3": ({"hypernet": coupling}, {"optim": 2e-3}),
    "init_scale .01": ({"hypernet": coupling, "init_scale": 0.01}, {}),
}
# Guides are compared, not what the posterior makes of their draws.
NO_REJECTION = Plan(rejection=None)
QUICK = ("mean field", "linear", "4 couplings (default)", "4 IAF")


def run_cell(reference: Reference, variant: str, seed: int, num_steps: int) -> dict[str, Any]:
    """Fits one guide and measures it."""
    of_guide, of_fit = VARIANTS[variant]
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(reference.model, **of_guide)
    result = fit(
        reference.model, guide, reference.args, num_steps=num_steps, plan=NO_REJECTION, progress=False, **of_fit
    )
    bound, error = elbo(reference.model, guide, *reference.args, num_samples=10_000)
    f = predict(reference.model, guide, reference.x_test, num_samples=1000, return_sites=["f"])["f"]
    return {
        "elbo": bound,
        "elbo_error": error,
        "w1_over_sd": float(wasserstein_over_sd(f, reference.f_test).mean()),
        "seconds": result.seconds,
        "skipped": result.num_skipped,
    }


def noise_floor(reference: Reference) -> float:
    """W1/sd of one half of the reference draws against the other."""
    order = torch.randperm(len(reference.f_test), generator=torch.Generator().manual_seed(0))
    half = len(order) // 2
    return float(wasserstein_over_sd(reference.f_test[order[:half]], reference.f_test[order[half:]]).mean())


def read_cells(path: Path) -> dict[tuple, dict[str, Any]]:
    """The cells run so far, by task, variant, seed and steps."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["task"], row["variant"], row["seed"], row["num_steps"]): row for row in rows}


def table(cells: dict[tuple, dict[str, Any]], tasks: list[str], variants: list[str], num_steps: int) -> str:
    """Medians over seeds in Markdown: ELBO, and W1/sd in brackets."""
    lines = ["| variant | " + " | ".join(tasks) + " | seconds |", "|---" * (len(tasks) + 2) + "|"]
    for variant in variants:
        entries, seconds = [], []
        for task in tasks:
            rows = [c for key, c in cells.items() if key[:2] == (task, variant) and key[3] == num_steps]
            seconds += [row["seconds"] for row in rows]
            entries.append(_spell(rows))
        lines.append(
            f"| {variant} | " + " | ".join(entries) + f" | {statistics.median(seconds):.0f} |" if seconds else ""
        )
    return "\n".join(line for line in lines if line)


def _spell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "–"
    bounds = sorted(row["elbo"] for row in rows)
    distance = statistics.median(row["w1_over_sd"] for row in rows)
    spread = f" [{bounds[0]:.1f}, {bounds[-1]:.1f}]" if len(rows) > 1 else ""
    return f"{statistics.median(bounds):.1f}{spread} ({distance:.2f})"


def main(say: Callable[[str], None] = print) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "defaults")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--tasks", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--quick", action="store_true", help="two tasks, four variants, 500 steps, one seed; to a file of its own"
    )
    options = options_with_data(parser)
    if options.quick:
        options.variants, options.tasks, options.steps, options.seeds = list(QUICK), list(NAMES[:2]), 500, 1
        options.out = options.out.with_name(options.out.name + "-quick")
    torch.set_num_threads(1)
    path = options.out.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    references = {name: read_reference(options.data, name) for name in options.tasks}
    for seed in range(options.seeds):
        for variant in options.variants:
            for task, reference in references.items():
                if (task, variant, seed, options.steps) in read_cells(path):
                    continue
                key = {"task": task, "variant": variant, "seed": seed, "num_steps": options.steps}
                cell = key | run_cell(reference, variant, seed, options.steps)
                with path.open("a") as file:
                    file.write(json.dumps(cell) + "\n")
                say(json.dumps(cell))
    floors = ", ".join(f"{name} {noise_floor(reference):.3f}" for name, reference in references.items())
    text = (
        f"{options.steps} steps, 1 thread; median ELBO in nats [least, greatest] over seeds (median W1/sd).\n"
        f"W1/sd of one half of the NUTS draws against the other: {floors}.\n\n"
        + table(read_cells(path), options.tasks, options.variants, options.steps)
    )
    options.out.with_suffix(".md").write_text(text + "\n")
    say(text)


if __name__ == "__main__":
    main()

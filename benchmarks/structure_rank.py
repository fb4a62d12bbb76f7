"""Weights multiplied by patterns of rank r, W ⊙ exp(A diag(z) B), beside the other structures of few coordinates.

    python benchmarks/structure_rank.py [--quick]

Bounds after equal steps on two networks of models/ (41 and 61 weights), and bound, held-out score and accuracy of a
64-50-10 ReLU network on scikit-learn's digits, 1 200 of them in batches of 128, 597 held out. The default hypernetwork,
neither annealing nor rejection. "Without the patterns" moves the same coordinates, 8 weights of every matrix and all
biases, and multiplies nothing. Seconds are of this process on one thread. Cells in the file are not run again.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from sklearn.datasets import load_digits
from timing import run_cells, spread, table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, Plan, bayesianize, fit, score
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.informed.structures import patterns
from pyro_hypernet.maps.bijection import Bijection, Chain
from pyro_hypernet.maps.hypernets import Hypernet
from pyro_hypernet.maps.linear import Affine
from pyro_hypernet.model.layout import Layout


def without_patterns(layout: Layout, hypernet: Hypernet, loc: torch.Tensor, scale: torch.Tensor) -> Bijection:
    """What moves the same coordinates and multiplies nothing."""
    return Chain(patterns(layout, hypernet, loc, scale).bijections[0], Affine(loc, scale)).to(loc)


GUIDES: dict[str, tuple[str | Callable[..., Any], str]] = {
    "mean field": ("full", "identity"),
    "low_rank, 20": ("low_rank", "auto"),
    "weight_norm": ("weight_norm", "auto"),
    "multiplicative": ("multiplicative", "auto"),
    "patterns, rank 8, without the patterns": (without_patterns, "auto"),
    **{f"patterns, rank {rank}": (partial(patterns, rank=rank), "auto") for rank in (8, 32)},
}
KEYS = {"bound": ("bound, nats", 1), "nll": ("held-out NLL", 4), "accuracy": ("accuracy %", 2), "seconds": ("s", 0)}


def on_problem(name: str, structure: Any, hypernet: str, num_steps: int) -> dict[str, float]:
    """A guide of one of the small networks."""
    problem = PROBLEMS[name]()
    guide = AutoHypernet(problem.model, plan=Plan(structure, hypernet, anneal=1.0, rejection=None))
    fit(problem.model, guide, problem.args, num_steps=num_steps, progress=False)
    return {"bound": elbo(problem.model, guide, *problem.args, num_samples=4000)[0]}


def on_digits(structure: Any, hypernet: str, num_steps: int) -> dict[str, float]:
    """A guide of a network on digits, by minibatches."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    model = bayesianize(net, "categorical", num_data=len(train))
    guide = AutoHypernet(model, plan=Plan(structure, hypernet, anneal=1.0, rejection=None))
    batches = DataLoader(TensorDataset(x[train], y[train]), batch_size=128, shuffle=True, drop_last=True)
    fit(model, guide, batches, num_steps=num_steps, progress=False)
    model.num_data = None
    found = score(model, guide, (x[test], y[test]), num_samples=200)
    bound = elbo(model, guide, x[train], y[train], num_samples=400)[0]
    return {"bound": bound, "nll": -found.log_predictive, "accuracy": 100 * found.accuracy}


TASKS = {"gap": partial(on_problem, "gap"), "two-class": partial(on_problem, "two-class"), "digits": on_digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 100 steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds, num_steps = (1, 100) if options.quick else (3, 1500)

    def run(task: str, guide: str, seed: int) -> dict[str, float]:
        return TASKS[task](*GUIDES[guide], num_steps)

    kinds = product(TASKS, range(seeds), GUIDES)
    cells = [{"task": task, "guide": guide, "seed": seed} for task, seed, guide in kinds]
    head = f"{__doc__}\nMedians, least and greatest of {seeds} seeds, {num_steps} steps.\n"
    run_cells("structure_rank", cells, run, partial(report, head), quick=options.quick)


def report(text: str, records: list[dict[str, Any]]) -> str:
    """A table of each task that was run, after the text."""
    for task in dict.fromkeys(record["task"] for record in records):
        rows, of_task = [], [record for record in records if record["task"] == task]
        shown = [key for key in KEYS if key in of_task[0]]
        for name in GUIDES:
            cells = [[r[key] for r in of_task if r["guide"] == name] for key in shown]
            if not cells[0]:
                continue
            rows.append((name, *(spread(cell, KEYS[key][1]) for cell, key in zip(cells, shown, strict=True))))
        text += f"\n{task}\n\n{table(('guide', *(KEYS[key][0] for key in shown)), rows)}\n"
    return text


if __name__ == "__main__":
    main()

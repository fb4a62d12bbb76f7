"""Active learning on MNIST: labels to 5 % error, by score, warm and cold, our guide beside dropout.

    python benchmarks/paper_active_learning.py --data FOLDER [--quick] [--seeds 1] [--rows 2]

20 labels at first, two a class, then ten more a step, up to 250 (the paper: 98 steps, three repeats). Of the 10 000
first training images 500 are drawn as candidates at every step; what is chosen leaves the pool, unlike in the paper's
code. The net: two convolutions of 5 × 5, of 16 and 32 channels, each with ReLU and max pooling, 64 units, 46 730
weights; dropout a half before each dense layer. After every choice 300 steps with all labels (minibatches of at most
128): warm, from where the last fit ended, or cold, from a new network. Ours: a mean field of all weights, priors of
gain 2, at temperature .03, both chosen on training images beyond the pool, that keeps its means alone from one fit to
the next; the same with a draw for every datum ("local"); or weight norm at temperature 1, warm as it is. Scores by
50 draws; error on 2 000 test images by 20. "Labels to 5 %" is where the error first is at most 5 %. One thread, two
slow cores shared with others; CPU seconds of a whole run.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_methods import METHODS, Dropout, Method, options_of
from real_tasks import scaled
from timing import medians, run_cells, table
from torch import Tensor, nn

from pyro_hypernet.evaluation.acquisition import acquire

STEP, MOST, POOL, CANDIDATES, NUM_DRAWS, NUM_TEST = 10, 250, 10_000, 500, 50, 2000
OURS, LOCAL, NORMS = "ours, all weights, T = .03", "ours, all weights, local", "ours, weight norm"
# Method, score and start in the order of what is most wanted.
CELLS = [
    (method, score, "warm")
    for score in ("bald", "random", "batchbald", "variation_ratio", "entropy", "mean_sd")
    for method in (OURS, "dropout")
]
CELLS[4:4] = [(NORMS, "bald", "warm"), (LOCAL, "bald", "warm"), (OURS, "bald", "cold"), ("dropout", "bald", "cold")]
SHOWN = (20, 50, 100, 150, 200, 250)


def network(rate: float) -> nn.Sequential:
    convolutions = [nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [Dropout(rate), nn.Linear(512, 64), nn.ReLU(), Dropout(rate), nn.Linear(64, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *head)


def images(file: Any, part: str, count: int) -> tuple[Tensor, Tensor]:
    x = scaled(file[f"x_{part}"][:count]).reshape(-1, 1, 28, 28)
    return x, torch.tensor(file[f"y_{part}"][:count]).long()


@torch.no_grad()
def error(method: Method, x: Tensor, y: Tensor) -> float:
    """Of the mean prediction, in %."""
    p = method.logits(20)(x).softmax(-1).mean(0)
    return 100 * float((p.argmax(-1) != y).double().mean())


def report(records: list[dict]) -> str:
    """A row for every method, score and start."""
    rows = []
    for key in dict.fromkeys((r["method"], r["score"], r["start"]) for r in records):
        mine = [r for r in records if (r["method"], r["score"], r["start"]) == key]
        shown = [{str(n): e for n, e in zip(r["labels"], r["errors"], strict=True)} | r for r in mine]
        reached = [
            min((n for n, e in zip(r["labels"], r["errors"], strict=True) if e <= 5), default=None) for r in mine
        ]
        labels = ", ".join("not reached" if n is None else str(n) for n in reached)
        rows.append([*key, len(mine), labels, *medians(shown, {**dict.fromkeys(map(str, SHOWN), 1), "seconds": 0})])
    headings = ["", "score", "start", "seeds", "labels to 5 %", *(f"error % at {n}" for n in SHOWN), "CPU seconds"]
    return f"{__doc__}\nMedian [least, greatest] of the seeds.\n\n{table(headings, rows)}"


def main() -> None:
    rows = {"rows": {"type": int, "default": len(CELLS), "help": "of the table, the most wanted first"}}
    options = options_of(__doc__, seeds=1, quick="four runs to 40 labels, 20 steps each", data=True, more=rows)
    file = np.load(Path(options.data) / "mnist.npz")
    (x, y), test = images(file, "train", POOL), images(file, "test", NUM_TEST)
    num_steps, most = (20, 40) if options.quick else (300, MOST)

    def run(method: str, score: str, start: str, seed: int) -> dict[str, list]:
        """The error after every number of labels."""
        order = torch.randperm(POOL)
        labelled = torch.cat([order[y[order] == digit][:2] for digit in range(10)])
        made, errors = METHODS[method](network), []
        while True:
            made = METHODS[method](network) if start == "cold" else made
            made.train(x[labelled], y[labelled], num_steps)
            errors.append(error(made, *test))
            if len(labelled) >= most:
                return {"labels": list(range(20, most + 1, STEP)), "errors": errors}
            left = torch.ones(POOL, dtype=torch.bool)
            left[labelled] = False
            candidates = left.nonzero()[:, 0]
            candidates = candidates[torch.randperm(len(candidates))[:CANDIDATES]]
            with torch.no_grad():
                logits = made.logits(NUM_DRAWS)(x[candidates])
            labelled = torch.cat([labelled, candidates[acquire(logits, STEP, score)]])

    cells = [
        {"method": method, "score": score, "start": start, "seed": seed}
        for seed in range(1 if options.quick else options.seeds)
        for method, score, start in CELLS[: 4 if options.quick else options.rows]
    ]
    run_cells("paper_active_learning", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

"""Long fits of the weight-norm model at several step sizes, with and without the way back from a divergence.

    python benchmarks/long_fits_come_back.py --data FOLDER [--quick] [--seeds 3]

784-100-10 on 5 000 images of MNIST and of Fashion-MNIST, `bayesianize(net, "categorical",
parametrization="weight_norm")` and `AutoHypernet(model)` as they come, minibatches of 128, 8 000 steps; judged on the
last 5 000 images of the training part, 50 draws. "no way back" is the same fit where a loss above that of the start
changes nothing. Seconds are of one process's CPU. Rows in the file are not run again.
"""

import argparse
import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from real_tasks import Net, scaled
from timing import medians, run_cells, table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Optim, bayesianize, fit
from pyro_hypernet.train.optimiser import Optimiser

# Step size, and whether there is a way back.
VARIANTS = {
    "5e-3, the default": (5e-3, True),
    "5e-3, no way back": (5e-3, False),
    "3e-3": (3e-3, True),
    "2e-3": (2e-3, True),
}
DATA, SIZE, STEPS = ("mnist", "fashion_mnist"), 5000, 8000
_has_diverged = Optimiser._has_diverged


def images(path: Path, size: int) -> tuple[Tensor, ...]:
    """Inputs and labels to train by, and to judge by."""
    file = np.load(path)
    x, y = scaled(file["x_train"]), torch.tensor(file["y_train"]).long()
    return x[:size], y[:size], x[-SIZE:], y[-SIZE:]


def run(data: str, variant: str, seed: int, *, sets: dict[str, tuple[Tensor, ...]], num_steps: int) -> dict[str, float]:
    """One fit and its scores."""
    x, y, x_new, y_new = sets[data]
    rate, comes_back = VARIANTS[variant]
    Optimiser._has_diverged = _has_diverged if comes_back else lambda self: False
    model = bayesianize(Net(), "categorical", parametrization="weight_norm", num_data=len(x))
    guide = AutoHypernet(model)
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    start = time.process_time()
    result = fit(model, guide, batches, num_steps=num_steps, optim=Optim(rate), progress=False)
    seconds = time.process_time() - start
    windows = result.losses[: num_steps // 50 * 50].view(50, -1).nanmean(1)
    scores = class_scores(outputs_of(model, guide, x_new, 50).softmax(-1).mean(0), y_new)
    return {**scores, "worst": float(windows[1:].max() / windows[0]), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="500 images of MNIST, 400 steps, one seed")
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz and fashion_mnist.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data, size, seeds, steps = DATA, SIZE, options.seeds, STEPS
    if options.quick:
        data, size, seeds, steps = DATA[:1], 500, 1, 400
    sets = {name: images(Path(options.data) / f"{name}.npz", size) for name in data}
    cells = [{"data": n, "variant": v, "seed": seed} for n in data for seed in range(seeds) for v in VARIANTS]
    work = partial(run, sets=sets, num_steps=steps)
    run_cells("long_fits", cells, work, report, quick=options.quick)


def report(records: list[dict]) -> str:
    """The table."""
    digits = {"accuracy": 2, "nll": 3, "ece": 3, "worst": 2, "seconds": 0}
    rows = []
    for name, variant in product(dict.fromkeys(record["data"] for record in records), VARIANTS):
        mine = [record for record in records if (record["data"], record["variant"]) == (name, variant)]
        rows.append([name, variant, len(mine), *medians(mine, digits)])
    headings = ["images", "step size", "seeds", "accuracy %", "NLL", "ECE", "worst window over the first", "seconds"]
    return f"{__doc__}\nMedian [least, greatest].\n\n{table(headings, rows)}"


if __name__ == "__main__":
    main()

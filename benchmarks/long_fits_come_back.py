"""Long fits of the weight-norm model at several step sizes, with and without the way back from a divergence.

    python benchmarks/long_fits_come_back.py --data FOLDER [--quick] [--seeds 3]

784-100-10 on 5 000 images of MNIST and of Fashion-MNIST, `bayesianize(net, "categorical",
parametrization="weight_norm")` and `AutoHypernet(model)` as they come, minibatches of 128, 8 000 steps; judged on the
last 5 000 images of the training part, 50 draws. "no way back" is the same fit where a loss above that of the start
changes nothing. Seconds are of one process's CPU. Rows in the file are not run again.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pyro
import torch
from class_scores import class_scores
from data_folder import options_with_data
from real_networks_against_dropout_and_ensembles import Net, scaled
from timing import RESULTS, keep, spread, table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Optim, bayesianize, fit, predict
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


def run(sets: tuple[Tensor, ...], variant: str, seed: int, num_steps: int) -> dict[str, float]:
    """One fit and its scores."""
    x, y, x_new, y_new = sets
    rate, comes_back = VARIANTS[variant]
    Optimiser._has_diverged = _has_diverged if comes_back else lambda self: False
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model = bayesianize(Net(), "categorical", parametrization="weight_norm", num_data=len(x))
    guide = AutoHypernet(model)
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    start = time.process_time()
    result = fit(model, guide, batches, num_steps=num_steps, optim=Optim(rate), progress=False)
    seconds = time.process_time() - start
    parts = [predict(model, guide, part, num_samples=50, return_sites=["f"])["f"] for part in x_new.split(1000)]
    windows = result.losses[: num_steps // 50 * 50].view(50, -1).nanmean(1)
    scores = class_scores(torch.cat([part.softmax(-1) for part in parts], 1).mean(0), y_new)
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
    path = RESULTS / f"long_fits{'-quick' if options.quick else ''}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(record["data"], record["variant"], record["seed"]) for record in records}
    for name in data:
        sets = images(Path(options.data) / f"{name}.npz", size)
        for seed in range(seeds):
            for variant in VARIANTS:
                if (name, variant, seed) not in done:
                    record = {"data": name, "variant": variant, "seed": seed, **run(sets, variant, seed, steps)}
                    print(record, flush=True)
                    records.append(record)
                    report(records, quick=options.quick)


def report(records: list[dict], *, quick: bool) -> None:
    """Writes the file and the table."""
    rows = []
    for name in dict.fromkeys(record["data"] for record in records):
        for variant in VARIANTS:
            mine = [record for record in records if (record["data"], record["variant"]) == (name, variant)]
            digits = {"accuracy": 2, "nll": 3, "ece": 3, "worst": 2, "seconds": 0}
            cells = [spread([record[key] for record in mine], places) for key, places in digits.items()] if mine else []
            rows.append([name, variant, len(mine), *cells])
    headings = ["images", "step size", "seeds", "accuracy %", "NLL", "ECE", "worst window over the first", "seconds"]
    keep("long_fits", records, f"{__doc__}\nMedian [least, greatest].\n\n{table(headings, rows)}", quick=quick)


if __name__ == "__main__":
    main()

"""The paper's table on 5 000 MNIST images: a net 784-800-800-10 whose norms are random, by number of couplings.

    python benchmarks/paper_couplings_regularise.py --data FOLDER [--quick] [--couplings 0 2 4 8 12] [--seeds 3]

As in Krueger, Huang et al. (arXiv 1710.04759): weights are g_k v_k / |v_k|, every g random with prior Normal(0, 1),
directions and biases learnt without a prior; RealNVP couplings of 200 hidden units; 0 couplings are a mean field over
g. Otherwise as our `fit` has it: minibatches of 128, Adam at 1e-3 with a warm-up and a cosine to zero, one particle,
100 epochs, the guide at the network's own values at first. Beside it dropout of a half in the hidden layers, learnt
by Adam for as many epochs. 10 000 test images, 100 draws; seconds on one thread. Cells in the file are not run again.
"""

import argparse
import time
import warnings
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from adam_passes import adam_passes
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from timing import run_cells, spread, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Optim, bayesianize, fit
from pyro_hypernet.maps.hypernets import coupling

COUPLINGS, SEEDS, EPOCHS, NUM_DRAWS = (0, 2, 4, 8, 12), 3, 100, 100
DROPOUT = "dropout"
# The paper's accuracies, those that a review of it confirms.
PAPERS = {"0": 92.06, "12": 96.16, DROPOUT: 95.58}


def network(rate: float = 0.0) -> nn.Sequential:
    hidden = [(784, 800), (800, 800)]
    layers = [layer for sizes in hidden for layer in (nn.Linear(*sizes), nn.ReLU(), nn.Dropout(rate))]
    return nn.Sequential(*layers, nn.Linear(800, 10))


def of_hypernet(x: Tensor, y: Tensor, x_test: Tensor, couplings: int, epochs: int) -> Tensor:
    """Class probabilities of the test images, shape `(S, N, 10)`."""
    model = bayesianize(
        network(), "categorical", prior=1.0, sites=["*.weight"], parametrization="weight_norm", num_data=len(x)
    )
    map_of_g = partial(coupling, num_layers=couplings, hidden=(200,)) if couplings else "identity"
    guide = AutoHypernet(model, map_of_g, "full")
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    fit(model, guide, batches, num_steps=epochs * len(batches), optim=Optim(1e-3), progress=False)
    return outputs_of(model, guide, x_test, NUM_DRAWS).softmax(-1)


def of_dropout(x: Tensor, y: Tensor, x_test: Tensor, epochs: int) -> Tensor:
    """The same of Monte Carlo dropout."""
    net = network(0.5)
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    next(islice(adam_passes(net, cross_entropy, lambda: batches), epochs - 1, None))
    with torch.no_grad():
        return torch.stack([net(x_test).softmax(-1) for _ in range(NUM_DRAWS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--couplings", type=int, nargs="*", default=list(COUPLINGS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--quick", action="store_true", help="500 images, three epochs, one seed, 0 and 2 couplings")
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    size, test, epochs, seeds, couplings = 5000, 10_000, options.epochs, options.seeds, options.couplings
    if options.quick:
        size, test, epochs, seeds, couplings = 500, 500, 3, 1, [0, 2]
    file = np.load(Path(options.data) / "mnist.npz")
    x, x_test = (
        torch.tensor(file[name][:count], dtype=torch.float32).flatten(1) / 255
        for name, count in (("x_train", size), ("x_test", test))
    )
    y, y_test = (torch.tensor(file[name][:count]).long() for name, count in (("y_train", size), ("y_test", test)))

    def run(method: str, seed: int, epochs: int) -> dict[str, float]:
        start = time.perf_counter()
        if method == DROPOUT:
            draws = of_dropout(x, y, x_test, epochs)
        else:
            draws = of_hypernet(x, y, x_test, int(method), epochs)
        return {"seconds": time.perf_counter() - start, **class_scores(draws.mean(0), y_test)}

    methods = (DROPOUT, *map(str, couplings))
    cells = [{"method": method, "seed": seed, "epochs": epochs} for seed in range(seeds) for method in methods]
    run_cells("paper_couplings", cells, run, report, quick=options.quick)


def report(records: list[dict]) -> str:
    """The table."""
    rows = []
    for method in (DROPOUT, *map(str, sorted({int(r["method"]) for r in records if r["method"] != DROPOUT}))):
        mine = [record for record in records if record["method"] == method]
        cells = []
        for key, digits in (("accuracy", 2), ("nll", 3), ("ece", 4), ("seconds", 0)):
            cells.append(spread([record[key] for record in mine], digits))
        rows.append([method, PAPERS.get(method, ""), len(mine), *cells])
    headings = ["couplings", "the paper's accuracy %", "seeds", "accuracy %", "NLL", "ECE", "seconds"]
    return f"{__doc__}\nMedian [least, greatest].\n\n{table(headings, rows)}"


if __name__ == "__main__":
    main()

"""How wide a guide starts around a large network's own values: shares of the prior's standard deviations.

    python benchmarks/start_widths.py --data FOLDER [--quick] [--tasks mnist ...] [--shares 0.3 0.1] [--seeds 2]

Four networks, all weights random or with `parametrization="weight_norm"`, started as they are made or after some epochs
of Adam; then the same number of steps of `fit`, a thread, minibatches of 128. Judged on as many images of the training
part as are trained on; no image of the tests is used, for a default is chosen here. "at the start" is the mean of the
loss over single draws before any step, beside that of the network itself.
"""

import argparse
import warnings
from pathlib import Path

import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from real_tasks import TASKS, epochs, halves, loader
from timing import medians, run_cells, table
from torch.nn.functional import cross_entropy

from pyro_hypernet import AutoHypernet, bayesianize, fit
from pyro_hypernet.bnn.bayesian_net import BayesianNet

# Epochs of Adam before, and steps of the guide, by task.
EPOCHS = {"mnist": 10, "lenet": 10, "resnet": 10, "transformer": 15}
STEPS = {"mnist": 2000, "lenet": 1200, "resnet": 300, "transformer": 1000}
SHARES, NUM_DRAWS = (0.3, 0.1, 0.03, 0.01), 30
PARAMETRIZATIONS, STARTS = ("weights", "weight_norm"), ("as made", "trained")


def report(records: list[dict]) -> str:
    """A table for every task."""
    heads = [
        "weights",
        "network",
        "share",
        "seeds",
        "network's NLL",
        "at the start",
        "accuracy %",
        "NLL",
        "ECE",
        "bound",
    ]
    parts = [__doc__, "Medians, least and greatest over seeds.\n"]
    for task in TASKS:
        rows = []
        for parametrization in PARAMETRIZATIONS:
            for start in STARTS:
                for share in sorted({record["share"] for record in records}, reverse=True):
                    cell = {"task": task, "parametrization": parametrization, "start": start, "share": share}
                    own = [record for record in records if cell.items() <= record.items()]
                    keys = {"of_network": 3, "at_start": 3, "accuracy": 1, "nll": 3, "ece": 3, "bound": 0}
                    if own:
                        rows.append([parametrization, start, share, len(own), *medians(own, keys)])
        if rows:
            parts.append(f"## {task}\n\n{TASKS[task].says}; {STEPS[task]} steps.\n\n{table(heads, rows)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 images, 50 steps")
    parser.add_argument("--tasks", nargs="*", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--parametrizations", nargs="*", default=list(PARAMETRIZATIONS), choices=PARAMETRIZATIONS)
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", type=int, default=2)
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz and its neighbours")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def run(task: str, parametrization: str, start: str, share: float, seed: int) -> dict[str, float]:
        one = TASKS[task]
        size = 1000 if options.quick else one.sizes[0]
        train, judge = halves(task, Path(options.data), size)
        torch.manual_seed(seed)  # loading an image draws nothing, but a loader's first pass may
        net = one.net()
        going = epochs(net, train)
        for _ in range(EPOCHS[task] if start == "trained" else 0):
            next(going)
        with torch.no_grad():
            of_network = float(cross_entropy(net(judge[0]), judge[1]))
        model = bayesianize(net, "categorical", num_data=size, parametrization=parametrization)
        guide, batches = AutoHypernet(model), loader(train)
        BayesianNet.start_share = share
        guide.setup(*next(iter(batches)))
        few = slice(0, 1000)
        at_start = (
            -outputs_of(model, guide, judge[0][few], NUM_DRAWS).log_softmax(-1)[:, range(1000), judge[1][few]].mean()
        )
        result = fit(model, guide, batches, num_steps=50 if options.quick else STEPS[task], progress=False)
        scores = class_scores(outputs_of(model, guide, judge[0], NUM_DRAWS).softmax(-1).mean(0), judge[1])
        bound = -float(result.losses[-len(result.losses) // 5 :].mean())
        return {"of_network": of_network, "at_start": float(at_start), **scores, "bound": bound}

    cells = [
        {"task": task, "parametrization": parametrization, "start": start, "share": share, "seed": seed}
        for seed in range(1 if options.quick else options.seeds)
        for task in options.tasks
        for parametrization in options.parametrizations
        for start in options.starts
        for share in options.shares
    ]
    run_cells("start_widths", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

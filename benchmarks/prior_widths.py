"""How wide the prior of a large network's weights should be: gains of `fan_in`, at temperature 1.

    python benchmarks/prior_widths.py --data FOLDER [--quick] [--tasks mnist ...] [--gains 1 2 4] [--seeds 2]

Networks as they are made, all weights random or with `parametrization="weight_norm"`; then the same number of steps of
`fit` for every gain, a thread, minibatches of 128. Judged on as many images of the training part as are trained on; no
image of the tests is used. "prior's spread" is the standard deviation of an output over draws of the prior, the median
over 100 images and all outputs.
"""

import argparse
import warnings
from pathlib import Path

import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from pyro import poutine
from real_tasks import TASKS, halves, loader
from timing import medians, run_cells, table
from torch import Tensor

from pyro_hypernet import AutoHypernet, bayesianize, fan_in, fit

# Steps of the guide by task.
STEPS = {"mnist": 2000, "lenet": 1200, "transformer": 1000}
GAINS, NUM_DRAWS = (1.0, 2.0, 4.0, 8.0), 30
PARAMETRIZATIONS = ("weights", "weight_norm")


@torch.no_grad()
def spread(model: torch.nn.Module, x: Tensor) -> float:
    """Of an output over draws of the prior."""
    f = torch.stack([poutine.trace(model).get_trace(x).nodes["f"]["value"] for _ in range(NUM_DRAWS)])
    return float(f.std(0).median())


def report(records: list[dict]) -> str:
    """A table for every task."""
    heads = ["weights", "gain", "seeds", "prior's spread", "accuracy %", "NLL", "ECE", "bound"]
    parts = [__doc__, "Medians, least and greatest over seeds.\n"]
    for task in STEPS:
        rows = []
        for parametrization in PARAMETRIZATIONS:
            for gain in sorted({record["gain"] for record in records}):
                cell = {"task": task, "parametrization": parametrization, "gain": gain}
                own = [record for record in records if cell.items() <= record.items()]
                keys = {"spread": 2, "accuracy": 1, "nll": 3, "ece": 3, "bound": 0}
                if own:
                    rows.append([parametrization, gain, len(own), *medians(own, keys)])
        if rows:
            parts.append(f"## {task}\n\n{TASKS[task].says}; {STEPS[task]} steps.\n\n{table(heads, rows)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 images, 50 steps")
    parser.add_argument("--tasks", nargs="*", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--gains", nargs="*", type=float, default=list(GAINS))
    parser.add_argument("--parametrizations", nargs="*", default=list(PARAMETRIZATIONS), choices=PARAMETRIZATIONS)
    parser.add_argument("--seeds", type=int, default=2)
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz and its neighbours")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def run(task: str, parametrization: str, gain: float, seed: int) -> dict[str, float]:
        one = TASKS[task]
        size = 1000 if options.quick else one.sizes[0]
        train, judge = halves(task, Path(options.data), size)
        torch.manual_seed(seed)  # loading an image draws nothing, but a loader's first pass may
        given = {"prior": fan_in(gain=gain), "num_data": size, "parametrization": parametrization}
        model = bayesianize(one.net(), "categorical", **given)
        guide = AutoHypernet(model)
        of_prior = spread(model, train[0][:100])
        result = fit(model, guide, loader(train), num_steps=50 if options.quick else STEPS[task], progress=False)
        scores = class_scores(outputs_of(model, guide, judge[0], NUM_DRAWS).softmax(-1).mean(0), judge[1])
        return {"spread": of_prior, **scores, "bound": -float(result.losses[-len(result.losses) // 5 :].mean())}

    cells = [
        {"task": task, "parametrization": parametrization, "gain": gain, "seed": seed}
        for seed in range(1 if options.quick else options.seeds)
        for task in options.tasks
        for parametrization in options.parametrizations
        for gain in options.gains
    ]
    run_cells("prior_widths", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

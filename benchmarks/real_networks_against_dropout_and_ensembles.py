"""Networks on images: this package beside Adam, MC dropout and an ensemble, in the same seconds.

    python benchmarks/real_networks_against_dropout_and_ensembles.py --data FOLDER [--quick] [--tasks mnist lenet]
        [--methods "ensemble" ...] [--seconds 60] [--seeds 3]

Minibatches of 128, a thread, the same seconds of CPU for every method. Up to half of them go to what there is to
choose, on held-out images (a tenth of the training images, at most 5 000) after training on the others: how many epochs
of Adam (the search ends ten epochs after the best), which dropout rate, which temperature; then all are trained on.
Strange images are told from those of the test by the mutual information of label and weights (BALD), or by the entropy
where there is one network only. Finished cells are kept and not run again.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from real_tasks import TASKS, Images, Task, epochs, loader
from timing import medians, run_cells, table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, bayesianize, choose_temperature, fit
from pyro_hypernet.evaluation.metrics import auroc, mutual_information, predictive_entropy

NUM_DRAWS, TEMPERATURES = 50, (1.0, 0.1, 0.01, 0.001)
# The search for the number of epochs ends so many after the best.
PATIENCE = 10
Predictor = Callable[[Tensor], Tensor]  # from images to class probabilities of every draw


def of_nets(nets: list[nn.Module]) -> Predictor:
    """Class probabilities by every network."""
    return lambda x: torch.stack([torch.cat([net(part) for part in x.split(1000)]).softmax(-1) for net in nets])


def best_epoch(task: Task, data: Images, seconds: float, rate: float = 0.0) -> tuple[float, int]:
    """The least loss on the held-out images, and after how many epochs it came."""
    net, start, losses = task.net(rate), time.process_time(), []
    x, y = data.held_out
    for _ in epochs(net, data.train):
        with torch.no_grad():
            mean = of_nets([net] * (20 if rate else 1))(x).mean(0)
        losses.append(-float(mean[range(len(y)), y].log().mean()))
        best = 1 + losses.index(min(losses))
        if time.process_time() - start > seconds or len(losses) >= best + PATIENCE:
            return min(losses), best
    raise AssertionError


def trained(task: Task, data: Images, count: int, rate: float = 0.0) -> nn.Module:
    net = task.net(rate)
    going = epochs(net, data.all)
    for _ in range(count):
        next(going)
    return net


def one_network(task: Task, data: Images, seconds: float) -> Predictor:
    return of_nets([trained(task, data, best_epoch(task, data, seconds / 2)[1])])


def mc_dropout(task: Task, data: Images, seconds: float) -> Predictor:
    found = {rate: best_epoch(task, data, seconds / 6, rate) for rate in (0.1, 0.2, 0.5)}
    rate = min(found, key=lambda rate: found[rate][0])
    return of_nets([trained(task, data, found[rate][1], rate)] * NUM_DRAWS)


def ensemble(task: Task, data: Images, seconds: float) -> Predictor:
    count = best_epoch(task, data, seconds / 2)[1]
    return of_nets([trained(task, data, count) for _ in range(task.members)])


def ours(
    task: Task,
    data: Images,
    seconds: float,
    *,
    temperature: float | str = 1.0,
    is_mixture: bool = False,
    are_trained: bool = False,
    **options: Any,
) -> Predictor:
    """The default call; with temperature "held out", half of the seconds go to the choice.

    A mixture has as many guides as the ensemble networks. Guides start at networks as they are made, or trained by
    Adam within the same seconds.
    """
    plan, start = Plan(temperature="auto" if temperature == "held out" else temperature), time.process_time()
    count, members = best_epoch(task, data, seconds / 6)[1] if are_trained else 0, task.members if is_mixture else 1
    if temperature == "held out":
        net = trained(task, data, count)
        model, batches = bayesianize(net, "categorical", num_data=len(data.train[0]), **options), loader(data.train)
        left = seconds / 2 - (time.process_time() - start)
        num_steps = steps_within(task, model, batches, left) // len(TEMPERATURES)
        chosen = choose_temperature(model, batches, data.held_out, temperatures=TEMPERATURES, num_steps=num_steps)
        print(chosen, flush=True)
        plan = chosen.plan
    nets = [trained(task, data, count) for _ in range(members)]
    model, batches = bayesianize(nets[0], "categorical", num_data=len(data.all[0]), **options), loader(data.all)
    guide = AutoHypernet(model, plan=plan)
    if is_mixture:
        guide = GuideMixture.from_starts(model, nets if are_trained else members, plan=plan)
    num_steps = steps_within(task, model, batches, seconds - (time.process_time() - start)) // members
    fit(model, guide, batches, num_steps=max(1, num_steps), progress=False)
    print(guide.describe(), flush=True)
    return lambda x: outputs_of(model, guide, x, NUM_DRAWS).softmax(-1)


def steps_within(task: Task, model: nn.Module, batches: DataLoader, seconds: float) -> int:
    """How many steps of `fit` fit in, by the difference of two runs, which counts, too."""
    times = [time.process_time()]
    for num_steps in task.trial_steps:
        own = copy.deepcopy(model)
        fit(own, AutoHypernet(own), batches, num_steps=num_steps, progress=False)
        times.append(time.process_time())
    few, many = task.trial_steps
    pace = max(1e-4, (times[2] - 2 * times[1] + times[0]) / (many - few))
    return max(few, int((seconds - (times[2] - times[0])) / pace))


METHODS: dict[str, Callable[[Task, Images, float], Predictor]] = {
    "one network, Adam": one_network,
    "MC dropout": mc_dropout,
    "ensemble": ensemble,
    "ours as it comes": ours,
    "ours, temperature chosen": partial(ours, temperature="held out"),
    "ours at a trained network": partial(ours, are_trained=True),
    'ours, parametrization="weight_norm"': partial(ours, parametrization="weight_norm"),
    'mixture, parametrization="weight_norm"': partial(ours, parametrization="weight_norm", is_mixture=True),
    "mixture, weight norm at trained networks": partial(
        ours, parametrization="weight_norm", is_mixture=True, are_trained=True
    ),
    "weight norm at a trained network": partial(ours, parametrization="weight_norm", are_trained=True),
    "weight norm, biases learnt, as in the paper": partial(ours, parametrization="weight_norm", sites=["*.weight"]),
}


@torch.no_grad()
def scores(predict_at: Predictor, data: Images) -> dict[str, float]:
    """Of the test images, and how well strange ones are told from them."""
    x, y = data.test
    draws = predict_at(x)
    result = class_scores(draws.mean(0), y)
    measure = mutual_information if len(draws) > 1 else predictive_entropy
    for name, images in data.strange.items():
        both = torch.cat([measure(draws), measure(predict_at(images))])
        result[name] = 100 * float(auroc(both, torch.arange(len(both)) >= len(y)))
    return result


def report(records: list[dict]) -> str:
    """A table for every task."""
    parts = [__doc__, "Medians, least and greatest over seeds.\n"]
    keys = {"accuracy": 2, "nll": 3, "ece": 4, "notMNIST": 1, "Fashion": 1, "MNIST": 1, "seconds": 0}
    heads = {"accuracy": "accuracy %", "nll": "NLL", "ece": "ECE"}
    for name, task in TASKS.items():
        mine = [record for record in records if record["task"] == name]
        shown = {key: digits for key, digits in keys.items() if any(key in record for record in mine)}
        headings = [heads.get(key, key if key == "seconds" else f"AUROC {key} %") for key in shown]
        rows = []
        for method in METHODS:
            if own := [record for record in mine if record["method"] == method]:
                rows.append([method, len(own), *medians(own, shown)])
        if rows:
            says = f"{task.says}; ensemble and mixture of {task.members}, {mine[0]['asked']:g} s"
            parts.append(f"## {name}\n\n{says}.\n\n{table(['', 'seeds', *headings], rows)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 images, a few seconds")
    parser.add_argument("--tasks", nargs="*", default=None, choices=list(TASKS), help="all but the last, quick mnist")
    parser.add_argument("--seconds", type=float, default=None, help="of training; by the task, quick 3")
    parser.add_argument("--seeds", type=int, default=None, help="3, quick 1")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz and its neighbours")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    loaded: dict[str, Images] = {}

    def run(task: str, method: str, seed: int, asked: float) -> dict[str, float]:
        one = TASKS[task]
        sizes = (1000, 500) if options.quick else one.sizes
        data = loaded.setdefault(task, one.images(Path(options.data), *sizes))
        torch.manual_seed(seed)  # loading an image draws nothing, but a loader's first pass may
        start = time.process_time()
        predictor = METHODS[method](one, data, asked)
        return {"seconds": time.process_time() - start, **scores(predictor, data)}

    seeds = options.seeds or (1 if options.quick else 3)
    cells = [
        {"task": task, "method": method, "seed": seed}
        | {"asked": options.seconds or (3.0 if options.quick else TASKS[task].seconds)}
        for task in options.tasks or list(TASKS)[: 1 if options.quick else -1]
        for seed in range(seeds)
        for method in options.methods
    ]
    run_cells("real_networks", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

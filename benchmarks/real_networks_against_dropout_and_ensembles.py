"""A network of 79 510 weights on 5 000 images: this package as it comes beside Adam, MC dropout and an ensemble of 3.

    python benchmarks/real_networks_against_dropout_and_ensembles.py [--quick] [--data FOLDER] [--seconds 60]

MNIST, the first 5 000 training images, 784-100-10 with ReLU, minibatches of 128, a thread, the same seconds of CPU for
every method. Half of them go to what there is to choose, by the last 500 images after training on the others: how many
epochs of Adam, which dropout rate, which temperature; then all 5 000 are trained on. Test: 10 000 images. Strange
images: those of notMNIST and Fashion-MNIST, told from MNIST's by the mutual information of label and weights (BALD), or
by the entropy where there is one network only.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from adam_passes import adam_passes
from class_scores import class_scores
from data_folder import options_with_data
from timing import keep, spread, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, bayesianize, choose_temperature, fit, predict
from pyro_hypernet.evaluation.metrics import auroc, mutual_information, predictive_entropy

NUM_DRAWS, TEMPERATURES = 50, (1.0, 0.1, 0.01, 0.001)
Predictor = Callable[[Tensor], Tensor]  # from images to class probabilities of every draw


class Images:
    """What is trained on, held out, tested, and strange."""

    def __init__(self, folder: Path, quick: bool) -> None:
        files = {name: np.load(folder / f"{name}.npz") for name in ("mnist", "fashion_mnist", "notmnist_small")}
        size, test = (1000, 1000) if quick else (5000, 10_000)
        x, y = scaled(files["mnist"]["x_train"][:size]), torch.tensor(files["mnist"]["y_train"][:size]).long()
        held = size // 10
        self.all, self.train, self.held_out = (x, y), (x[:-held], y[:-held]), (x[-held:], y[-held:])
        self.test = scaled(files["mnist"]["x_test"][:test]), torch.tensor(files["mnist"]["y_test"][:test]).long()
        strange = {"notMNIST": "notmnist_small", "Fashion": "fashion_mnist"}
        self.strange = {name: scaled(files[file]["x_test"][:test]) for name, file in strange.items()}


def scaled(images: np.ndarray) -> Tensor:
    return (torch.tensor(images, dtype=torch.float32).flatten(1) / 255 - 0.1307) / 0.3081


class Net(nn.Module):
    """Two layers; units of the first may be dropped, also in predictions."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.rate = nn.Linear(784, 100), nn.Linear(100, 10), rate

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(dropout(h, self.rate) if self.rate else h)


def loader(images: tuple[Tensor, Tensor]) -> DataLoader:
    return DataLoader(TensorDataset(*images), batch_size=128, shuffle=True)


def epochs(net: Net, images: tuple[Tensor, Tensor]) -> Iterator[int]:
    """Epochs of Adam."""
    return adam_passes(net, cross_entropy, lambda: loader(images))


def best_epoch(data: Images, seconds: float, rate: float = 0.0) -> tuple[float, int]:
    """The least loss on the held-out images, and after how many epochs it came."""
    net, start, losses = Net(rate), time.process_time(), []
    x, y = data.held_out
    for _ in epochs(net, data.train):
        with torch.no_grad():
            mean = torch.stack([net(x).softmax(-1) for _ in range(20 if rate else 1)]).mean(0)
        losses.append(-float(mean[range(len(y)), y].log().mean()))
        if time.process_time() - start > seconds:
            return min(losses), 1 + losses.index(min(losses))
    raise AssertionError


def trained(images: tuple[Tensor, Tensor], count: int, rate: float = 0.0) -> Net:
    net = Net(rate)
    going = epochs(net, images)
    for _ in range(count):
        next(going)
    return net


def one_network(data: Images, seconds: float) -> Predictor:
    net = trained(data.all, best_epoch(data, seconds / 2)[1])
    return lambda x: net(x).softmax(-1)[None]


def mc_dropout(data: Images, seconds: float) -> Predictor:
    found = {rate: best_epoch(data, seconds / 6, rate) for rate in (0.1, 0.2, 0.5)}
    rate = min(found, key=lambda rate: found[rate][0])
    net = trained(data.all, found[rate][1], rate)
    return lambda x: torch.stack([net(x).softmax(-1) for _ in range(NUM_DRAWS)])


def ensemble(data: Images, seconds: float) -> Predictor:
    count = best_epoch(data, seconds / 2)[1]
    nets = [trained(data.all, count) for _ in range(3)]
    return lambda x: torch.stack([net(x).softmax(-1) for net in nets])


def ours(
    data: Images,
    seconds: float,
    *,
    temperature: float | str = 1.0,
    num_nets: int = 0,
    num_guides: int = 1,
    **options: Any,
) -> Predictor:
    """The default call; with temperature "held out", half of the seconds go to the choice.

    With `num_nets` networks trained by Adam are the starts, of one guide or of a mixture, within the same seconds; with
    `num_guides` a mixture has so many, from starts drawn anew.
    """
    plan, start = Plan(temperature="auto" if temperature == "held out" else temperature), time.process_time()
    count = best_epoch(data, seconds / 6)[1] if num_nets else 0
    nets = [trained(data.all, count) if num_nets else Net() for _ in range(max(1, num_nets))]
    if temperature == "held out":
        net = trained(data.train, count) if num_nets else Net()
        seconds -= time.process_time() - start
        model, batches = bayesianize(net, "categorical", num_data=len(data.train[0]), **options), loader(data.train)
        num_steps = steps_within(model, batches, seconds / 2) // len(TEMPERATURES)
        chosen = choose_temperature(model, batches, data.held_out, temperatures=TEMPERATURES, num_steps=num_steps)
        print(chosen, flush=True)
        plan, seconds = chosen.plan, seconds / 2
    model, batches = bayesianize(nets[0], "categorical", num_data=len(data.all[0]), **options), loader(data.all)
    starts = nets if len(nets) > 1 else num_guides
    guide = AutoHypernet(model, plan=plan) if starts == 1 else GuideMixture.from_starts(model, starts, plan=plan)
    num_steps = max(1, steps_within(model, batches, seconds) // max(len(nets), num_guides))
    fit(model, guide, batches, num_steps=num_steps, progress=False)
    print(guide.describe(), flush=True)

    def probabilities(x: Tensor) -> Tensor:
        parts = [predict(model, guide, part, num_samples=NUM_DRAWS, return_sites=["f"])["f"] for part in x.split(1000)]
        return torch.cat([part.softmax(-1) for part in parts], 1)

    return probabilities


def steps_within(model: nn.Module, batches: DataLoader, seconds: float) -> int:
    """How many steps of `fit` fit in, by a run of 1 000 of which the first 150 do not count."""
    times = [time.process_time()]
    for num_steps in (150, 1000):
        own = copy.deepcopy(model)
        fit(own, AutoHypernet(own), batches, num_steps=num_steps, progress=False)
        times.append(time.process_time())
    seconds -= times[2] - times[0]  # this counts, too
    return max(100, int(seconds / ((times[2] - 2 * times[1] + times[0]) / 850)))


METHODS: dict[str, Callable[[Images, float], Predictor]] = {
    "one network, Adam": one_network,
    "MC dropout": mc_dropout,
    "ensemble of 3": ensemble,
    "ours as it comes": ours,
    "ours, temperature chosen": partial(ours, temperature="held out"),
    "ours at a trained network, temperature chosen": partial(ours, temperature="held out", num_nets=1),
    "ours, mixture of 3 trained, temperature chosen": partial(ours, temperature="held out", num_nets=3),
    'ours, parametrization="weight_norm"': partial(ours, parametrization="weight_norm"),
    'mixture of 3, parametrization="weight_norm"': partial(ours, parametrization="weight_norm", num_guides=3),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 000 images, a few seconds")
    parser.add_argument("--seconds", type=float, default=None, help="of training for every method; 60, quick 3")
    parser.add_argument("--seeds", type=int, default=None, help="3, quick 1")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = Images(Path(options.data), options.quick)
    seconds, records = options.seconds or (3.0 if options.quick else 60.0), []
    for seed in range(options.seeds or (1 if options.quick else 3)):
        for name in options.methods:
            pyro.set_rng_seed(seed)
            start = time.process_time()
            predictor = METHODS[name](data, seconds)
            took = time.process_time() - start
            records.append({"method": name, "seed": seed, "seconds": took, **scores(predictor, data)})
            print(records[-1], flush=True)
    headings = ("accuracy %", "NLL", "ECE", "AUROC notMNIST %", "AUROC Fashion %", "seconds")
    keys = ("accuracy", "nll", "ece", "notMNIST", "Fashion", "seconds")
    digits = (2, 3, 4, 1, 1, 0)
    rows = []
    for name in options.methods:
        mine = [record for record in records if record["method"] == name]
        values = [[record[key] for record in mine] for key in keys]
        rows.append((name, *map(spread, values, digits)))
    count = 1 + max(record["seed"] for record in records)
    text = f"{__doc__}\nMedians, least and greatest of {count} seeds.\n\n{table(('', *headings), rows)}\n"
    keep("real_networks", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

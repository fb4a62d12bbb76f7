"""Predictions of LeNet-5 for many images: `predict`, which cuts data and draws into parts, against the plain network.

    python benchmarks/speed_of_predictions_in_parts.py [--quick] [--images 2000] [--draws 100]

Seconds for one draw of the weights, one thread, in turn: the plain network on chunks of the size that is its best, and
`predict(return_sites=["f"])` as a whole over the number of draws, its capture included. Random images.
"""

import argparse
from functools import partial

import torch
from timing import in_turn, keep, median, spell_ratio, table
from torch import Tensor, nn

from pyro_hypernet import bayesianize, predict

CHUNKS, REPEATS = (10, 50, 100, 200, 500, 2000), 3


def lenet() -> nn.Sequential:
    pooled = [nn.ReLU(), nn.MaxPool2d(2)]
    layers = [nn.Conv2d(1, 6, 5, padding=2), *pooled, nn.Conv2d(6, 16, 5), *pooled, nn.Flatten()]
    for sizes in ((400, 120), (120, 84)):
        layers += [nn.Linear(*sizes), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(84, 10))


@torch.no_grad()
def plain(net: nn.Module, x: Tensor, size: int) -> None:
    for part in x.split(size):
        net(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="500 images, 20 draws, one repeat")
    options = parser.parse_args()
    images, draws, repeats = (500, 20, 1) if options.quick else (options.images, options.draws, REPEATS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = lenet(), torch.randn(images, 1, 28, 28)
    model = bayesianize(net, "categorical")
    samples = {site: value + 0.01 * torch.randn(draws, *value.shape) for site, value in model.initial_values.items()}
    chunks = in_turn({size: partial(plain, net, x, size) for size in CHUNKS}, repeats=3)
    best = min(chunks, key=lambda size: median(chunks[size]))
    ours = partial(predict, model, samples, x, return_sites=["f"])
    seconds = in_turn({"plain": partial(plain, net, x, best), "predict": ours}, repeats=repeats)
    seconds["predict"] = [value / draws for value in seconds["predict"]]
    rows = [[who, f"{median(v):.3f}", spell_ratio(v, seconds["plain"])] for who, v in seconds.items()]
    text = f"{__doc__}\n{images} images, {draws} draws; chunks of {best} for the plain network.\n\n"
    records = [{"who": who, "seconds": values} for who, values in seconds.items()]
    keep("speed_predict", records, text + table(["", "seconds a draw", "ratio"], rows), quick=options.quick)


if __name__ == "__main__":
    main()

"""A network of 79 510 weights on 5 000 images: this package as it comes beside Adam, MC dropout and an ensemble of 3.

    python benchmarks/real_networks_against_dropout_and_ensembles.py [--quick] [--data FOLDER] [--seconds 60] [--seeds 3]

MNIST, the first 5 000 training images, 784-100-10 with ReLU, minibatches of 128, a thread, the same seconds of training
for every method (the ensemble's in three equal parts). The last 500 of the 5 000 are held out from every method: on
them the networks are stopped, the dropout rate is chosen, and the temperature where a row says so. Test: 10 000
images. Strange images: those of notMNIST and Fashion-MNIST, told from MNIST's by the mutual information of label and
weights (BALD), or by the entropy where there is one network only.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Optim, bayesianize, choose_temperature, fit, predict

NUM_DRAWS = 50
Predictor = Callable[[Tensor], Tensor]  # from images to class probabilities of every draw


class Images:
    """What is trained on, held out, tested, and strange."""

    def __init__(self, folder: Path, quick: bool) -> None:
        files = {name: np.load(folder / f"{name}.npz") for name in ("mnist", "fashion_mnist", "notmnist_small")}
        size, test = (1000, 1000) if quick else (5000, 10_000)
        x, y = _scaled(files["mnist"]["x_train"][:size]), torch.tensor(files["mnist"]["y_train"][:size]).long()
        held = size // 10
        self.train, self.held_out = (x[:-held], y[:-held]), (x[-held:], y[-held:])
        self.test = _scaled(files["mnist"]["x_test"][:test]), torch.tensor(files["mnist"]["y_test"][:test]).long()
        strange = {"notMNIST": "notmnist_small", "Fashion": "fashion_mnist"}
        self.strange = {name: _scaled(files[file]["x_test"][:test]) for name, file in strange.items()}

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.train), batch_size=128, shuffle=True)


def _scaled(images: np.ndarray) -> Tensor:
    return (torch.tensor(images, dtype=torch.float32).flatten(1) / 255 - 0.1307) / 0.3081


class Net(nn.Module):
    """Two layers; units of the first may be dropped, also in predictions."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.rate = nn.Linear(784, 100), nn.Linear(100, 10), rate

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(dropout(h, self.rate) if self.rate else h)


def trained(data: Images, seconds: float, rate: float = 0.0) -> tuple[Net, float]:
    """By Adam, as it was after the epoch that was best on the held-out images, with their loss."""
    net, start = Net(rate), time.perf_counter()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    best, kept = float("inf"), copy.deepcopy(net)
    while time.perf_counter() - start < seconds:
        for x, y in data.loader():
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            draws = 20 if rate else 1
            x, y = data.held_out
            loss = float(
                -torch.stack([net(x).softmax(-1) for _ in range(draws)]).mean(0)[range(len(y)), y].log().mean()
            )
        if loss < best:
            best, kept = loss, copy.deepcopy(net)
    return kept, best


def one_network(data: Images, seconds: float) -> Predictor:
    net, _ = trained(data, seconds)
    return lambda x: net(x).softmax(-1)[None]


def mc_dropout(data: Images, seconds: float) -> Predictor:
    """The rate is chosen in half of the seconds."""
    rates = (0.1, 0.2, 0.5)
    losses = {rate: trained(data, seconds / 6, rate)[1] for rate in rates}
    net, _ = trained(data, seconds / 2, min(losses, key=losses.__getitem__))
    return lambda x: torch.stack([net(x).softmax(-1) for _ in range(NUM_DRAWS)])


def ensemble(data: Images, seconds: float) -> Predictor:
    nets = [trained(data, seconds / 3)[0] for _ in range(3)]
    return lambda x: torch.stack([net(x).softmax(-1) for net in nets])


def ours(data: Images, seconds: float, *, temperatures: tuple[float, ...] = (), **options: str) -> Predictor:
    """The default call; with temperatures to choose from, half of the seconds go to the choice."""
    model = bayesianize(Net(), "categorical", num_data=len(data.train[0]), **options)
    guide, temperature = AutoHypernet(model), 1.0
    if temperatures:
        share = Optim(max_seconds=seconds / 2 / len(temperatures))
        chosen = choose_temperature(
            model, guide, data.loader(), data.held_out, temperatures=temperatures, optim=share, progress=False
        )
        temperature, seconds = chosen.temperature, seconds / 2
    fit(
        model,
        guide,
        data.loader(),
        temperature=temperature,
        num_steps=100_000,
        optim=Optim(max_seconds=seconds),
        progress=False,
    )

    def probabilities(x: Tensor) -> Tensor:
        return predict(model, guide, x, num_samples=NUM_DRAWS, return_sites=["f"])["f"].softmax(-1)

    return probabilities

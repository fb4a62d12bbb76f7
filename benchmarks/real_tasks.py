"""Networks on images that the benchmarks of real networks share: what is trained on, held out, tested, and strange."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from adam_passes import adam_passes
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader, TensorDataset

Labelled = tuple[Tensor, Tensor]
BATCH_SIZE = 128


class Images:
    """What is trained on, tested, and strange; the last tenth of the training images, at most 5 000, is held out.

    Args:
        train: Images and labels.
        test: The same.
        strange: Images of other kinds by name.
    """

    def __init__(self, train: Labelled, test: Labelled, strange: dict[str, Tensor]) -> None:
        x, y = train
        held = min(5000, len(x) // 10)
        self.all, self.train, self.held_out = (x, y), (x[:-held], y[:-held]), (x[-held:], y[-held:])
        self.test, self.strange = test, strange


class Net(nn.Module):
    """784-100-10; units of the hidden layer may be dropped, also in predictions."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.rate = nn.Linear(784, 100), nn.Linear(100, 10), rate

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(dropout(h, self.rate) if self.rate else h)


def lenet5(rate: float = 0.0) -> nn.Sequential:
    """61 706 weights; the hidden layers of the head may be dropped."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    head = [nn.Linear(400, 120), nn.ReLU(), *dropped(rate), nn.Linear(120, 84), nn.ReLU(), *dropped(rate)]
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), *head, nn.Linear(84, 10))


class Residual(nn.Module):
    """Two convolutions with group norms, and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)])
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(h)) + self.short(x)).relu()


def resnet8(rate: float = 0.0) -> nn.Sequential:
    """78 186 weights, one block of 16, 32 and 64 channels each; what goes into the last layer may be dropped."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.ReLU()]
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropped(rate), nn.Linear(64, 10))


class Rows(nn.Module):
    """A transformer of two layers that reads an image's rows as its tokens, 19 242 weights."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.embedding, self.place = nn.Linear(28, 32), nn.Parameter(0.1 * torch.randn(28, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(self.embedding(x) + self.place).mean(1)
        return self.last(dropout(h, self.rate) if self.rate else h)


class Dropped(nn.Module):
    """Dropout that goes on in predictions."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate)


def dropped(rate: float) -> list[nn.Module]:
    """A layer of dropout, where anything is dropped."""
    return [Dropped(rate)] if rate else []


@dataclass(frozen=True)
class Task:
    """A network and its images.

    Attributes:
        net: Makes the network, from a rate of dropout.
        images: From folder and number of images.
        sizes: Of training images and test images.
        seconds: Of training for every method.
        members: Of an ensemble and of a mixture.
        trial_steps: Of two fits whose difference tells what a step takes.
        says: What it is.
    """

    net: Callable[..., nn.Module]
    images: Callable[[Path, int, int], Images]
    sizes: tuple[int, int]
    seconds: float
    members: int
    trial_steps: tuple[int, int]
    says: str


def scaled(images: np.ndarray, mean: float = 0.1307, sd: float = 0.3081) -> Tensor:
    """Grey images as rows of numbers of mean 0 and standard deviation 1."""
    return (torch.tensor(images, dtype=torch.float32).flatten(1) / 255 - mean) / sd


def grey(name: str, others: dict[str, str], shape: tuple[int, ...]) -> Callable[[Path, int, int], Images]:
    """Images of a file, those of others strange to them.

    Args:
        name: Of the file.
        others: Files of strange images by name.
        shape: Of an image.
    """

    def load(folder: Path, size: int, test: int) -> Images:
        file = np.load(folder / f"{name}.npz")
        pixels = file["x_train"] / 255
        mean, sd = (0.1307, 0.3081) if name == "mnist" else (float(pixels.mean()), float(pixels.std()))

        def made(images: np.ndarray) -> Tensor:
            return scaled(images, mean, sd).reshape(-1, *shape)

        pairs = [
            (made(file[f"x_{part}"][:count]), torch.tensor(file[f"y_{part}"][:count]).long())
            for part, count in (("train", size), ("test", test))
        ]
        strange = {of: made(np.load(folder / f"{other}.npz")["x_test"][:test]) for of, other in others.items()}
        return Images(*pairs, strange)

    return load


def cifar10(folder: Path, size: int, test: int) -> Images:
    """The JPEGs, in an order drawn once, for the file's is by class."""
    file = np.load(folder / "cifar10_jpeg75.npz")
    head, scan, offset = file["header"].tobytes(), file["scan"], file["offset"]
    rows = [*np.random.default_rng(0).permutation(50_000)[:size], *range(50_000, 50_000 + test)]
    pixels = [np.asarray(Image.open(io.BytesIO(head + scan[offset[i] : offset[i + 1]].tobytes()))) for i in rows]
    x = torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2) / 255
    mean, sd = (torch.tensor(of)[:, None, None] for of in ([0.491, 0.482, 0.447], [0.245, 0.243, 0.261]))
    x, y = (x - mean) / sd, torch.tensor(file["label"][rows]).long()
    return Images((x[:size], y[:size]), (x[size:], y[size:]), {})


OTHERS = {"notMNIST": "notmnist_small", "Fashion": "fashion_mnist"}
AGAINST_MNIST = {"notMNIST": "notmnist_small", "MNIST": "mnist"}
TASKS = {
    "mnist": Task(
        *(Net, grey("mnist", OTHERS, (784,)), (5000, 10_000), 60.0, 3, (150, 1000)),
        "784-100-10 with ReLU, 79 510 weights, 5 000 images of MNIST",
    ),
    "lenet": Task(
        *(lenet5, grey("fashion_mnist", AGAINST_MNIST, (1, 28, 28)), (10_000, 10_000), 120.0, 3, (50, 250)),
        "LeNet-5, 61 706 weights, 10 000 images of Fashion-MNIST",
    ),
    "resnet": Task(
        *(resnet8, cifar10, (5000, 2000), 240.0, 3, (10, 50)),
        "ResNet-8 with group norm, 78 186 weights, 5 000 images of CIFAR-10, 2 000 test images",
    ),
    "transformer": Task(
        *(Rows, grey("mnist", OTHERS, (28, 28)), (5000, 5000), 120.0, 3, (50, 250)),
        "a transformer of two layers, rows as tokens, 19 242 weights, 5 000 images of MNIST, 5 000 test images",
    ),
    "lenet, all images": Task(
        *(lenet5, grey("fashion_mnist", AGAINST_MNIST, (1, 28, 28)), (60_000, 10_000), 3600.0, 8, (50, 500)),
        "LeNet-5 on all 60 000 images of Fashion-MNIST",
    ),
}


@cache
def halves(task: str, folder: Path, size: int) -> tuple[Labelled, Labelled]:
    """So many training images to learn from and as many to judge by: where something is chosen, no test image may.

    Args:
        task: One of `TASKS`.
        folder: Of the files.
        size: Of either.
    """
    x, y = TASKS[task].images(folder, 2 * size, 1).all
    return (x[:size], y[:size]), (x[size:], y[size:])


def loader(images: Labelled) -> DataLoader:
    """Minibatches in an order drawn anew for every pass."""
    return DataLoader(TensorDataset(*images), batch_size=BATCH_SIZE, shuffle=True)


def epochs(net: nn.Module, images: Labelled) -> Iterator[int]:
    """Epochs of Adam."""
    return adam_passes(net, cross_entropy, lambda: loader(images))

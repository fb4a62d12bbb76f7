"""What the paper's experiments on images compare: our guides beside dropout, an ensemble, a mean field, one network."""

import argparse
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from adam_passes import adam_passes
from data_folder import options_with_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, VectorizedELBO, bayesianize, fan_in, fit
from pyro_hypernet.evaluation.attacks import Logits, logits_of

BATCH = 128
MakeNet = Callable[[float], nn.Module]  # from a dropout rate to a network


class Method(Protocol):
    """Something that learns classes; trained again it goes on from where it is."""

    def train(self, x: Tensor, y: Tensor, num_steps: int) -> None:
        """On all of these data, in minibatches."""

    def logits(self, num_samples: int) -> Logits:
        """From inputs to logits of draws, the same at every call but for dropout."""


class Dropout(nn.Module):
    """Units dropped in training and in predictions."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.rate else x


class Nets:
    """Networks by Adam at 1e-3, each for all of the steps; predictions of each, or of one with units dropped.

    Args:
        make: From a dropout rate to a network.
        number: Of networks.
        rate: Of dropout.
    """

    def __init__(self, make: MakeNet, *, number: int = 1, rate: float = 0.0) -> None:
        self.nets, self.rate = [make(rate) for _ in range(number)], rate

    def train(self, x: Tensor, y: Tensor, num_steps: int) -> None:
        for net in self.nets:
            next(done for done in adam_passes(net, cross_entropy, lambda: _loader(x, y)) if done >= num_steps)

    def logits(self, num_samples: int) -> Logits:
        nets = self.nets * num_samples if self.rate else self.nets
        return lambda x: torch.stack([net(x) for net in nets])


class Guided:
    """A guide of a network of `bayesianize`, or a mixture of guides, by `fit` as it comes.

    Args:
        make: From a dropout rate to a network.
        number: Of guides.
        plan: Of the guides.
        elbo: As of `fit`.
        is_renewed: Whether a guide, of all weights, that is trained again keeps its medians only: its widths are those
            of a new guide, for what few data have widened, more data narrow slowly.
        options: Of `bayesianize`.
    """

    def __init__(
        self,
        make: MakeNet,
        *,
        number: int = 1,
        plan: Plan | None = None,
        elbo: VectorizedELBO | None = None,
        is_renewed: bool = False,
        **options: Any,
    ) -> None:
        self.model = bayesianize(make(0.0), "categorical", **options)
        self.plan, self.elbo, self.is_renewed, self.is_trained = plan, elbo, is_renewed, False
        if number == 1:
            self.guide = AutoHypernet(self.model, plan=plan)
        else:
            self.guide = GuideMixture.from_starts(self.model, number, plan=plan)

    def train(self, x: Tensor, y: Tensor, num_steps: int) -> None:
        if self.is_renewed and self.is_trained:
            with torch.no_grad():
                for name, value in self.guide.median().items():
                    self.model.net.get_parameter(name).copy_(value)
            self.guide = AutoHypernet(self.model, plan=self.plan)
        fit(self.model, self.guide, _loader(x, y), num_steps=num_steps, elbo=self.elbo, progress=False)
        self.is_trained = True

    def logits(self, num_samples: int) -> Logits:
        return logits_of(self.model, self.guide, num_samples=num_samples)


def options_of(
    doc: str, *, seeds: int, quick: str, data: bool = False, more: Mapping[str, dict[str, Any]] | None = None
) -> argparse.Namespace:
    """The options of an experiment's command line; from here on it has one thread and no warnings.

    Args:
        doc: The script's docstring.
        seeds: How many without `--seeds`.
        quick: What `--quick` does.
        data: Whether the script needs a folder of images.
        more: Other options, by name, as keyword arguments of `add_argument`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--quick", action="store_true", help=quick)
    for name, arguments in (more or {}).items():
        parser.add_argument(f"--{name}", **arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    of_images = {"what": "images", "help": "folder that holds mnist.npz and others"}
    return options_with_data(parser, **of_images) if data else parser.parse_args()


def _loader(x: Tensor, y: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=min(BATCH, len(x)), shuffle=True)


METHODS: dict[str, Callable[[MakeNet], Method]] = {
    "one network, Adam": Nets,
    "dropout": partial(Nets, rate=0.5),
    "ensemble of 3": partial(Nets, number=3),
    "mean field, all weights": partial(Guided, plan=Plan(structure="full", hypernet="identity")),
    "ours, all weights, T = .03": partial(
        Guided,
        plan=Plan(structure="full", hypernet="identity", temperature=0.03),
        is_renewed=True,
        prior=fan_in(gain=2.0),
    ),
    "ours, all weights, local": partial(
        Guided,
        plan=Plan(structure="full", hypernet="identity", temperature=0.03),
        elbo=VectorizedELBO(1, draws="local"),
        is_renewed=True,
        prior=fan_in(gain=2.0),
    ),
    "ours, weight norm": partial(Guided, parametrization="weight_norm"),
    "ours, mixture of 3": partial(Guided, number=3, parametrization="weight_norm"),
}

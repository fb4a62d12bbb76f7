"""Networks and data that no default was chosen on; their reference draws are made by NUTS when first needed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peers_numpyro import run_nuts
from sklearn.datasets import load_iris, load_wine
from torch import Tensor

from models.references import Reference, ReferenceNet

# A seed that no comparison uses.
_SEED = 1000


@dataclass(frozen=True)
class HeldOut:
    """A network and its data.

    Attributes:
        description: One line.
        model: The network.
        data: Makes training inputs and targets, test inputs and targets.
    """

    description: str
    model: ReferenceNet
    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]


def _waves() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = 2 * torch.rand(180, 2, generator=generator) - 1
    f = torch.sin(3 * x[:, 0]) * x[:, 1] + 0.5 * x[:, 0]
    y = (f + 0.15 * torch.randn(180, generator=generator)) / 0.5
    return x[:120] * 1.7, y[:120], x[120:] * 1.7, y[120:]


def _of_classes(load: Callable[..., tuple], columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, classes = load(return_X_y=True)
    x, y = torch.as_tensor(values[:, :columns], dtype=torch.float32), torch.as_tensor(classes).long()
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    return x[order[:100]], y[order[:100]], x[order[100:]], y[order[100:]]


HELD_OUT: dict[str, HeldOut] = {
    "waves": HeldOut(
        "2→10→10→1 tanh, noise learnt, 120 made data", ReferenceNet([2, 10, 10, 1], "normal", None), _waves
    ),
    "iris": HeldOut(
        "4→8→3 tanh, 100 of scikit-learn's iris",
        ReferenceNet([4, 8, 3], "categorical", None),
        lambda: _of_classes(load_iris, 4),
    ),
    "wine": HeldOut(
        "13→12→3 tanh, 100 of scikit-learn's wine",
        ReferenceNet([13, 12, 3], "categorical", None),
        lambda: _of_classes(load_wine, 13),
    ),
}


def read_held_out(name: str, folder: Path) -> Reference:
    """A held-out problem with reference draws, made by NUTS and kept in the folder the first time.

    Args:
        name: A key of HELD_OUT.
        folder: Where `NAME.pt` is kept; it is not for the repository.
    """
    problem = HELD_OUT[name]
    x, y, x_test, y_test = problem.data()
    names = [f"{kind}{layer}" for layer in range(len(problem.model.widths) - 1) for kind in "Wb"]
    names += ["sigma"] if problem.model.likelihood == "normal" and problem.model.sigma is None else []
    reference = Reference(
        name=name,
        model=problem.model,
        args=(x, y),
        x_test=x_test,
        y_test=y_test,
        f_test=torch.zeros(0),
        samples=dict.fromkeys(names, torch.zeros(0)),
        is_classifier=problem.model.likelihood != "normal",
    )
    path = folder / f"{name}.pt"
    if not path.exists():
        torch.save(run_nuts(reference, seed=_SEED).f, path)
    return replace(reference, f_test=torch.load(path, weights_only=True))

"""The small Bayesian networks that come with long NUTS draws, read from a folder of `.npz` files."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

NAMES = ("toy-gap", "penguins", "moons", "concrete")


@dataclass(frozen=True)
class Reference:
    """A network, its data, and draws of its posterior by long NUTS chains.

    Attributes:
        name: Name of the file.
        model: `model(x, y=None)`, a Pyro model with sites W0, b0, W1, … and sigma where the noise is learnt.
        args: Training data `(x, y)`.
        x_test: Test inputs, shape `(n_test, d)`.
        y_test: Test targets, shape `(n_test,)`.
        f_test: Network outputs at `x_test` for every reference draw, shape `(S, n_test, out)`.
        samples: A dict from site to reference draws, shape `(S, *shape)`.
        is_classifier: Whether the likelihood is Bernoulli or categorical.
    """

    name: str
    model: "ReferenceNet"
    args: tuple[Tensor, Tensor]
    x_test: Tensor
    y_test: Tensor
    f_test: Tensor
    samples: dict[str, Tensor]
    is_classifier: bool


class ReferenceNet:
    """`W_i ~ N(0, 1.5 / sqrt(fan_in))`, `b_i ~ N(0, 1)`, `h = tanh(h @ W_i + b_i)`, no activation after the last.

    Args:
        widths: Inputs, hidden layers and outputs.
        likelihood: "normal", "bernoulli" or "categorical".
        sigma: The noise where it is fixed; None: `sigma ~ LogNormal(-1.5, 0.75)`.
    """

    def __init__(self, widths: list[int], likelihood: str, sigma: float | None) -> None:
        self.widths = widths
        self.likelihood = likelihood
        self.sigma = sigma

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's outputs, shape `(N, out)`; observes `y` if it is given."""
        f = x
        for i, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            scale = x.new_tensor(1.5 / fan_in**0.5)
            weight = pyro.sample(f"W{i}", dist.Normal(x.new_zeros(fan_in, fan_out), scale).to_event(2))
            bias = pyro.sample(f"b{i}", dist.Normal(x.new_zeros(fan_out), 1.0).to_event(1))
            f = (torch.tanh(f) if i else f) @ weight + bias
        pyro.deterministic("f", f, event_dim=2)
        fn = self._distribution(f)
        with pyro.plate("data", len(x)):
            pyro.sample("y", fn, obs=y)
        return f

    def _distribution(self, f: Tensor) -> dist.TorchDistribution:
        if self.likelihood == "categorical":
            return dist.Categorical(logits=f)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=f.squeeze(-1))
        sigma = f.new_tensor(self.sigma) if self.sigma is not None else None
        if sigma is None:
            sigma = pyro.sample("sigma", dist.LogNormal(f.new_tensor(-1.5), 0.75))
        return dist.Normal(f.squeeze(-1), sigma)


def read_reference(folder: str | Path, name: str, dtype: torch.dtype = torch.float32) -> Reference:
    """Reads one reference posterior.

    Args:
        folder: The folder that holds `references/NAME.npz` or `NAME.npz`.
        name: Such as "toy-gap".
        dtype: Of data and draws.

    Raises:
        FileNotFoundError: If there is no such file, naming both places looked at.
    """
    places = [Path(folder) / "references" / f"{name}.npz", Path(folder) / f"{name}.npz"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise FileNotFoundError(f"No reference posterior at {places[0]} or {places[1]}: pass its folder with --data.")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    is_classifier = meta["likelihood"] != "normal"

    def tensor(key: str) -> Tensor:
        return torch.as_tensor(arrays[key], dtype=dtype)

    y_train, y_test = tensor("y_train"), tensor("y_test")
    if meta["likelihood"] == "categorical":
        y_train, y_test = y_train.long(), y_test.long()
    widths = [arrays["x_train"].shape[1], *meta["hidden"], arrays["f_test"].shape[2]]
    return Reference(
        name=name,
        model=ReferenceNet(widths, meta["likelihood"], meta["sigma"]),
        args=(tensor("x_train"), y_train),
        x_test=tensor("x_test"),
        y_test=y_test,
        f_test=tensor("f_test"),
        samples={key.removeprefix("site_"): tensor(key) for key in arrays if key.startswith("site_")},
        is_classifier=is_classifier,
    )

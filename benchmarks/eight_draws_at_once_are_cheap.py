"""Density and gradient at eight draws of a recurrent network, a transformer and a ViT: at once, and one by one.

`python benchmarks/eight_draws_at_once_are_cheap.py` prints milliseconds of CPU, medians of fifteen, one thread:
eight backward passes of the plain network, the model in a loop, vmapped, and captured as a graph.
"""

import time
from collections.abc import Callable

import torch
from pyro import poutine
from timing import median, table
from torch import Tensor, nn

from pyro_hypernet import bayesianize
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout

N, T, UNITS, DRAWS, ROUNDS = 32, 20, 32, 8, 15


class Recurrent(nn.Module):
    """A recurrent layer, and a linear one of its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(8, UNITS, batch_first=True), nn.Linear(UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Transformer(nn.Module):
    """Two layers of a transformer encoder, and a linear one of the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(UNITS, 4, 2 * UNITS, batch_first=True), 2)
        self.head = nn.Linear(UNITS, 1)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


class ViT(nn.Module):
    """The same of 16 patches of an image and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.encoder = nn.Conv2d(1, UNITS, 7, 7), Transformer()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, UNITS))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, UNITS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        return self.encoder(torch.cat([self.cls_token.expand(len(x), -1, -1), h], 1) + self.positions)


def ways(net: nn.Module, x: Tensor, y: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """From a name to a function that finds density and gradient at all draws."""
    model = bayesianize(net, Gaussian(sigma=0.5))
    layout = Layout.from_trace(poutine.trace(model).get_trace(x, y, **kwargs))
    w = (0.1 * torch.randn(DRAWS, layout.dim)).requires_grad_()
    net.eval()

    def plain() -> None:
        for _ in range(DRAWS):
            net.zero_grad()
            (((net(x, **kwargs)[:, 0] - y) / 0.5) ** 2).sum().backward()

    def by_model(mode: str) -> Callable[[], object]:
        log_joint = LogJoint(model, layout, mode=mode)
        return lambda: torch.autograd.grad(log_joint(w, x, y, **kwargs).sum(), w)

    return {"plain": plain, **{mode: by_model(mode) for mode in ("loop", "eager", "graph")}}


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    padding = torch.arange(T) >= torch.randint(5, T, (N, 1))
    cases = {
        "LSTM": (Recurrent(nn.LSTM), torch.randn(N, T, 8), {}),
        "GRU": (Recurrent(nn.GRU), torch.randn(N, T, 8), {}),
        "transformer, padded": (Transformer(), torch.randn(N, T, UNITS), {"padding": padding}),
        "ViT": (ViT(), torch.randn(N, 1, 28, 28), {}),
    }
    rows = []
    for name, (net, x, kwargs) in cases.items():
        runs = ways(net, x, torch.randn(N), kwargs)
        seconds: dict[str, list[float]] = {way: [] for way in runs}
        for _ in range(ROUNDS + 3):  # the first three capture
            for way, run in runs.items():
                start = time.process_time()
                run()
                seconds[way].append(time.process_time() - start)
        taken = {way: 1000 * median(each[3:]) for way, each in seconds.items()}
        ratios = [f"{taken['graph'] / taken[way]:.2f}" for way in ("loop", "plain")]
        rows.append([name, *(f"{each:.1f}" for each in taken.values()), *ratios])
    print(table(["network", *runs, "graph / loop", "graph / plain"], rows))


if __name__ == "__main__":
    main()

"""Hypernetworks: functions from a dimension to an invertible network that is the identity at the start."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.maps.autoregressive import InverseAutoregressive
from pyro_hypernet.maps.bijection import Bijection, Chain
from pyro_hypernet.maps.coupling import Additive, Coupling, Elementwise, Scaling, Spline, Transformer
from pyro_hypernet.maps.linear import Identity, LowRank, Permute, UnitTriangular

Hypernet = Callable[[int], Bijection]
MIXES = ("auto", "triangular", "low_rank", "none")
# Up to here the D² numbers of a triangular layer are cheap beside the rest.
MAX_TRIANGULAR_DIM = 2000
_LOW_RANK = 20


def identity(dim: int) -> Bijection:
    """No network at all: the guide stays the mean field (the paper's "0 coupling layers")."""
    return Identity()


def linear(dim: int, *, mix: str = "auto") -> Bijection:
    """Correlations alone: with the structure's affine layer a Gaussian of full, or low-rank plus diagonal, covariance.

    Args:
        dim: D.
        mix: "triangular", "low_rank", "none", or "auto" by dimension.
    """
    return Chain(*_mixing(dim, mix)) if dim > 1 else Identity()


def nice(dim: int, *, num_layers: int = 4, hidden: Sequence[int] = (64,), mix: str = "auto") -> Bijection:
    """Additive couplings, which keep volume.

    Args:
        dim: D.
        num_layers: Number of couplings.
        hidden: Widths of the hidden layers of every coupling's network.
        mix: The linear layer after them, see `linear`.

    Source: Dinh et al. 2015, arXiv 1410.8516.
    """
    return _couplings(dim, Additive(), num_layers, hidden, mix)


def coupling(dim: int, *, num_layers: int = 4, hidden: Sequence[int] = (64,), mix: str = "auto") -> Bijection:
    """Affine couplings.

    Args:
        dim: D.
        num_layers: Number of couplings.
        hidden: Widths of the hidden layers of every coupling's network.
        mix: The linear layer after them, see `linear`.

    Source: RealNVP, Dinh et al. 2017, arXiv 1605.08803; Krueger, Huang et al. use up to 12 of them.
    """
    return _couplings(dim, Scaling(), num_layers, hidden, mix)


def spline(
    dim: int, *, num_layers: int = 4, hidden: Sequence[int] = (64,), num_bins: int = 8, mix: str = "auto"
) -> Bijection:
    """Rational-quadratic spline couplings; a monotone spline where D = 1.

    Args:
        dim: D.
        num_layers: Number of couplings.
        hidden: Widths of the hidden layers of every coupling's network.
        num_bins: Pieces of every spline.
        mix: The linear layer after them, see `linear`.

    Source: Durkan et al. 2019, arXiv 1906.04032.
    """
    transformer = Spline(num_bins)
    return Elementwise(dim, transformer) if dim == 1 else _couplings(dim, transformer, num_layers, hidden, mix)


def iaf(dim: int, *, num_layers: int = 4, hidden: int | None = None, mix: str = "auto") -> Bijection:
    """Inverse autoregressive layers: the most flexible for their price in sampling, slow to invert.

    Args:
        dim: D.
        num_layers: Number of layers, the order reversed between them.
        hidden: Width of every layer's network; None for 64, at least D − 1 up to 256.
        mix: The linear layer after them, see `linear`.

    Source: Kingma et al. 2016, arXiv 1606.04934.
    """
    if dim == 1:
        return Identity()
    width = max(64, min(dim - 1, 256)) if hidden is None else hidden
    layers = [InverseAutoregressive(dim, hidden=width) for _ in range(num_layers)]
    orders = [torch.arange(dim - 1, -1, -1, device="cpu") for _ in layers[1:]]
    return Chain(*_interleave(layers, orders), *_mixing(dim, mix))


def by_size(dim: int) -> Bijection:
    """The default for this dimension, see `choose_hypernet`; a structure may ask for several dimensions."""
    return HYPERNETS[choose_hypernet(dim)](dim)


def sets(dim: int) -> Bijection:
    """Deep sets for interchangeable hidden units, in the structure "informed"; `by_size` for all else."""
    return by_size(dim)


HYPERNETS: dict[str, Hypernet] = {
    "auto": by_size,
    "by_size": by_size,
    "identity": identity,
    "linear": linear,
    "nice": nice,
    "coupling": coupling,
    "spline": spline,
    "iaf": iaf,
    "sets": sets,
}


def choose_hypernet(dim: int) -> str:
    """The nickname that "auto" stands for: a spline for one weight, else affine couplings."""
    return "spline" if dim == 1 else "coupling"


def resolve_hypernet(choice: str | Hypernet) -> Hypernet:
    """A function from a dimension to a Bijection, given by itself or by its nickname; raises as `by_nickname`."""
    return by_nickname("hypernet", choice, HYPERNETS, "from a dimension to a Bijection")


def by_nickname(what: str, choice: Any, nicknames: Mapping[str, Callable], takes: str) -> Callable:
    """A function that was given by itself or by its nickname.

    Args:
        what: The name of the choice, for messages.
        choice: The function or its nickname.
        nicknames: The functions that have one.
        takes: What such a function takes and gives, for messages.

    Raises:
        ValueError: If there is no such nickname.
        TypeError: If it is neither.
    """
    if callable(choice):
        return choice
    if not isinstance(choice, str):
        raise TypeError(f"{what} must be a nickname or a function {takes}; got {choice!r}.")
    if choice not in nicknames:
        raise ValueError(f"Unknown {what} {choice!r}; choose one of {', '.join(nicknames)}, or pass a function.")
    return nicknames[choice]


def _couplings(dim: int, transformer: Transformer, num_layers: int, hidden: Sequence[int], mix: str) -> Bijection:
    if num_layers < 0:
        raise ValueError(f"num_layers must not be negative; got {num_layers}.")
    if dim == 1:
        return Identity()
    layers = [Coupling(dim, transformer, hidden=hidden) for _ in range(num_layers)]
    orders = [_order(dim, number) for number in range(1, num_layers)]
    return Chain(*_interleave(layers, orders), *_mixing(dim, mix))


def _order(dim: int, number: int) -> Tensor:
    """The halves swapped after an odd layer, so that two layers move every coordinate; shuffled after an even one."""
    backwards = torch.arange(dim - 1, -1, -1, device="cpu")
    if number % 2 or dim == 2:  # of two coordinates the only shuffle is the swap
        return backwards
    generator = torch.Generator("cpu").manual_seed(number)
    order = torch.randperm(dim, generator=generator, device="cpu")
    while torch.equal(order, backwards.flip(0)):  # never the identity: a layer would repeat the one before it
        order = torch.randperm(dim, generator=generator, device="cpu")
    return order


def _interleave(layers: Sequence[Bijection], orders: Sequence[Tensor]) -> list[Bijection]:
    """Puts a permutation between every two layers, and at the end the one that undoes them all."""
    if len(layers) < 2:
        return list(layers)
    chain, total = [layers[0]], torch.arange(len(orders[0]), device="cpu")
    for layer, order in zip(layers[1:], orders, strict=True):
        chain += [Permute(order), layer]
        total = total[order]
    return [*chain, Permute(total.argsort())]


def _mixing(dim: int, mix: str) -> list[Bijection]:
    if mix not in MIXES:
        raise ValueError(f"mix must be one of {', '.join(MIXES)}; got {mix!r}.")
    if mix == "auto":
        mix = "triangular" if dim <= MAX_TRIANGULAR_DIM else "low_rank"
    if mix == "none":
        return []
    return [UnitTriangular(dim)] if mix == "triangular" else [LowRank(dim, min(_LOW_RANK, dim))]

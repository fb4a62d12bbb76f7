"""Parts of a network that can be cut out of it, and the smaller network that is left."""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

PARTS = ("weights", "units", "inputs", "rows")


@dataclass(frozen=True)
class Part:
    """Parts that are counted along one axis of one parameter, or its weights one by one where `axis` is None."""

    name: str
    axis: int | None


def find_parts(net: nn.Module, random: Collection[str], parts: str) -> list[Part]:
    """Where a network has parts of a kind.

    Args:
        net: The network.
        random: Names of the parameters of which weights may go.
        parts: One of `PARTS`.

    Raises:
        ValueError: If it has none.
    """
    if parts == "weights":
        return [Part(name, None) for name, p in net.named_parameters() if name in random and p.dim() > 1]
    if parts == "rows":
        found = [Part(f"{n}.weight", 0) for n, module in net.named_modules() if isinstance(module, nn.Embedding)]
    elif parts == "units":
        found = [Part(f"{after}.weight", 1) for _, after, _ in hidden_layers(net)]
    else:
        found = [Part(f"{n}.weight", 1) for n, m in list(net.named_children())[:1] if _is_chain(net, m)]
    if not found:
        needs = {"rows": "an Embedding", "units": "hidden units of a Sequential of Linear layers"}
        raise ValueError(
            f"{type(net).__name__} has no {parts} to remove, which needs "
            f"{needs.get(parts, 'a Sequential that begins with a Linear layer')}: take parts='weights'."
        )
    return found


def _is_chain(net: nn.Module, module: nn.Module) -> bool:
    return isinstance(net, nn.Sequential) and type(module) is nn.Linear


def hidden_layers(net: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """Of every layer of hidden units, the Linear layers before and after it, and whether signs may flip between."""
    modules = list(net.named_children())
    linear = [place for place, (_, module) in enumerate(modules) if _is_chain(net, module)]
    for start, end in pairwise(linear):
        between = nn.Sequential(*(module for _, module in modules[start + 1 : end]))
        x = torch.linspace(-2, 2, modules[start][1].out_features).to(modules[start][1].weight)[None]
        f = between(x)
        if not list(between.parameters()) and f.shape == x.shape and torch.equal(between(x.flip(1)), f.flip(1)):
            yield modules[start][0], modules[end][0], torch.allclose(between(-x), -f, atol=1e-6)


def cut_out(net: nn.Module, values: Mapping[str, Tensor], kept: Mapping[str, Tensor], parts: str) -> nn.Module:
    """The network at these values, without what is not kept of parts of one kind."""
    net = copy.deepcopy(net).requires_grad_(True)
    for name, parameter in net.named_parameters():
        parameter.copy_(values[name])
    if parts == "weights":
        return net
    if parts == "rows":
        for name, mask in kept.items():
            _replace(net, name.removesuffix(".weight"), _FewerRows(net.get_parameter(name), mask))
        return net
    before = {after: before for before, after, _ in hidden_layers(net)}
    for name, mask in kept.items():
        after = name.removesuffix(".weight")
        _cut(net.get_submodule(after), mask, 1)
        if parts == "units":
            _cut(net.get_submodule(before[after]), mask, 0)
        else:
            return nn.Sequential(_FewerInputs(mask), *net)
    return net


def _cut(linear: nn.Module, mask: Tensor, axis: int) -> None:
    """Leaves of a Linear layer the inputs (axis 1) or outputs (axis 0) of a mask."""
    index = mask.nonzero()[:, 0]
    linear.weight = nn.Parameter(linear.weight.index_select(axis, index))
    linear.out_features, linear.in_features = linear.weight.shape
    if axis == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[index])


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(owner), leaf, module)


class _FewerInputs(nn.Module):
    """Columns of its input, those of a mask `(D,)`: `(N, D)` to `(N, d)`."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", kept.nonzero()[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """The columns."""
        return x.index_select(-1, self.index)


class _FewerRows(nn.Module):
    """An embedding with the rows of a mask `(V,)`, and one of zeros for all words without a row.

    Args:
        weight: The whole table, shape `(V, E)`.
        kept: The mask.
    """

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([weight.detach()[kept], weight.new_zeros(1, weight.shape[1])]))
        self.register_buffer("index", torch.where(kept, kept.cumsum(0) - 1, kept.sum()))

    def forward(self, words: Tensor) -> Tensor:
        """Vectors of words, shape `(*shape, E)`."""
        return nn.functional.embedding(self.index[words], self.weight)

"""Layers whose weights are drawn anew for every datum: by their outputs, or by signs on one draw."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_CONVOLUTIONS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_FORWARDS = {nn.Linear.forward, *_CONVOLUTIONS}
_PARAMETERS = ("weight", "bias")
# How the weights of a layer are drawn for every datum: by the distribution of its outputs (local reparametrisation), by
# signs (flipout); others have one draw for all data.
OUTPUTS, SIGNS = "outputs", "signs"


@dataclass(frozen=True)
class Spread:
    """A parameter of independent normal numbers, all of one shape.

    Attributes:
        loc: Their means.
        scale: Their standard deviations.
        draw: One draw, for whatever needs one.
    """

    loc: Tensor
    scale: Tensor
    draw: Tensor


@dataclass
class Local:
    """Used as a context: networks of `bayesianize` draw the weights of layers anew for every datum where they can.

    The mean log likelihood of a datum is the same, for it depends on that datum's weights alone.

    Attributes:
        locs: Means of a site's weights, by site, for the run within the context.
        scales: Their standard deviations.
        ways: OUTPUTS or SIGNS for every layer that draws anew, as `looking` has found.
        sites: The sites that are drawn so, each with its layer's way.
    """

    locs: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    ways: dict[nn.Module, str] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)
    is_looking: bool = False
    has_network: bool = False
    present: ClassVar[list["Local"]] = []

    def __enter__(self) -> "Local":
        Local.present.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        Local.present.pop()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A context in which networks find out which layers can draw anew, instead of doing so."""
        self.is_looking = True
        try:
            with self:
                yield
        finally:
            self.is_looking = False

    @contextmanager
    def at(self, locs: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which they do so, at these means and standard deviations by site."""
        self.locs, self.scales = locs, scales
        try:
            with self:
                yield
        finally:
            self.locs, self.scales = {}, {}


def local() -> Local | None:
    """The innermost context, if there is one."""
    return Local.present[-1] if Local.present else None


def spread(site: str, draw: Tensor) -> Tensor | Spread:
    """A site's value as a layer takes it: its distribution where that is what the present context has."""
    present = local()
    if present is None or site not in present.sites:
        return draw
    return Spread(present.locs[site], present.scales[site], draw)


def find_ways(net: nn.Module, runs: Sequence[tuple[int, Any]]) -> dict[nn.Module, str]:
    """Which layers can draw their weights anew for every datum.

    Those that are called once, with the data along the first axis of their inputs, and whose parameters nothing else
    reads: by the distribution of outputs where a datum is one row, by signs where it has several positions.

    Args:
        net: The network.
        runs: Numbers of data, and for each what runs the network on so many, without arguments.
    """
    owners = [id(p) for module in net.modules() for p in module.parameters(recurse=False)]
    layers = [
        module
        for module in net.modules()
        if type(module).forward in _FORWARDS and all(owners.count(id(p)) == 1 for p in module.parameters())
    ]
    ways: dict[nn.Module, str] = {}
    for number, (count, run) in enumerate(runs):
        notes = {layer: _Notes() for layer in layers}
        with _as_class(layers, _noted_class, [{"_notes": notes[layer]} for layer in layers]), _within(net, notes):
            run()
        found = {layer: _way(layer, notes[layer].found, count) for layer in layers}
        ways = {k: way for k, way in found.items() if way and (number == 0 or ways.get(k) == way)}
    return ways


@contextmanager
def drawing_anew(net: nn.Module, spreads: Mapping[str, Spread]) -> Iterator[None]:
    """Layers of a network draw anew, within the context, those of their parameters, by name, that are spread."""
    ways, layers, kept = local().ways, [], []
    for prefix, module in net.named_modules():
        own = {leaf: spreads.get(f"{prefix}.{leaf}".lstrip(".")) for leaf in _PARAMETERS}
        if any(own.values()):
            layers.append(module)
            kept.append({"_spread": own, "_way": ways[module]})
    with _as_class(layers, _drawing_class, kept):
        yield


def _way(layer: nn.Module, notes: list[Any], count: int) -> str | None:
    """How a layer draws anew; None where it cannot."""
    if len(notes) != 1 or not isinstance(notes[0], tuple):
        return None
    shape = notes[0]
    if type(layer).forward in _CONVOLUTIONS:
        return SIGNS if len(shape) == layer.weight.dim() and shape[0] == count else None
    if len(shape) < 2 or shape[0] != count:
        return None
    return OUTPUTS if len(shape) == 2 else SIGNS


@dataclass
class _Notes:
    """What happens to a layer: shapes of inputs, and names of parameters that are read by others."""

    found: list[Any] = field(default_factory=list)
    is_on: bool = False

    def add(self, what: Any) -> None:
        if self.is_on:
            self.found.append(what)


@contextmanager
def _within(net: nn.Module, notes: Mapping[nn.Module, _Notes]) -> Iterator[None]:
    """Notes are taken while the network runs: torch reads parameters, too, to put others in their place."""

    def switch(is_on: bool, *_: Any) -> None:
        for each in notes.values():
            each.is_on = is_on

    hooks = [
        net.register_forward_pre_hook(lambda *_: switch(True)),
        net.register_forward_hook(lambda *_: switch(False)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _noted_forward(layer: nn.Module, input: Tensor) -> Tensor:
    layer.__dict__["_notes"].add(tuple(input.shape))
    return _plainly(layer, input)


def _noted_parameter(leaf: str) -> property:
    def read(layer: nn.Module) -> Any:
        layer.__dict__["_notes"].add(leaf)
        return layer._parameters[leaf]

    return property(read)


def _plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's own forward."""
    kind = type(layer)
    layer.__class__ = kind.__base__
    try:
        return layer.forward(x)
    finally:
        layer.__class__ = kind


def _drawing_forward(layer: nn.Module, input: Tensor) -> Tensor:
    """The layer's outputs, every datum's of weights of its own."""
    own, way = layer.__dict__["_spread"], layer.__dict__["_way"]
    weight, bias = own["weight"], own["bias"]
    mean = _apply(layer, input, _mean(layer, "weight", weight), _mean(layer, "bias", bias))
    if way == OUTPUTS:
        variance = mean.new_zeros(()) if weight is None else nn.functional.linear(input**2, weight.scale**2)
        variance = variance if bias is None else variance + bias.scale**2
        return mean + _root(variance) * torch.randn_like(mean)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    outputs = mean
    if weight is not None:
        signed = _apply(layer, _signs(input, axis) * input, weight.draw - weight.loc, None)
        outputs = outputs + _signs(mean, axis) * signed
    if bias is not None:
        scale = bias.scale.reshape([-1] + [1] * (mean.dim() - 2)) if axis == 1 else bias.scale
        outputs = outputs + scale * torch.randn_like(_one_position(mean, axis))
    return outputs


def _mean(layer: nn.Module, leaf: str, own: Spread | None) -> Tensor | None:
    return layer._parameters[leaf] if own is None else own.loc


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def _signs(like: Tensor, axis: int) -> Tensor:
    """Signs for every datum and unit, the same at all positions."""
    return 1 - 2 * (torch.rand_like(_one_position(like, axis)) < 0.5).to(like.dtype)


def _one_position(like: Tensor, axis: int) -> Tensor:
    """A part of the tensor with all data and units, and one position."""
    for other in range(1, like.dim()):
        if other != axis % like.dim():
            like = like.narrow(other, 0, 1)
    return like.detach()


def _root(variance: Tensor) -> Tensor:
    """The square root, of gradient zero where there is no variance."""
    return variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()


@cache
def _noted_class(kind: type) -> type:
    """A layer's class that notes its calls, and who reads its parameters besides."""
    reads = {leaf: _noted_parameter(leaf) for leaf in _PARAMETERS}
    return type(kind.__name__, (kind,), {**reads, "forward": _noted_forward})


@cache
def _drawing_class(kind: type) -> type:
    """A layer's class that draws anew."""
    return type(kind.__name__, (kind,), {"forward": _drawing_forward})


@contextmanager
def _as_class(layers: Sequence[nn.Module], made: Any, kept: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Layers as of other classes, with some attributes, for the while."""
    kinds = [type(layer) for layer in layers]
    try:
        for layer, kind, attributes in zip(layers, kinds, kept, strict=True):
            layer.__dict__.update(attributes)
            layer.__class__ = made(kind)
        yield
    finally:
        for layer, kind, attributes in zip(layers, kinds, kept, strict=True):
            layer.__class__ = kind
            for name in attributes:
                layer.__dict__.pop(name, None)

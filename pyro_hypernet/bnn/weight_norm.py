"""Weight norm: gains of output units, put where they cost least, and which of them a normalising layer undoes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Modules whose outputs are linear in their weight, so that a gain of an output unit may as well scale the output.
_FORWARDS = {kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)}
# Of the outputs, that a change of all gains of a site may make where they count for nothing.
_UNDONE = 1e-3


@dataclass(frozen=True)
class Normed:
    """A weight in two parts, `g_k v_k / |v_k|` for every output unit k.

    Args:
        v: The directions, shape `shape`.
        g: The gains, shape `(K,)`.
        axis: The axis of v along which k runs.
    """

    v: Tensor
    g: Tensor
    axis: int

    @property
    def scale(self) -> Tensor:
        """What v is multiplied by, `g / |v|`, shape `(K,)`."""
        return self.g / norms(self.v, self.axis)

    @property
    def weight(self) -> Tensor:
        """The weight itself, shape `shape`."""
        shape = [1] * self.v.dim()
        shape[self.axis] = -1
        return self.scale.reshape(shape) * self.v


def norms(v: Tensor, axis: int) -> Tensor:
    """Euclidean norms of the weights into every output unit, shape `(K,)`."""
    return v.movedim(axis, 0).flatten(1).norm(dim=1)


def call(
    net: nn.Module,
    values: Mapping[str, Tensor | Normed],
    args: tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    on_outputs: bool = True,
) -> Any:
    """`torch.func.functional_call`, in which values may be `Normed`.

    A linear layer or convolution computes `scale * (v x) + bias`: v is the same for all draws of g, so under vmap over
    these a layer is one product, and the first one is computed once. The layer's `weight`, for whoever else reads it,
    is the product of both, as is the value of parameters of other modules.

    Args:
        net: The network; it is the same afterwards.
        values: A dict from names of parameters and buffers to what stands for them.
        args: The network's arguments.
        kwargs: Its keyword arguments.
        on_outputs: Whether to do so; if not, every `Normed` is multiplied out.
    """
    buffers = dict(net.named_buffers()).keys() & values.keys()
    places = _places(net, values.keys() - buffers)
    normed = {name: value for name, value in values.items() if isinstance(value, Normed)}
    owners = {name: _linear(places[name]) for name in normed} if on_outputs else {}
    plain = {**values, **{name: value.v if owners.get(name) else value.weight for name, value in normed.items()}}
    # By every place itself: torch's own tie_weights does not put back a module that has two names.
    everywhere = {place: plain[name] for name, found in places.items() for place in found}
    everywhere |= {name: plain[name] for name in buffers}
    with _scaled([(module, normed[name].g) for name, modules in owners.items() for module in modules]):
        return torch.func.functional_call(net, everywhere, args, kwargs, tie_weights=False)


def try_gains(run: Callable[..., Tensor], gains: Mapping[str, Tensor]) -> tuple[bool, list[str]]:
    """Whether gains may scale outputs, and which of them something behind them undoes, as filter response norms do.

    Args:
        run: From gains, and whether they scale outputs, to the network's outputs, shape `(N, ...)`, for a few inputs.
        gains: A dict from name to gains, shape `(K,)`.

    Returns:
        Whether both give the same; names of the gains that change nothing.
    """
    try:
        base = run(gains, True)
    except Exception:  # what is wrong with the network, the call itself says; it may want a batch as long as x
        return False, []
    on_outputs = bool((base - run(gains, False)).abs().max() <= 1e-3 * base.abs().max())
    changes = {}
    for name, g in gains.items():
        factors = 0.5 + torch.arange(len(g), dtype=g.dtype, device=g.device).mul(0.618034).frac()
        changes[name] = float((run({**gains, name: factors * g}, on_outputs) - base).abs().max())
    least = _UNDONE * max(float((base - base.mean(0)).abs().max()), *changes.values())
    return on_outputs, [name for name, change in changes.items() if change <= least]


def spell_undone(undone: Sequence[str], *, leaves_out: bool) -> str:
    """That gains have no effect, and what becomes of them, for a warning."""
    what = f"A normalising layer undoes the gains {list(undone)}, so that they change no output"
    if leaves_out:
        return (
            f"{what}: they are no sites of the model, and their weights are learnt as point estimates. The weights and "
            "biases of normalising layers are random instead, where they have some. To choose otherwise name all that "
            "is to be random: sites=[…]."
        )
    return (
        f"{what} and their posterior is their prior: leave them out of sites=[…], and put the normalising layer's own "
        "weight and bias there."
    )


def _places(net: nn.Module, names: Iterable[str]) -> dict[str, dict[str, tuple[nn.Module, str]]]:
    """Where every parameter is, under its names in all modules that have it, each module once."""
    wanted = {id(net.get_parameter(name)): name for name in names}
    found: dict[str, dict[str, tuple[nn.Module, str]]] = {name: {} for name in names}
    for prefix, module in net.named_modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in wanted:
                found[wanted[id(parameter)]][f"{prefix}.{leaf}".lstrip(".")] = module, leaf
    return found


def _linear(places: Mapping[str, tuple[nn.Module, str]]) -> list[nn.Module]:
    """The modules that have a parameter as their weight; none where one of several is not linear in it."""
    owners = list(places.values())
    is_linear = all(leaf == "weight" and type(m).forward in _FORWARDS for m, leaf in owners)
    return [m for m, _ in owners] if is_linear and len({isinstance(m, TRANSPOSED) for m, _ in owners}) == 1 else []


def _multiplied_out(layer: nn.Module) -> Tensor:
    """The weight of a layer whose outputs are scaled, for whoever reads it."""
    return Normed(layer._parameters["weight"], layer.__dict__["_g"], int(isinstance(layer, TRANSPOSED))).weight


def _scaled_outputs(layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """A layer's own forward with v as its weight, then scaled."""
    kind, bias, v = type(layer), layer._parameters["bias"], layer._parameters["weight"]
    layer.__class__, layer._parameters["bias"] = kind.__base__, None
    try:
        y = layer.forward(*args, **kwargs)
    finally:
        layer.__class__, layer._parameters["bias"] = kind, bias
    is_transposed = isinstance(layer, TRANSPOSED)
    scale = Normed(v, layer.__dict__["_g"], int(is_transposed)).scale
    scale = scale.repeat(layer.groups) if is_transposed else scale
    shape = [-1] + [1] * (v.dim() - 2)
    return y * scale.reshape(shape) if bias is None else torch.addcmul(bias.reshape(shape), y, scale.reshape(shape))


@cache
def _class(kind: type) -> type:
    """A layer's class for the time of a call."""
    return type(kind.__name__, (kind,), {"weight": property(_multiplied_out), "forward": _scaled_outputs})


@contextmanager
def _scaled(pairs: Sequence[tuple[nn.Module, Tensor]]) -> Iterator[None]:
    kinds = [type(module) for module, _ in pairs]
    try:
        for (module, g), kind in zip(pairs, kinds, strict=True):
            module.__dict__["_g"], module.__class__ = g, _class(kind)
        yield
    finally:
        for (module, _), kind in zip(pairs, kinds, strict=True):
            module.__class__ = kind
            module.__dict__.pop("_g", None)

"""Kinds of modules: which cannot be run at drawn weights, and what others need for it."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint

from pyro_hypernet.bnn.local import Spread, drawing_anew
from pyro_hypernet.bnn.unfused import Unfused
from pyro_hypernet.bnn.weight_norm import Normed, call
from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.model.batched import slow_attention

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,
)
_GAINS = ("gamma", "gain", "scale")
_WRAPPERS = {
    nn.DataParallel: "net.module",
    nn.parallel.DistributedDataParallel: "net.module",
    torch.jit.ScriptModule: "the Python module that it was made from",
}


def check_modules(net: nn.Module) -> None:
    """Refuses modules that cannot be run at drawn weights, and warns of batch norms that have seen no data.

    Raises:
        ValueError: Naming the module, and what to do.
    """
    for name, module in net.named_modules():
        what = f"{'The network' if module is net else f'Module {name!r}'}, {type(module).__name__}, "
        inner = [inner for wrapper, inner in _WRAPPERS.items() if isinstance(module, wrapper)]
        inner += ["net._orig_mod"] if hasattr(module, "_orig_mod") else []  # torch.compile's
        inner += ["net.module"] if hasattr(module, "_original_module") else []  # Lightning Fabric's
        if inner:
            raise ValueError(f"{what}cannot be run at drawn weights: use {inner[0]}.")
        if any(is_lazy(value) for value in [*module.parameters(False), *module.buffers(False)]):
            owned = [key for key, value in net.named_parameters() if is_lazy(value)]
            raise ValueError(f"Parameters {owned} have no shape yet: run the network once, net(x), before bayesianize.")
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(f"{what}has backward hooks, which gradients of many draws cannot call: remove() them.")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{what}normalises by the batch in eval mode, too, so that a datum's likelihood would depend on the "
                "other data: use track_running_stats=True, or GroupNorm."
            )
    norms = [pair for pair in net.named_modules() if isinstance(pair[1], nn.modules.batchnorm._BatchNorm)]
    unseen = [name for name, norm in norms if bool((norm.running_mean == 0).all() & (norm.running_var == 1).all())]
    if unseen:
        warn_caller(
            f"Batch normalisation {unseen} has seen no data: its running mean and variance are 0 and 1, and stay so, "
            "for the model runs in eval mode. Before bayesianize train the network, or run "
            "torch.optim.swa_utils.update_bn(loader, net); or use GroupNorm."
        )


@dataclass(frozen=True)
class Needs:
    """What running a network at drawn weights takes, so that it stays as it was.

    Attributes:
        writing: Modules that may keep what they compute as attributes.
        buffers: Buffers that they may write to, which stay as they are.
        is_fused: Whether there are operations that vmap cannot batch.
        is_transformer: Whether there are torch's transformers, which look at the values of a mask.
        checkpoints: Whether activations may be recomputed in the backward pass, when the draws are gone.
    """

    writing: tuple[str, ...]
    buffers: tuple[str, ...]
    is_fused: bool
    is_transformer: bool
    checkpoints: bool

    @classmethod
    def of(cls, net: nn.Module) -> "Needs":
        """Those of a network."""
        named = dict(net.named_modules())
        own = {name: module for name, module in named.items() if not _is_torchs(module)}
        hooked = [name for name, module in named.items() if module._forward_hooks or module._forward_pre_hooks]
        written = {id(buffer) for module in own.values() for buffer in module.buffers(False)}
        is_fused = any(isinstance(module, nn.RNNBase) for module in named.values())
        is_fused |= any(name.endswith(("_v", ".original1")) for name, _ in net.named_parameters())
        return cls(
            tuple(dict.fromkeys([*own, *hooked])),
            tuple(name for name, buffer in net.named_buffers() if id(buffer) in written),
            is_fused,
            any(isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)) for module in named.values()),
            any(_may_checkpoint(module) for module in own.values()),
        )


def run_network(
    net: nn.Module,
    needs: Needs,
    values: dict[str, Tensor | Normed | Spread],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    on_outputs: bool = False,
) -> Any:
    """What a network returns at given values of its parameters; it stays as it was.

    Args:
        net: The network.
        needs: What that takes.
        values: Parameters by name; others are the network's own.
        args: Its arguments.
        kwargs: Its keyword arguments.
        on_outputs: Whether gains of `Normed` values scale outputs, see `weight_norm.call`.
    """
    values = values | {name: net.get_buffer(name).clone() for name in needs.buffers}
    with ExitStack() as stack:
        # Of attention's kernels the one that vmap can batch, and not a path that has no derivative.
        for context in (sdpa_kernel(SDPBackend.MATH), slow_attention(), _restored(net, needs.writing)):
            stack.enter_context(context)
        if needs.is_fused and torch._C._functorch.maybe_current_level() is not None:
            stack.enter_context(Unfused())
        if needs.is_transformer:
            stack.enter_context(mock.patch.object(nn.modules.transformer, "_detect_is_causal_mask", _is_said_causal))
        if needs.checkpoints:
            stack.enter_context(mock.patch.object(checkpoint, "CheckpointFunction", _Once))
            stack.enter_context(mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", _once))
        if spreads := {name: value for name, value in values.items() if isinstance(value, Spread)}:
            stack.enter_context(drawing_anew(net, spreads))
            values = values | {name: value.draw for name, value in spreads.items()}
        return call(net, values, args, kwargs, on_outputs=on_outputs)


class _Once:
    """In the place of `torch.utils.checkpoint.CheckpointFunction`: runs a function, and keeps what it computes."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


def _is_said_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In the place of torch's look at a mask's values: the hint alone, for the mask itself counts in any case."""
    return bool(is_causal)


def _once(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


@contextmanager
def _restored(net: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Puts back the attributes of modules: what they kept is of one draw, and gone with it."""
    attributes = [vars(net.get_submodule(name)) for name in names]
    before = [dict(each) for each in attributes]
    try:
        yield
    finally:
        for each, old in zip(attributes, before, strict=True):
            if len(each) != len(old) or any(each[key] is not value for key, value in old.items()):
                each.clear()
                each.update(old)


def kind_of(owner: nn.Module, leaf: str, value: Tensor) -> str:
    """What a parameter does, by where it stands: "norm" for a gain, "bias" for what is added, else "weight".

    Parameters of one axis, and outside of torch's own layers those of three or more of which one alone, or none but the
    first, is not 1, `(C, 1, 1)` or `(1, T, E)`, act on each number by itself.

    Args:
        owner: The module that has it.
        leaf: Its name there.
        value: Its value.
    """
    if isinstance(owner, _NORMS):
        return "norm" if leaf == "weight" else "bias"
    is_layer = any(kind.__module__.startswith("torch.nn.modules") for kind in type(owner).__mro__ if kind != nn.Module)
    is_spread = value.dim() > 2 and (value.shape[0] == 1 or value.numel() == max(value.shape))
    if value.dim() >= 2 and (is_layer or not is_spread):
        return "weight"
    is_gain = leaf == "weight" or (leaf in _GAINS and bool(value.detach().mean() > 0.5))
    return "norm" if is_gain else "bias"


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules")


def _may_checkpoint(module: nn.Module) -> bool:
    """Whether a module's code mentions `torch.utils.checkpoint`, or whatever calls it."""
    functions = [value for kind in type(module).__mro__[:-2] for value in vars(kind).values()]
    codes = [function.__code__ for function in functions if inspect.isfunction(function)]
    return any("checkpoint" in name for code in codes for name in code.co_names)


def copy_of(net: nn.Module) -> nn.Module:
    """A deep copy, in eval mode, also where modules keep computed tensors, as the old weight norm does."""
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(net, {id(value): value.detach().clone() for value in kept if not value.is_leaf}).eval()

"""How a network is called, which of its outputs counts, and which targets do."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_hypernet.model.called import tensor_for

Output = str | int | Callable[[Any], Tensor]
# What a model takes that its network does not.
_OF_TARGETS = ("y", "y_mask", "y_weight")
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """What a model is called with.

    Attributes:
        args: The network's positional arguments.
        kwargs: Its keyword arguments.
        y: Targets, or None.
        y_mask: Which targets count, or None.
        y_weight: How often every datum counts, or None.
    """

    args: tuple
    kwargs: dict[str, Any]
    y: Tensor | None = None
    y_mask: Tensor | None = None
    y_weight: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the inputs; the first has the axis of data."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def rows(self, number: int) -> "Call":
        """The same inputs of the first data, as far as a tensor's first axis is that of data."""
        size = len(self.tensors[0])

        def cut(leaf: Any) -> Any:
            return leaf[:number].detach() if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size else leaf

        return Call(*pytree.tree_map(cut, (self.args, self.kwargs)))


@dataclass(frozen=True)
class Interface:
    """Which arguments of a model are inputs, and which part of what the network returns are its outputs.

    Attributes:
        names: The inputs that come by position.
        is_by_name: Whether they are handed on by name.
        accepted: Names of the network's arguments; None where it takes any.
        output: As of `bayesianize`.
    """

    names: tuple[str, ...]
    is_by_name: bool
    accepted: frozenset[str] | None
    output: Output | None

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> Call:
        """Tells inputs from targets.

        Raises:
            TypeError: If there are too many positional arguments, an input is no tensor, or a target is none.
        """
        kwargs = dict(kwargs)
        if len(args) > len(self.names) + 1:
            raise TypeError(
                f"The model takes {', '.join(self.names)} and y by position; got {len(args)} positional arguments. "
                "Other inputs go by name; or name those that come by position, bayesianize(..., inputs=[…])."
            )
        if len(args) > len(self.names):
            if "y" in kwargs:
                raise TypeError("The model got y twice, by position and by name.")
            kwargs["y"], args = args[-1], args[:-1]
        targets = {name: kwargs.pop(name, None) for name in _OF_TARGETS}
        if not args and "x" in kwargs and self.accepted is not None and "x" not in self.accepted:
            args = (kwargs.pop("x"),)
        if self.is_by_name:
            args, kwargs = (), {**dict(zip(self.names, args, strict=False)), **kwargs}
        call = Call(tuple(args), kwargs, **targets)
        for name, value in targets.items():
            if value is not None and not isinstance(value, Tensor):
                _ask_for_tensor(name, value)
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        if not any(isinstance(x, Tensor) for x in leaves) or any(isinstance(x, np.ndarray) for x in leaves):
            named = self._named(call) or {"x": None}
            arrays = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
            _ask_for_tensor(*next(iter((arrays or named).items())))
        return call

    def arguments(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs and targets by name."""
        call = self.read(args, kwargs)
        targets = {name: getattr(call, name) for name in _OF_TARGETS}
        return self._named(call) | {name: value for name, value in targets.items() if value is not None}

    def _named(self, call: Call) -> dict[str, Any]:
        """The inputs by name, those inside of a list or dict by their places."""
        names = ("x",) if len(self.names) == 1 else self.names
        named = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        leaves = pytree.tree_flatten_with_path(named)[0]
        return {str(path[0].key) + pytree.keystr(path[1:]): leaf for path, leaf in leaves}

    def check(self, net: nn.Module, call: Call, like: Tensor) -> None:
        """Reads the inputs.

        Args:
            net: The network.
            call: The call.
            like: A parameter, for dtype and device.

        Raises:
            TypeError: If the network does not take such arguments.
            ValueError: If a dtype or device is not the network's, or numbers are not finite.
        """
        taken = inspect.signature(net.forward)
        try:
            taken.bind(*call.args, **call.kwargs)
        except TypeError as error:
            raise TypeError(
                f"The network takes {taken}, and the model y besides: {error}. Pass these, and no others."
            ) from None
        first = call.tensors[0]
        for name, value in self._named(call).items():
            if not isinstance(value, Tensor):
                continue
            if value is first and not value.dim():
                raise ValueError(f"{name} must have shape (N, ...); got a single number.")
            if value.device != like.device or (value.is_floating_point() and value.dtype != like.dtype):
                raise ValueError(
                    f"{name} must be {like.dtype} on {like.device}, like the network; got {value.dtype} on "
                    f"{value.device}: convert it, or the network before bayesianize."
                )
            check_finite(name, value if value is first else value.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0))

    def outputs(self, result: Any) -> Tensor:
        """The outputs among what the network returned.

        Raises:
            ValueError: If `output` finds no tensor there, or there is more than a tensor and no `output`.
        """
        picked = result if self.output is None else pick(result, self.output)
        if isinstance(picked, Tensor):
            return picked
        if self.output is None:
            raise ValueError(
                f"The network returns {_described(result)}: say which of it the likelihood is of, by "
                f"bayesianize(..., output={_first(result)!r}) or a function of it."
            )
        raise ValueError(f"output={self.output!r} finds no tensor in what the network returns, {_described(result)}.")


def interface_of(net: nn.Module, inputs: Sequence[str] | None, output: Output | None) -> Interface:
    """How a network is called, by the signature of its forward.

    Args:
        net: The network.
        inputs: Names of the inputs that come by position; None for those without a default.
        output: As of `bayesianize`.

    Raises:
        ValueError: If there is no such input.
        TypeError: If `output` is no name, index or function.
    """
    if not (output is None or isinstance(output, (str, int)) or callable(output)):
        raise TypeError(f"output must be a name, an index or a function; got {output!r}.")
    parameters = list(inspect.signature(net.forward).parameters.values())
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if inputs is None:
        names = [p.name for p in parameters if p.kind in _BY_POSITION and p.default is p.empty]
        names = names or [p.name for p in parameters if p.kind in _BY_POSITION][:1] or ["x"]
    else:
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        unknown = [name for name in names if name not in known and not takes_any]
        if unknown or not names:
            raise ValueError(f"inputs must name arguments of the network's forward, {known}; got {names}.")
    return Interface(tuple(names), inputs is not None, None if takes_any else frozenset(known), output)


def pick(result: Any, output: Output) -> Any:
    """A part of what a network returned, None where there is no such part."""
    if callable(output):
        return output(result)
    if isinstance(output, str) and not isinstance(result, Mapping):
        return getattr(result, output, None)
    try:
        return result[output]
    except (KeyError, IndexError, TypeError):
        return None


def counted(y: Tensor | None, y_mask: Tensor | None, ignore_value: float | None) -> tuple[Tensor | None, Tensor | None]:
    """Targets with a 0 in the place of those that do not count, and which of them do; None for all."""
    if y is None or (ignore_value is None and y_mask is None):
        return y, y_mask
    if ignore_value is not None:
        counts = ~y.isnan() if math.isnan(ignore_value) else y != ignore_value
        if y_mask is not None:
            _check_mask(y_mask, (y.shape, y.shape[:-1]))
            counts = counts & (y_mask if y_mask.dim() == y.dim() else y_mask.unsqueeze(-1))
        y_mask = counts
    _check_mask(y_mask, (y.shape, y.shape[:-1]))
    wide = y_mask if y_mask.dim() == y.dim() else y_mask.unsqueeze(-1)
    return torch.where(wide, y, torch.zeros_like(y)), y_mask


def per_datum(fn: TorchDistributionMixin, mask: Tensor | None) -> TorchDistributionMixin:
    """A distribution of positions as one of data: what is masked counts nothing, the others are added up.

    Args:
        fn: Its batch shape is `(N, *positions)`.
        mask: Which positions count, in the batch shape, or with the axes of the event too where these are independent.

    Raises:
        ValueError: If the mask has another shape.
    """
    if mask is not None:
        while mask.dim() > len(fn.batch_shape) and isinstance(fn, torch.distributions.Independent):
            fn = fn.base_dist.to_event(fn.reinterpreted_batch_ndims - 1)
        _check_mask(mask, (fn.batch_shape,))
        fn = fn.mask(mask)
    return fn.to_event(len(fn.batch_shape) - 1)


def check_finite(name: str, value: Tensor) -> None:
    """Raises a ValueError if a tensor of that name holds NaN or infinite numbers."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        count = int((~value.isfinite()).sum())
        raise ValueError(f"{name} holds {count} values that are NaN or infinite: drop those rows or fill them in.")


def _ask_for_tensor(name: str, value: Any) -> None:
    raise TypeError(f"{name} must be a tensor; got {type(value).__name__}. {tensor_for(name, value)}")


def _check_mask(mask: Tensor, shapes: tuple) -> None:
    if mask.dtype != torch.bool or mask.shape not in shapes:
        raise ValueError(
            f"y_mask must be torch.bool of shape {' or '.join(str(tuple(shape)) for shape in dict.fromkeys(shapes))}, "
            f"True where a target counts; got {mask.dtype} of shape {tuple(mask.shape)}."
        )


def _parts(result: Any) -> list[tuple[Any, Any]]:
    if isinstance(result, Mapping):
        return list(result.items())
    if is_dataclass(result):
        return [(field.name, getattr(result, field.name)) for field in fields(result)]
    return list(enumerate(result)) if isinstance(result, (tuple, list)) else []


def _described(result: Any) -> str:
    parts = [
        f"{key!r}: {f'shape {tuple(part.shape)}' if isinstance(part, Tensor) else type(part).__name__}"
        for key, part in _parts(result)
    ]
    return f"a {type(result).__name__} of {', '.join(parts)}" if parts else f"a {type(result).__name__}"


def _first(result: Any) -> Any:
    return next((key for key, part in _parts(result) if isinstance(part, Tensor)), 0)

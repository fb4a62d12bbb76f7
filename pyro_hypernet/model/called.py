"""How a model was called: its arguments by name, and what an error in it owes to them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import _context_wrap
from torch import Tensor

from pyro_hypernet.graphs.culprits import first_line, is_numerical
from pyro_hypernet.model.arguments import ByName

_FAILS, _TAKES = "The model fails (", "The model takes "


def name_arguments(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments by the names of its signature, by position where it has none."""
    model, args, kwargs = _unwrapped(model, args, kwargs)
    if hasattr(model, "named_arguments"):  # a network of bayesianize, whose forward takes what the network does
        return model.named_arguments(args, kwargs)
    try:
        return dict(_signature(model).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"number {i}": value for i, value in enumerate(args)}, **kwargs}


@contextmanager
def blaming_arguments(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Around a run of a model: an error that owes to what it was called with says so.

    Nothing is looked at before there is one, for a model may take what most do not.

    Args:
        model: The Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        TypeError: Where arguments are missing, unknown, or arrays where tensors are asked for.
        ValueError: Where tensors are of different lengths.
    """
    try:
        yield
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        is_said = str(error).startswith((_FAILS, _TAKES))
        blamed = None if is_said or is_numerical(error) else _blame(error, *_unwrapped(model, args, kwargs))
        if blamed is None:
            raise
        raise blamed from error


def tensor_for(name: str, value: Any) -> str:
    """What to pass in the place of an argument that is no tensor, a sentence."""
    if is_loader(value):
        return (
            "Of loaders fit, score and, for networks, diagnose take one, as their only argument of the model: "
            "elsewhere pass the data themselves."
        )
    if _is_pair(value):
        return "Pass the model's arguments one by one: fit and score alone take them as a tuple."
    array = f"{name}.to_numpy()" if hasattr(value, "to_numpy") else name
    return f"Pass torch.as_tensor({array}, dtype=torch.float32), or torch.long for classes and indices."


def is_loader(value: Any) -> bool:
    """Whether it is a DataLoader, or one in a wrapper: an iterable that has a loader's data set and samplers."""
    if isinstance(value, torch.utils.data.DataLoader):
        return True
    has_parts = all(hasattr(value, name) for name in ("dataset", "batch_sampler", "drop_last"))
    return has_parts and hasattr(type(value), "__iter__")


def _blame(error: Exception, model: Callable[..., Any], args: tuple, kwargs: Mapping) -> Exception | None:
    misfit = _misfit(model, args, kwargs)
    if misfit is not None:
        return TypeError(misfit)
    is_of_kinds, fails = not isinstance(error, ValueError), f"{_FAILS}{first_line(error)})"
    if is_of_kinds and len(args) == 1 and _is_pair(args[0]):
        return TypeError(f"{fails}; it was given one {_kind(args[0])}. {tensor_for('', args[0])}")
    if hasattr(model, "named_arguments"):  # a network of bayesianize says the rest itself
        return None
    named = name_arguments(model, args, kwargs)
    arrays = {name: value for name, value in named.items() if _is_array(value)}
    if arrays and is_of_kinds:
        told = ", ".join(f"{name!r} is a {type(value).__name__}" for name, value in arrays.items())
        return TypeError(f"{fails}, and takes tensors as a rule: {told}. {tensor_for(*next(iter(arrays.items())))}")
    lengths = {name: len(value) for name, value in named.items() if isinstance(value, Tensor) and value.dim()}
    is_of_shapes = any(word in str(error).lower() for word in ("size", "shape", "dimension", "length"))
    if is_of_shapes and len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        return ValueError(f"{fails}, and its arguments are of different lengths: {told}. Give as many rows in each.")
    return None


def _misfit(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """What is wrong by the model's signature."""
    try:
        signature = _signature(model)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
        return None
    except TypeError as misfit:
        said = str(misfit)
    given = ", ".join([*map(_kind, args), *(f"{name}={_kind(value)}" for name, value in kwargs.items())])
    unknown = [name for name in kwargs if name not in signature.parameters]
    odd = [v for v in (*args, *kwargs.values()) if _is_pair(v) or is_loader(v)]
    remedy = tensor_for("", odd[0]) if odd else "Pass the model's arguments in its order, or by name."
    if unknown and not odd:
        remedy = f"{', '.join(unknown)} is neither an option here nor an argument of the model: leave it out."
    return f"{_TAKES}{signature}, and was given ({given}): {said}. {remedy}"


def _unwrapped(model: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, tuple, Mapping[str, Any]]:
    """The user's own model and its arguments, without handlers and partials around it."""
    while isinstance(model, partial):
        if isinstance(model.func, partial):  # Pyro's own kind of partial, around one of Python's
            model = model.func
        elif model.func is _context_wrap:
            model = model.args[1]
        else:
            model, args, kwargs = model.func, (*model.args, *args), {**model.keywords, **kwargs}
    return (model.model, (), args[0]) if isinstance(model, ByName) else (model, args, kwargs)


def _signature(model: Any) -> inspect.Signature:
    return inspect.signature(model.forward if isinstance(model, torch.nn.Module) else model)


def _is_array(value: Any) -> bool:
    """Whether it is an array, a DataFrame, or a list of numbers."""
    is_of_numbers = isinstance(value, list) and bool(value) and isinstance(value[0], (int, float, list))
    return is_of_numbers or (hasattr(value, "__array__") and not isinstance(value, Tensor))


def _is_pair(value: Any) -> bool:
    """Whether it is a tuple or list of tensors, as fit takes them."""
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(part, Tensor) for part in value)


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"

"""What a function reads that is no argument of it: globals, closures, attributes and tensors of the user's own."""

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# No longer list is looked at at every call.
_MAX_PLACES, _MAX_OBJECTS, _MAX_ITEMS = 200, 500, 20
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_ARRAYS = (Tensor, np.ndarray)
_PACKAGES = {"torch", "pyro", "pyro_hypernet", "pyroapi", "numpy", "scipy", "tqdm"}
_LIBRARIES = _PACKAGES | sys.stdlib_module_names


class Outside:
    """The places outside of its arguments that a function's value may depend on.

    They are found by reading the function's code and that of the user's functions it calls, so not all of them: what
    is computed from the clock, from files or deep inside of objects is not among them.

    Args:
        function: Whatever can be called.
    """

    def __init__(self, function: Any) -> None:
        self._places = dict(_places(function))

    def read(self) -> tuple:
        """What these places hold now: something to hash and to compare, one entry a place."""
        return tuple([_described(read) for read in self._places.values()])

    def held(self) -> list[Any]:
        """What is there, to be kept as long as readings are to be compared, for they know tensors by identity."""
        return [read() for read in self._places.values()]

    def changed(self, before: tuple, after: tuple) -> list[str]:
        """Names of the places that differ between two readings."""
        return [name for name, a, b in zip(self._places, before, after, strict=True) if a != b]

    def forget(self, names: list[str]) -> None:
        """Looks at these places no longer."""
        for name in names:
            del self._places[name]


def _described(read: Callable[[], Any]) -> Any:
    try:
        value = read()
    except Exception:  # no longer there
        return None
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    return (type(value), value) if isinstance(value, _PLAIN) else id(value)


def _places(function: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    queue, seen, count = deque([("", function)]), set(), 0
    while queue and len(seen) < _MAX_OBJECTS:
        name, value = queue.popleft()
        if id(value) in seen or value is None:
            continue
        seen.add(id(value))
        for inner_name, read, is_watched in _inside(name, value):
            try:
                inner = read()
            except Exception:  # an empty cell, a name that is not defined yet
                continue
            if isinstance(inner, (*_PLAIN, *_ARRAYS)):
                if is_watched and count < _MAX_PLACES and not (isinstance(inner, Tensor) and inner.requires_grad):
                    count += 1
                    yield inner_name, read
            else:
                queue.append((inner_name, inner))


Inside = Iterator[tuple[str, Callable[[], Any], bool]]


def _inside(name: str, value: Any) -> Inside:
    """What can be read from a value: a name, how to read it, and whether a plain value there is to be watched."""
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield "", lambda: value.__func__, False
        yield name, lambda: value.__self__, False
    elif isinstance(value, functools.partial):
        yield name, lambda: value.func, False
        for item in (*value.args, *value.keywords.values()):
            yield name, functools.partial(_same, item), True
    elif isinstance(value, nn.Module):
        yield from _of_module(name, value)
    elif isinstance(value, (list, tuple, dict)) and len(value) <= _MAX_ITEMS:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield f"{name}[{key!r}]", functools.partial(value.__getitem__, key), True
    elif not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, set)):
        is_own = (
            type(value).__module__.split(".")[0] not in _PACKAGES
        )  # a namespace of Python's holds the user's values
        if is_own and callable(value):
            yield name, lambda: type(value).__call__, False
        own = [key for key in getattr(value, "__dict__", ()) if is_own or not key.startswith("_")]
        for key in own:
            yield f"{name}.{key}", functools.partial(value.__dict__.__getitem__, key), is_own


def _same(value: Any) -> Any:
    return value


def _of_function(function: types.FunctionType) -> Inside:
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield key, functools.partial(getattr, cell, "cell_contents"), not _is_library(function.__module__)
    if _is_library(function.__module__):
        return
    names = set(_names(function.__code__))
    for key in sorted(names & function.__globals__.keys()):
        value = function.__globals__[key]
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                for inner in sorted(names & vars(value).keys()):
                    yield f"{key}.{inner}", functools.partial(vars(value).__getitem__, inner), True
        elif not _is_library(getattr(value, "__module__", None)) or not callable(value) or _is_wrapper(value):
            yield key, functools.partial(function.__globals__.__getitem__, key), True


def _is_wrapper(value: Any) -> bool:
    """Whether a library's object was made around the user's own, as a module or what a handler gives."""
    return isinstance(value, (nn.Module, functools.partial)) or hasattr(value, "__wrapped__")


def _of_module(name: str, module: nn.Module) -> Inside:
    for path, child in module.named_modules():
        prefix = ".".join(part for part in (name, path) if part)
        yield f"{prefix}.training", functools.partial(child.__dict__.__getitem__, "training"), True
        if not _is_library(type(child).__module__):
            yield prefix, functools.partial(getattr, type(child), "forward"), False
            for key in [key for key in child.__dict__ if not key.startswith("_") and key != "training"]:
                yield f"{prefix}.{key}", functools.partial(child.__dict__.__getitem__, key), True
        elif isinstance(child, nn.modules.dropout._DropoutNd):
            yield f"{prefix}.p", functools.partial(child.__dict__.__getitem__, "p"), True


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code reads, functions defined within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_library(module: str | None) -> bool:
    return module is None or module.split(".")[0] in _LIBRARIES

"""Options that a verb once took itself and that are given in a value of their own now: they work on, with a warning."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from pyro_hypernet.graphs.culprits import warn_caller

Value = TypeVar("Value")


def spell_value(where: str, made: str, options: Mapping[str, Any]) -> str:
    """How a value with these options is given as a parameter, such as "optim=Optim(keep='last')"."""
    return f"{where}={made}({', '.join(f'{name}={reprlib.repr(value)}' for name, value in options.items())})"


def warn_of_moved(verb: str, names: Iterable[str], now: Iterable[str]) -> None:
    """Says at the user's line what to write now instead of options."""
    warn_caller(f"Options of {verb} have moved: {', '.join(names)}. It is now {', '.join(now)}.", FutureWarning)


def take_moved(verb: str, where: str, value: Value, options: dict[str, Any]) -> Value:
    """A dataclass, `where` of a verb's parameters, with those of its fields that the verb was still given as options.

    These are taken out of the options.
    """
    moved = {field.name: options.pop(field.name) for field in fields(value) if field.name in options}
    if not moved:
        return value
    warn_of_moved(verb, moved, [spell_value(where, type(value).__name__, moved)])
    return replace(value, **moved)

"""Objects that hold options: whether what should be a number is one."""

import dataclasses
from numbers import Integral, Real
from typing import Any, get_args


def check_numbers(options: Any) -> None:
    """Refuses what is no number where an option is declared as one, so that it can be compared with others.

    Args:
        options: A dataclass, whose fields of type `float` or `int`, alone or beside None, are looked at.

    Raises:
        TypeError: If one of them is something else; `True` and `False` are.
    """
    for field in dataclasses.fields(options):
        kinds, value = set(get_args(field.type) or (field.type,)), getattr(options, field.name)
        if not kinds <= {int, float, type(None)} or (value is None and type(None) in kinds):
            continue
        if isinstance(value, bool) or not isinstance(value, Real if float in kinds else Integral):
            expected = "a number" if float in kinds else "an integer"
            expected += " or None" if type(None) in kinds else ""
            raise TypeError(f"{field.name} must be {expected}; got {value!r}.")

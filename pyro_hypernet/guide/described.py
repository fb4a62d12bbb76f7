"""A guide's choices, sites and constraints in plain values, for the header of its file, and back."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro.distributions.constraints as pyro_constraints
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_hypernet.model.layout import Layout, Site

_OF_A_SITE = ("name", "shape", "unconstrained_shape", "event_dim", "plates")


def describe_choice(choice: Any, nicknames: Mapping[str, Callable], what: str) -> dict[str, Any]:
    """A nickname, one of our functions with options, or the name of a user's function.

    Raises:
        ValueError: If JSON cannot hold the options.
    """
    if isinstance(choice, str):
        return {"name": choice, "options": None}
    function, options = (
        (choice.func, choice.keywords) if isinstance(choice, partial) and not choice.args else (choice, {})
    )
    for name, known in nicknames.items():
        if known is function:
            try:
                return {"name": name, "options": json.loads(json.dumps(options))}
            except TypeError:
                raise ValueError(
                    f"The options of {what} {name!r} must be numbers, strings or lists to be saved; got {options!r}."
                ) from None
    return {"name": None, "options": None, "function": getattr(function, "__qualname__", repr(function))}


def recall_choice(described: dict[str, Any], nicknames: Mapping[str, Callable], given: Any, what: str) -> Any:
    """What `describe_choice` described, or the user's own function, where it is given.

    Raises:
        ValueError: If a function of the user's own is needed and not given.
    """
    if given is not None:
        return given
    name, options = described["name"], described["options"]
    if name is None:
        raise ValueError(
            f"The guide was made with {what}={described['function']}, your own function: pass it to load as {what}=."
        )
    if options is None:
        return name
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return partial(nicknames[name], **options) if options else nicknames[name]


def describe_layout(layout: Layout) -> list[dict[str, Any]]:
    """All of its sites but where they start, which follows from their sizes."""
    return [
        {**{name: getattr(site, name) for name in _OF_A_SITE}, "support": describe_constraint(site.support)}
        for site in layout.sites
    ]


def recall_layout(described: list[dict[str, Any]]) -> Layout:
    """What `describe_layout` described."""
    sites, start = [], 0
    for entry in described:
        shapes = {name: torch.Size(entry[name]) for name in ("shape", "unconstrained_shape")}
        kinds = {"plates": tuple(entry["plates"]), "support": recall_constraint(entry["support"])}
        sites.append(Site(**{**entry, **shapes, **kinds}, start=start))
        start += sites[-1].size
    return Layout(tuple(sites))


def describe_constraint(constraint: constraints.Constraint) -> dict[str, Any]:
    """Its class and its fields."""
    fields = {name: _describe_value(value) for name, value in vars(constraint).items()}
    return {"type": type(constraint).__name__, "fields": fields}


def _describe_value(value: Any) -> Any:
    if isinstance(value, constraints.Constraint):
        return {"constraint": describe_constraint(value)}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return {"list": [_describe_value(part) for part in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    return {"value": value}


def recall_constraint(described: dict[str, Any]) -> constraints.Constraint:
    """What `describe_constraint` described.

    Raises:
        ValueError: If its class is not known here.
    """
    known = {
        cls.__name__: cls
        for module in (constraints, pyro_constraints)
        for value in vars(module).values()
        for cls in [value if isinstance(value, type) else type(value)]
        if issubclass(cls, constraints.Constraint)
    }
    if described["type"] not in known:
        raise ValueError(
            f"The checkpoint has a site with support {described['type']}, which torch and Pyro do not know here: "
            "import the module that defines it before load, or upgrade Pyro."
        )
    cls = known[described["type"]]
    constraint = cls.__new__(cls)
    vars(constraint).update({name: _recall_value(value) for name, value in described["fields"].items()})
    return constraint


def _recall_value(described: dict[str, Any]) -> Any:
    if "constraint" in described:
        return recall_constraint(described["constraint"])
    if "tensor" in described:
        return torch.tensor(described["tensor"], dtype=getattr(torch, described["dtype"]))
    if "list" in described:
        return [_recall_value(part) for part in described["list"]]
    return float(described["number"]) if "number" in described else described["value"]

"""Where all random numbers stand: torch, numpy, Python, and the generators that a data loader holds."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# How deep in a loader generators are looked for: loader, batch sampler, sampler, generator.
_DEPTH = 4


def snapshot(loader: Any = None) -> dict[str, Any]:
    """Where the generators of this process stand, and those that a loader holds."""
    state = {**pyro.util.get_rng_state(), "of_loader": [_get(generator) for generator in generators(loader)]}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def put_back(state: dict[str, Any], loader: Any = None) -> None:
    """Puts them back to where they stood; the loader is the same, or one that was made alike."""
    pyro.util.set_rng_state({name: state[name] for name in ("torch", "random", "numpy") if name in state})
    for generator, value in zip(generators(loader), state["of_loader"], strict=False):
        _set(generator, value)
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def generators(loader: Any) -> list[Any]:
    """The random generators that a loader, its samplers and its data set hold as attributes."""
    return list({id(found): found for found in _find(loader, _DEPTH)}.values())


def _find(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, _GENERATORS):
        yield value
    elif depth and not isinstance(value, type) and hasattr(value, "__dict__"):
        for part in list(vars(value).values()):
            yield from _find(part, depth - 1)


def _get(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)

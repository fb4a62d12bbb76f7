"""What an error inside of a model is about: a draw's numbers, or the way that a line or a distribution is written."""

import linecache
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pyro
import torch
from pyro.ops import integrator
from torch.distributions import Distribution

_PYRO, _TORCH = (str(Path(package.__file__).parent) for package in (pyro, torch))
_GRAPHS = str(Path(__file__).parent)
_OWN = str(Path(__file__).parent.parent)

# Python's words for a logarithm of a negative number, torch's for a parameter out of range.
_OF_VALUES = ("math domain error", "to satisfy the constraint")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def root_of(error: BaseException) -> BaseException:
    """The error that an error was raised from, at the root."""
    return list(_chain(error))[-1]


def is_numerical(error: Exception) -> bool:
    """Whether an error comes of a draw's numbers: no Cholesky factor, a division by zero, a number out of range."""
    return any(
        isinstance(cause, (torch.linalg.LinAlgError, ArithmeticError))
        or (isinstance(cause, ValueError) and any(words in str(cause) for words in _OF_VALUES))
        or any(handles(cause) for handles in integrator._EXCEPTION_HANDLERS.values())
        for cause in _chain(error)
    )


def may_be_numerical(error: Exception) -> bool:
    """Whether an error may come of a draw's numbers, where the same model gave a density at other draws."""
    cause = root_of(error)
    innermost = traceback.extract_tb(cause.__traceback__)[-1].filename
    kinds = (NotImplementedError, torch.OutOfMemoryError, MemoryError, TypeError, NameError, AttributeError)
    return not isinstance(cause, kinds) and not innermost.startswith(_OWN)


def culprit(error: BaseException) -> str:
    """What an error comes from: the distribution whose code raised it, or the last line of the user's."""
    cause = root_of(error)
    frames = list(traceback.walk_tb(cause.__traceback__))
    ours = [place for place, (frame, _) in enumerate(frames) if _file(frame).startswith(_OWN)]
    runs = [place for place in ours if not _file(frames[place][0]).startswith(_GRAPHS)]
    frames = [place for place in frames[runs[-1] + 1 if runs else 0 :] if not _file(place[0]).startswith(_OWN)]
    users = [place for place, (frame, _) in enumerate(frames) if not _file(frame).startswith((_PYRO, _TORCH))]
    for frame, _ in frames[users[-1] + 1 if users else 0 :]:
        if isinstance(frame.f_locals.get("self"), Distribution):
            return f"the distribution {type(frame.f_locals['self']).__name__}, as it is written"
    if users:
        frame, line = frames[users[-1]]
        return f"{_file(frame)}:{line}: `{linecache.getline(_file(frame), line).strip()}`"
    return "something that runs within it"


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the user's line, the first outside of the package, Pyro and torch.

    Args:
        message: The warning.
        category: Its kind.
    """
    level, frame = 1, sys._getframe()
    while frame is not None and _file(frame).startswith((_OWN, _PYRO, _TORCH)):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename

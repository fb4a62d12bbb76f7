"""The folder of a run: its checkpoints and its losses."""

import csv
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.checkpoint import RUN, describe, pack, put_back, read, write
from pyro_hypernet.options import check_numbers

# So many files are kept: the one before the last stands in where the last is damaged.
_KEPT = 2
# Writing takes at most this share of the time.
_SHARE = 0.05
# What a file says of its guide and must be the same.
_OF_GUIDE = ("layout", "structure", "hypernet", "num_components", "is_bounded")


@dataclass(frozen=True)
class Checkpoint:
    """Where `fit` keeps a run, how often it writes, and whether it goes on from what is there.

    The folder holds the last two checkpoints, each a file that `load` reads as a guide too, and `losses.csv`, the loss
    of every step in nats, empty where the step was skipped.

    Args:
        folder: The folder, of this run alone; made if need be.
        every_seconds: At most so often is a checkpoint written, and so seldom that it takes a twentieth of the time.
        resume: Whether to go on with a run that the folder holds; else such a folder is refused.
        tensorboard: Whether to write the losses for TensorBoard too, whose package has to be there.

    Raises:
        ImportError: If TensorBoard is asked for and not installed.
        TypeError: If the folder is no path.
        ValueError: If `every_seconds` is negative.
    """

    folder: str | os.PathLike[str]
    every_seconds: float = 60.0
    resume: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, os.PathLike)) or not str(self.folder):
            raise TypeError(f"checkpoint takes the path of a folder or a Checkpoint; got {self.folder!r}.")
        check_numbers(self)
        if not self.every_seconds >= 0:
            raise ValueError(f"every_seconds must not be negative; got {self.every_seconds!r}.")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("tensorboard=True needs the package tensorboard: pip install tensorboard.")


class RunFolder:
    """The folder of a run.

    Args:
        asked: What the user asked for.

    Attributes:
        saved: The state to go on from, or None for a new run.
        writes: Whether this process writes to it: of several one does, and gives the others a copy of this.

    Raises:
        OSError: If the folder cannot be written to.
        ValueError: If it holds a run that is not to be gone on with, or only damaged files.
    """

    def __init__(self, asked: Checkpoint) -> None:
        self.asked, self.folder, self.writes = asked, Path(asked.folder), True
        self._log, self._board, self._num_logged, self._failed = self.folder / "losses.csv", None, 0, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("step-*.part"):  # of a process that was killed while it wrote
                left.unlink()
            self._log.open("a").close()
        except OSError as error:
            raise type(error)(
                error.errno,
                f"The folder of checkpoint= cannot be written to ({error.strerror}): give another one",
                str(self.folder),
            ) from None
        self.path, self._header, self._tensors = self._read_newest()
        self.saved = self._header and _join(self._header["run"], self._tensors)
        self._due, self._last_step = time.perf_counter(), len(self.saved["run"]["losses"]) if self.saved else -1
        if asked.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional package

            self._board = SummaryWriter(str(self.folder), purge_step=max(0, self._last_step))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_board": None, "writes": False}

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def _read_newest(self) -> tuple[Path | None, dict[str, Any] | None, dict[str, Tensor]]:
        files = self._files()
        if files and not self.asked.resume:
            raise ValueError(
                f"{self.folder} holds a run already: give another folder, or resume=True to go on with it."
            )
        damaged = []
        for path in reversed(files):
            try:
                header, tensors = read(path)
                if "run" not in header:
                    raise ValueError(f"{path} holds a guide, but no run.")
            except ValueError as error:
                if "upgrade" in str(error):
                    raise
                damaged.append((path, str(error)))
                continue
            for bad, why in damaged:
                warn_caller(f"{why} The run goes on from the checkpoint before, {path.name}.")
                bad.rename(bad.with_suffix(".damaged"))
            return path, header, tensors
        if damaged:
            raise ValueError(f"{damaged[0][1]} No other checkpoint is in {self.folder}: start again in another folder.")
        return None, None, {}

    def check(self, options: Mapping[str, Any], guide: AutoHypernet) -> None:
        """Compares what is asked for with what the folder's run was asked, before anything is changed.

        Raises:
            ValueError: If they differ.
        """
        header = json.loads(json.dumps(describe(guide)))
        here = {**options, **{key: header[key] for key in _OF_GUIDE}}
        # Runs begun before there was a choice of draws had none.
        there = {"draws": "batch", **self.saved["options"], **{key: self._header[key] for key in _OF_GUIDE}}
        differ = [key for key in here if here[key] != there.get(key)]
        if differ:
            spelt = "; ".join(f"{key} was {_short(there.get(key))} and is {_short(here[key])}" for key in differ)
            raise ValueError(
                f"{self.folder} holds another run: {spelt}. Ask for what was asked before, or give another folder; "
                f"load reads the guide in {self.path.name}."
            )
        versions = {"torch": torch.__version__, "pyro": pyro.__version__}
        old = {name: self._header[name] for name in versions if self._header[name] != versions[name]}
        if old:
            warn_caller(
                f"{self.folder} was written with other versions ({old}, now {versions}): the run goes on from there, "
                "but perhaps not to the last bit."
            )

    def restore(self, guide: AutoHypernet, params: dict[str, Tensor]) -> None:
        """Puts guide and model back to where they were; errors as of `guide.checkpoint.put_back`."""
        put_back(guide, params, self._header, self._tensors, self.path)

    def is_due(self, num_steps: int, *, is_last: bool = False) -> bool:
        """Whether to write after so many steps: it is time, or these are the last, and it has not been done."""
        return self.writes and num_steps != self._last_step and (is_last or time.perf_counter() >= self._due)

    def write(self, guide: AutoHypernet, state: dict[str, Any]) -> None:
        """Writes a checkpoint and drops the one before the last; what cannot be written is said, once.

        The state is whatever else is to be kept: nested dicts, lists and tuples of plain values, arrays and tensors.

        Raises:
            OSError: If the first one of all cannot be written.
            ValueError: As `save`.
        """
        start, losses = time.perf_counter(), state["run"]["losses"]
        header, tensors = pack(guide)
        own: dict[str, Tensor] = {}
        header["run"] = _split(state, RUN[:-1], own)
        path = self.folder / f"step-{len(losses):09d}.safetensors"
        try:
            write(path, header, {**tensors, **own})
            for old in self._files()[:-_KEPT]:
                old.unlink()
            self._failed = False
        except OSError as error:
            if not self._files():
                raise
            if not self._failed:
                warn_caller(
                    f"The checkpoint of step {len(losses)} could not be written to {self.folder} ({error.strerror}); "
                    f"training goes on, and {self._files()[-1].name} is the last. Make room: it is tried again."
                )
            self._failed = True
        now = time.perf_counter()
        self._last_step, self._due = len(losses), now + max(self.asked.every_seconds, (now - start) / _SHARE)

    def log(self, losses: list[float]) -> None:
        """Appends the losses that are new to `losses.csv`; at the first call the file is written afresh."""
        if not self.writes:
            return
        is_first = self._num_logged == 0
        try:
            with self._log.open("w" if is_first else "a", newline="") as file:
                lines = csv.writer(file)
                if is_first:
                    lines.writerow(("step", "loss"))
                for step, loss in enumerate(losses[self._num_logged :], self._num_logged):
                    lines.writerow((step, "" if math.isnan(loss) else repr(loss)))
        except OSError:  # said of the checkpoint
            return
        for step in range(self._num_logged, len(losses)) if self._board is not None else ():
            self._board.add_scalar("loss", losses[step], step)
        self._num_logged = len(losses)

    def close(self) -> None:
        """Closes what is open."""
        if self._board is not None:
            self._board.close()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else text[:200] + "…"


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Something for JSON in the place of nested values, whose tensors are put aside under names."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {"dict": [[key, _split(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_split(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value.item() if isinstance(value, np.generic) else value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_split` has split."""
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors.pop(value["tensor"])
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "tuple" in value:
        return tuple(_join(item, tensors) for item in value["tuple"])
    return {key: _join(item, tensors) for key, item in value["dict"]}

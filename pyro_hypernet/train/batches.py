"""The arguments of a fit: one set, or those of an iterable gone through again and again, each datum counting once."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.graphs.run import tensors_in
from pyro_hypernet.train.loaders import Passes, count_data, length
from pyro_hypernet.train.processes import Processes
from pyro_hypernet.train.random_states import put_back, snapshot
from pyro_hypernet.train.traits import Traits

_EXPECTED = (
    "args must be a tuple of the model's arguments, such as (x, y), a dict of them by name, or an iterable of such, "
    "or of single tensors"
)
# Shapes of batches whose traits are remembered.
_MAX_SHAPES = 1000


class Batches:
    """Argument tuples without end.

    Args:
        args: One tuple, or a dict by name; or an iterable of such, or of single tensors.
        processes: That go through them, each by its own `args`; None for this one alone.
        is_kept: Whether `state_dict` will be asked for, so that random states are noted at the start of every pass.

    Raises:
        TypeError: If `args` is neither.
        ValueError: If the iterable is empty, or processes with shards of the data have unequal numbers of batches.

    Attributes:
        is_fixed: Whether it is one tuple or dict, given again and again.
        is_named: Whether arguments come by name: every batch is then a tuple of one dict, for `ByName(model)`.
        length: Batches of a pass, as the iterable says or the first pass has shown; None while that is not known.
        number: The number of the last batch in its pass, from 0.
        passes: Passes begun.
        first: The first batch; where every process has a shard of the data, that of process 0.
    """

    def __init__(
        self,
        args: tuple | Mapping[str, Any] | Iterable[Any],
        processes: Processes | None = None,
        *,
        is_kept: bool = False,
    ) -> None:
        _check(args)
        self.args, self.processes, self._is_kept = args, processes or Processes(), is_kept
        self.is_fixed = isinstance(args, (tuple, Mapping))
        self.is_named: bool | None = None
        self.length = 1 if self.is_fixed else length(args)
        self.number, self.passes = -1, 0
        self._at_start: dict[str, Any] = {}  # of the pass: where random numbers stood
        self._passes = Passes(args)
        self._tuples = self._go_through()
        self._ahead: tuple | None = next(self._tuples)
        self.first = self.processes.share_first(self._ahead, self.length)

    def __next__(self) -> tuple:
        batch, self._ahead = self._ahead, None
        return next(self._tuples) if batch is None else batch

    def peek(self) -> tuple:
        """The next batch, which stays the next."""
        if self._ahead is None:
            self._ahead = next(self._tuples)
        return self._ahead

    def state_dict(self) -> dict[str, Any]:
        """Where in the data this is, before a call of `peek`."""
        taken = self.number + (self._ahead is None)
        return {"passes": self.passes, "taken": taken, "length": self.length, "random": self._at_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another process was; random numbers are where they are by then, to be put back."""
        if self.is_fixed:
            return
        if state["passes"] > 1:  # the first pass is under way
            put_back(state["random"], self.args)
            self._tuples.close()
            self._tuples, self._ahead, self.passes = self._go_through(), None, state["passes"] - 1
        for _ in range(state["taken"]):
            next(self)
        self.length = state["length"]

    def _go_through(self) -> Generator[tuple]:
        if self.is_fixed:
            self.number = 0
            batch = self._read(self.args)
            while True:
                yield batch
        while True:
            self.number, self._at_start = -1, snapshot(self.args) if self._is_kept else {}
            self.passes += 1
            for batch in self._passes.begin(self.passes - 1, self._put_back):
                self.number += 1
                yield self._read(batch)
            if self.number < 0:
                raise ValueError(
                    "The iterable of arguments is empty or can be gone through only once: pass a DataLoader or a list."
                )
            self.length = self.number + 1

    def _put_back(self) -> None:
        if self._at_start:
            put_back(self._at_start, self.args)

    def _read(self, batch: Any) -> tuple:
        """A batch as a tuple."""
        is_named = isinstance(batch, Mapping)
        if self.is_named not in (None, is_named):
            raise TypeError(
                f"Batch {self.number} is a {type(batch).__name__}, unlike those before it: tuples or dicts."
            )
        self.is_named = is_named
        return (dict(batch),) if is_named else _as_tuple(batch, self.args)

    def call(self, kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arguments and keyword arguments of the model at the first batch, those that are the same for all included."""
        return _called((), self.first[0], kwargs) if self.is_named else _called(self.first, {}, kwargs)

    @property
    def num_data(self) -> int | None:
        """How many data the batches of all processes are of, as a loader says, see `count_data`; None if not."""
        rows = next((len(value) for value in tensors_in(self.first) if value.dim()), None)
        return count_data(self.args, rows, self.processes.size if self.processes.are_shards else None)

    def spell_size(self) -> str:
        """The number of data in words, for messages: what the iterable's data set says, or N."""
        size = length(getattr(self.args, "dataset", None))
        return "N" if size is None else str(size)

    def spell(self, batch: tuple) -> str:
        """Which batch this is, the last, for messages."""
        shapes = ", ".join(str(tuple(v.shape)) for v in tensors_in(batch)) or "no tensors"
        return f"the arguments (shapes {shapes})" if self.is_fixed else f"batch {self.number} (shapes {shapes})"


class Shares:
    """How often the likelihood of every batch is to count, so that every datum counts equally often in a pass.

    Models scale a batch of B out of N data by N / B; a last batch that is shorter would count as much as all others,
    its data more often. If s is the scale of a batch, what is due is proportional to 1 / s with a mean of one over a
    pass: the number of batches times B / N. Before the first pass is over, and where it never is, all other batches
    are taken to be as long as the first.

    Args:
        traits: Of the model on the first batch.
        first: The first batch.
        find: The traits of the model on another.
    """

    def __init__(self, traits: Traits, first: tuple, find: Callable[[tuple], Traits]) -> None:
        self._scales, self._find = traits.scales, find
        self._known: dict[Any, float] = {_shapes(first): 1.0}
        self._pass: list[float] = []
        self._mean = 1.0

    def state_dict(self) -> dict[str, Any]:
        """The sizes of the batches of this pass so far, and their mean in the last."""
        return {"_pass": list(self._pass), "_mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned."""
        vars(self).update(state)

    def size(self, batch: tuple) -> float:
        """How large a batch is, the first being one."""
        shapes = _shapes(batch)
        if shapes not in self._known:
            if len(self._known) >= _MAX_SHAPES:
                self._known.clear()
            self._known[shapes] = _relative_size(self._scales, self._find(batch).scales)
        return self._known[shapes]

    def __call__(self, batch: tuple, number: int, size: float | None = None) -> float:
        """The share of a batch, the `number` of its pass, from 0.

        Its `size` is given where other processes have their part of it; None for its own.
        """
        if number == 0 and self._pass:
            self._mean = sum(self._pass) / len(self._pass)
            self._pass.clear()
        size = self.size(batch) if size is None else size
        self._pass.append(size)
        share = size / self._mean
        return 1.0 if math.isclose(share, 1.0, rel_tol=1e-6) else share


def one_pass(
    args: tuple | Mapping[str, Any] | Iterable[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Arguments and keyword arguments of the model at every batch, once through; as `Batches` and its `call`."""
    _check(args)
    for batch in [args] if isinstance(args, (tuple, Mapping)) else args:
        yield _called((), batch, kwargs) if isinstance(batch, Mapping) else _called(_as_tuple(batch, args), {}, kwargs)


def _check(args: Any) -> None:
    if isinstance(args, (Tensor, str)) or not isinstance(args, Iterable):
        raise TypeError(f"{_EXPECTED}; got {type(args).__name__}.")


def _called(batch: tuple, named: Mapping[str, Any], kwargs: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if both := sorted(named.keys() & kwargs.keys()):
        raise TypeError(f"kwargs and the batches both give the model's argument {both[0]!r}: leave one of them out.")
    return batch, {**named, **kwargs}


def _as_tuple(batch: Any, args: Any) -> tuple:
    if isinstance(batch, Tensor) and not isinstance(args, list):  # a list of tensors is meant for a tuple
        return (batch,)
    if not isinstance(batch, (tuple, list)):  # default collation makes lists of tuples
        remedy = " Write ((x, y)) for arguments, [(x,), (y,)] for minibatches." if isinstance(batch, Tensor) else ""
        raise TypeError(f"{_EXPECTED}; got {type(args).__name__} of {type(batch).__name__}.{remedy}")
    return tuple(batch)


def _relative_size(first: dict[str, float], scales: dict[str, float]) -> float:
    """How large a batch is, the first being one, going by the scales; one where they disagree."""
    pairs = [(first[name], scales[name]) for name in first if scales.get(name)]
    ratios = [one / other for one, other in pairs if (one, other) != (1, 1)]
    if not ratios or not all(math.isclose(ratio, ratios[0], rel_tol=1e-6) for ratio in ratios):
        return 1.0
    return ratios[0]


def _shapes(batch: tuple) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in tensors_in(batch))

"""A fit by several processes of a torch.distributed group, which go on, stop and fail together."""

import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.culprits import first_line
from pyro_hypernet.train.random_states import put_back, snapshot
from pyro_hypernet.train.step import Step

Result = TypeVar("Result")
_FINE, _FAILED = 0.0, 1.0
# Numbers that every process gives at once, beside how it goes.
_VALUES = 3
# How far log densities of the same model may differ between processors, relatively.
_ROUNDING = 1e-3


class Processes:
    """The processes that fit one guide, each calling `fit`; alone, one that exchanges nothing.

    Where all have the same batch each evaluates its share of the particles; where every process has a shard of the
    data, a batch of its own and all particles. All draw by the random numbers of process 0, whose guide, options of the
    clock and decisions count. Used as a context, it tells the others of an error inside: all processes leave it
    with one. Process 0 alone warns.

    Args:
        size: How many they are.
        rank: Which of them this is.

    Attributes:
        are_shards: Whether every process has data of its own.
        weight: Of this process's data among those of all, for the batch that was met last.
    """

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size, self.rank = size, rank
        self.are_shards, self.weight = False, 1.0
        self._first_size: float | None = None
        self._is_bad = False  # this process's part of the last step
        self._warnings = warnings.catch_warnings()
        self._text = ""
        on_gpu = size > 1 and distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @classmethod
    def of_group(cls) -> "Processes":
        """Those of torch.distributed's group, if there is one."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_world_size(), distributed.get_rank())
        return cls()

    def __enter__(self) -> "Processes":
        if self.size > 1:
            self._gather(_FINE)
            if self.rank:
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            state = self.share(snapshot)
            if self.rank:
                put_back(state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.size == 1:
            return
        try:
            if error is None:
                self._gather(_FINE)
                self.share_random_numbers()
            elif not is_known(error):
                self._text = f"{type(error).__name__}: {first_line(error)}"
                error.__dict__["is_known_to_all"] = True
                self._gather(_FAILED)
        except RuntimeError:
            if error is None:
                raise
        finally:
            if self.rank:
                self._warnings.__exit__(None, None, None)

    def share(self, function: Callable[[], Result]) -> Result:
        """What a function returns in process 0, which alone calls it, in all of them."""
        if self.size == 1:
            return function()
        box = [function() if self.rank == 0 else None]
        self._gather(_FINE)
        self._call(distributed.broadcast_object_list, box, 0, device=self._device)
        return box[0]

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets tensors to what they are in process 0.

        Raises:
            ValueError: If they have other names, shapes or types there.
        """
        if self.size == 1:
            return
        kinds = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in sorted(tensors.items())]
        if not self._is_same(fingerprint([str(kind) for kind in kinds])):
            raise ValueError(
                "The guides or the model's parameters differ between the processes of the group: make the guide by the "
                "same code in all of them, or give all a guide that is not set up."
            )
        for name in sorted(tensors):
            value = tensors[name].detach()
            copy = value.to(self._device if self._device.type == "cuda" else value.device, copy=True)
            self._call(distributed.broadcast, copy.contiguous() if self.rank == 0 else copy, 0)
            if self.rank and not torch.equal(value, copy.to(value.device)):
                with torch.no_grad():
                    value.copy_(copy)

    def share_random_numbers(self) -> None:
        """Puts torch's generators to where they stand in process 0."""
        if self.size == 1:
            return
        self._call(distributed.broadcast, state := torch.get_rng_state().to(self._device), 0)
        torch.set_rng_state(state.cpu())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._call(distributed.broadcast, state := torch.cuda.get_rng_state().to(self._device), 0)
            torch.cuda.set_rng_state(state.cpu())

    def share_first(self, batch: tuple, length: int | None = None) -> tuple:
        """Finds out whether the processes have shards of the data; returns the first batch of process 0.

        Args:
            batch: This process's first.
            length: How many batches it has in a pass; None where that is not known.

        Raises:
            ValueError: If shards have unequal numbers of batches, for data of the shorter would count more often.
        """
        if self.size == 1:
            return batch
        self.are_shards = not self._is_same(fingerprint(batch))
        if not self.are_shards:
            return batch
        lengths = [int(value) for value in self._gather(_FINE, length or 0)[:, 1]]
        if 0 not in lengths and len(set(lengths)) > 1:
            raise ValueError(
                f"The processes of the group have {', '.join(map(str, lengths))} batches in a pass, so that data of "
                "the shortest would count more often: give all as many, by a DistributedSampler, which pads, "
                "or Accelerate's even_batches=True."
            )
        devices = [leaf.device for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        first = self.share(lambda: pytree.tree_map_only(Tensor, Tensor.cpu, batch))
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(devices[0] if devices else "cpu"), first)

    def check_model(self, densities: Mapping[str, float]) -> None:
        """Compares the log density of every site at the same weights and data.

        Args:
            densities: By site, in nats.

        Raises:
            ValueError: If the processes have different models.
        """
        if self.size == 1:
            return
        self._gather(_FINE)
        said: list[Any] = [None] * self.size
        self._call(distributed.all_gather_object, said, dict(densities))
        for rank, theirs in enumerate(said):
            for name in theirs.keys() & said[0].keys():
                pair = said[0][name], theirs[name]
                if not math.isclose(*pair, rel_tol=_ROUNDING, abs_tol=_ROUNDING) and all(map(math.isfinite, pair)):
                    raise ValueError(
                        f"The model differs between the processes of the group: at the same weights and data the log "
                        f"density of {name!r} is {pair[0]:.6g} in process 0 and {pair[1]:.6g} in process {rank}. What "
                        "it holds that is not drawn, such as a network's fixed parameters, must be the same in all: "
                        "seed all processes alike before it is made, or load it from one file."
                    )

    def share_of_particles(self, num_particles: int, bound: str) -> slice | None:
        """Which of the particles are this process's to evaluate; None for all.

        Raises:
            ValueError: If they cannot be shared.
        """
        if self.size == 1:
            return None
        if bound != "elbo":
            raise ValueError(f'bound={bound!r} is no sum over particles or data: in several processes use "elbo".')
        if self.are_shards:
            return None
        if num_particles < self.size:
            raise ValueError(
                f"{self.size} processes with the same batch share the particles, of which there are only "
                f"{num_particles}: ask for VectorizedELBO(num_particles={self.size}), or give every process data of "
                "its own by a DistributedSampler."
            )
        return slice(self.rank, None, self.size)

    def meet(self, batch: tuple, size: float) -> float:
        """How large the batches of all processes together are, their first ones being one.

        Args:
            batch: This process's next.
            size: How large it is, relative to one that is the same for all processes.

        Raises:
            RuntimeError: If processes that had the same batches have them no longer.
        """
        if self.size == 1:
            return size
        if not self.are_shards:
            if not self._is_same(fingerprint(batch)):
                raise RuntimeError(
                    "The processes of the group had the same batches so far and now have different ones: give all "
                    "the same, their order by torch's generator, or a DistributedSampler to each. The guide keeps what "
                    "it had learnt."
                )
            return size
        total = sum(self._gather(_FINE, size)[:, 1].tolist())
        self.weight = size / total
        self._first_size = self._first_size or total
        return total / self._first_size

    def stops(self, came: bool, is_late: bool) -> tuple[bool, bool]:
        """Whether any process was interrupted, and whether any is out of time."""
        if self.size == 1:
            return came, is_late
        rows = self._gather(_FINE, came, is_late)
        return bool(rows[:, 1].any()), bool(rows[:, 2].any())

    def join(self, evaluate: Callable[[], Step], *, is_look: bool = False) -> Step:
        """One step of all processes: the sum of their losses and gradients, each by its weight.

        Args:
            evaluate: Makes this process's part of it.
            is_look: Whether the particles of all are wanted, `(w, log p − log q, 0)`, and no gradient.
        """
        if self.size == 1:
            return evaluate()
        self.share_random_numbers()
        try:
            step = evaluate()
        except RuntimeError as error:
            if is_look or "linalg." not in str(error):
                raise
            step = Step.failed()
        self._is_bad = not step.is_finite
        count = 0 if step.particles is None else len(step.particles[0])
        rows = self._gather(_FINE, self.weight * step.loss, step.discrepancy, count)
        if not bool(rows[:, 3].all()):  # there is no gradient of all
            return replace(step, loss=torch.nan, discrepancy=0.0)
        joint = replace(step, loss=sum(rows[:, 1].tolist()), discrepancy=float(rows[:, 2].max()))
        if is_look:
            _, log_p, log_q = step.particles
            positions = slice(None) if self.are_shards else slice(self.rank, None, self.size)
            log_weights = log_p.new_zeros(count if self.are_shards else int(rows[:, 3].sum()), dtype=torch.float64)
            log_weights[positions] = self.weight * (log_p - log_q).double()
            self._call(distributed.all_reduce, log_weights)
            return replace(joint, particles=(step.particles[0], log_weights, torch.zeros_like(log_weights)))
        gradients = [gradient * self.weight for gradient in step.gradients]  # copies: graphs own theirs
        for gradient in gradients:
            self._call(distributed.all_reduce, gradient)
        norms = [torch.linalg.vector_norm(gradient).double() for gradient in gradients]
        return replace(joint, gradients=gradients, norm=float(torch.linalg.vector_norm(torch.stack(norms))))

    def first_trouble(self, found: str) -> str:
        """Where the last step went wrong, as the first process says whose part of it was not finite."""
        if self.size == 1:
            return found
        self._gather(_FINE)
        said: list[Any] = [None] * self.size
        self._call(distributed.all_gather_object, said, (self._is_bad, found))
        return next((f"{text} (process {rank})" for rank, (is_bad, text) in enumerate(said) if is_bad), said[0][1])

    def _is_same(self, number: float) -> bool:
        values = self._gather(_FINE, number)[:, 1]
        return bool((values == values[0]).all())

    def _gather(self, state: float, *values: float) -> Tensor:
        """How it goes and some numbers, of every process, shape `(size, 1 + _VALUES)`; raises where one failed."""
        padded = (state, *map(float, values), *[0.0] * (_VALUES - len(values)))
        own = torch.tensor(padded, dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        self._call(distributed.all_gather, rows, own)
        table = torch.stack(rows).cpu()
        if bool((table[:, 0] == _FAILED).any()):
            said: list[Any] = [None] * self.size
            self._call(distributed.all_gather_object, said, self._text)
            if state != _FAILED:
                texts = [f"process {rank} of {self.size} with {text}" for rank, text in enumerate(said) if text]
                raise _known(f"fit failed in another process: {'; '.join(texts)} The guide keeps what it had learnt.")
        return table

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except RuntimeError as error:
            others = ", ".join(str(rank) for rank in range(self.size) if rank != self.rank)
            raise _known(
                f"Process {self.rank} of {self.size} has lost another one (process {others}) in fit, which was killed "
                f"or no longer answers: {first_line(error)} Its own output says why. The guide keeps what it had "
                "learnt; start all processes again, and with checkpoint= they go on from there."
            ) from error


def is_known(error: BaseException) -> bool:
    """Whether all processes know of an error already."""
    return "is_known_to_all" in getattr(error, "__dict__", {})


def _known(text: str) -> RuntimeError:
    error = RuntimeError(text)
    error.__dict__["is_known_to_all"] = True
    return error


def fingerprint(data: Any) -> int:
    """A checksum of the values of all tensors, arrays and plain values in some arguments."""
    found = 0
    for leaf in pytree.tree_leaves(data):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            found = zlib.crc32(f"{tuple(leaf.shape)} {leaf.dtype}".encode(), found)
            leaf = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            found = zlib.crc32(leaf, found)
        elif isinstance(leaf, (bool, int, float, str, type(None))):
            found = zlib.crc32(repr(leaf).encode(), found)
    return found

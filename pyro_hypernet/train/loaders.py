"""What a data loader says of itself, in a wrapper or not: how many data, in whose shards, in which order."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from pyro_hypernet.model.called import is_loader


def length(iterable: Any) -> int | None:
    """len(), where there is one: some classes have the method and raise."""
    try:
        return len(iterable) if isinstance(iterable, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def num_shards(loader: Any) -> int:
    """Among how many processes the data are shared, as a DistributedSampler or a shard of batches says; else 1."""
    sampler, batches = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    if isinstance(sampler, DistributedSampler):
        return sampler.num_replicas
    return batches.num_processes if _is_shard(batches) else 1


def count_data(loader: Any, rows: int | None, num_processes: int | None) -> int | None:
    """How many data the batches of a loader are of, those of other processes included; None if it does not say.

    A sampler that goes through a part gives the size of that part.

    Args:
        loader: A DataLoader, one in a wrapper, or any iterable of batches.
        rows: Of its first batch; None if it has none.
        num_processes: That have shards of the data, each by such a loader; None if there are none.
    """
    size, batches = length(getattr(loader, "dataset", None)), getattr(loader, "batch_sampler", None)
    if size is None:
        return None
    if batches is None and not hasattr(loader, "sampler"):  # no DataLoader of torch's, nor like one
        batch_size = getattr(loader, "batch_size", None)
        is_of_rows = batch_size is not None and rows == min(batch_size, size) and num_processes is None
        return size if is_of_rows else None
    whole = batches.batch_sampler if _is_shard(batches) else batches
    if type(whole) is not BatchSampler:
        return None
    if num_processes is not None and num_shards(loader) != num_processes:
        return None
    is_split, shards = getattr(batches, "split_batches", False), num_shards(loader)
    share = whole.batch_size // shards if is_split else whole.batch_size
    if rows != min(share, size):
        return None  # an item of the data set is no row of a batch
    step = whole.batch_size * (shards if batches is not whole and not is_split else 1)  # what is left over is dropped
    return _count_gone_through(whole.sampler, loader.dataset, step if whole.drop_last else 1)


def _count_gone_through(sampler: Any, dataset: Any, step: int) -> int | None:
    """How many data a sampler goes through, in turn only in whole steps; None where that is not known."""
    size = len(dataset)
    if isinstance(sampler, SubsetRandomSampler):
        return len(sampler)
    if isinstance(sampler, SequentialSampler):
        return size - size % step
    if isinstance(sampler, DistributedSampler):
        if sampler.dataset is dataset:
            return size
        # Shards of what another sampler goes through.
        parts = getattr(sampler.dataset, "__dict__", {}).values()
        inner = next((part for part in parts if isinstance(part, Sampler)), None)
        return size if inner is None else _count_gone_through(inner, dataset, 1)
    return size if isinstance(sampler, RandomSampler) else None


def _is_shard(batches: Any) -> bool:
    """Whether a sampler of batches gives one process's share of those of another."""
    is_wrapper = isinstance(batches, BatchSampler) and isinstance(getattr(batches, "batch_sampler", None), BatchSampler)
    return is_wrapper and isinstance(getattr(batches, "num_processes", None), int)


class Passes:
    """Passes over an iterable of batches, each in an order of its own where the iterable's depends on their number.

    That is a loader with a DistributedSampler, which would have the same order in every pass, a loader that counts its
    passes and sets the sampler's number itself, and one that is told the number by `set_epoch`.

    Args:
        iterable: Gone through once for every pass.
    """

    def __init__(self, iterable: Any) -> None:
        self.iterable = iterable
        sampler = getattr(iterable, "sampler", None)
        self._sampler = sampler if isinstance(sampler, DistributedSampler) else None
        self._told = iterable if is_loader(iterable) and callable(getattr(iterable, "set_epoch", None)) else None
        counts = getattr(self._told, "iteration", 0)
        self._first = self._sampler.epoch if self._sampler is not None else counts

    def begin(self, number: int, again: Callable[[], Any]) -> Iterator[Any]:
        """The batches of a pass.

        Args:
            number: Of the pass, from 0.
            again: Called before the pass is begun once more, to put random numbers back.
        """
        epoch = self._first + number
        if self._told is not None:
            self._told.set_epoch(epoch)
        if self._sampler is None:
            yield from self.iterable
            return
        self._sampler.set_epoch(epoch)
        batches = iter(self.iterable)
        ahead, before = list(_take(batches)), -1
        while number and before < self._sampler.epoch < epoch and ahead:  # the loader counts by itself, and is behind
            before = self._sampler.epoch
            again()
            batches = iter(self.iterable)
            ahead = list(_take(batches))
        self._first += self._sampler.epoch - epoch
        yield from ahead
        yield from batches


def _take(batches: Iterator[Any]) -> Iterator[Any]:
    """The next one, if there is one."""
    for batch in batches:
        yield batch
        return

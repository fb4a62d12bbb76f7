"""Graphs run by several threads at once: torch lets go of the interpreter while it computes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


def in_threads(run: Callable[[Any], Any], batches: Sequence[Any], num_threads: int) -> list[Any]:
    """What a function that records no gradient returns for every batch, in their order.

    Args:
        run: From a batch to its results; the first exception of any is raised when all have ended.
        batches: As many as there are threads, or more.
        num_threads: How many are under way at a time.
    """

    def without_gradient(batch: Any) -> Any:
        with torch.no_grad():  # a thread has a mode of its own
            return run(batch)

    futures = [_threads(num_threads).submit(without_gradient, batch) for batch in batches]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


@contextmanager
def one_thread_each(num_threads: int) -> Iterator[None]:
    """While several threads run graphs no operation takes further ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if num_threads > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="pyro_hypernet")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of its parent's threads

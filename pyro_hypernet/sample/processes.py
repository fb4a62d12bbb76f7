"""Work shared among forked processes, which inherit all there is: neither models nor graphs need be pickled.

How many processes, and how many threads, the cores allow for.
"""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from typing import Any

import torch

# Set in a forked process only.
_work: Callable[[Any], Any] | None = None


def count_processes(num_parts: int, num_processes: int | None) -> int:
    """How many processes share so many parts of work: one per core at most, and 1 where none that works can be forked.

    Args:
        num_parts: The parts.
        num_processes: How many are asked for; None for one per core.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return 1
    wanted = min(num_parts, _count_cores() if num_processes is None else num_processes)
    return wanted if wanted > 1 and _forks_can_differentiate() else 1


def count_threads(num_threads: int | None, device: torch.device) -> int:
    """How many threads to run graphs by: one per core if none are asked for; 1 on a GPU and in a forked process.

    Args:
        num_threads: How many are asked for; None for one per core.
        device: Where the graphs run.
    """
    if device.type != "cpu" or _work is not None:
        return 1
    return _count_cores() if num_threads is None else num_threads


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _forks_can_differentiate() -> bool:
    """Whether a forked process can take gradients, by trying: builds of torch with CUDA refuse, with or without a GPU.

    Their autograd has threads of its own from the first gradient on, which no fork inherits.
    """
    _differentiate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks of a process with threads
        child = os.fork()
    if child == 0:
        try:
            _differentiate()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _differentiate() -> None:
    with torch.enable_grad():
        torch.ones(1, requires_grad=True).sum().backward()


def share_out(work: Callable[[Any], Any], parts: Sequence[Any], num_processes: int) -> Iterator[Any]:
    """What a function returns for every part, in any order, as it is done.

    Args:
        work: From one part to what is pickled.
        parts: What is pickled too.
        num_processes: Processes to fork, of one thread each; 1 or fewer for none.
    """
    if num_processes <= 1:
        yield from map(work, parts)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*fork.*", RuntimeWarning)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(num_processes, context, initializer=_begin, initargs=(work,)) as pool:
            for future in as_completed([pool.submit(_do, part) for part in parts]):
                yield future.result()


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    torch.set_num_threads(1)


def _do(part: Any) -> Any:
    assert _work is not None
    return _work(part)

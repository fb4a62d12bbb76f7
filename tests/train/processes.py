"""Fits of several processes: functions run by two ranks of gloo, and what they return."""

import os
from datetime import timedelta

import torch
from torch import distributed, multiprocessing

SIZE = 2


def run(function, folder, *args, size=SIZE):
    """Calls `function(rank, *args)` in every process of a group.

    Args:
        function: At the top of a module.
        folder: Empty, for what they return.
        args: Of the function.
        size: How many processes.

    Returns:
        What each returned, or the exception that it raised, as text; None where it was killed.
    """
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_enter, args=(function, rank, size, str(folder), args), daemon=True)
        for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        if process.is_alive():
            process.kill()
            raise AssertionError("a process of the group hangs")
    paths = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _enter(function, rank, size, folder, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(f"{folder}/store", size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20))
    try:
        result = function(rank, *args)
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, f"{folder}/{rank}.part")
    os.replace(f"{folder}/{rank}.part", f"{folder}/{rank}.pt")
    os._exit(0)  # without a last word to the group, which may be broken

"""What every pass over a captured step is worth: its steps without this pass, against those with all of them.

    python benchmarks/speed_of_passes.py --data FOLDER [--quick] [--tasks NAMES]

The tasks of `speed_of_backends.py`. All variants of a task are captured in one process, run by TorchScript on one
thread, and timed in turn by the CPU's clock. A pass is worth its lines where leaving it out costs 3 % somewhere.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyro
import torch
from data_folder import options_with_data
from speed_of_backends import TASKS, problem
from timing import in_turn, keep, median, spell_ratio, table

from pyro_hypernet import AutoHypernet, VectorizedELBO
from pyro_hypernet.graphs import run, simplify
from pyro_hypernet.train.step import FlatParameters, Stepper

# Every pass with what stands in its place where it is left out.
PASSES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "_drop_zeros": (simplify, lambda *_: None),
    "_join_slices": (simplify, lambda *_: None),
    "_shorten": (simplify, lambda *_: None),
    "fold": (simplify, lambda *_: None),
    "permute_back": (simplify, lambda *_: None),
    "_drop_what_does_nothing": (simplify, lambda *_: None),
    "_merge_equal": (simplify, lambda *_: None),
    "unexpand_products": (simplify, lambda _: False),
    "_cancel_shifts": (simplify, lambda *_: False),
    "merge_constants": (simplify, lambda *_: None),
    "add_in_products": (simplify, lambda *_: None),
    "in_place": (run, lambda module, _: module),
}
ALL, NONE, CORE = "all passes", "no pass", "these three alone: "
# Those that are worth most by themselves; alone to see whether the others earn their lines together.
WORTH_MOST = ("fold", "_drop_what_does_nothing", "unexpand_products")


@contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """Leaves passes out."""
    patches = [patch.object(PASSES[name][0], name, PASSES[name][1]) for name in names]
    for change in patches:
        change.start()
    try:
        yield
    finally:
        for change in patches:
            change.stop()


def captured(data: str, task: str, left_out: tuple[str, ...]) -> tuple[Callable[[], Any], int, float]:
    """A step, the number of operations in its graph, and the seconds that its capture took."""
    pyro.set_rng_seed(0)
    model, args, particles = problem(data, task)
    guide = AutoHypernet(model).setup(*args)
    elbo = VectorizedELBO(particles)
    elbo.prepare(model, guide, args, {})
    parameters = FlatParameters([*guide.parameters(), *elbo.params.values()])
    stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10**6, is_fixed=True)
    start = time.process_time()
    with without(left_out):
        for _ in range(3):
            stepper(args)
    if stepper.compile != "graph":
        raise RuntimeError(stepper.reason)
    seconds = time.process_time() - start
    (graph,) = stepper._graphs.values()
    return lambda: stepper(args), len(graph.module.graph.nodes), seconds


def main() -> None:
    """Times all variants and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--quick", action="store_true", help="toy-gap, few repeats")
    parser.add_argument("--groups", action="store_true", help="no pass by itself")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks, repeats = (["toy-gap"], 4) if options.quick else (options.tasks, 20)
    singly = {} if options.groups else {f"without {name}": (name,) for name in PASSES}
    without_others = tuple(name for name in PASSES if name not in WORTH_MOST)
    variants = {ALL: (), **singly, NONE: tuple(PASSES), CORE + ", ".join(WORTH_MOST): without_others}
    records, cells = [], {name: {} for name in variants}
    for task in tasks:
        found = {name: captured(options.data, task, left_out) for name, left_out in variants.items()}
        steps = {name: step for name, (step, _, _) in found.items()}
        calls = 2 if task in ("large", "conv") else 50
        seconds = in_turn(steps, repeats=repeats, calls=calls, clock=time.process_time)
        for name, (_, size, capture) in found.items():
            records.append({"task": task, "variant": name, "seconds": seconds[name], "size": size, "capture": capture})
            change = f"{1e3 * median(seconds[ALL]):.2f} ms" if name == ALL else spell_ratio(seconds[name], seconds[ALL])
            cells[name][task] = f"{change}, {size}"
            print(task, name, cells[name][task], f"{capture:.1f} s", flush=True)
    rows = [[name, *(cells[name][task] for task in tasks)] for name in variants]
    text = (
        "A step of the default guide with all passes, one thread, CPU seconds; its ratio without one of them, median "
        f"of {repeats} [least, greatest]; operations in the graph. Made by speed_of_passes.py.\n\n"
    )
    keep("speed_passes", records, text + table(["", *tasks], rows), quick=options.quick)


if __name__ == "__main__":
    main()

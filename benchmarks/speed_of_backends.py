"""Backends of a captured step: TorchScript, the graph run from Python, torch's inductor, and inductor from its cache.

    python benchmarks/speed_of_backends.py --data FOLDER [--quick] [--tasks NAMES]

The default guide on the four references with 8 particles, and a large and a convolutional network with one. Every cell
is a process of its own, the backends of a task in turn, three rounds; inductor has a cache folder of its own for every
round, empty for "inductor" and filled by it for "inductor, cached". `ready` is what passes from the first step until
the backend runs, beyond the steps themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

from data_folder import options_with_data

TASKS = ("toy-gap", "penguins", "moons", "concrete", "large", "conv")
BACKENDS = ("off", "TorchScript", "plain graph", "inductor", "inductor, cached")
ROUNDS = 3


def one_cell(data: str, task: str, backend: str) -> dict[str, Any]:
    """Milliseconds of a step and seconds until it runs so."""
    import pyro
    import torch

    from pyro_hypernet import AutoHypernet, VectorizedELBO
    from pyro_hypernet.graphs import run as backends
    from pyro_hypernet.train import step as steps
    from pyro_hypernet.train.optimiser import Optim, Optimiser

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    model, args, particles = problem(data, task)
    if backend == "plain graph":
        backends.why_no_script = steps.why_no_script = lambda: "left out"
    guide = AutoHypernet(model).setup(*args)
    elbo = VectorizedELBO(particles)
    elbo.prepare(model, guide, args, {})
    parameters = steps.FlatParameters([*guide.parameters(), *elbo.params.values()])
    compile = {"off": "off", "TorchScript": "graph", "plain graph": "graph"}.get(backend, "inductor")
    stepper = steps.Stepper(model, guide, elbo, parameters, compile=compile, num_steps=10**6, is_fixed=True)
    optimiser = Optimiser(parameters.vectors, 10**6, Optim(1e-4, keep="last"))
    start = time.perf_counter()
    for _ in range(3):
        optimiser.step(stepper(args))
    ready = time.perf_counter() - start
    seconds = []
    for _ in range(15 if task in ("large", "conv") else 100):
        start = time.perf_counter()
        optimiser.step(stepper(args))
        seconds.append(time.perf_counter() - start)
    ms = 1e3 * sorted(seconds)[len(seconds) // 2]
    return {"ms": ms, "ready": ready - 3e-3 * ms, "compile": stepper.compile, "reason": stepper.reason}


def problem(data: str, task: str) -> tuple[Any, tuple, int]:
    """A model, its arguments, and the number of particles."""
    import torch
    from torch import nn

    from models.references import read_reference
    from pyro_hypernet import bayesianize

    if task == "large":
        net = nn.Sequential(nn.Linear(20, 990), nn.Tanh(), nn.Linear(990, 990), nn.Tanh(), nn.Linear(990, 1))
        x = torch.randn(128, 20)
        return bayesianize(net, "gaussian", num_data=10_000), (x, x.sum(-1)), 1
    if task == "conv":
        layers = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, 10))
        x = torch.randn(128, 1, 28, 28)
        return bayesianize(net, "categorical", num_data=10_000), (x, torch.randint(10, (128,))), 1
    reference = read_reference(data, task)
    return reference.model, reference.args, 8


def main() -> None:
    """Times all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--quick", action="store_true", help="toy-gap, one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = options_with_data(parser)
    if options.one:
        print(json.dumps(one_cell(options.data, *options.one)))
        return
    from timing import keep, median, spell_ratio, table

    tasks, rounds = (["toy-gap"], 1) if options.quick else (options.tasks, options.rounds)
    rows, records = [], []
    for task in tasks:
        found: dict[str, list[dict[str, Any]]] = {backend: [] for backend in BACKENDS}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
                for backend in BACKENDS:
                    command = [sys.executable, __file__, "--data", options.data, "--one", task, backend]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                    if done.returncode:
                        print(done.stderr[-2000:], flush=True)
                    answer = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else "null"
                    found[backend].append(json.loads(answer))
        for backend, cells in found.items():
            records.append({"task": task, "backend": backend, "cells": cells})
            if None in cells:
                rows.append([task, backend, "fails", "", "", ""])
                continue
            ms = [cell["ms"] for cell in cells]
            script = [cell["ms"] for cell in found["TorchScript"]]
            ready = f"{median([cell['ready'] for cell in cells]):.1f}"
            rows.append([task, backend, cells[0]["compile"], f"{median(ms):.2f}", spell_ratio(ms, script), ready])
            print(rows[-1], flush=True)
    text = (
        f"The default guide's step, one thread; ratio to TorchScript's, median of {rounds} [least, greatest]. Made by "
        "speed_of_backends.py.\n\n" + table(["task", "backend", "ran as", "ms", "ratio", "ready, s"], rows)
    )
    keep("speed_backends", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

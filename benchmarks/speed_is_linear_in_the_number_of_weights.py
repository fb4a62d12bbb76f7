"""Seconds per step and peak memory from 10³ to 10⁷ weights, of structures and of models with weight norm.

    python benchmarks/speed_is_linear_in_the_number_of_weights.py [--quick] [--dims 1e3 1e4 1e5 1e6]

A network of 20 inputs and two hidden layers of equal width, a minibatch of 128 of 10 000 data, one particle, a thread.
Adam: a plain step of the same network on the same minibatch; AutoNormal, up to 10⁶ weights: Pyro's SVI with Trace_ELBO
and Adam on the same model; both in turn with each. "mean field" is `full` with the identity, "weight_norm model"
`bayesianize(..., parametrization="weight_norm")`, "paper" the same with biases learnt. `layerwise` takes the linear
hypernetwork, low rank for large sites. Every structure and size runs in a process of its own, and cells in the file are
not run again; memory is that process's greatest resident set less what it held before the guide was made, with Adam's
moments and the copy that `fit` keeps, after a few steps of a small guide.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from timing import in_turn, keep, kept, median, spell_ratio, table
from torch import nn

from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.train.optimiser import Optim, Optimiser, step_shares
from pyro_hypernet.train.step import FlatParameters, Stepper

# Structure, hypernetwork and what the model is made by.
STRUCTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "low_rank": ("low_rank", "auto", {}),
    "weight_norm": ("weight_norm", "auto", {}),
    "layerwise": ("layerwise", "linear", {}),
    "mean field": ("full", "identity", {}),
    "multiplicative": ("multiplicative", "auto", {}),
    "last_layer": ("last_layer", "auto", {}),
    "weight_norm model": ("auto", "auto", {"parametrization": "weight_norm"}),
    "paper": ("auto", "auto", {"parametrization": "weight_norm", "sites": ["*.weight"]}),
}
INPUTS, BATCH, DATA = 20, 128, 10_000


def network(dim: float) -> nn.Sequential:
    """About `dim` weights."""
    width = max(1, int((-(INPUTS + 2) + math.sqrt((INPUTS + 2) ** 2 + 4 * dim)) / 2))
    layers = [nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    return nn.Sequential(*layers)


def one_cell(structure: str, dim: float, repeats: int) -> dict[str, Any]:
    """Times one structure at one size."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pyro.set_rng_seed(0)
    x = torch.randn(BATCH, INPUTS)
    y = x.sum(-1) + torch.randn(BATCH)
    named, hypernet, options = STRUCTURES[structure]

    def stepping(net: nn.Module, *, keep: str) -> tuple[Model, Stepper, Callable[[], None]]:
        model = bayesianize(net, "gaussian", num_data=DATA, **options)
        guide = AutoHypernet(model, hypernet, named).setup(x, y)
        elbo = VectorizedELBO(1)
        elbo.prepare(model, guide, (x, y), {})
        parameters = FlatParameters([*guide.parameters(), *elbo.params.values()], step_shares(guide.bijection))
        stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10**6, is_fixed=False)
        run = Optimiser(parameters.vectors, 10**6, Optim(1e-4, keep=keep), shares=parameters.shares)
        return model, stepper, lambda: run.step(stepper((x, y)))

    *_, step = stepping(network(1e3), keep="last")
    for _ in range(4):  # what is imported is not counted
        step()
    pyro.clear_param_store()
    net = network(dim)
    before = _resident()
    model, stepper, step = stepping(net, keep="best")
    for _ in range(4):
        step()
    peak = _memory() - before
    adam = torch.optim.Adam(net.parameters(), 1e-4, fused=True)

    def plain() -> None:
        adam.zero_grad()
        (net(x)[:, 0] - y).square().mean().backward()
        adam.step()

    made = {"ours": step, "Adam": plain}
    if not options and dim <= 1e6:
        svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-4}), Trace_ELBO())
        made["AutoNormal"] = lambda: svi.step(x, y)
    for function in made.values():
        function()
    seconds = in_turn(made, repeats=repeats)
    size = {
        "dim": sum(p.numel() for p in net.parameters()),
        "parameters": sum(v.numel() for v in stepper.parameters.vectors),
    }
    return {"structure": structure, **size, "compile": stepper.compile, "peak_bytes": peak, "seconds": seconds}


def _resident() -> int:
    """Resident set of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _memory() -> int:
    """Greatest resident set of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def slope(dims: list[int], values: list[float]) -> float:
    """Of the least-squares line in log–log."""
    xs, ys = ([math.log(value) for value in row] for row in (dims, values))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True)) / sum((a - mean_x) ** 2 for a in xs)


def main() -> None:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="*", type=float, default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--only", nargs="*", default=list(STRUCTURES), choices=list(STRUCTURES), help="these rows")
    parser.add_argument("--quick", action="store_true", help="10³ and 10⁴, three repeats")
    parser.add_argument("--cell", nargs=3, help="one structure, size and number of repeats, as JSON")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(one_cell(options.cell[0], float(options.cell[1]), int(options.cell[2]))))
        return
    dims, repeats = ([1e3, 1e4], 3) if options.quick else (options.dims, 7)
    records = kept("speed_dims", quick=options.quick)
    done = {(record["structure"], record["asked"]) for record in records}
    for dim in dims:
        for structure in options.only:
            if (structure, dim) in done:
                continue
            command = [sys.executable, __file__, "--cell", structure, str(dim), str(repeats)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            records.append(json.loads(output) | {"asked": dim})
            records.sort(key=lambda record: (list(STRUCTURES).index(record["structure"]), record["asked"]))
            keep("speed_dims", records, report(records, repeats), quick=options.quick)


def report(records: list[dict[str, Any]], repeats: int) -> str:
    """Both tables of the cells so far."""
    rows, slopes = [], []
    for record in records:
        ours, cells = record["seconds"]["ours"], [f"{1e3 * median(record['seconds']['ours']):.1f}"]
        for other in ("Adam", "AutoNormal"):
            theirs = record["seconds"].get(other)
            cells += [f"{1e3 * median(theirs):.1f}", spell_ratio(ours, theirs)] if theirs else ["–", "–"]
        memory = [f"{record['peak_bytes'] / 1e6:.0f}", f"{record['peak_bytes'] / 4 / record['parameters']:.1f}"]
        rows.append([record["structure"], record["dim"], record["parameters"], *cells, *memory])
    for structure in STRUCTURES:
        of_one = [record for record in records if record["structure"] == structure]
        if len(of_one) < 2:
            continue
        sizes = [record["dim"] for record in of_one]
        per_step = slope(sizes, [median(record["seconds"]["ours"]) for record in of_one])
        memory = slope(sizes, [max(1, record["peak_bytes"]) for record in of_one])
        slopes.append([structure, f"{per_step:.2f}", f"{memory:.2f}"])
    headings = ["structure", "D", "parameters", "ms per step", "Adam, ms", "ratio"]
    headings += ["AutoNormal, ms", "ratio", "peak MB", "over parameters"]
    return (
        f"Minibatch of {BATCH}, one particle, one thread; medians of {repeats} [least, greatest]. "
        "Made by speed_is_linear_in_the_number_of_weights.py.\n\n"
        + table(headings, rows)
        + "\n\nSlopes in log–log over all sizes:\n\n"
        + table(["structure", "seconds per step", "peak memory"], slopes)
    )


if __name__ == "__main__":
    main()

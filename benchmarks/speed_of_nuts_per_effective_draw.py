"""`nuts` against Pyro's NUTS, with `jit_compile=True` and on our captured density: seconds per effective draw.

    python benchmarks/speed_of_nuts_per_effective_draw.py --data FOLDER [--quick] [--tasks regression toy-gap moons]
        [--who "nuts" "Pyro NUTS, captured"]

All run four chains in one process on one thread, Pyro's one after the other, with the same warm-up, target acceptance
and tree depth. Effective draws are the least over the model's outputs (a network's weights have symmetries) or the
coefficients of the regression, of Pyro's own estimate. Contestants in turn; the network, which takes Pyro minutes, runs
once per call of this script, and the repeats of several calls are gathered in the file.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from timing import keep, kept, median, table
from torch import Tensor

from models.references import read_reference
from pyro_hypernet import NutsKernel, nuts, predict
from pyro_hypernet.target import bind

CHAINS, DEPTH = 4, 7
# Kept draws and warm-up of every chain, repeats in one call.
SETTINGS = {"regression": (150, 150, 7), "toy-gap": (150, 150, 1), "moons": (100, 100, 1)}


def regression(x: Tensor, y: Tensor) -> None:
    """A linear regression with learnt noise, D = 11."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, sigma), obs=y)


def problem(name: str, folder: str) -> tuple[Any, tuple, Callable[[dict[str, Tensor]], Tensor]]:
    """Model, arguments, and what effective draws are counted of: from samples to `(chains, draws, k)`."""
    if name == "regression":
        torch.manual_seed(0)
        x = torch.randn(100, 10)
        return regression, (x, x.sum(-1) + 0.5 * torch.randn(100)), lambda samples: samples["weight"]
    reference = read_reference(folder, name)

    def outputs(samples: dict[str, Tensor]) -> Tensor:
        flat = {site: value.flatten(0, 1) for site, value in samples.items()}
        f = predict(reference.model, flat, reference.x_test, num_samples=10**9, return_sites=["f"])["f"]
        return f.flatten(1).unflatten(0, (CHAINS, -1))

    return reference.model, reference.args, outputs


def ours(model: Any, args: tuple, num_samples: int, warmup: int, seed: int) -> tuple[float, dict[str, Tensor], int]:
    """Seconds, samples by chain, gradients."""
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    options = {"num_chains": CHAINS, "kernel": NutsKernel(max_tree_depth=DEPTH, num_processes=1)}
    found = nuts(model, *args, num_samples=num_samples, warmup_steps=warmup, **options)
    return time.perf_counter() - start, found.samples_by_chain, sum(found.num_gradients)


def pyros(model: Any, args: tuple, num_samples: int, warmup: int, seed: int) -> tuple[float, dict[str, Tensor], int]:
    """Seconds, samples by chain; gradients are not counted."""
    pyro.set_rng_seed(seed)
    start, chains = time.perf_counter(), []
    for _ in range(CHAINS):
        kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=DEPTH)
        mcmc = MCMC(kernel, num_samples, warmup, disable_progbar=True)
        mcmc.run(*args)
        chains.append(mcmc.get_samples())
    seconds = time.perf_counter() - start
    return seconds, {site: torch.stack([chain[site] for chain in chains]) for site in chains[0]}, 0


class _Energy(torch.autograd.Function):
    """Minus the log density, its gradient part of the same captured graph."""

    @staticmethod
    def forward(context: Any, w: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = run(w[None])
        context.save_for_backward(gradient[0])
        return -value[0]

    @staticmethod
    def backward(context: Any, outer: Tensor) -> tuple[Tensor, None]:
        return -outer * context.saved_tensors[0], None


def pyros_captured(
    model: Any, args: tuple, num_samples: int, warmup: int, seed: int
) -> tuple[float, dict[str, Tensor], int]:
    """Pyro's sampler on our graph of density and gradient: seconds, samples by chain, gradients."""
    pyro.set_rng_seed(seed)
    start, chains, count = time.perf_counter(), [], 0
    target = bind(model, args, {}, "nuts")
    bound = target.bind_value_and_grad()

    def run(w: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return bound(w)

    for _ in range(CHAINS):
        kernel = NUTS(potential_fn=lambda z: _Energy.apply(z["w"], run), max_tree_depth=DEPTH)
        first = {"w": torch.empty(target.dim).uniform_(-2, 2)}
        mcmc = MCMC(kernel, num_samples, warmup, initial_params=first, disable_progbar=True)
        mcmc.run()
        chains.append(target.samples(mcmc.get_samples()["w"]))
    seconds = time.perf_counter() - start
    return seconds, {site: torch.stack([chain[site] for chain in chains]) for site in chains[0]}, count


WHO = {"nuts": ours, "Pyro NUTS, captured": pyros_captured, "Pyro NUTS": pyros}


def is_made_again(record: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether this call runs what a record is of."""
    seeds = range(options.seed, options.seed + SETTINGS[record["task"]][2])
    return record["task"] in options.tasks and record["who"] in options.who and record["seed"] in seeds


def main() -> None:
    """Times all tasks and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help="folder that holds references/")
    parser.add_argument("--tasks", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--who", nargs="*", default=list(WHO), choices=list(WHO))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the regression, one repeat of fewer draws")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records = [] if options.quick else [r for r in kept("speed_nuts") if not is_made_again(r, options)]
    for task in ["regression"] if options.quick else options.tasks:
        model, args, counted = problem(task, options.data)
        num_samples, warmup, repeats = (40, 40, 1) if options.quick else SETTINGS[task]
        order = {who: WHO[who] for who in options.who}
        for repeat in range(repeats):
            seed = options.seed + repeat
            for who in list(order) if seed % 2 == 0 else list(order)[::-1]:
                seconds, samples, gradients = order[who](model, args, num_samples, warmup, seed)
                effective = effective_sample_size(counted(samples)).clamp(max=CHAINS * num_samples)
                record = {"task": task, "who": who, "seed": seed, "seconds": seconds, "gradients": gradients}
                records.append({**record, "ess": float(effective.min()), "ess_median": float(effective.median())})
    rows = []
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        per_draw = {
            who: [1e3 * r["seconds"] / r["ess"] for r in of_task if r["who"] == who]
            for who in WHO
            if any(r["who"] == who for r in of_task)
        }
        for who, values in per_draw.items():
            seconds = median([r["seconds"] for r in of_task if r["who"] == who])
            ess = median([r["ess"] for r in of_task if r["who"] == who])
            share = median(values) / median(per_draw["nuts"])
            gradients = median([r["gradients"] for r in of_task if r["who"] == who]) / ess
            count = f"{gradients:.1f}" if gradients else "–"
            figures = f"{seconds:.2f}", f"{ess:.0f}", count, f"{median(values):.2f}", f"{share:.2f}"
            rows.append([task, who, len(values), *figures])
    headings = ["task", "sampler", "repeats", "seconds", "least ESS"]
    headings += ["gradients per effective draw", "ms per effective draw", "times ours"]
    text = (
        f"{CHAINS} chains in one process on one thread, tree depth up to {DEPTH}, the same numbers of draws and "
        "warm-up: medians. Made by speed_of_nuts_per_effective_draw.py.\n\n" + table(headings, rows)
    )
    keep("speed_nuts", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

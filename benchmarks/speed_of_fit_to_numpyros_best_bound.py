"""Wall time of `fit` to the ELBO that NumPyro's best autoguide ends at, and a steady step against NumPyro's IAF.

    python benchmarks/speed_of_fit_to_numpyros_best_bound.py --data FOLDER [--quick] [--tasks NAMES] [--only-table]

NumPyro's best autoguide on every network, by results/closer.md, is AutoDAIS(8) on a Cholesky base, 5 000 steps of 8
particles; its time holds setup, compilation and training. Ours is the default guide and the default `fit` (32
particles) with the least number of steps, of 100, 200, 400, …, that ends at that bound or above by 2 000 fresh draws;
its time holds setup, capture and training of that run alone. W1/sd to NUTS at that point stands beside it. NumPyro runs
once, ours for three seeds.

The steady step: NumPyro's AutoIAFNormal (3 layers, hidden units 2 × D, its default) inside one compiled scan, against
`fit` with IAF layers of the same number and about as many parameters, 8 particles, captured and compiled, in turn.
"""

import argparse
import math
import time
import warnings
from functools import partial
from typing import Any

import jax
import numpyro
import pyro
import torch
from data_folder import options_with_data
from numpyro.infer import SVI, Trace_ELBO, autoguide
from peers_numpyro import ClippedByNorm, _arrays, numpyro_model, run_autoguide
from timing import in_turn, keep, kept, median, spell_ratio, table

from models.references import NAMES, Reference, read_reference
from pyro_hypernet import AutoHypernet, VectorizedELBO, fit, predict
from pyro_hypernet.evaluation.distances import wasserstein_over_sd
from pyro_hypernet.evaluation.importance import elbo as measure_elbo
from pyro_hypernet.maps.hypernets import iaf
from pyro_hypernet.train.optimiser import Optim, Optimiser
from pyro_hypernet.train.step import FlatParameters, Stepper

STEPS, PARTICLES, SEEDS = 5000, 8, 3
# The step size of the best median in results/closer.md.
RATES = {"toy-gap": 1e-2, "penguins": 1e-2, "moons": 3e-3, "concrete": 3e-3}
SCANNED = 200


def theirs(reference: Reference, rate: float, num_steps: int) -> dict[str, float]:
    """The bound that NumPyro ends at, and the seconds to it."""
    make = partial(autoguide.AutoDAIS, K=8, base_dist="cholesky", init_scale=0.1)
    outcome = run_autoguide(make, reference, num_steps, PARTICLES, rate, 0)
    w1 = float(wasserstein_over_sd(outcome.f, reference.f_test))
    return {"bound": outcome.bound, "seconds": outcome.seconds, "w1": w1}


def ours(reference: Reference, target: float, seed: int) -> dict[str, Any]:
    """Seconds of the shortest run that ends at the target."""
    num_steps = 100
    while True:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        start = time.perf_counter()
        guide = AutoHypernet(reference.model)
        result = fit(reference.model, guide, reference.args, num_steps=num_steps, progress=False)
        seconds = time.perf_counter() - start
        bound, _ = measure_elbo(reference.model, guide, *reference.args, num_samples=2000)
        if bound >= target or num_steps > 5000:
            f = predict(reference.model, guide, reference.x_test, num_samples=4000, return_sites=["f"])["f"]
            w1 = float(wasserstein_over_sd(f, reference.f_test))
            found = {"bound": bound, "seconds": seconds, "steps": num_steps, "compile": result.compile, "w1": w1}
            return found | {"reached": bound >= target}
        num_steps *= 2


def steady(
    reference: Reference, repeats: int, compiles: tuple[str, ...]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per step of both IAFs, and their numbers of parameters."""
    model, args = numpyro_model(reference.model), _arrays(reference)
    guide = autoguide.AutoIAFNormal(model, num_flows=3)
    svi = SVI(model, guide, ClippedByNorm(1e-3), Trace_ELBO(num_particles=PARTICLES))
    state = svi.init(jax.random.PRNGKey(0), *args)
    counts = {"NumPyro": sum(leaf.size for leaf in jax.tree.leaves(svi.get_params(state)))}
    scan = jax.jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s, *args), state, None, length=SCANNED))
    made = {"NumPyro": lambda: jax.block_until_ready(scan(state)[1])}
    for compile in compiles:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        dim = AutoHypernet(reference.model, structure="full").setup(*reference.args).latent_dim
        hidden = round(counts["NumPyro"] / 3 / (3 * dim))
        mine = AutoHypernet(reference.model, partial(iaf, num_layers=3, hidden=hidden, mix="none"), "full")
        mine.setup(*reference.args)
        counts[compile] = sum(p.numel() for p in mine.parameters())
        elbo = VectorizedELBO(PARTICLES)
        elbo.prepare(reference.model, mine, reference.args, {})
        parameters = FlatParameters(list(mine.parameters()))
        stepper = Stepper(reference.model, mine, elbo, parameters, compile=compile, num_steps=10**6, is_fixed=True)
        run = Optimiser(parameters.vectors, 10**6, Optim(1e-3, keep="last"))
        made[f"fit, {compile}"] = partial(_steps, run, stepper, reference.args)
    for function in made.values():
        function()
    seconds = in_turn(made, repeats=repeats)
    return {who: [value / SCANNED for value in values] for who, values in seconds.items()}, counts


def _steps(run: Optimiser, stepper: Stepper, args: tuple) -> None:
    for _ in range(SCANNED):
        run.step(stepper(args))


def report(records: list[dict[str, Any]]) -> str:
    """Both tables."""
    bounds, steps = [], []
    for record in records:
        if record["kind"] == "bound":
            theirs, runs = record["theirs"], record["ours"]
            seconds = [run["seconds"] for run in runs]
            reached = sum(run["reached"] for run in runs)
            share = median(seconds) / theirs["seconds"]
            numbers = f"{theirs['bound']:.1f}", f"{theirs['seconds']:.1f}", f"{median(seconds):.1f}"
            spread = f"[{min(seconds):.1f}, {max(seconds):.1f}]"
            found = theirs.get("w1", math.nan), median([run.get("w1", math.nan) for run in runs])
            distances = [f"{value:.3f}" for value in found]
            how = "/".join(f"{run['steps']} {run['compile']}" for run in runs)
            bounds.append(
                [record["task"], *numbers, spread, f"{share:.3f}", f"{reached} of {len(runs)}", *distances, how]
            )
        else:
            for who, values in record["seconds"].items():
                count = record["counts"].get(who.removeprefix("fit, "), 0)
                ratio = spell_ratio(values, record["seconds"]["NumPyro"])
                steps.append([record["task"], who, count, f"{1e3 * median(values):.2f}", ratio])
    headings = ["task", "NumPyro's bound", "its seconds", "ours", "spread", "ratio", "reached"]
    headings += ["NumPyro's W1/sd", "ours", "steps and compile"]
    return (
        "One thread each. Made by speed_of_fit_to_numpyros_best_bound.py.\n\n"
        + table(headings, bounds)
        + f"\n\nSteady step, {PARTICLES} particles, three IAF layers; ratio to NumPyro's, median [least, greatest]:\n\n"
        + table(["task", "who", "parameters", "ms", "ratio"], steps)
    )


def main() -> None:
    """Runs the tasks that were asked for, keeps the others' cells, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--kinds", nargs="*", default=["bound", "step"], choices=["bound", "step"])
    parser.add_argument("--quick", action="store_true", help="toy-gap, 200 steps of NumPyro's, no compilation")
    parser.add_argument("--only-table", action="store_true", help="write the tables of what was run before")
    options = options_with_data(parser)
    torch.set_num_threads(1)
    numpyro.set_platform("cpu")
    warnings.simplefilter("ignore")
    tasks = ["toy-gap"] if options.quick else options.tasks
    old = [] if options.quick else kept("speed_numpyro")
    kinds = [] if options.only_table else options.kinds
    records = [r for r in old if r["task"] not in tasks or r["kind"] not in kinds]
    for task in tasks:
        reference = read_reference(options.data, task)
        if "bound" in kinds:
            best = theirs(reference, RATES[task], 200 if options.quick else STEPS)
            runs = [ours(reference, best["bound"], seed) for seed in range(1 if options.quick else SEEDS)]
            records.append({"kind": "bound", "task": task, "theirs": best, "ours": runs})
        if "step" in kinds:
            compiles = ("graph",) if options.quick else ("graph", "inductor")
            seconds, counts = steady(reference, 3 if options.quick else 7, compiles)
            records.append({"kind": "step", "task": task, "seconds": seconds, "counts": counts})
    records.sort(key=lambda record: (record["kind"], NAMES.index(record["task"])))
    keep("speed_numpyro", records, report(records), quick=options.quick)


if __name__ == "__main__":
    main()

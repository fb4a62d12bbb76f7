"""Bayesian optimisation of four functions: our networks, NUTS on the same network, an ensemble, a Gaussian process.

    python benchmarks/bayesopt.py [--quick] [--problems branin hartmann6 ...] [--methods hypernet GP ...] [--seeds 5]

In the manner of Li, Rudner and Wilson's study of such surrogates (yucenli/bnn-bo): 10 points to begin with, then so
many batches of so many points: Branin 9 × 10, Hartmann6 19 × 10, Ackley-10 19 × 10, Branin-Currin 19 × 5; 5 seeds.
No noise is added. The next batch is that of qLogEI, of qLogEHVI for two outcomes, one point after the other,
4 restarts from 128 points. Networks have one layer of 50 tanh units, outcomes and inputs are standardised:

hypernet: `fit_model`, 256 draws by refine, afresh for every batch, the width of the priors chosen by the evidence ·
refit: its `refit`, old draws or new · NUTS: 2 chains of 200 draws after 200, priors twice as wide as 1/√fan-in ·
ensemble: 10 nets from random starts, 1 000 steps of Adam at 1e-2, weight decay 1e-4 · GP: SingleTaskGP as BoTorch has
it · random: Sobol points.

Regret is the distance of the best value so far from the optimum, for two outcomes of the hypervolume. Every batch is a
line of the file, with seconds of processor time, of chains too; a run that was ended goes on from its last line. Where
the table has fewer batches or seeds than that, it is a first look at runs that were not gone through with.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Normalize, Standardize
from botorch.models.transforms.input import InputStandardize
from botorch.optim import optimize_acqf
from botorch.test_functions import Ackley, Branin, BraninCurrin, Hartmann
from botorch.utils.multi_objective.box_decompositions import DominatedPartitioning, FastNondominatedPartitioning
from botorch.utils.sampling import draw_sobol_samples
from gpytorch.mlls import ExactMarginalLogLikelihood
from timing import RESULTS, kept, spread, table
from torch import Tensor, nn

from pyro_hypernet import bayesianize, fan_in, nuts
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.contrib.botorch import HypernetModel, fit_model

# Name to a function to be maximised, batches, and points in a batch.
PROBLEMS = {
    "branin": (Branin(negate=True), 9, 10),
    "hartmann6": (Hartmann(negate=True), 19, 10),
    "ackley10": (Ackley(dim=10, negate=True), 19, 10),
    "branin_currin": (BraninCurrin(negate=True), 19, 5),
}
NUM_FIRST, SEEDS, WIDTH, MEMBERS = 10, 5, 50, 10
QUICK = {"problems": ["branin", "branin_currin"], "batches": 3, "seeds": 1}
Before = HypernetModel | None


def network(x: Tensor, y: Tensor) -> nn.Sequential:
    return nn.Sequential(nn.Linear(x.shape[-1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, y.shape[-1])).to(x)


def of_draws(model: Any, draw: Callable[[Tensor, Tensor], Any], X: Tensor, Y: Tensor) -> HypernetModel:
    """A model of BoTorch from draws for standardised data."""
    scale_x, scale_y = InputStandardize(X.shape[-1]).to(X), Standardize(Y.shape[-1]).to(Y)
    x, y = scale_x(X), scale_y(Y)[0]
    scale_x.eval(), scale_y.eval()
    posterior = draw(x, y.squeeze(-1))
    return HypernetModel(model, posterior, X, Y, input_transform=scale_x, outcome_transform=scale_y)


def hypernet(X: Tensor, Y: Tensor, before: Before, problem: Any) -> Model:
    return fit_model(X, Y)


def refit(X: Tensor, Y: Tensor, before: Before, problem: Any) -> Model:
    if before is None:
        return fit_model(X, Y)
    known = len(before.train_X)
    return before.refit(X[known:], Y[known:])


def by_nuts(X: Tensor, Y: Tensor, before: Before, problem: Any) -> Model:
    model = bayesianize(network(X, Y), prior=fan_in(gain=2.0))
    options = {"num_samples": 200, "warmup_steps": 200, "num_chains": 2, "progress": False}
    return of_draws(model, lambda x, y: nuts(model, x, y, **options), X, Y)


def ensemble(X: Tensor, Y: Tensor, before: Before, problem: Any) -> Model:
    def member(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        net = network(X, Y)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=1e-4)
        for _ in range(1000):
            optimizer.zero_grad()
            ((net(x).squeeze(-1) - y) ** 2).mean().backward()
            optimizer.step()
        return net.state_dict()

    def draw(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        members = [member(x, y) for _ in range(MEMBERS)]
        return {name: torch.stack([each[name] for each in members]) for name in members[0]}

    return of_draws(bayesianize(network(X, Y), Gaussian(sigma=0.1)), draw, X, Y)


def gaussian_process(X: Tensor, Y: Tensor, before: Before, problem: Any) -> Model:
    model = SingleTaskGP(X, Y, input_transform=Normalize(X.shape[-1], bounds=problem.bounds))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


METHODS: dict[str, Callable[..., Model] | None] = {
    "hypernet": hypernet,
    "refit": refit,
    "NUTS": by_nuts,
    "ensemble": ensemble,
    "GP": gaussian_process,
    "random": None,
}


def suggest(model: Model, Y: Tensor, problem: Any, number: int) -> Tensor:
    """The next points, shape `(number, d)`."""
    if Y.shape[-1] == 1:
        acquisition = qLogExpectedImprovement(model, best_f=Y.max())
    else:
        known = FastNondominatedPartitioning(ref_point=problem.ref_point, Y=Y)
        acquisition = qLogExpectedHypervolumeImprovement(model, ref_point=problem.ref_point, partitioning=known)
    options = {"num_restarts": 4, "raw_samples": 128, "sequential": True}
    return optimize_acqf(acquisition, problem.bounds, q=number, **options)[0]


def regret(Y: Tensor, problem: Any) -> float:
    """Of all outcomes so far, shape `(N, m)`."""
    if Y.shape[-1] == 1:
        return float(problem.optimal_value - Y.max())
    return float(problem.max_hv - DominatedPartitioning(ref_point=problem.ref_point, Y=Y).compute_hypervolume())


def optimise(name: str, method: str, seed: int, lines: list[dict], batches: int) -> Any:
    """The lines of a run that are still to be made, one a batch."""
    problem, _, number = PROBLEMS[name]
    problem = problem.double()
    first = draw_sobol_samples(problem.bounds, n=NUM_FIRST + batches * number, q=1, seed=seed).squeeze(1)
    X = torch.cat([first[:NUM_FIRST], *(torch.tensor(line["x"]).double() for line in lines)])
    model = None
    for batch in range(len(lines) + 1, batches + 1):
        pyro.set_rng_seed(1000 * seed + batch)
        Y = problem(X).reshape(len(X), -1)
        start, wall = sum(os.times()[:4]), time.perf_counter()
        if METHODS[method] is None:
            new = first[len(X) : len(X) + number]
        else:
            model = METHODS[method](X, Y, model, problem)
            new = suggest(model, Y, problem, number)
        seconds, wall = sum(os.times()[:4]) - start, time.perf_counter() - wall
        X = torch.cat([X, new.detach()])
        yield {
            "problem": name,
            "method": method,
            "seed": seed,
            "batch": batch,
            "regret": regret(problem(X).reshape(len(X), -1), problem),
            "source": getattr(model, "source", ""),
            "seconds": round(seconds, 2),
            "wall": round(wall, 2),
            "x": new.tolist(),
        }


def summarise(lines: list[dict]) -> str:
    """The table: regret over the seeds as batches go on, median [least, greatest], and seconds a batch."""
    rows = []
    for name in PROBLEMS:
        last = max((line["batch"] for line in lines if line["problem"] == name), default=0)
        stages = sorted({max(1, round(last * share)) for share in (0.25, 0.5, 1.0)}) if last else []
        for method in METHODS:
            mine = [line for line in lines if line["problem"] == name and line["method"] == method]
            for stage in stages:
                at = [line["regret"] for line in mine if line["batch"] == stage]
                seconds = [line["seconds"] for line in mine if line["batch"] <= stage]
                if at:
                    rows.append([name, method, stage, len(at), spread(at, 3), spread(seconds, 1)])
    return __doc__ + "\n" + table(["problem", "method", "batches", "seeds", "regret", "CPU seconds a batch"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="two problems, three batches, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = RESULTS / ("bayesopt-quick.jsonl" if options.quick else "bayesopt.jsonl")
    lines = kept("bayesopt", quick=options.quick)
    problems, seeds = (QUICK["problems"], QUICK["seeds"]) if options.quick else (options.problems, options.seeds)
    for seed in range(seeds):
        for name in problems:
            for method in options.methods:
                batches = QUICK["batches"] if options.quick else PROBLEMS[name][1]
                run = {"problem": name, "method": method, "seed": seed}
                known = [line for line in lines if run.items() <= line.items()]
                for line in optimise(name, method, seed, known, batches):
                    lines.append(line)
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print({key: value for key, value in line.items() if key != "x"}, flush=True)
    text = summarise(lines)
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""How noisy gradients are, and what a fit reaches, by which data share a draw of the weights: draws= of VectorizedELBO.

    python benchmarks/gradient_variance.py [--quick] [--data FOLDER] [--seeds 3]

MNIST, the first 5 000 training images, minibatches of 128, a thread. Networks: 784-12-10 and 784-100-10 with ReLU,
LeNet-5 with tanh. Guides: the mean field; "low_rank", which is the default there; and, of weight norm, the default. The
variance is the trace of the gradient's covariance, of centres in units of their standard deviations, and of the logs of
standard deviations; of weight norm, of the learnt directions in the place of centres. "Of draws" is at the same
minibatch, "in all" includes which minibatch it is. Steps are captured; seconds are of this process. Trained: by 1 000
steps of draws="batch".
"""

import argparse
import time
import warnings
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_folder import options_with_data
from real_tasks import scaled
from timing import median, medians, run_cells, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, Plan, VectorizedELBO, bayesianize, fit, score
from pyro_hypernet.model.tempered import TemperedModel
from pyro_hypernet.train.capture import Captured

BATCH = 128
MEAN_FIELD, LOW_RANK, WEIGHT_NORM = "mean field", "low rank", "weight norm"
# What shares a draw, and how many draws there are.
WAYS = {
    MEAN_FIELD: [("batch", 1), ("batch", 4), ("split", 4), ("split", 16), ("split", 32), ("local", 1)],
    LOW_RANK: [("batch", 1), ("batch", 4), ("split", 4), ("split", 16)],
    WEIGHT_NORM: [("batch", 1), ("batch", 4), ("split", 4), ("split", 16), ("split", 128)],
}
FITTED = {
    MEAN_FIELD: [("batch", 1), ("split", 4), ("local", 1)],
    LOW_RANK: [("batch", 1), ("split", 4)],
    WEIGHT_NORM: [("batch", 1), ("split", 16)],
}
CASES = [("784-12-10", MEAN_FIELD), ("784-100-10", MEAN_FIELD), ("784-100-10", WEIGHT_NORM)]
CASES += [("784-100-10", LOW_RANK), ("LeNet-5", MEAN_FIELD)]
TEMPERATURES = (1.0, 0.01)
PARTS = ("centres", "widths", "directions")
CASE = ("network", "guide", "temperature")  # what the rows of both tables begin with


@cache
def images(folder: str, size: int, test: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What is trained on, and what is tested on."""
    file = np.load(Path(folder) / "mnist.npz")
    counts = {"train": size, "test": test}
    return {
        part: (scaled(file[f"x_{part}"][:count]), torch.tensor(file[f"y_{part}"][:count]).long())
        for part, count in counts.items()
    }


def network(name: str) -> nn.Module:
    """The network, at its first values."""
    if name != "LeNet-5":
        width = int(name.split("-")[1])
        return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    features = nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)
    features += nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))


def made(name: str, guide: str, temperature: float, num_data: int) -> tuple[nn.Module, AutoHypernet]:
    """The model and a guide for it, not set up."""
    parametrization = "weight_norm" if guide == WEIGHT_NORM else "weights"
    model = bayesianize(network(name), "categorical", parametrization=parametrization, num_data=num_data)
    plan = Plan("full", "identity", temperature=temperature) if guide == MEAN_FIELD else Plan(temperature=temperature)
    return model, AutoHypernet(model, plan=plan)


def loader(data: tuple[Tensor, Tensor]) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=BATCH, shuffle=True)


def parts_of(model: nn.Module, guide: AutoHypernet) -> dict[str, tuple[list[Tensor], Tensor | float]]:
    """Parameters whose gradients are looked at, with their units."""
    affine = next(part for part in guide.bijection.modules() if hasattr(part, "log_scale"))
    parts = {"centres": ([affine.loc], affine.log_scale.detach().exp()), "widths": ([affine.log_scale], 1.0)}
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return parts | ({"directions": (learnt, 1.0)} if learnt else {})


def variances(
    model: nn.Module, guide: AutoHypernet, elbo: VectorizedELBO, data: tuple[Tensor, Tensor], repeats: int
) -> dict[str, float]:
    """Seconds of a step, and the variances of its gradient."""
    tempered, beta = TemperedModel(model), guide.plan.weight
    parts = parts_of(model, guide)
    leaves = [leaf for found, _ in parts.values() for leaf in found]

    def step(*batch: Any) -> tuple[Tensor, ...]:
        estimate = elbo.estimate(tempered, guide, *batch)
        gradients = torch.autograd.grad(estimate.surrogate, leaves, allow_unused=True, materialize_grads=True)
        return estimate.numbers(gradients), *gradients

    def minibatch() -> tuple:
        index = torch.randint(len(data[0]), (BATCH,))
        return TemperedModel.arguments(beta, tuple(part[index] for part in data))

    elbo.prepare(tempered, guide, minibatch(), {})
    captured = Captured(step, leaves, minibatch(), is_fixed=False, num_gradients=len(leaves))
    seconds, of_draws, rows = [], dict.fromkeys(parts, 0.0), {name: [] for name in parts}
    for _ in range(repeats):
        chosen, pair = minibatch(), []
        for _ in range(2):
            start = time.process_time()
            _, *gradients = captured(chosen)
            seconds.append(time.process_time() - start)
            flat, at = {}, 0
            for name, (found, unit) in parts.items():
                flat[name] = torch.cat([(unit * g).flatten() for g in gradients[at : at + len(found)]])
                at += len(found)
            pair.append(flat)
        for name in parts:
            of_draws[name] += float((pair[0][name] - pair[1][name]).square().sum()) / 2 / repeats
            rows[name] += [flat[name] for flat in pair]
    in_all = {name: float(torch.stack(values).var(0).sum()) for name, values in rows.items()}
    found = {f"{name} of draws": value for name, value in of_draws.items()}
    return {"ms": 1e3 * median(seconds), **found, **{f"{name} in all": value for name, value in in_all.items()}}


def measure_variance(
    folder: str, size: int, num_steps: int, repeats: int, *, name: str, guide: str, temperature: float
) -> list[dict[str, Any]]:
    """At the start, and after training."""
    data = images(folder, size, size)["train"]
    model, made_guide = made(name, guide, temperature, len(data[0]))
    made_guide.setup(data[0][:BATCH], data[1][:BATCH])
    records = []
    for state in ("start", "trained"):
        if state == "trained":
            fit(model, made_guide, loader(data), num_steps=num_steps, elbo=VectorizedELBO(1), progress=False)
        for draws, number in WAYS[guide]:
            found = variances(model, made_guide, VectorizedELBO(number, draws=draws), data, repeats)
            records.append({"state": state, "draws": draws, "number": number, "dim": made_guide.latent_dim, **found})
    return records


def measure_fit(
    folder: str, size: int, num_steps: int, *, name: str, guide: str, temperature: float, draws: str, number: int
) -> dict[str, Any]:
    """What fits of so many steps reach."""
    parts = images(folder, size, 10_000)
    model, made_guide = made(name, guide, temperature, size)
    elbo, data = VectorizedELBO(number, draws=draws), parts["train"]
    start = time.process_time()
    result = fit(model, made_guide, loader(data), num_steps=num_steps, elbo=elbo, progress=False)
    seconds, tempered = time.process_time() - start, TemperedModel(model)
    arguments = TemperedModel.arguments(made_guide.plan.weight, data)
    bound = VectorizedELBO(16)
    with torch.no_grad():
        reached = -sum(bound.loss(tempered, made_guide, *arguments) for _ in range(4)) / 4
    held = score(model, made_guide, DataLoader(TensorDataset(*parts["test"]), batch_size=500), num_samples=50)
    figures = {"accuracy": 100 * held.accuracy, "nll": -held.log_predictive}
    return {"bound": reached / size, "num_skipped": result.num_skipped, "fit seconds": seconds, **figures}


def run(folder: str, quick: bool, *, what: str, seed: int, **cell: Any) -> Any:
    size = 1000 if quick else 5000
    if what == "variance":
        return measure_variance(folder, size, 200 if quick else 1000, 5 if quick else 40, **cell)
    return measure_fit(folder, size, 200 if quick else 2000, **cell)


def alike(records: list[dict], keys: tuple[str, ...]) -> list[tuple[tuple, list[dict]]]:
    """Records that have the same values of these keys, with the values."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(groups.items())


def report(records: list[dict]) -> str:
    """Both tables."""
    seeds = len({record["seed"] for record in records})
    text = (
        f"{__doc__}\nMedians, least and greatest of {seeds} seeds; variances and times are those of one draw for the "
    )
    text += "minibatch times the figure, and the last columns the products: less is better, 1 is that draw.\n"
    rows = []
    found = [record for record in records if record["what"] == "variance"]
    keys = ("name", "guide", "temperature", "state", "draws", "number")
    first = {tuple(r[k] for k in (*keys[:4], "seed")): r for r in found if (r["draws"], r["number"]) == ("batch", 1)}
    for key, own in alike(found, keys):
        ratios = []
        for r in own:
            base = first[(*key[:4], r["seed"])]
            part = {n: r[f"{n} of draws"] / base[f"{n} of draws"] for n in PARTS if f"{n} of draws" in r}
            whole = {f"{n} in all": r[f"{n} in all"] / base[f"{n} in all"] for n in PARTS if f"{n} in all" in r}
            speed = r["ms"] / base["ms"]
            times = {f"{n} × time": value * speed for n, value in {**part, **whole}.items()}
            ratios.append({"time": speed, "ms": r["ms"], **part, **times})
        main = "directions" if key[1] == WEIGHT_NORM else "centres"
        shown = {"ms": 1, main: 3, "widths": 3, f"{main} × time": 3, "widths × time": 3, f"{main} in all × time": 2}
        rows.append((*key[:4], f"{key[4]}, {key[5]}", len(own), *medians(ratios, shown)))
    columns = [*CASE, "state", "draws", "seeds", "ms a step", "centres, of draws", "widths, of draws"]
    columns += ["centres × time", "widths × time", "centres in all × time"]
    text += f"\n## Variance\n\n{table(columns, rows)}\n"
    fits = [record for record in records if record["what"] == "fit"]
    keys = ("name", "guide", "temperature", "draws", "number")
    rows = []
    for key, own in alike(fits, keys):
        shown = {"bound": 3, "accuracy": 2, "nll": 3, "fit seconds": 1}
        rows.append((*key[:3], f"{key[3]}, {key[4]}", len(own), *medians(own, shown)))
    columns = [*CASE, "draws", "seeds", "bound, nats a datum", "accuracy, %", "NLL", "seconds"]
    return text + f"\n## Fits of 2 000 steps\n\n{table(columns, rows)}\n" if fits else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small network, a minute")
    parser.add_argument("--seeds", type=int, default=None, help="3, quick 1")
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cells: list[dict[str, Any]] = []
    seeds = range(options.seeds or (1 if options.quick else 3))
    for name, guide in CASES[:1] if options.quick else CASES:
        for seed, temperature in product(seeds, TEMPERATURES):
            case = {"name": name, "guide": guide, "temperature": temperature, "seed": seed}
            ways = FITTED[guide] if name != "784-12-10" or options.quick else []
            cells.append({"what": "variance", **case})
            cells += [{"what": "fit", **case, "draws": draws, "number": number} for draws, number in ways]
    run_cells("gradient_variance", cells, partial(run, options.data, options.quick), report, quick=options.quick)


if __name__ == "__main__":
    main()

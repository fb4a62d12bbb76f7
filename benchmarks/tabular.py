"""Two tables, airfoil (1 503 × 5) and bikesharing (17 379 × 12), by the protocol of bde's paper, beside other methods.

    python benchmarks/tabular.py --data FOLDER [--quick] [--sets airfoil] [--seeds 5] [--methods chains] [--bde PYTHON]

One split, `train_test_split(test_size=0.2, random_state=0)`; inputs and target standardised by the training part; all
figures in these units, seeds 0 to 4. Networks have four hidden layers of 16, an output for the mean and one for the
noise. NLL is of the mixture of all draws; the published figures are of one normal of the same mean and standard
deviation, which is beside it. Clocks run by CPU time; the target's 240 (2 400) seconds of two cores are 480 (4 800).

- chains: ten trained tanh networks, each the start of a chain of `microcanonical` in the posterior of
  `bayesianize(net, "heteroscedastic", prior=1.0)`, until the target's time is over.
- mixture: a `GuideMixture` of guides started at the same networks, by `fit`. guide: `AutoHypernet(model)`, by `fit`.
- ensemble: the same ten networks as they are: Adam, stopped by a tenth that is held out.
- mean field: Pyro's AutoNormal on the bound of eight particles, one network.
- boosting: scikit-learn's histogram gradient boosting of the mean and of the 16 % and 84 % quantiles; a normal, its
  standard deviation half their distance times a factor, at least a floor; these and the rounds by a fifth held out.
- bde: `sklearn-contrib-bde` as its paper's script has it, in a process of an interpreter that has it (--bde).

TabPFN is not here: its package is in the registry, its weights are not.
"""

import argparse
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from data_folder import options_with_data
from pyro.infer.autoguide import AutoNormal
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from timing import medians, run_cells, table
from torch import Tensor, nn
from uci import Mixture, by_pyros_guide, density_loss, log_density, mixture_of, parameters, scores, train

from pyro_hypernet import AutoHypernet, GuideMixture, Optim, bayesianize, fit, microcanonical

FILES = {"airfoil": "airfoil.csv", "bikesharing": "bikesharing_hour.csv"}
# The target in CPU seconds, and what fits of guides have of it.
BUDGETS, SHARE_OF_FITS = {"airfoil": 480.0, "bikesharing": 4800.0}, 0.25
WIDTHS, NUM_DRAWS = (16, 16, 16, 16), 1000
BDE: str | None = None
BDE_STEPS = (50_000, 1000)  # of the warm-up, and afterwards
# NLL and RMSE of its paper.
PUBLISHED = {
    "airfoil": {"TabPFN v2": (-0.9338, 0.1359), "bde": (-0.9126, 0.1215)},
    "bikesharing": {"TabPFN v2": (-0.6856, 0.2103), "bde": (-0.7315, 0.2261)},
}


@dataclass(frozen=True)
class Asked:
    """CPU seconds, for methods that run until a time; the seed; the number of networks of those that take several."""

    seconds: float
    seed: int
    members: int


def network(num_inputs: int) -> nn.Sequential:
    sizes = (num_inputs, *WIDTHS)
    layers = [part for sides in zip(sizes, WIDTHS, strict=False) for part in (nn.Linear(*sides), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 2))


def model_of(net: nn.Module):
    return bayesianize(net, "heteroscedastic", prior=1.0)


def trained(x: Tensor, y: Tensor, members: int) -> list[nn.Module]:
    nets = [network(x.shape[1]) for _ in range(members)]
    for net in nets:
        train(net, density_loss, x, y)
    return nets


def by_chains(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    start, nets = time.process_time(), trained(x, y, asked.members)
    model, left = model_of(nets[0]), asked.seconds - (time.process_time() - start)
    found = microcanonical(
        model, parameters(nets), x, y, num_steps=10**8, num_samples=NUM_DRAWS, max_seconds=0.97 * left, progress=False
    )
    print(f"{found.num_steps} steps, {found.num_returned} put back", flush=True)
    return mixture_of(model, found, x_new, "heteroscedastic")


def by_mixture(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    nets = trained(x, y, asked.members)
    model = model_of(nets[0])
    mixture = GuideMixture.from_starts(model, nets)
    limits = Optim(max_seconds=SHARE_OF_FITS * asked.seconds)
    fit(model, mixture, (x, y), num_steps=2000, optim=limits, progress=False)
    return mixture_of(model, mixture.sample_posterior(NUM_DRAWS), x_new, "heteroscedastic")


def by_guide(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    model = model_of(network(x.shape[1]))
    guide = AutoHypernet(model)
    fit(model, guide, (x, y), num_steps=5000, optim=Optim(max_seconds=SHARE_OF_FITS * asked.seconds), progress=False)
    return mixture_of(model, guide.sample_posterior(NUM_DRAWS), x_new, "heteroscedastic")


def by_ensemble(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    nets = trained(x, y, asked.members)
    return mixture_of(model_of(nets[0]), parameters(nets), x_new, "heteroscedastic")


def by_mean_field(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    model = model_of(network(x.shape[1]))
    seconds = SHARE_OF_FITS * asked.seconds
    samples = by_pyros_guide(model, AutoNormal(model, init_scale=0.01), x, y, seconds, NUM_DRAWS)
    return mixture_of(model, samples, x_new, "heteroscedastic")


def by_boosting(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    held, order = len(x) // 5, np.random.default_rng(asked.seed).permutation(len(x))
    losses = [{"loss": "squared_error"}, *({"loss": "quantile", "quantile": level} for level in (0.16, 0.84))]

    def predicted(rounds: int, rows: np.ndarray, inputs: Tensor) -> tuple[Tensor, Tensor]:
        options = {"max_iter": 1000, "learning_rate": 0.05, "random_state": asked.seed}
        fits = [
            HistGradientBoostingRegressor(**{**options, **loss}).fit(x[rows], y[rows])
            for loss in (losses[0], *({**loss, "max_iter": rounds} for loss in losses[1:]))
        ]
        mean, low, high = (torch.tensor(found.predict(inputs)) for found in fits)
        return mean[None], ((high - low) / 2)[None]

    tried = {}
    for rounds in (30, 100, 300, 1000):
        mean, half = predicted(rounds, order[held:], x[order[:held]])
        for factor, least in product(np.geomspace(0.5, 4.0, 40), (0.01, 0.05, 0.1)):
            sds = (factor * half).clamp(min=least)
            tried[rounds, factor, least] = float(log_density((mean, sds), y[order[:held]]).mean())
    rounds, factor, least = max(tried, key=tried.get)
    mean, half = predicted(rounds, order, x_new)
    return mean, (factor * half).clamp(min=least)


def by_bde(x: Tensor, y: Tensor, x_new: Tensor, asked: Asked) -> Mixture:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, x=x, y=y, x_new=x_new)
        script = Path(__file__).with_name("tabular_bde.py")
        subprocess.run(
            [BDE, script, path, *map(str, (asked.seed, asked.members, *BDE_STEPS))], check=True, capture_output=True
        )
        found = np.load(path)
        return torch.tensor(found["means"]), torch.tensor(found["sds"])


METHODS = {
    "chains": by_chains,
    "mixture": by_mixture,
    "guide": by_guide,
    "ensemble": by_ensemble,
    "mean field": by_mean_field,
    "boosting": by_boosting,
    "bde": by_bde,
}


def rows_of(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and targets of the training part, and of the other, standardised by the former."""
    frame = pd.read_csv(folder / FILES[name])
    if name == "bikesharing":
        frame = frame.drop(columns=["casual", "registered", "instant", "dteday"])
    values = frame.to_numpy(dtype=float)
    parts = train_test_split(values, test_size=0.2, random_state=0)
    center, scale = parts[0].mean(0), parts[0].std(0)
    old, new = (torch.tensor((part - center) / scale).float() for part in parts)
    return old[:, :-1], old[:, -1], new[:, :-1], new[:, -1]


def look(folder: Path, set: str, method: str, seed: int, share: float, members: int) -> dict[str, float]:
    x, y, x_new, y_new = rows_of(folder, set)
    means, sds = METHODS[method](x, y, x_new, Asked(share * BUDGETS[set], seed, members))
    mean = means.mean(0)
    variance = sds.double().square().mean(0) + means.double().var(0, correction=0)
    found = scores((means, sds), y_new)
    nll = {
        "nll": -found.pop("log_density"),
        "nll_normal": -float(log_density((mean[None], variance.sqrt()[None]), y_new).mean()),
    }
    return {**nll, **found}


def report(lines: list[dict]) -> str:
    """The table of all lines."""
    keys, rows = {"nll": 3, "nll_normal": 3, "rmse": 4, "crps": 4, "coverage": 3, "seconds": 0}, []
    for name, published in PUBLISHED.items():
        groups = sorted({(line["members"], line["share"]) for line in lines}, reverse=True)
        for method, (members, share) in product(METHODS, groups):
            asked = {"set": name, "method": method, "members": members, "share": share}
            mine = [line for line in lines if asked.items() <= line.items()]
            if mine:
                rows.append([name, method, members, share, len(mine), *medians(mine, keys)])
        rows += [
            [name, f"{who}, published", "", "", 5, "", nll, rmse, "", "", ""] for who, (nll, rmse) in published.items()
        ]
    headings = [
        "set",
        "method",
        "networks",
        "share",
        "seeds",
        "NLL",
        "NLL of one normal",
        "RMSE",
        "CRPS",
        "90 % coverage",
        "CPU seconds",
    ]
    note = (
        "Medians over seeds with least and greatest; published: means. Share: of the target's time, where one is asked."
    )
    return f"{__doc__}\n{note}\n\n{table(headings, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", choices=FILES, default=list(FILES))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--members", type=int, default=10, help="networks, where a method takes several")
    parser.add_argument("--share", type=float, default=1.0, help="of the target's time")
    parser.add_argument("--bde", help="an interpreter with sklearn-contrib-bde; without it that method is left out")
    parser.add_argument("--quick", action="store_true", help="airfoil, one seed, a tenth of the time, two networks")
    options = options_with_data(parser, what="tables", help="folder that holds tabular/")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    global BDE, BDE_STEPS
    BDE = options.bde
    if options.quick:
        options.sets, options.seeds, options.share, options.members, BDE_STEPS = ["airfoil"], 1, 0.1, 2, (2000, 200)
    cells = [
        {"set": name, "method": method, "seed": seed, "share": options.share, "members": options.members}
        for seed in range(options.seeds)
        for name in options.sets
        for method in options.methods
        if method != "bde" or BDE
    ]
    run_cells("tabular", cells, partial(look, Path(options.data) / "tabular"), report, quick=options.quick)


if __name__ == "__main__":
    main()

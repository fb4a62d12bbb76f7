"""UCI regression by the published splits: our posteriors of one hidden layer of 50 tanh units beside other methods.

    python benchmarks/uci.py --data FOLDER [--quick] [--sets yacht energy] [--splits 3] [--gap] [--methods guide refine]

Every line is one method on one split; finished lines are kept and not done again. Inputs and targets are standardised
by the training part; log density, RMSE and CRPS are in the units of the target. All methods give a mixture of normals
for a row, and are judged by it. Hidden layer of 50 (protein 100), as published. All clocks run by CPU time.

- guide: `AutoHypernet(model)`, model `bayesianize(net, "gaussian")`, `fit` with up to 2 000 steps in a minute.
- refine: `refine(model, x, y, num_samples=400)`, on sets of up to 1 700 rows.
- refine, chosen: the same, the prior's gain and the noise (normal, or one that the network sets too) chosen by the
  evidence of 100 draws.
- chains: five trained tanh networks, each the start of a chain of `microcanonical` for a minute; the noise (normal, or
  one that the network sets too) and the prior (standard normal, or `fan_in(gain=2)`) are chosen on a fifth of the
  training part, by chains of two networks for eight seconds each.
- chains, by ranges: the same, chosen by two ranges instead: the middle thirds of two inputs drawn at random, each left
  out of training as a gap is; a fan-in prior of gain 6 is among the choices. Four seconds each.
- chains, none chosen: chains of two networks for ten seconds under each of these six choices, all draws as one mixture.
- mean field, full covariance: Pyro's AutoNormal and AutoMultivariateNormal on the same model and bound, 8 particles,
  for a minute.
- dropout: rate and noise chosen on a fifth of the training part. published: its authors' results on these splits.
- ensemble: five networks of mean and variance, Adam, stopped by a tenth that is held out.
- laplace: Bayesian regression (scikit-learn's, by evidence) on the hidden layer of a trained network.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

time.perf_counter = time.process_time  # before the package reads it

import numpy as np  # noqa: E402
import pyro  # noqa: E402
import torch  # noqa: E402
from adam_passes import adam_passes  # noqa: E402
from data_folder import options_with_data  # noqa: E402
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal  # noqa: E402
from scipy import stats  # noqa: E402
from sklearn.linear_model import BayesianRidge  # noqa: E402
from timing import run_cells, table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from pyro_hypernet import (  # noqa: E402
    AutoHypernet,
    Optim,
    VectorizedELBO,
    bayesianize,
    fan_in,
    fit,
    microcanonical,
    predict,
    refine,
)
from pyro_hypernet.bnn.likelihoods import Heteroscedastic  # noqa: E402

SETS = ("yacht", "boston", "energy", "concrete", "wine", "kin8nm", "power", "naval", "protein")
SMALL = 1700  # rows up to which refine runs
SECONDS, STEPS, NUM_DRAWS = 60.0, 2000, 400
GAINS = (1.0, 2.0, 4.0)
NOISES = ("gaussian", "heteroscedastic")
PRIORS = {"standard": 1.0, "fan in": fan_in(gain=2.0)}
# Of every row: means and standard deviations of the mixture's parts, shape (S, N).
Mixture = tuple[Tensor, Tensor]


def network(
    num_inputs: int, width: int, outputs: int = 1, rate: float = 0.0, activation: type = nn.Tanh
) -> nn.Sequential:
    layers = [nn.Linear(num_inputs, width), activation(), nn.Dropout(rate), nn.Linear(width, outputs)]
    return nn.Sequential(*(layer for layer in layers if rate or not isinstance(layer, nn.Dropout)))


def mixture_of(model, samples, x: Tensor, likelihood: str) -> Mixture:
    """Of draws of a Bayesian network's weights."""
    f = predict(model, samples, x, return_sites=["f"])["f"]
    if likelihood == "heteroscedastic":
        noise = Heteroscedastic().distribution(f)
        return noise.mean, noise.stddev
    return f[..., 0], samples["sigma"][:, None].expand(f.shape[:2])


def by_guide(x: Tensor, y: Tensor, x_new: Tensor, width: int, make: Callable | None = None) -> Mixture:
    """By AutoHypernet, or by one of Pyro's guides on the same bound for as long."""
    model = bayesianize(network(x.shape[1], width), "gaussian")
    if make is None:
        guide = AutoHypernet(model)
        fit(model, guide, (x, y), num_steps=STEPS, optim=Optim(max_seconds=SECONDS), progress=False)
        samples = guide.sample_posterior(NUM_DRAWS)
    else:
        samples = by_pyros_guide(model, make(model, init_scale=0.1), x, y, SECONDS, NUM_DRAWS)
    return mixture_of(model, samples, x_new, "gaussian")


def by_pyros_guide(model, guide, x: Tensor, y: Tensor, seconds: float, num_draws: int) -> dict[str, Tensor]:
    """Draws of one of Pyro's guides after so long on the bound of eight particles."""
    pyro.clear_param_store()  # it would go on from the parameters of the guide before it
    guide(x, y)
    loss = VectorizedELBO(8)(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), 5e-3)
    start, share = time.process_time(), 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (0.5 + 0.5 * math.cos(math.pi * share))
        optimizer.zero_grad()
        loss(x, y).backward()
        torch.nn.utils.clip_grad_norm_(guide.parameters(), 100.0)
        optimizer.step()
        share = (time.process_time() - start) / seconds
    with torch.no_grad():
        draws = [guide(x, y) for _ in range(num_draws)]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def refined(x: Tensor, y: Tensor, width: int, gain: float | None, likelihood: str, num_samples: int):
    outputs = 2 if likelihood == "heteroscedastic" else 1
    options = {} if gain is None else {"prior": fan_in(gain=gain)}
    model = bayesianize(network(x.shape[1], width, outputs), likelihood, **options)
    return model, refine(model, x, y, num_samples=num_samples, progress=False)


def by_refine(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    model, found = refined(x, y, width, None, "gaussian", NUM_DRAWS)
    return mixture_of(model, found.samples, x_new, "gaussian")


def by_chosen(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    """The gain by the evidence with normal noise, then the noise at that gain."""
    tried = {(gain, "gaussian"): refined(x, y, width, gain, "gaussian", 100)[1].log_evidence for gain in GAINS}
    gain = max(tried, key=tried.get)[0]
    other = (gain, "heteroscedastic")
    tried[other] = refined(x, y, width, *other, 100)[1].log_evidence
    choice = max(tried, key=tried.get)
    print({"/".join(map(str, key)): round(value, 1) for key, value in tried.items()}, flush=True)
    model, found = refined(x, y, width, *choice, NUM_DRAWS)
    return mixture_of(model, found.samples, x_new, choice[1])


def train(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, **options) -> None:
    """Adam in batches of 32, stopped where a tenth that is held out has not fallen for 50 epochs, the best kept."""
    held = max(5, len(x) // 10)
    order = torch.randperm(len(x))
    x, y, x_held, y_held = x[order[held:]], y[order[held:]], x[order[:held]], y[order[:held]]
    best, kept, since, start = math.inf, None, 0, time.process_time()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x[rows], y[rows]) for rows in torch.randperm(len(x)).split(32 if len(x) < 3000 else 256))

    passes = adam_passes(net, loss, batches, 3e-3, **options)
    while since < 50 and time.process_time() - start < SECONDS:
        net.train()
        next(passes)
        net.eval()
        with torch.no_grad():
            value = float(loss(net(x_held), y_held))
        since += 1
        if value < best:
            best, since, kept = value, 0, {name: v.clone() for name, v in net.state_dict().items()}
    net.load_state_dict(kept)


def parameters(nets: list[nn.Module]) -> dict[str, Tensor]:
    """Networks as stored samples."""
    return {name: torch.stack([net.get_parameter(name).detach() for net in nets]) for name in nets[0].state_dict()}


def first_fifth(x: Tensor) -> list[Tensor]:
    """The rows that are held out, as a mask: the first fifth."""
    return [torch.arange(len(x)) < max(5, len(x) // 5)]


def two_ranges(x: Tensor) -> list[Tensor]:
    """Two masks of rows that are held out: the middle thirds of two inputs."""
    masks = []
    for column in torch.randperm(x.shape[1])[:2]:
        rank = x[:, column].argsort(stable=True).argsort()
        masks.append((rank >= len(x) // 3) & (rank < 2 * len(x) // 3))
    return masks


def by_chains(
    x: Tensor, y: Tensor, x_new: Tensor, width: int, held_out: Callable = first_fifth, gains: tuple[float, ...] = ()
) -> Mixture:
    """Noise and prior of least loss on rows that are held out, by default a fifth of the training part."""
    masks, tried = held_out(x), {}
    for choice in product(NOISES, [*PRIORS, *gains]):
        found = []
        for held in masks:
            seconds = SECONDS / 7.5 / len(masks)
            parts = chains(x[~held], y[~held], x[held], width, *choice, members=2, seconds=seconds)
            found.append(float(log_density(parts, y[held]).mean()))
        tried[choice] = sum(found) / len(found)
    print({"/".join(map(str, choice)): round(value, 3) for choice, value in tried.items()}, flush=True)
    return chains(x, y, x_new, width, *max(tried, key=tried.get), members=5, seconds=SECONDS)


def by_all_choices(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    """Every noise and prior, each with as many draws."""
    choices = list(product(NOISES, [*PRIORS, 6.0]))
    seconds = SECONDS / len(choices)
    parts = [chains(x, y, x_new, width, *choice, members=2, seconds=seconds) for choice in choices]
    means, sds = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(sds)


def chains(
    x: Tensor,
    y: Tensor,
    x_new: Tensor,
    width: int,
    likelihood: str,
    prior: str | float,
    *,
    members: int,
    seconds: float,
) -> Mixture:
    """From so many trained networks, each a chain's start."""
    is_normal = likelihood == "gaussian"
    nets = [network(x.shape[1], width, 1 if is_normal else 2) for _ in range(members)]
    for net in nets:
        train(net, squares if is_normal else density_loss, x, y)
    starts = parameters(nets)
    if is_normal:
        with torch.no_grad():
            starts["sigma"] = torch.stack([squares(net(x), y).sqrt().clamp(min=0.02) for net in nets])
    model = bayesianize(nets[0], likelihood, prior=PRIORS.get(prior) or fan_in(gain=prior))
    found = microcanonical(
        model, starts, x, y, num_steps=10**8, num_samples=NUM_DRAWS, max_seconds=seconds, progress=False
    )
    return mixture_of(model, found.samples, x_new, likelihood)


def squares(f: Tensor, y: Tensor) -> Tensor:
    return (f[:, 0] - y).square().mean()


def density_loss(f: Tensor, y: Tensor) -> Tensor:
    return -Heteroscedastic().distribution(f).log_prob(y).mean()


def by_dropout(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    """Rate and noise of least loss on a fifth of the training part."""
    held, found = max(5, len(x) // 5), {}
    for rate in (0.005, 0.01, 0.05, 0.1):
        net = network(x.shape[1], width, rate=rate, activation=nn.ReLU)
        train(net, squares, x[held:], y[held:])
        means = passes(net, x[:held])
        for sigma in np.geomspace(0.02, 1.0, 18):
            found[rate, float(sigma)] = -float(log_density((means, torch.full_like(means, sigma)), y[:held]).mean())
    rate, sigma = min(found, key=found.get)
    net = network(x.shape[1], width, rate=rate, activation=nn.ReLU)
    train(net, squares, x, y)
    means = passes(net, x_new)
    return means, torch.full_like(means, sigma)


def passes(net: nn.Module, x: Tensor) -> Tensor:
    net.train()
    with torch.no_grad():
        return torch.stack([net(x)[:, 0] for _ in range(NUM_DRAWS)])


def by_ensemble(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    parts = []
    for _ in range(5):
        net = network(x.shape[1], width, 2, activation=nn.ReLU)
        train(net, density_loss, x, y)
        with torch.no_grad():
            noise = Heteroscedastic().distribution(net(x_new))
        parts.append((noise.mean, noise.stddev))
    means, sds = zip(*parts, strict=True)
    return torch.stack(means), torch.stack(sds)


def by_laplace(x: Tensor, y: Tensor, x_new: Tensor, width: int) -> Mixture:
    net = network(x.shape[1], width)
    train(net, squares, x, y, weight_decay=1e-4)
    with torch.no_grad():
        features, features_new = (net[:-1](part).double().numpy() for part in (x, x_new))
    mean, sd = BayesianRidge().fit(features, y.double().numpy()).predict(features_new, return_std=True)
    return torch.tensor(mean)[None], torch.tensor(sd)[None]


METHODS = {
    "guide": by_guide,
    "refine": by_refine,
    "refine, chosen": by_chosen,
    "chains": by_chains,
    "chains, by ranges": partial(by_chains, held_out=two_ranges, gains=(6.0,)),
    "chains, none chosen": by_all_choices,
    "mean field": partial(by_guide, make=AutoNormal),
    "full covariance": partial(by_guide, make=AutoMultivariateNormal),
    "dropout": by_dropout,
    "ensemble": by_ensemble,
    "laplace": by_laplace,
}


def log_density(mixture: Mixture, y: Tensor) -> Tensor:
    means, sds = (part.double() for part in mixture)
    return torch.distributions.Normal(means, sds).log_prob(y.double()).logsumexp(0) - math.log(len(means))


def scores(mixture: Mixture, y: Tensor) -> dict[str, float]:
    """RMSE, log density, CRPS and coverage of the 90 % interval, of a mixture and targets in the same units."""
    means, sds = mixture
    draws = torch.normal(means.repeat(-(-NUM_DRAWS // len(means)), 1), sds.repeat(-(-NUM_DRAWS // len(sds)), 1))
    ordered = draws.sort(0).values
    ranks = 2 * torch.arange(1, len(ordered) + 1).to(ordered) - len(ordered) - 1
    spread = (ranks[:, None] * ordered).sum(0) / len(ordered) ** 2  # half of E|Y − Y'|
    low, high = torch.quantile(draws.double(), torch.tensor([0.05, 0.95], dtype=torch.float64), 0)
    return {
        "log_density": float(log_density(mixture, y).mean()),
        "rmse": float((means.mean(0) - y).square().mean().sqrt()),
        "crps": float(((draws - y).abs().mean(0) - spread).mean()),
        "coverage": float(((y >= low) & (y <= high)).double().mean()),
    }


def look(file, method: str, train_rows: np.ndarray, test_rows: np.ndarray) -> dict[str, float]:
    """One method on one split, in the target's units."""
    X, y = torch.tensor(file["X"]).float(), torch.tensor(file["y"]).float()
    x, x_new, y, y_new = X[train_rows], X[test_rows], y[train_rows], y[test_rows]
    center, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0
    x, x_new = (x - center) / scale, (x_new - center) / scale
    y_center, y_scale = y.mean(), y.std()
    start = time.process_time()
    means, sds = METHODS[method](x, (y - y_center) / y_scale, x_new, int(file["n_hidden"]))
    seconds = time.process_time() - start
    return {**scores((means * y_scale + y_center, sds * y_scale), y_new), "seconds": seconds}


def splits_of(file, number: int, *, gap: bool) -> tuple[np.ndarray, np.ndarray]:
    if not gap:
        return file["train_idx"][number].astype(np.int64), file["test_idx"][number].astype(np.int64)
    mask = file["gap_test_mask"][number]
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def spelt(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def report(lines: list[dict], folder: Path) -> str:
    """The table of all lines."""
    rows = []
    for kind in ("standard", "gap"):
        for name in SETS:
            mine = [line for line in lines if (line["kind"], line["set"]) == (kind, name)]
            by_method = {m: {line["split"]: line for line in mine if line["method"] == m} for m in METHODS}
            if kind == "standard" and mine:
                file = np.load(folder / f"{name}.npz")
                published = zip(file["mcdropout_ll"], file["mcdropout_rmse"], strict=True)
                looked = {line["split"] for line in mine}
                by_method["dropout, published"] = {
                    number: {"log_density": float(ll), "rmse": float(rmse)}
                    for number, (ll, rmse) in enumerate(published)
                    if number in looked
                }
            for method, found in by_method.items():
                if found:
                    rows.append(
                        [kind, name, method, len(found), *cells(found, by_method.get("dropout, published", {}))]
                    )
    headings = [
        "splits",
        "set",
        "method",
        "number",
        "log density",
        "RMSE",
        "CRPS",
        "90 % coverage",
        "ahead of published",
    ]
    note = (
        "Means over splits with standard errors. Ahead: on how many splits a method's log density is the greater, and "
        "the probability that its mean is, by the correlated t test (Corani and Benavoli 2015), a tenth for testing."
    )
    return f"{__doc__}\n{note}\n\n{table([*headings, 'CPU seconds'], rows)}"


def probability_ahead(differences: list[float], share: float = 0.1) -> float:
    """That the mean difference is positive, given those of random splits that share their training data.

    Args:
        differences: One for every split, not all equal.
        share: Of the data that a split tests on: the correlation of two splits' differences.

    Source: Corani and Benavoli 2015, Machine Learning 100.
    """
    count = len(differences)
    scale = np.std(differences, ddof=1) * math.sqrt(1 / count + share / (1 - share))
    return float(stats.t.cdf(np.mean(differences) / scale, count - 1))


def cells(found: dict[int, dict], published: dict[int, dict]) -> list[str]:
    keys = ("log_density", "rmse", "crps", "coverage")
    figures = [
        spelt([line[key] for line in found.values()]) if key in next(iter(found.values())) else "" for key in keys
    ]
    differences = [
        found[number]["log_density"] - line["log_density"] for number, line in published.items() if number in found
    ]
    ahead = f"{sum(d > 0 for d in differences)} of {len(differences)}" if differences else ""
    if len(differences) > 1 and any(differences):
        ahead += f", P {probability_ahead(differences):.3f}"
    seconds = [line["seconds"] for line in found.values() if "seconds" in line]
    return [*figures, ahead, f"{np.mean(seconds):.0f}" if seconds else ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--gap", action="store_true", help="the gap splits instead of the standard ones")
    parser.add_argument("--quick", action="store_true", help="yacht, one split, ten seconds a method")
    options = options_with_data(parser, what="UCI sets", help="folder that holds uci/")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.quick:
        global SECONDS, NUM_DRAWS
        SECONDS, NUM_DRAWS, options.sets, options.splits = 10.0, 40, ["yacht"], 1
    folder, kind = Path(options.data) / "uci", "gap" if options.gap else "standard"
    files = {name: np.load(folder / f"{name}.npz") for name in options.sets}
    cells = [
        {"kind": kind, "set": name, "split": number, "method": method, "seed": number}
        for number in range(options.splits)
        for name, file in files.items()
        if number < len(file["gap_test_mask" if options.gap else "train_idx"])
        for method in options.methods
        if len(file["y"]) <= SMALL or not method.startswith("refine")
    ]

    def run(kind: str, set: str, split: int, method: str, seed: int) -> dict[str, float]:
        return look(files[set], method, *splits_of(files[set], split, gap=kind == "gap"))

    run_cells("uci", cells, run, partial(report, folder=folder), quick=options.quick)


if __name__ == "__main__":
    main()

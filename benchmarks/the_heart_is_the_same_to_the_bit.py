"""What the package computes on small models, as sums to the last bit, and which of them another commit changes.

    OMP_NUM_THREADS=1 python benchmarks/the_heart_is_the_same_to_the_bit.py [--against COMMIT] [--quick]

Prints a table of sums, as double precision spells them: fits by every structure on several models, draws and their
densities, predictions, and what every verb finds that does not go by the clock. With `--against` the other commit is
checked out into a temporary folder and does the same in a process of its own; the table is then of the lines that
differ, and the exit code is 1 if there are any. Three minutes a side. Equal to the bit on one machine alone.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from timing import table

ROOT = Path(__file__).parent.parent
STRUCTURES = (
    "auto", "informed", "full", "layerwise", "last_layer", "low_rank", "weight_norm", "multiplicative", "patterns",
)  # fmt: skip
NETWORKS = ("identity", "linear", "nice", "coupling", "spline", "iaf")
STEPS, DRAWS = 40, 64
# What stands for a number that is none.
_NAN = 3.25

Figures = Iterator[tuple[str, Any]]


def numbers(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Normal numbers that owe nothing to the global seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regression() -> tuple[Callable, tuple]:
    """A network of 13 weights on twelve points."""
    from pyro_hypernet import bayesianize

    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.linspace(-1, 1, 12).unsqueeze(-1)
    return bayesianize(net, "gaussian"), (x, x.squeeze(-1).sin() + 0.1 * numbers((12,)))


def classes() -> tuple[Callable, tuple]:
    """A network with three classes."""
    from pyro_hypernet import bayesianize

    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    x = numbers((20, 2), 1)
    return bayesianize(net, "categorical"), (x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def supports() -> tuple[Callable, tuple]:
    """Sites on a half-line, an interval, a simplex and the plane, in a plate."""

    def model(y: torch.Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        parts = pyro.sample("parts", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("groups", 2):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(share * mean[0] + parts[0] * mean[1], scale), obs=y)

    return model, (numbers((10,), 2),)


def learnt() -> tuple[Callable, tuple]:
    """A line whose noise is a learnt parameter of the model's."""

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        slope, start = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("slope", "start"))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(pyro.deterministic("f", slope * x + start), scale), obs=y)

    x = torch.linspace(-1, 1, 12)
    return model, (x, 2 * x + numbers((12,), 3))


MODELS = {"regression": regression, "classes": classes, "supports": supports, "learnt": learnt}


def trained(make: Callable[[], tuple[Callable, tuple]], **options: Any) -> tuple[Any, Any, tuple, Any]:
    """A model, its guide after a short fit, the arguments, and the fit."""
    from pyro_hypernet import AutoHypernet, fit

    how = {name: options.pop(name) for name in ("elbo", "optim", "plan") if name in options}
    (model, args), steps = make(), options.pop("num_steps", STEPS)
    guide = AutoHypernet(model, **options)
    return model, guide, args, fit(model, guide, args, num_steps=steps, progress=False, **how)


def of_fit(make: Callable[[], tuple[Callable, tuple]], **options: Any) -> Figures:
    """Losses, parameters, draws, densities and predictions of a guide."""
    from pyro_hypernet import predict

    model, guide, args, result = trained(make, **options)
    yield "losses", result.losses
    yield "bound", result.elbo
    yield "why it stopped", result.stopped_because
    yield "parameters", dict(guide.state_dict())
    draws = guide.sample_posterior(DRAWS)
    yield "draws", draws
    yield "log q", guide.log_prob(draws)
    yield "log p", guide.density(model)(guide.layout.unconstrain(draws)[0], *args)
    yield "medians", guide.median()
    yield "predictions", predict(model, draws, *args)


def of_learnt(**options: Any) -> Figures:
    """The same, and the model's own parameter."""
    yield from of_fit(learnt, **options)
    yield "parameter of the model", pyro.param("scale")


def of_minibatches() -> Figures:
    """A fit by minibatches, chains by minibatches, and scores of held-out data."""
    from pyro_hypernet import AutoHypernet, SghmcKernel, distill, fit, move_by_minibatch, score

    model, (x, y) = classes()
    model.num_data = len(x)
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    guide = AutoHypernet(model, "linear", "low_rank")
    result = fit(model, guide, batches, num_steps=STEPS, progress=False)
    yield "losses", result.losses
    yield "score", score(model, guide, batches, num_samples=20)
    options = {"num_steps": 40, "warmup_steps": 10, "num_samples": 16, "num_chains": 4, "progress": False}
    moved = move_by_minibatch(model, guide, batches, kernel=SghmcKernel(step_size=1e-3), **options)
    yield "chains", moved
    yield "distilled", distill(guide, moved, num_steps=20, progress=False)


def of_mixtures() -> Figures:
    """Components from two starts, and their weights."""
    from pyro_hypernet import AutoHypernet, GuideMixture, fit, predict, stack

    model, args = regression()
    mixture = GuideMixture([AutoHypernet(model, "linear", "full") for _ in range(2)])
    fit(model, mixture, args, num_steps=STEPS, progress=False)
    draws = mixture.sample_posterior(DRAWS)
    yield "draws", draws
    yield "log q", mixture.log_prob(draws)
    yield "stacked", stack(model, mixture, *args)
    yield "predictions", predict(model, mixture, *args, num_samples=DRAWS)


def of_correction() -> Figures:
    """What mends a guide: weights, chains and moves."""
    from pyro_hypernet import metropolis, move, resample

    model, guide, args, _ = trained(regression)
    yield "resample", resample(model, guide, *args, num_samples=DRAWS)
    yield "metropolis", metropolis(model, guide, *args, num_samples=DRAWS, warmup_steps=10, num_chains=4)
    yield "move", move(model, guide, *args, num_samples=32, num_moves=2, num_leapfrogs=8, progress=False)
    yield (
        "move of all",
        move(model, guide, *args, num_samples=32, num_moves=2, num_leapfrogs=8, collapse=False, progress=False),
    )


def of_evaluation() -> Figures:
    """What is said of a guide."""
    from pyro_hypernet import compare, diagnose, fits_agree, khat, loo

    model, guide, args, result = trained(regression)
    yield "k-hat", khat(model, guide, *args, num_samples=500)
    yield "diagnose", diagnose(model, guide, *args, fit=result, num_samples=500)
    yield "diagnose without chains", diagnose(model, guide, *args, num_samples=500, max_seconds=0.0)
    yield "loo", loo(model, guide, *args, num_samples=500)
    draws = [guide.sample_posterior(200) for _ in range(2)]
    yield "agreement", fits_agree(model, draws, *args, num_samples=100)
    options = {"num_samples": 200, "num_bootstrap": 20, "train_args": args}
    for canonical in (False, True):
        found = compare({"guide": guide, "draws": draws[0]}, draws[1], model, *args, canonical=canonical, **options)
        yield f"compare, canonical={canonical}", found.rows


def of_networks() -> Figures:
    """What only networks have: cutting, acquisition, attacks, and other values to start at."""
    from pyro_hypernet import sparsify, weights_of
    from pyro_hypernet.evaluation.acquisition import acquire
    from pyro_hypernet.evaluation.attacks import fgsm, logits_of, pgd

    model, guide, args, _ = trained(classes, structure="weight_norm")
    draws = guide.sample_posterior(DRAWS)
    yield "weights", weights_of(model, draws)
    for parts, by in itertools.product(("weights", "units", "inputs"), ("signal", "scale")):
        cut = sparsify(model, draws, args, parts=parts, by=by, max_loss=1.0, num_samples=DRAWS)
        yield f"{parts} by {by}", [cut.kept, cut.share, cut.loss, cut.net_loss, cut.curve, dict(cut.net.state_dict())]
    logits = logits_of(model, draws, num_samples=20)
    for score in ("bald", "entropy", "batchbald"):
        yield f"acquire by {score}", acquire(logits(args[0]).detach(), 3, score)
    yield "fgsm", fgsm(logits, *args, [0.1])
    yield "pgd", pgd(logits, *args, [0.1])


def of_samplers(make: Callable[[], tuple[Callable, tuple]]) -> Figures:
    """Draws that owe nothing to a guide."""
    from pyro_hypernet import HmcKernel, NutsKernel, init_to_map, nuts, refine

    model, args = make()
    for collapse in (True, False):
        kernel = HmcKernel(num_leapfrogs=8, collapse=collapse, num_threads=1)
        options = {"num_samples": 64, "num_populations": 2, "num_moves": 2, "progress": False}
        yield f"refine, collapse={collapse}", refine(model, *args, kernel=kernel, **options)
    kernel = NutsKernel(max_tree_depth=5, num_processes=1)
    yield "nuts", nuts(model, *args, num_samples=20, warmup_steps=20, num_chains=2, kernel=kernel)
    yield "mode", init_to_map(model, *args, num_steps=20).keywords


def of_calibration() -> Figures:
    """Simulation-based calibration, a temperature, and files."""
    from pyro_hypernet import AutoHypernet, choose_temperature, load, save, sbc

    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    yield "sbc", sbc(model, numbers((5,)), num_simulations=4, num_draws=50, num_processes=1)
    net, args = regression()
    yield "temperature", choose_temperature(net, args, args, temperatures=(1.0, 0.1), num_steps=20, num_samples=20)
    with tempfile.TemporaryDirectory() as folder:
        guide = AutoHypernet(net).setup(*args)
        save(guide, Path(folder) / "guide.pt")
        yield "read again", load(Path(folder) / "guide.pt", net, *args).sample_posterior(DRAWS)


def all_cases() -> dict[str, Callable[[], Figures]]:
    """What is computed, by name."""
    cases: dict[str, Callable[[], Figures]] = {}
    for name, make in MODELS.items():
        for structure in STRUCTURES if name != "learnt" else ("full",):
            figures = of_learnt if name == "learnt" else partial(of_fit, make)
            cases[f"{name}, {structure}"] = partial(figures, structure=structure)
    for network in NETWORKS:
        cases[f"regression, {network}"] = partial(of_fit, regression, hypernet=network, structure="full")
    cases["regression, three components"] = partial(of_fit, regression, num_components=3)
    for name, options in options_of_elbos().items():
        cases[f"supports, {name}"] = partial(of_elbo, options)
    cases |= {f"samplers, {name}": partial(of_samplers, MODELS[name]) for name in ("regression", "supports")}
    others = (of_minibatches, of_mixtures, of_correction, of_evaluation, of_networks, of_calibration)
    return cases | {figures.__name__.removeprefix("of_"): figures for figures in others}


def options_of_elbos() -> dict[str, dict[str, Any]]:
    """Bounds, gradients and ways to run, by name."""
    return {
        "path": {"gradient": "path"},
        "total": {"gradient": "total"},
        "eager": {"mode": "eager"},
        "loop": {"mode": "loop"},
        "importance weighted": {"bound": "importance_weighted"},
    }


def of_elbo(options: Mapping[str, Any]) -> Figures:
    """A fit by another bound, gradient or way to run."""
    from pyro_hypernet import VectorizedELBO

    yield from of_fit(supports, structure="full", elbo=VectorizedELBO(4, **options), num_steps=20)


def spell(value: Any) -> str:
    """A sum in double precision of all the numbers in a value, and a checksum of the words, where there are any."""
    total, words = 0.0, []
    for part in leaves(value):
        if isinstance(part, str):
            words.append(part)
        else:
            part = torch.as_tensor(part).detach().double().nan_to_num(nan=_NAN)
            # Weighted by place, so that what has only been put in another order shows.
            total += float((part * torch.arange(1, part.numel() + 1).reshape(part.shape)).sum())
    return f"{total!r}, words {zlib.crc32(' '.join(words).encode())}" if words else repr(total)


def leaves(value: Any) -> Iterator[Any]:
    """Tensors, numbers and words in a value; of a result all fields but those that a clock has made."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from leaves({k: v for k, v in vars(value).items() if "seconds" not in k})
    elif isinstance(value, (torch.Tensor, int, float, str)):
        yield value


def compute(names: list[str]) -> Iterator[tuple[str, str]]:
    """Names and sums of cases; a case that this code cannot run is one line that says why."""
    cases = all_cases()
    for name in names:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        try:
            for figure, value in cases[name]():
                yield f"{name}: {figure}", spell(value)
        except Exception as error:
            yield f"{name}: does not run", f"{type(error).__name__}: {str(error).splitlines()[0]}"


def compute_at(commit: str, names: list[str]) -> dict[str, str]:
    """The same of another commit, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", f"{folder}/old", commit], check=True)
        try:
            command = [sys.executable, str(Path(__file__).resolve()), "--lines", *names]
            environment = {**os.environ, "PYTHONPATH": f"{folder}/old"}
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        finally:
            subprocess.run([*git, "remove", "--force", f"{folder}/old"], check=False)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="another commit, to print what differs")
    parser.add_argument("--quick", action="store_true", help="one fit and no verb")
    parser.add_argument("--lines", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = options.lines or (["regression, full"] if options.quick else list(all_cases()))
    if options.lines:
        for line in compute(names):
            print(json.dumps(line), flush=True)
        return
    found = dict(compute(names))
    if not options.against:
        print(table(("figure", "sum"), [*found.items()]))
        return
    other = compute_at(options.against, names)
    changed = [(k, other.get(k, "–"), found.get(k, "–")) for k in {**other, **found} if other.get(k) != found.get(k)]
    print(table(("figure", options.against, "here"), changed))
    print(f"\n{len(changed)} of {len({**other, **found})} differ.")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()

"""ResNet-20-FRN-swish on CIFAR-10 held against Izmailov's full-batch HMC: agreement and total variation.

    python benchmarks/resnet20_against_hmc.py --data FOLDER [--quick] [--device cuda] [--seconds 600] [--members 5 10]

HMC's probabilities for the 10 000 test images come from the NeurIPS 2021 competition's starter kit (in FOLDER,
hmc_bdl_reference.npz); the images there are JPEGs of quality 75 (cifar10_jpeg75.npz). The prior is N(0, 1/5) for every
weight, as HMC's. Every method gets the same seconds of training in all: the networks of an ensemble and the components
of a mixture share them; guides start at a network that took a third of theirs, and where draws are moved, that takes
the last third. SWAG and IVON are in network_rivals.py; IVON's rows need the extra `bench`. 50 draws. Without a GPU
`--quick` runs 1 000 training and 200 test images with two members and ten draws, 15 seconds a method, in about ten
minutes: HMC saw 50 000, so that its figures there show that the script runs, and no more. Cells in the file are not run
again. Memory is the most that the process held, on a GPU what torch did, networks and draws included.
"""

import argparse
import gc
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from network_rivals import HAS_IVON, Clocked, features, ivon, last_layer_laplace, map_loss, swag
from real_tasks import cifar10
from timing import keep, kept, table
from torch import Tensor, nn
from torch.nn.functional import one_hot, silu
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pyro_hypernet import (
    AutoHypernet,
    GuideMixture,
    MovedByMinibatch,
    Optim,
    Plan,
    bayesianize,
    fit,
    move_by_minibatch,
)
from pyro_hypernet.evaluation.metrics import agreement, total_variation

PRIOR_SCALE = 0.2**0.5
# What a quick run leaves out: a graph of 58 000 operations takes a minute to record, and more of a kind.
LEFT_OUT_IF_QUICK = ("layerwise", "low_rank, T = 0.1", "mixture of 2, low_rank", "mixture of 2, mean field, T = 0.1")


class FilterResponseNorm(nn.Module):
    """Every channel over the root of its mean square, then scaled and shifted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-6)
        return self.gain[:, None, None] * x + self.shift[:, None, None]


class Block(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norms = nn.ModuleList([FilterResponseNorm(outputs), FilterResponseNorm(outputs)])
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = silu(self.norms[0](self.first(x)))
        return silu(self.norms[1](self.second(h)) + self.short(x))


def resnet20() -> nn.Sequential:
    """Three stages of three blocks, 16, 32 and 64 channels."""
    layers = [nn.Conv2d(3, 16, 3, 1, 1), FilterResponseNorm(16), nn.SiLU()]
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    layers += [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Task:
    """Images, labels and HMC's probabilities on a device, and the seconds for a method."""

    def __init__(self, folder: Path, device: str, seconds: float, *, quick: bool) -> None:
        num_train, num_test = (1_000, 200) if quick else (50_000, 10_000)
        self.batch_size, self.num_draws = (32, 10) if quick else (128, 50)
        images = cifar10(folder, num_train, num_test)
        self.x, self.y = (part.to(device) for part in images.all)
        self.x_test, self.y_test = (part.to(device) for part in images.test)
        self.hmc = torch.tensor(np.load(folder / "hmc_bdl_reference.npz")["cifar10_probs"][:num_test]).to(device)
        self.device, self.seconds, self.quick = device, seconds, quick
        self.known = {"num_data": num_train, "precision": PRIOR_SCALE**-2}

    def loader(self) -> DataLoader:
        # Rows of a minibatch are taken at once: one by one they would cost more than a step on a GPU.
        data = TensorDataset(self.x, self.y)
        rows = BatchSampler(RandomSampler(data), self.batch_size, drop_last=True)
        return DataLoader(data, sampler=rows, batch_size=None)

    def batches(self, seconds: float) -> Clocked:
        """Minibatches until the seconds are over, each with the share of them that has passed."""
        start = time.perf_counter()
        while True:
            for x, y in self.loader():
                if (share := (time.perf_counter() - start) / seconds) >= 1:
                    return
                yield share, x, y

    def network(self) -> nn.Sequential:
        return resnet20().to(self.device)


def trained(task: Task, seconds: float) -> nn.Sequential:
    """A maximum a posteriori estimate by Adam, the step size falling to zero over the seconds."""
    net = task.network()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for share, x, y in task.batches(seconds):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - share)
        optimizer.zero_grad()
        map_loss(net, x, y, **task.known).backward()
        optimizer.step()
    return net


@torch.no_grad()
def of_nets(task: Task, nets: Iterable[nn.Module]) -> Tensor:
    """Class probabilities of every network at the test images, shape `(S, N, 10)`."""
    return torch.stack([torch.cat([net(x) for x in task.x_test.split(500)]).softmax(-1) for net in nets])


def of_weights(task: Task, draws: Tensor) -> Tensor:
    """Of networks with these weights, shape `(S, D)`."""
    net = task.network()

    def in_turn() -> Iterator[nn.Module]:
        for w in draws:
            nn.utils.vector_to_parameters(w, net.parameters())
            yield net

    return of_nets(task, in_turn())


def networks(task: Task, number: int) -> Tensor:
    return of_nets(task, [trained(task, task.seconds / number) for _ in range(number)])


def by_swag(task: Task, number: int) -> Tensor:
    """About so many networks, each of which had two thirds of its time."""
    share, options = task.seconds / number, {**task.known, "num_draws": -(-task.num_draws // number)}
    draws = [swag(trained(task, 2 * share / 3), task.batches(share / 3), **options) for _ in range(number)]
    return of_weights(task, torch.cat(draws))


def by_ivon(task: Task, number: int) -> Tensor:
    options = {**task.known, "num_draws": -(-task.num_draws // number)}
    draws = [ivon(task.network(), task.batches(task.seconds / number), **options) for _ in range(number)]
    return of_weights(task, torch.cat(draws))


def by_laplace(task: Task) -> Tensor:
    net = trained(task, task.seconds)
    w = last_layer_laplace(net, list(task.x.split(500)), task.known["precision"], task.num_draws)
    with torch.no_grad():
        return torch.cat([features(net, x) @ w for x in task.x_test.split(500)], 1).softmax(-1).float()


def fitted(task: Task, number: int, seconds: float, *, plan: Plan, **options: Any) -> tuple[nn.Module, Any]:
    """A model and its guide, or mixture of guides, that starts at networks, which take a third of the seconds."""
    nets = [trained(task, seconds / 3 / number) for _ in range(number)]
    model = bayesianize(nets[0], "categorical", prior=PRIOR_SCALE, num_data=len(task.x), **options)
    guide = AutoHypernet(model, plan=plan) if number == 1 else GuideMixture.from_starts(model, nets, plan=plan)
    optim, trial = Optim(1e-3, max_seconds=2 * seconds / 3 / number), AutoHypernet(model, plan=plan)

    def attempt(num_steps: int) -> None:
        fit(model, trial, task.loader(), num_steps=num_steps, optim=1e-3, progress=False)

    fit(model, guide, task.loader(), num_steps=steps_for(task, optim.max_seconds, attempt), optim=optim, progress=False)
    return model, guide


def steps_for(task: Task, seconds: float, attempt: Callable[[int], object], *, if_quick: int = 100) -> int:
    """As many steps as will do, by what a hundred take: a schedule goes by steps, and chains have no clock."""
    if task.quick:
        return if_quick
    attempt(5)
    taken = []
    for num_steps in (5, 105):
        start = time.perf_counter()
        attempt(num_steps)
        taken.append(time.perf_counter() - start)
    return max(20, int(100 * seconds / (taken[1] - taken[0])))


def predicted(task: Task, model: nn.Module, posterior: Any) -> Tensor:
    return outputs_of(model, posterior, task.x_test, task.num_draws, rows=500).softmax(-1)


def guides(task: Task, number: int, **options: Any) -> Tensor:
    return predicted(task, *fitted(task, number, task.seconds, **options))


def moved(task: Task, number: int, **options: Any) -> Tensor:
    """Draws of guides that had two thirds of the seconds, moved in the last."""
    model, guide = fitted(task, number, 2 * task.seconds / 3, **options)

    def move(num_steps: int) -> MovedByMinibatch:
        return move_by_minibatch(
            model,
            guide,
            task.loader(),
            num_steps=num_steps,
            warmup_steps=num_steps // 3,
            num_samples=task.num_draws,
            num_chains=2 * number,
            progress=False,
        )

    return predicted(task, model, move(steps_for(task, task.seconds / 3, move, if_quick=20)))


def methods(members: list[int]) -> dict[str, Callable[[Task], Tensor]]:
    one, norms = {"number": 1}, {"plan": Plan(), "parametrization": "weight_norm"}
    structures = ("low_rank", "layerwise", "last_layer", "weight_norm", "multiplicative")
    plans = {"mean field": Plan("full", "identity"), **{name: Plan(name) for name in structures}}
    found: dict[str, Callable[[Task], Tensor]] = {"one network (MAP)": partial(networks, **one)}
    found |= {f"ensemble of {n}": partial(networks, number=n) for n in members}
    found |= {"last layer, Laplace": by_laplace, "SWAG": partial(by_swag, **one)}
    found |= {f"multi-SWAG of {n}": partial(by_swag, number=n) for n in members}
    if HAS_IVON:
        found |= {"IVON": partial(by_ivon, **one), f"IVON × {members[-1]}": partial(by_ivon, number=members[-1])}
    found |= {f"{name}, T = 1": partial(guides, **one, plan=plan) for name, plan in plans.items()}
    found['parametrization="weight_norm", T = 1'] = partial(guides, **one, **norms)
    for name in ("mean field", "low_rank"):
        cold = replace(plans[name], temperature=0.1)
        found[f"{name}, T = 0.1"] = partial(guides, **one, plan=cold)
        for n in members:
            found[f"mixture of {n}, {name}, T = 1"] = partial(guides, number=n, plan=plans[name])
            found[f"mixture of {n}, {name}, T = 0.1"] = partial(guides, number=n, plan=cold)
    for n in members:
        found[f'mixture of {n}, parametrization="weight_norm", T = 1'] = partial(guides, number=n, **norms)
        found[f"mixture of {n}, mean field, moved, T = 1"] = partial(moved, number=n, plan=plans["mean field"])
    return found


def disagreement(draws: Tensor) -> float:
    """The share of pairs of draws and images where the two draws name other classes."""
    counts = one_hot(draws.argmax(-1), draws.shape[-1]).sum(0).double()
    pairs = len(draws) * max(1, len(draws) - 1)
    return 1 - float((counts * (counts - 1)).sum(-1).mean()) / pairs if len(draws) > 1 else 0.0


class Memory:
    """The most memory since it was made, in bytes: a GPU's, or this process's."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")
        else:
            torch.cuda.reset_peak_memory_stats()

    def most(self) -> int:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated()
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training for every method")
    parser.add_argument("--members", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--methods", nargs="*", help="some of the table's rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1 000 images, 200 test images, two members, 15 seconds")
    options = options_with_data(parser, what="images", help="folder of the two files")
    if options.device == "cpu":
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seconds, members = (min(15.0, options.seconds), [2]) if options.quick else (options.seconds, options.members)
    task = Task(Path(options.data), options.device, seconds, quick=options.quick)
    records = kept("resnet20", quick=options.quick)
    key = {"seed": options.seed, "seconds_each": seconds, "device": options.device}
    for name, method in methods(members).items():
        done = any(record["method"] == name and key.items() <= record.items() for record in records)
        left_out = options.quick and name.startswith(LEFT_OUT_IF_QUICK)
        if done or left_out or (options.methods and name not in options.methods):
            continue
        pyro.clear_param_store()
        pyro.set_rng_seed(options.seed)
        gc.collect()
        start, memory = time.perf_counter(), Memory(options.device)
        draws = method(task)
        seconds_taken, mean = time.perf_counter() - start, draws.mean(0)
        record = {
            "method": name,
            **key,
            "agreement": float(agreement(mean, task.hmc)),
            "tv": float(total_variation(mean, task.hmc)),
            **class_scores(mean, task.y_test),
            "disagreement": disagreement(draws),
            "took": seconds_taken,
            "memory": memory.most() / 2**30,
        }
        print(record, flush=True)
        records.append(record)
        names = ("agreement", "tv", "accuracy", "nll", "ece", "disagreement", "took", "memory")
        rows = [[r["method"], r["device"], *(f"{r[name]:.3f}" for name in names)] for r in records]
        headings = ["", "device", "agreement", "TV", "accuracy %", "NLL", "ECE", "two draws differ", "seconds", "GiB"]
        keep("resnet20", records, f"{__doc__}\n{table(headings, rows)}", quick=options.quick)


if __name__ == "__main__":
    main()

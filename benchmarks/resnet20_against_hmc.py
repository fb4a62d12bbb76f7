"""ResNet-20-FRN-swish on CIFAR-10 held against Izmailov's full-batch HMC: agreement and total variation.

    python benchmarks/resnet20_against_hmc.py --data FOLDER [--quick] [--device cuda] [--seconds 600] [--members 5]

HMC's probabilities for the 10 000 test images come from the NeurIPS 2021 competition's starter kit (in FOLDER,
hmc_bdl_reference.npz); the images there are JPEGs of quality 75 (cifar10_jpeg75.npz). The prior is N(0, 1/5) for every
weight, as HMC's. Every method gets the same seconds of training in all: the networks of an ensemble and the components
of a mixture share them; guides start at a network that took a third of theirs. 50 draws. Without a GPU `--quick` runs
1 000 training and 200 test images with two members and ten draws in about ten minutes: HMC saw 50 000, so that its
figures there show that the script runs, and no more. Cells in the file are not run again.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from class_scores import class_scores
from data_folder import options_with_data
from real_tasks import cifar10
from timing import keep, kept, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, GuideMixture, Optim, Plan, bayesianize, fit, predict
from pyro_hypernet.evaluation.metrics import agreement, total_variation

PRIOR_SCALE = 0.2**0.5


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
        self.batch_size, self.num_draws, self.num_trial_steps = (32, 10, 5) if quick else (128, 50, 30)
        images = cifar10(folder, num_train, num_test)
        self.x, self.y = (part.to(device) for part in images.all)
        self.x_test, self.y_test = (part.to(device) for part in images.test)
        self.hmc = torch.tensor(np.load(folder / "hmc_bdl_reference.npz")["cifar10_probs"][:num_test]).to(device)
        self.device, self.seconds = device, seconds

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y), batch_size=self.batch_size, shuffle=True, drop_last=True)


def trained(task: Task, seconds: float) -> nn.Sequential:
    """A maximum a posteriori estimate by Adam, the step size falling to zero over the seconds."""
    net, start = resnet20().to(task.device), time.perf_counter()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    while (share := (time.perf_counter() - start) / seconds) < 1:
        for x, y in task.loader():
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * max(0.0, 1 - share)
            prior = sum(p.square().sum() for p in net.parameters()) / (2 * PRIOR_SCALE**2)
            optimizer.zero_grad()
            (cross_entropy(net(x), y) + prior / len(task.x)).backward()
            optimizer.step()
            if (share := (time.perf_counter() - start) / seconds) >= 1:
                break
    return net


@torch.no_grad()
def of_nets(task: Task, nets: list[nn.Sequential]) -> Tensor:
    """Class probabilities of every network at the test images, shape `(S, N, 10)`."""
    return torch.stack([torch.cat([net(x) for x in task.x_test.split(500)]).softmax(-1) for net in nets])


def networks(task: Task, number: int) -> Tensor:
    return of_nets(task, [trained(task, task.seconds / number) for _ in range(number)])


def guides(task: Task, number: int, *, plan: Plan, **options: Any) -> Tensor:
    """A guide, or a mixture of guides, that starts at networks."""
    nets = [trained(task, task.seconds / 3 / number) for _ in range(number)]
    model = bayesianize(nets[0], "categorical", prior=PRIOR_SCALE, num_data=len(task.x), **options)
    guide = AutoHypernet(model, plan=plan) if number == 1 else GuideMixture.from_starts(model, nets, plan=plan)
    optim = Optim(1e-3, max_seconds=2 * task.seconds / 3 / number)
    # As many steps as will do: the schedule is by steps, and these by a short fit.
    start = time.perf_counter()
    trial = AutoHypernet(model, plan=plan)
    fit(model, trial, task.loader(), num_steps=task.num_trial_steps, optim=1e-3, progress=False)
    pace = (time.perf_counter() - start) / task.num_trial_steps
    num_steps = max(20, int(optim.max_seconds / pace))
    fit(model, guide, task.loader(), num_steps=num_steps, optim=optim, progress=False)
    f = [predict(model, guide, x, num_samples=task.num_draws, return_sites=["f"])["f"] for x in task.x_test.split(500)]
    return torch.cat(f, 1).softmax(-1)


def methods(members: int) -> dict[str, Callable[[Task], Tensor]]:
    mean_field, low_rank = Plan("full", "identity"), Plan("low_rank")
    found: dict[str, Callable[[Task], Tensor]] = {
        "one network (MAP)": partial(networks, number=1),
        f"ensemble of {members}": partial(networks, number=members),
    }
    for temperature in (1.0, 0.1):
        for name, plan in {"mean field": mean_field, "low_rank": low_rank}.items():
            own = Plan(plan.structure, plan.hypernet, temperature=temperature)
            found[f"{name}, T = {temperature:g}"] = partial(guides, number=1, plan=own)
            found[f"mixture of {members}, {name}, T = {temperature:g}"] = partial(guides, number=members, plan=own)
    norms = {"plan": Plan(), "parametrization": "weight_norm"}
    found["last_layer, T = 1"] = partial(guides, number=1, plan=Plan("last_layer"))
    found['parametrization="weight_norm", T = 1'] = partial(guides, number=1, **norms)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training for every method")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="some of the table's rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1 000 images, 200 test images, two members, 30 seconds")
    options = options_with_data(parser, what="images", help="folder of the two files")
    if options.device == "cpu":
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seconds, members = (min(30.0, options.seconds), 2) if options.quick else (options.seconds, options.members)
    task = Task(Path(options.data), options.device, seconds, quick=options.quick)
    records = kept("resnet20", quick=options.quick)
    key = {"seed": options.seed, "seconds_each": seconds, "device": options.device}
    for name, method in methods(members).items():
        done = any(record["method"] == name and key.items() <= record.items() for record in records)
        if done or (options.methods and name not in options.methods):
            continue
        pyro.clear_param_store()
        pyro.set_rng_seed(options.seed)
        start = time.perf_counter()
        draws = method(task)
        seconds_taken, mean = time.perf_counter() - start, draws.mean(0)
        votes = draws.argmax(-1)
        record = {
            "method": name,
            **key,
            "agreement": float(agreement(mean, task.hmc)),
            "tv": float(total_variation(mean, task.hmc)),
            **class_scores(mean, task.y_test),
            "disagreement": float((votes[:-1] != votes[1:]).double().mean()) if len(votes) > 1 else 0.0,
            "took": seconds_taken,
        }
        print(record, flush=True)
        records.append(record)
        names = ("agreement", "tv", "accuracy", "nll", "ece", "disagreement", "took")
        rows = [[r["method"], r["device"], *(f"{r[name]:.3f}" for name in names)] for r in records]
        headings = ["", "device", "agreement", "TV", "accuracy %", "NLL", "ECE", "two draws differ", "seconds"]
        keep("resnet20", records, f"{__doc__}\n{table(headings, rows)}", quick=options.quick)


if __name__ == "__main__":
    main()

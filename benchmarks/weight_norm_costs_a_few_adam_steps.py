"""Seconds of a step of `fit` with parametrization="weight_norm", over a step of Adam of the plain network.

    python benchmarks/weight_norm_costs_a_few_adam_steps.py [--quick] [--nets lenet resnet] [--repeats 5] [--batch 64]

LeNet-5 on images of 28 × 28 × 1 and a ResNet-20 (group norm) on images of 32 × 32 × 3, made at random, one thread. The
weight-norm model with one particle and with eight, captured as `fit` does; "on weights": with gains that multiply the
weights, so that every draw has its own. "Adam, batch × 8": what a plain step with as many images as eight particles
see costs, below which no eight particles can be had but for the first layer. Seconds are the process's own, in turn.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import pyro
import torch
from real_tasks import lenet5
from speed_on_a_gpu import resnet20
from timing import keep, median, spell_ratio, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize
from pyro_hypernet.train.optimiser import Optim, Optimiser
from pyro_hypernet.train.step import FlatParameters, Stepper

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lenet5, (1, 28, 28)),
    "resnet": (resnet20, (3, 32, 32)),
}


def plain(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of Adam."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def ours(net: nn.Module, x: Tensor, y: Tensor, particles: int, on_outputs: bool) -> tuple[Callable[[], None], str]:
    """A step of `fit`, and how it runs."""
    model = bayesianize(net, "categorical", parametrization="weight_norm", num_data=50_000)
    guide = AutoHypernet(model).setup(x, y)
    model._on_outputs &= on_outputs
    elbo = VectorizedELBO(particles)
    elbo.prepare(model, guide, (x, y), {})
    parameters = FlatParameters([*guide.parameters(), *elbo.params.values()])
    stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10**6, is_fixed=False)
    optimiser = Optimiser(parameters.vectors, 10**6, Optim(1e-4, keep="last"))

    def step() -> None:
        optimiser.step(stepper((x, y)))

    for _ in range(4):
        step()
    return step, f"{guide.latent_dim} random, {stepper.compile}: {stepper.reason}"


def in_turn(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of the process for a call of every contestant; what else the machine does hardly counts."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, two repeats")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--particles", type=int, nargs="*", default=[1, 8])
    options = parser.parse_args()
    batch, repeats = (8, 2) if options.quick else (options.batch, options.repeats)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records, rows = [], []
    for name in options.nets:
        make, shape = NETS[name]
        pyro.set_rng_seed(0)
        x, y = torch.randn(8 * batch, *shape), torch.randint(10, (8 * batch,))
        contestants, how = {"Adam": plain(make(), x[:batch], y[:batch]), "Adam, batch × 8": plain(make(), x, y)}, {}
        for particles in options.particles:
            for where in ("outputs", "weights"):
                who = f"{particles} particles, on {where}"
                contestants[who], how[who] = ours(make(), x[:batch], y[:batch], particles, where == "outputs")
        for function in contestants.values():
            function()
        seconds = in_turn(contestants, repeats * (5 if name == "lenet" else 1))
        for who, values in seconds.items():
            records.append({"net": name, "who": who, "seconds": values, "how": how.get(who, "")})
            spelt = f"{1e3 * median(values):.1f}", spell_ratio(values, seconds["Adam"])
            rows.append((name, who, *spelt, how.get(who, "")))
            print(rows[-1], flush=True)
    text = f"{__doc__}\n{table(('net', 'who', 'ms', 'over Adam', 'how'), rows)}\n"
    keep("weight_norm_steps", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

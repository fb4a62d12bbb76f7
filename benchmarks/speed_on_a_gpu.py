"""The step, the predictions and the scale of AutoHypernet on a GPU, against Pyro there and the device's own ceilings.

    python benchmarks/speed_on_a_gpu.py --data FOLDER [--out NAME] [--parts ceilings step ...] [--device cuda]

Parts: `ceilings`, what the device can do: bytes by a large copy, arithmetic by a matrix product, launches by adding one
number; `step`, as in speed_a_step_takes_a_fraction_of_pyros.py; `particles`, the default guide from 1 to 512; `mlp`,
10³ to 10⁷ weights with a minibatch of 128, as in speed_is_linear_in_the_number_of_weights.py; `resnet`, a ResNet-20 for
images of 32 × 32 × 3 (He et al. 2016, group norm instead of batch norm) with a minibatch of 128 made images; `draws`,
10 000 draws and predictions on 1 000 inputs. All in float32 without tf32. AutoNormal stands for Pyro's own guides: its
particles are not vectorised, for `bayesianize`d networks take one draw at a time.

A step's least time by bytes: every parameter read once in the forward pass, its gradient written once, and Adam's read
of gradient, parameter and two moments and write of three: nine numbers of four bytes each. By arithmetic: the network's
multiplications and additions, three times for the gradient.
"""

import argparse
import json
import math
import os
import time
import traceback
import warnings
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from speed_a_step_takes_a_fraction_of_pyros import Broadcasting, contestants
from speed_is_linear_in_the_number_of_weights import BATCH, DATA, INPUTS, STRUCTURES, network
from timing import RESULTS, in_turn, median, spell_ratio, table
from torch import Tensor, nn

from models.references import read_reference
from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize, predict
from pyro_hypernet.train.optimiser import Optim, Optimiser
from pyro_hypernet.train.step import FlatParameters, Stepper

PARTS = ("ceilings", "step", "particles", "mlp", "resnet", "draws")
TASKS = ("toy-gap", "penguins", "moons")
BYTES_PER_PARAMETER = 9 * 4


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, fan_out)
        self.second = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, fan_out)
        self.stride, self.more = stride, fan_out - fan_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(self.norm(self.first(x)).relu()))
        # Channels that are new start from zero.
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return (y + short).relu()


def resnet20() -> nn.Sequential:
    """About 270 000 weights, 41 million multiplications an image."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 + (b > a)) for a, b in pairwise(widths)]
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Bench:
    """One run of the script: what it found so far."""

    def __init__(self, device: str, data: str | None, quick: bool) -> None:
        self.device, self.data, self.quick = torch.device(device), data, quick
        self.records: list[dict[str, Any]] = []
        self.repeats = 3 if quick else 7
        self.theirs: dict[tuple[Any, ...], float] = {}

    def note(self, part: str, **found: Any) -> None:
        """Keeps one line of a table."""
        self.records.append({"part": part, **found})
        print(json.dumps(self.records[-1])[:300], flush=True)

    def time(self, function: Any, calls: int) -> float:
        """Median seconds of a call, the device's queue emptied."""
        times = []
        for _ in range(self.repeats + 1):
            self.wait()
            start = time.perf_counter()
            for _ in range(calls):
                function()
            self.wait()
            times.append((time.perf_counter() - start) / calls)
        return median(times[1:])

    def wait(self) -> None:
        """Until the device has done what it was told to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> int:
        """Most bytes held on the device since the last call."""
        if self.device.type != "cuda":
            return 0
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    # Parts.

    def ceilings(self) -> None:
        size = 2**22 if self.quick else 2**29
        source = torch.zeros(size)
        target = torch.zeros(size)
        bytes_per_second = 8 * size / self.time(lambda: target.copy_(source), 5)
        side = 512 if self.quick else 8192
        a, b = torch.randn(side, side), torch.randn(side, side)
        flops = 2 * side**3 / self.time(lambda: a @ b, 3)
        one = torch.zeros(1)
        launch = self.time(lambda: one.add_(1.0), 2000)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.note("ceilings", bytes=bytes_per_second, flops=flops, launch=launch, name=name, torch=torch.__version__)

    def step(self) -> None:
        for name in TASKS[:1] if self.quick else TASKS:
            reference = read_reference(self.data, name)
            net = reference.model
            model = Broadcasting(net.widths, net.likelihood, net.sigma)
            args = tuple(x.to(self.device) for x in reference.args)
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            compiles = ("off", "graph", "inductor") if name == TASKS[0] and not self.quick else ("off", "graph")
            seconds = in_turn(contestants(model, args, 8, compiles), repeats=self.repeats, calls=10)
            for who, values in seconds.items():
                self.note("step", task=name, who=who, seconds=values, theirs=seconds["Pyro flow"])

    def particles(self) -> None:
        for name in ("toy-gap", "concrete"):
            reference = read_reference(self.data, name)
            args = tuple(x.to(self.device) for x in reference.args)
            for count in (1, 8) if self.quick else (1, 8, 32, 128, 512):
                once, how, guide = self.stepper(reference.model, args, "auto", "auto", count, is_fixed=True)
                self.peak()
                seconds = self.time(once, 10)
                found = {"particles": count, "seconds": seconds, "compile": how, "peak": self.peak()}
                self.note("particles", task=name, dim=guide.latent_dim, **found)

    def mlp(self) -> None:
        x = torch.randn(BATCH, INPUTS)
        y = x.sum(-1) + torch.randn(BATCH)
        for dim in (1e3, 1e4) if self.quick else (1e3, 1e4, 1e5, 1e6, 1e7):
            model = bayesianize(network(dim).to(self.device), "gaussian", num_data=DATA)
            flops = 6 * BATCH * dim
            for structure in STRUCTURES:
                self.large("mlp", model, (x, y), structure, STRUCTURES[structure], 1, flops)

    def resnet(self) -> None:
        x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        if self.quick:
            x, y = x[:4], y[:4]
        model = bayesianize(resnet20().to(self.device), "categorical", num_data=50_000)
        for count in (1,) if self.quick else (1, 4, 16):
            flops = 6 * 41e6 * len(x) * count
            for structure in ("low_rank", "weight_norm", "layerwise")[: 1 if self.quick else 3]:
                self.large("resnet", model, (x, y), structure, STRUCTURES[structure], count, flops)

    def draws(self) -> None:
        reference = read_reference(self.data, "toy-gap")
        args = tuple(x.to(self.device) for x in reference.args)
        x = torch.linspace(-2, 2, 1000)[:, None]
        count, timed = (1000, 50) if self.quick else (10_000, 200)
        for structure in ("full", "informed"):
            guide = AutoHypernet(reference.model, structure=structure).setup(*args)
            made = {
                "predict": lambda guide=guide: self._done(predict(reference.model, guide, x, num_samples=count)),
                "draws alone": lambda guide=guide: self._done(guide.sample_posterior(count)),
            }
            for function in made.values():
                function()
            seconds = in_turn(made, repeats=self.repeats)
            predictive = Predictive(reference.model, guide=guide, num_samples=timed, parallel=False)
            start = time.perf_counter()
            predictive(x)
            self.wait()
            theirs = (time.perf_counter() - start) * count / timed
            for who, values in seconds.items():
                self.note("draws", structure=structure, who=who, seconds=median(values), theirs=theirs)

    def _done(self, _: Any) -> None:
        self.wait()

    def large(
        self, part: str, model: Any, args: tuple, structure: str, hypernet: str, particles: int, flops: float
    ) -> None:
        """One structure of a large network, and AutoNormal beside it."""
        warnings.simplefilter("ignore")
        self.peak()
        once, how, guide = self.stepper(model, args, hypernet, structure, particles, is_fixed=False)
        seconds, peak = self.time(once, 5), self.peak()
        found = {"structure": structure, "dim": guide.latent_dim, "particles": particles, "compile": how}
        parameters = sum(p.numel() for p in guide.parameters())
        least = {"by_bytes": BYTES_PER_PARAMETER * parameters, "by_flops": flops}
        key = part, guide.latent_dim, particles
        if key not in self.theirs:
            pyro.clear_param_store()
            svi = SVI(model, AutoNormal(model), pyro.optim.ClippedAdam({"lr": 1e-4}), Trace_ELBO(particles))
            self.theirs[key] = self.time(lambda: svi.step(*args), 1)
            pyro.clear_param_store()
        theirs = self.theirs[key]
        self.note(part, **found, parameters=parameters, seconds=seconds, theirs=theirs, peak=peak, **least)

    def stepper(
        self, model: Any, args: tuple, hypernet: str, structure: str, particles: int, *, is_fixed: bool
    ) -> tuple[Any, str, AutoHypernet]:
        """A function that makes one step of `fit`, captured, how it runs, and the guide."""
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoHypernet(model, hypernet, structure).setup(*args)
        elbo = VectorizedELBO(particles)
        elbo.prepare(model, guide, args, {})
        parameters = FlatParameters([*guide.parameters(), *elbo.params.values()])
        step = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10**6, is_fixed=is_fixed)
        run = Optimiser(parameters.vectors, 10**6, Optim(1e-4, keep="last"))

        def once() -> None:
            run.step(step(args))

        for _ in range(6):
            once()
        return once, step.compile + (f" ({step.reason})" if step.compile == "off" else ""), guide


def report(records: list[dict[str, Any]]) -> str:
    """All tables."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(record["part"], []).append(record)
    ceilings = parts.get("ceilings", [None])[0]
    text = ["Made by speed_on_a_gpu.py; float32 without tf32.", ""]
    if ceilings is not None:
        text.append(
            f"{ceilings['name']}, torch {ceilings['torch']}: {ceilings['bytes'] / 1e12:.2f} TB/s read and written by "
            f"a copy, {ceilings['flops'] / 1e12:.1f} TFLOP/s by a product, {1e6 * ceilings['launch']:.1f} µs a launch."
        )
    if "step" in parts:
        rows = [
            [r["task"], r["who"], f"{1e3 * median(r['seconds']):.2f}", spell_ratio(r["seconds"], r["theirs"])]
            for r in parts["step"]
        ]
        text += ["", "8 particles; ratio to Pyro's flow, median [least, greatest]:", ""]
        text.append(table(["task", "who", "ms", "ratio"], rows))
    if "particles" in parts:
        rows = [
            [
                r["task"],
                r["particles"],
                f"{1e3 * r['seconds']:.2f}",
                f"{r['particles'] / r['seconds']:.0f}",
                f"{r['peak'] / 1e6:.0f}",
                r["compile"],
            ]
            for r in parts["particles"]
        ]
        headings = ["task", "particles", "ms", "particles/s", "peak MB", "how"]
        text += ["", "The default guide:", "", table(headings, rows)]
    for part, title in (("mlp", "Two hidden layers"), ("resnet", "ResNet-20")):
        if part not in parts:
            continue
        rows = []
        for r in parts[part]:
            shares = ["", ""]
            if ceilings is not None:
                by_bytes, by_flops = r["by_bytes"] / ceilings["bytes"], r["by_flops"] / ceilings["flops"]
                shares = [f"{1e3 * max(by_bytes, by_flops):.3f}", f"{max(by_bytes, by_flops) / r['seconds']:.2f}"]
            times = [f"{1e3 * r['seconds']:.2f}", f"{1e3 * r['theirs']:.2f}", f"{r['seconds'] / r['theirs']:.2f}"]
            size = [r["structure"], r["dim"], r["parameters"], r["particles"]]
            rows.append([*size, *times, *shares, f"{r['peak'] / 1e6:.0f}", r["compile"]])
        headings = ["structure", "D", "parameters", "particles", "ms", "AutoNormal, ms", "ratio"]
        headings += ["least ms", "share of the ceiling", "peak MB", "how"]
        text += ["", f"{title}, minibatch of {BATCH}:", "", table(headings, rows)]
        for structure in STRUCTURES:
            of_one = [r for r in parts[part] if r["structure"] == structure and r["dim"] > 1e4]
            if part == "mlp" and len(of_one) > 1:
                first, last = of_one[0], of_one[-1]
                slope = math.log(last["seconds"] / first["seconds"]) / math.log(last["dim"] / first["dim"])
                text += ["", f"{structure}: slope {slope:.2f} in log–log from D = {first['dim']} to {last['dim']}."]
    if "draws" in parts:
        rows = [
            [r["structure"], r["who"], f"{r['seconds']:.3f}", f"{r['theirs']:.1f}", f"{r['seconds'] / r['theirs']:.4f}"]
            for r in parts["draws"]
        ]
        text += ["", "10 000 draws, predictions on 1 000 inputs; Pyro's Predictive scaled up from 200 draws:", ""]
        text.append(table(["structure", "what", "seconds", "Pyro's", "ratio"], rows))
    return "\n".join(text) + "\n"


def main() -> None:
    """Runs the parts that were asked for; a part that fails is named and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help="folder that holds references/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", default=str(RESULTS / "speed_gpu"), help="path of the results, without ending")
    parser.add_argument("--quick", action="store_true", help="small sizes, three repeats")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("No CUDA device: run this on a machine that has one. Nothing was run.")
        return
    if options.data is None:
        print("No reference posteriors: pass --data FOLDER or set PYRO_HYPERNET_DATA. Nothing was run.")
        return
    bench = Bench(options.device, options.data, options.quick)
    with torch.device(options.device):
        for part in options.parts:
            start = time.perf_counter()
            try:
                getattr(bench, part)()
            except Exception:
                print(f"{part} failed:\n{traceback.format_exc()[-3000:]}", flush=True)
            print(f"{part}: {time.perf_counter() - start:.0f} s", flush=True)
            with open(options.out + ".jsonl", "w") as file:
                file.writelines(json.dumps(record) + "\n" for record in bench.records)
            with open(options.out + ".md", "w") as file:
                file.write(report(bench.records))
    print(report(bench.records))


if __name__ == "__main__":
    main()

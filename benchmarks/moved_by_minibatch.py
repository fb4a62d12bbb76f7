"""Draws of a guide moved towards the posterior by minibatches, and distilled back into the guide: a network on MNIST.

    python benchmarks/moved_by_minibatch.py [--quick] [--data FOLDER] [--seeds 2]

Network, images and minibatches of real_tasks.py: 784-100-10, 5 000 images, 10 000 test
images. A mean field is fitted at temperature 1 and at .01, its draws are moved in 8 chains at either temperature, and
the moved draws teach the guide. 48 draws predict. Seconds are of this process on one thread, for this step alone.
"""

import argparse
import copy
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import torch
from class_scores import class_scores, outputs_of
from data_folder import options_with_data
from real_tasks import TASKS, Images, Net, loader
from timing import keep, spread, table
from torch import nn

from pyro_hypernet import AutoHypernet, Plan, SghmcKernel, bayesianize, distill, fit, move_by_minibatch

NUM_DRAWS, TEMPERATURES = 48, (1.0, 0.01)


@torch.no_grad()
def scores(model: nn.Module, posterior: Any, data: Images) -> dict[str, float]:
    """Of the test images."""
    x, y = data.test
    return class_scores(outputs_of(model, posterior, x, NUM_DRAWS).softmax(-1).mean(0), y)


def measure(data: Images, seed: int, temperature: float, num_steps: int) -> list[dict[str, Any]]:
    """A guide at a temperature, and what becomes of it."""
    model, batches, records = bayesianize(Net(), "categorical", num_data=len(data.all[0])), loader(data.all), []
    guide = AutoHypernet(model, plan=Plan("full", "identity", temperature=temperature))

    def keep_row(name: str, start: float, posterior: Any) -> None:
        seconds = time.process_time() - start
        records.append({"method": name, "seed": seed, "seconds": seconds, **scores(model, posterior, data)})
        print(records[-1], flush=True)

    start = time.process_time()
    fit(model, guide, batches, num_steps=num_steps, progress=False)
    keep_row(f"mean field at {temperature:g}", start, guide)
    for other in TEMPERATURES:
        start, options = time.process_time(), {"num_steps": num_steps, "warmup_steps": num_steps // 3}
        options |= {"num_samples": 4 * NUM_DRAWS, "progress": False}
        moved = move_by_minibatch(model, guide, batches, kernel=SghmcKernel(temperature=other), **options)
        print(f"step size {moved.step_size:.3g}, kinetic temperature {moved.kinetic_temperature:.3g}", flush=True)
        name = f"mean field at {temperature:g}, moved at {other:g}"
        keep_row(name, start, moved)
        start, pupil = time.process_time(), copy.deepcopy(guide)
        result = distill(pupil, moved, num_steps=num_steps // 3, progress=False)
        print(
            f"nats a draw {result.nll_before:.0f} before, {result.nll:.0f} after; {result.stopped_because}", flush=True
        )
        keep_row(f"{name}, distilled", start, pupil)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 000 images, a minute")
    parser.add_argument("--seeds", type=int, default=None, help="2, quick 1")
    parser.add_argument("--steps", type=int, default=None, help="of a fit, and of the chains; 3 000, quick 300")
    options = options_with_data(parser, what="images", help="folder that holds mnist.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sizes = (1000, 1000) if options.quick else TASKS["mnist"].sizes
    data = TASKS["mnist"].images(Path(options.data), *sizes)
    num_steps = options.steps or (300 if options.quick else 3000)
    records, count = [], options.seeds or (1 if options.quick else 2)
    for seed in range(count):
        for temperature in TEMPERATURES:
            pyro.set_rng_seed(seed)
            records += measure(data, seed, temperature, num_steps)
    keys = {"accuracy": ("accuracy %", 2), "nll": ("NLL", 3), "ece": ("ECE", 4), "seconds": ("seconds of CPU", 0)}
    rows = []
    for name in dict.fromkeys(record["method"] for record in records):
        values = [([r[key] for r in records if r["method"] == name], digits) for key, (_, digits) in keys.items()]
        rows.append((name, *(spread(v, d) for v, d in values)))
    text = f"{__doc__}\nMedians, least and greatest of {count} seeds, {num_steps} steps.\n\n"
    text += table(("", *(heading for heading, _ in keys.values())), rows) + "\n"
    keep("moved_by_minibatch", records, text, quick=options.quick)


if __name__ == "__main__":
    main()

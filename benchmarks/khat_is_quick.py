"""k-hat from 10 000 draws on a network of 500 weights takes seconds, and so does a whole diagnosis.

python benchmarks/khat_is_quick.py [--quick]
"""

import argparse
import time
from pathlib import Path

import pyro
import torch

from models.networks import tanh_network
from pyro_hypernet import AutoHypernet, bayesianize, fan_in, khat
from pyro_hypernet.evaluation.diagnose import diagnose

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Times three runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 000 draws; to a file of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    x, y = torch.randn(332, 10), torch.randn(332)
    model = bayesianize(tanh_network(10, 41, 1), "gaussian", prior=fan_in(gain=1.5))
    guide = AutoHypernet(model).setup(x, y)
    num_samples = 1000 if options.quick else 10_000
    lines = ["| what | weights | data | draws | wall seconds | CPU seconds |", "|---" * 6 + "|"]
    for name, work in {
        "k-hat, first call": lambda: khat(model, guide, x, y, num_samples=num_samples),
        "k-hat, again": lambda: khat(model, guide, x, y, num_samples=num_samples),
        "diagnose, from the guide's draws": lambda: diagnose(
            model, guide, x, y, num_samples=num_samples, max_seconds=0
        ),
    }.items():
        start = time.perf_counter(), time.process_time()
        work()
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        lines.append(f"| {name} | {guide.latent_dim} | {len(y)} | {num_samples} | {wall:.1f} | {cpu:.1f} |")
        print(lines[-1], flush=True)
    out = RESULTS / ("khat-quick.md" if options.quick else "khat.md")
    out.write_text("One thread, CPU.\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

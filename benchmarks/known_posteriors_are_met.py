"""The default guide against posteriors that are known: posteriordb's draws, and toys with two modes and exact evidence.

python benchmarks/known_posteriors_are_met.py --data FOLDER [--seeds 3] [--quick]
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pyro
import torch

from models import PROBLEMS
from models.posteriordb import POSTERIORS, PosteriorDB, read_posteriordb
from pyro_hypernet import AutoHypernet, fit
from pyro_hypernet.evaluation.importance import elbo

RESULTS = Path(__file__).parent / "results"
NUM_DRAWS = 10_000
HEADINGS = (
    "| posterior | guide | seed | worst mean, in sds | worst sd, share | ELBO − log evidence | share > 0 | seconds |"
)


def against_draws(posterior: PosteriorDB, seed: int, num_steps: int) -> str:
    """One row: marginal means and sds of the default guide against the reference draws'."""
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(posterior.model)
    result = fit(posterior.model, guide, posterior.args, num_steps=num_steps, progress=False)
    draws = posterior.to_reference(guide.sample_posterior(NUM_DRAWS)).double()
    mean, sd = torch.as_tensor(posterior.mean).double(), torch.as_tensor(posterior.sd).double()
    means = float(((draws.mean(0) - mean) / sd).abs().max())
    sds = float((draws.std(0) / sd - 1).abs().max())
    return f"| {posterior.name} | default | {seed} | {means:.3f} | {sds:.3f} | – | – | {result.seconds:.0f} |"


def against_evidence(name: str, num_components: int, seed: int, num_steps: int) -> str:
    """One row: the bound against the exact evidence, and the share of draws in the mode of positive weights."""
    problem = PROBLEMS[name]()
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(problem.model, num_components=num_components)
    result = fit(problem.model, guide, problem.args, num_steps=num_steps, progress=False)
    gap = elbo(problem.model, guide, *problem.args, num_samples=NUM_DRAWS)[0] - problem.truth["log_evidence"]
    draws = guide.sample_posterior(NUM_DRAWS)
    values = draws["a"] if name == "abx" else draws["z"].sum(-1)
    share = float((values > 0).float().mean())
    label = "default" if num_components == 1 else f"num_components={num_components}"
    return f"| {name} | {label} | {seed} | – | – | {gap:.3f} | {share:.2f} | {result.seconds:.0f} |"


def main(say: Callable[[str], None] = print) -> None:
    """Runs all rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help="folder that holds posteriordb/")
    parser.add_argument("--out", type=Path, default=RESULTS / "known.md")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="the toys alone, one seed, 200 steps; to a file of its own"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.data = 1, None
        options.out = options.out.with_name(options.out.stem + "-quick.md")
    lines = [HEADINGS, "|---" * 8 + "|"]
    for seed in range(options.seeds):
        for name in ("abx", "two-modes"):
            for num_components in (1, 2):
                lines.append(against_evidence(name, num_components, seed, 200 if options.quick else 2000))
                say(lines[-1])
        for name in POSTERIORS if options.data else ():
            lines.append(against_draws(read_posteriordb(options.data, name), seed, 5000))
            say(lines[-1])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        f"One thread, CPU. True shares > 0: abx .50, two-modes .70. {NUM_DRAWS} draws.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()

"""SBC on ways to fit that are known to be right or wrong: it flags what the verdict flags.

python benchmarks/simulated_data_flag_the_same.py [--num-simulations 100] [--processes 2] [--quick]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from guides_good_and_bad import gaussian_guide
from torch import Tensor

from models import PROBLEMS
from models.conjugate_regression import NOISE, PRIOR_SD
from models.two_modes import two_modes
from pyro_hypernet import AutoHypernet, Plan, fit
from pyro_hypernet.calibration.sbc import sbc
from pyro_hypernet.maps.hypernets import identity

RESULTS = Path(__file__).parent / "results"
ALPHA = 0.01


def observed(model: Any, *args: Any) -> Tensor:
    """The simulated data of a model that `sbc` hands to `train`."""
    with pyro.poutine.block():
        return pyro.poutine.trace(model).get_trace(*args).nodes["y"]["value"]


def closed_form(*, width: float = 1.0, shift: float = 0.0) -> Callable[..., Any]:
    """The exact posterior of the conjugate regression, its width and place changed by sds."""

    def train(model: Any, x: Tensor, y: Tensor) -> Any:
        covariance = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(x.shape[1]) / PRIOR_SD**2)
        mean = covariance @ x.T @ observed(model, x, y) / NOISE**2
        away = shift * covariance.diagonal().sqrt()
        return gaussian_guide(model, (x, y), mean + away, width**2 * covariance)

    return train


def one_mode(model: Any, y: Tensor) -> Any:
    """The heavier mode of two, exactly."""
    shrink = 2.0**2 / (2.0**2 + 0.5**2)
    return gaussian_guide(model, (y,), shrink * observed(model, y), shrink * 0.5**2 * torch.eye(2))


def both_modes(model: Any, y: Tensor) -> dict[str, Tensor]:
    """The exact posterior of two modes, as draws."""
    shrink = 2.0**2 / (2.0**2 + 0.5**2)
    sign = torch.where(torch.rand(500, 1) < 0.7, 1.0, -1.0)
    return {"z": sign * shrink * observed(model, y) + (shrink * 0.5**2) ** 0.5 * torch.randn(500, 2)}


def trained(*guide_args: Any, num_steps: int) -> Callable[..., Any]:
    """An AutoHypernet, `fit`."""

    def train(model: Any, *args: Any) -> AutoHypernet:
        guide = AutoHypernet(model, *guide_args)
        fit(model, guide, args, num_steps=num_steps, plan=Plan(rejection=None), progress=False)
        return guide

    return train


CASES = [
    ("exact", True, "conjugate-regression", closed_form()),
    ("default, 200 steps", True, "conjugate-regression", trained(num_steps=200)),
    ("both modes", True, "two-modes", both_modes),
    ("too narrow by 2", False, "conjugate-regression", closed_form(width=0.5)),
    ("too wide by 2", False, "conjugate-regression", closed_form(width=2.0)),
    ("1 sd off", False, "conjugate-regression", closed_form(shift=1.0)),
    ("one mode of two", False, "two-modes", one_mode),
    ("mean field", False, "conjugate-regression", trained(identity, "full", num_steps=400)),
    ("almost a point", False, "conjugate-regression", closed_form(width=0.01)),
]


def main() -> None:
    """Runs all cases and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-simulations", type=int, default=100)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--journals", type=Path, help="a folder for finished fits, to go on from")
    parser.add_argument("--out", type=Path, default=RESULTS / "sbc.md")
    parser.add_argument("--quick", action="store_true", help="20 simulations, nothing trained; to a file of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = CASES
    if options.quick:
        options.num_simulations, options.out = 20, options.out.with_name("sbc-quick.md")
        cases = [case for case in CASES if case[0] in ("exact", "too narrow by 2", "too wide by 2")]
    lines = ["| fit | is | problem | flagged | p, Bonferroni | shapes |", "|---" * 6 + "|"]
    for name, is_good, problem_name, train in cases:
        problem = two_modes() if problem_name == "two-modes" else PROBLEMS[problem_name]()
        amounts = {"num_simulations": options.num_simulations, "num_processes": options.processes, "alpha": ALPHA}
        path = options.journals and options.journals / f"{name.replace(' ', '-')}-{problem_name}.jsonl"
        found = sbc(problem.model, *problem.args, train=train, path=path, **amounts)
        shapes = sorted({shape for shape in found.shapes.values() if shape != "uniform"})
        flagged = "no" if found.is_calibrated else "yes"
        cells = [name, "good" if is_good else "bad", problem_name, flagged, f"{found.p_value:.3g}", ", ".join(shapes)]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    heading = f"{options.num_simulations} simulations, 500 draws; a right fit is flagged with probability {ALPHA}."
    options.out.write_text(heading + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

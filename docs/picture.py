"""Draws docs/_static/picture.png: a guide, the mean field and NUTS on data with a gap.

python docs/picture.py [--quick]
"""

import argparse
from pathlib import Path

import matplotlib
import pyro
import torch
from torch import nn

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pyro_hypernet import AutoHypernet, bayesianize, fit, nuts, predict
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.output.plots import predictive_band

X = torch.cat([torch.linspace(-1.0, -0.3, 25), torch.linspace(0.35, 1.0, 25)])
X_NEW = torch.linspace(-1.3, 1.3, 120)


def draw(draws: dict[str, torch.Tensor], y: torch.Tensor, path: Path) -> None:
    """One panel per posterior: its bands with the data; NUTS's 90 % as dashes in every panel."""
    fig, axes = plt.subplots(1, len(draws), figsize=(10, 3.2), sharey=True, layout="constrained")
    edges = draws["NUTS"][..., 0].quantile(torch.tensor([0.05, 0.95]), dim=0)
    for ax, (name, f), color in zip(axes, draws.items(), ("#2f6fb3", "#b5533c", "#5b6570"), strict=True):
        predictive_band(X_NEW, f, ax=ax, data=(X, y), color=color)
        if name != "NUTS":
            ax.plot(X_NEW, edges.T, "--", color="#5b6570", linewidth=1, label=["90 % by NUTS", None])
            ax.legend(frameon=False, fontsize=9, loc="upper left")
        ax.set_title(name, fontsize=11)
        ax.set_ylim(-1.9, 1.9)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)


def main() -> None:
    """Fits, samples and draws; minutes on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps and draws: whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "_static" / "picture.png")
    args = parser.parse_args()
    steps, count = (50, 20) if args.quick else (3000, 1000)
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    y = torch.sin(4 * X) + 0.1 * torch.randn(len(X))
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    model = bayesianize(net, Gaussian(sigma=0.1))
    guides = {"AutoHypernet": AutoHypernet(model), "mean field": AutoHypernet(model, "identity", "full")}
    draws = {}
    for name, guide in guides.items():
        fit(model, guide, (X[:, None], y), num_steps=steps, progress=False)
        draws[name] = predict(model, guide, X_NEW[:, None], num_samples=count)["f"]
    reference = nuts(model, X[:, None], y, num_samples=count // 4, warmup_steps=count // 2)
    print(f"R-hat of functions {reference.max_function_rhat:.3f}, {reference.seconds:.0f} s")
    draws["NUTS"] = predict(model, reference, X_NEW[:, None], num_samples=count)["f"]
    draw(draws, y, args.out)


if __name__ == "__main__":
    main()

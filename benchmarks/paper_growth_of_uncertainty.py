"""A 1-D regression: the sd of the function against the distance from the data, beside NUTS.

    python benchmarks/paper_growth_of_uncertainty.py [--quick] [--seeds 2]

"blundell": `y = x + .3 sin(2π(x + e)) + .3 sin(4π(x + e)) + e`, e ~ Normal(0, .02²), as in the paper, but 100 data
(there 1 000), uniform on (0, .5), standardised; a net 1-50-1 with ReLU, Normal(0, 1) priors on all weights, noise
learnt. "clusters": the problem "gap" of models/: 50 data on (−1.5, −.5) and (.5, 1.5), a net 1-20-1 with tanh, noise .1
known.

A width is that of the data, of "clusters" that of one cluster. "Inside" is where data lie, the sd its root mean square
there; outside that of both sides. "1 / inside": how much wider the band is one width outside (target: at least 2). "At
1, to NUTS": the ratio of the sd at one width to that of NUTS, one run (target: .8 to 1.2); "between" the
same in the middle between the clusters. Guides: 1 000 steps of `fit`; weight norm: `parametrization="weight_norm"`,
whose directions are points, as in the paper. Dropout of .1 and .5 and an ensemble of 5: 1 000 steps of Adam at .01, all
data at once, each net; 1 000 draws of all. NUTS: four chains of 200 draws after 300 steps of adaptation, trees of at
most depth 8, all in one process; `refine`: 200 draws. One thread, two slow cores shared with others; seconds are CPU
seconds of the process.
"""

import math
from functools import partial
from typing import Any

import torch
from paper_methods import Dropout, options_of
from timing import median, medians, run_cells, table
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from models import PROBLEMS
from pyro_hypernet import AutoHypernet, NutsKernel, bayesianize, fit, nuts, predict, refine
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.bnn.priors import fan_in

DISTANCES, NUM_DRAWS = (0.25, 0.5, 1.0, 2.0), 1000
NUTS = "NUTS"


class Task:
    """Data, the network and its prior, and where the function is looked at."""

    def __init__(self, name: str) -> None:
        if name == "clusters":
            self.x, self.y = PROBLEMS["gap"]().args
            self.widths, self.options = (1, 20, 1), {"likelihood": Gaussian(sigma=0.1), "prior": fan_in(gain=1.5)}
            self.edges, self.width, self.between = (-1.5, 1.5), 1.0, torch.linspace(-0.1, 0.1, 5)
        else:
            generator = torch.Generator().manual_seed(0)
            x, e = 0.5 * torch.rand(100, generator=generator), 0.02 * torch.randn(100, generator=generator)
            y = x + 0.3 * (2 * math.pi * (x + e)).sin() + 0.3 * (4 * math.pi * (x + e)).sin() + e
            self.x, self.y = ((x - 0.25) / (0.5 / 12**0.5))[:, None], (y - y.mean()) / y.std()
            self.widths, self.options = (1, 50, 1), {"likelihood": "gaussian", "prior": 1.0}
            self.edges, self.width, self.between = (-(3**0.5), 3**0.5), 2 * 3**0.5, torch.zeros(0)
        distances = self.width * torch.tensor(DISTANCES)
        outside = torch.cat([self.edges[0] - distances, self.edges[1] + distances])
        self.x_new = torch.cat([outside, self.x[:, 0], self.between])[:, None]

    def network(self, rate: float = 0.0) -> nn.Sequential:
        inputs, hidden, outputs = self.widths
        unit = nn.Tanh() if self.options["prior"] != 1.0 else nn.ReLU()
        return nn.Sequential(nn.Linear(inputs, hidden), unit, Dropout(rate), nn.Linear(hidden, outputs))

    def sds(self, f: Tensor) -> dict[str, float]:
        """From the function at `x_new`, shape `(S, N)`, to its sd inside, at every distance, and between."""
        outside, inside, between = f.var(0).split([2 * len(DISTANCES), len(self.x), len(self.between)])
        found = {"inside": inside.mean(), **dict(zip(map(str, DISTANCES), outside.view(2, -1).mean(0), strict=True))}
        if len(between):
            found["between"] = between.mean()
        return {key: float(value.sqrt()) for key, value in found.items()}


def guided(task: Task, num_steps: int, *choices: str, **options: Any) -> Tensor:
    model = bayesianize(task.network(), **task.options, **options)
    guide = AutoHypernet(model, *choices)
    fit(model, guide, (task.x, task.y), num_steps=num_steps, progress=False)
    return predict(model, guide, task.x_new, num_samples=NUM_DRAWS, return_sites=["f"])["f"][..., 0]


def by_nuts(task: Task, num_steps: int) -> Tensor:
    model = bayesianize(task.network(), **task.options)
    options = {"num_samples": num_steps // 5, "warmup_steps": 3 * num_steps // 10}
    chains = nuts(model, task.x, task.y, kernel=NutsKernel(max_tree_depth=8, num_processes=1), **options)
    return predict(model, chains, task.x_new, num_samples=NUM_DRAWS, return_sites=["f"])["f"][..., 0]


def refined(task: Task, num_steps: int) -> Tensor:
    model = bayesianize(task.network(), **task.options)
    found = refine(model, task.x, task.y, num_samples=num_steps // 5, progress=False)
    return predict(model, found, task.x_new, num_samples=NUM_DRAWS, return_sites=["f"])["f"][..., 0]


def trained(task: Task, num_steps: int, rate: float = 0.0) -> nn.Module:
    net = task.network(rate)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(num_steps):
        optimizer.zero_grad()
        mse_loss(net(task.x)[:, 0], task.y).backward()
        optimizer.step()
    return net


@torch.no_grad()
def by_dropout(task: Task, num_steps: int, rate: float) -> Tensor:
    with torch.enable_grad():
        net = trained(task, num_steps, rate)
    return torch.stack([net(task.x_new)[:, 0] for _ in range(NUM_DRAWS)])


def ensemble(task: Task, num_steps: int) -> Tensor:
    return torch.stack([trained(task, num_steps)(task.x_new)[:, 0].detach() for _ in range(5)])


METHODS = {
    NUTS: by_nuts,
    "refine": refined,
    "default guide": guided,
    "8 couplings, full": lambda task, num_steps: guided(task, num_steps, "coupling", "full"),
    "weight norm, directions learnt": partial(guided, parametrization="weight_norm"),
    "mean field": lambda task, num_steps: guided(task, num_steps, "identity", "full"),
    "dropout .1": partial(by_dropout, rate=0.1),
    "dropout .5": partial(by_dropout, rate=0.5),
    "ensemble of 5": ensemble,
}


def run(task: str, method: str, seed: int, num_steps: int) -> dict[str, float]:
    made = Task(task)
    return made.sds(METHODS[method](made, num_steps))


def report(records: list[dict]) -> str:
    parts = [__doc__, "Median [least, greatest] of the seeds."]
    for task in dict.fromkeys(record["task"] for record in records):
        reference = [record for record in records if (record["task"], record["method"]) == (task, NUTS)]
        rows = []
        for method in METHODS:
            mine = [record for record in records if (record["task"], record["method"]) == (task, method)]
            added = [{**record, **_ratios(record, reference)} for record in mine]
            keys = {"inside": 3, "0.5": 3, "1.0": 3, "2.0": 3, "growth": 1, "to NUTS": 2, "between, to NUTS": 2}
            rows.append([method, len(mine), *medians(added, {**keys, "seconds": 0})])
        headings = ["", "seeds", "sd inside", "½ width", "1 width", "2 widths", "1 / inside"]
        headings += ["at 1, to NUTS", "between, to NUTS", "CPU seconds"]
        parts.append(f"{task}:\n\n{table(headings, rows)}")
    return "\n\n".join(parts)


def _ratios(record: dict, reference: list[dict]) -> dict[str, float]:
    found = {"growth": record["1.0"] / record["inside"]}
    for key, name in (("1.0", "to NUTS"), ("between", "between, to NUTS")):
        if reference and key in record:
            found[name] = record[key] / median([other[key] for other in reference])
    return found


def main() -> None:
    options = options_of(__doc__, seeds=2, quick="one seed, 100 steps")
    seeds, num_steps = (1, 100) if options.quick else (options.seeds, 1000)
    cells = [
        {"task": task, "method": method, "seed": seed, "num_steps": num_steps}
        for seed in range(seeds)
        for task in ("clusters", "blundell")
        for method in METHODS
        if method != NUTS or seed == 0
    ]
    run_cells("paper_growth", cells, run, report, quick=options.quick)


if __name__ == "__main__":
    main()

"""What can be cut out of a network: by the posterior's draws under three priors, against pruning by magnitude.

    python benchmarks/sparsity.py --data FOLDER [--quick] [--seeds 1]

Two tasks. *spambase*: 57 frequencies, 57-16-1 tanh, a third to learn from, a third to test; weights one by one, and
inputs. *text*: 3 000 made sentences of 8 words out of 60, of which twelve speak for a class and all others for none;
embedding of 4, LSTM of 6 units, one logit; rows of the embedding. The guide: `AutoHypernet` with hypernet "linear", a
Gaussian, at the network's own values at first. Pruning: the same network learnt by Adam with weight decay 1e-4, the
smallest weights (rows, columns by their norms) set to zero by torch.nn.utils.prune; "tuned": then learnt on for a third
as many steps. All figures are log predictive densities of test data, in nats per datum; every share is shown, none is
chosen. *single*: the smaller network of `sparsify`, with the mean weights. The *funnel*: ELBO and test score of the
default guide on an 8-6-1 tanh network of which two inputs count, weights apart from their scales (as the package has
it) and as normals of random scales. The task *text* has not been run to its end: it has no table. Seconds of the
process on one thread. Cells in the file are not run again.
"""

import argparse
import math
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from adam_passes import adam_passes
from data_folder import options_with_data
from pyro.infer.autoguide import init_to_value
from timing import run_cells, spread, table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet import AutoHypernet, bayesianize, fit, score, sparsify
from pyro_hypernet.bnn.shrinkage import Scaled

SHARES = (0.0, 0.5, 0.75, 0.9, 0.95)
PRIORS = ("fan_in", "ard", "horseshoe")
WORDS, SPEAKING, LENGTH = 60, 12, 8
Split = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Text(nn.Module):
    """One logit of a sentence, shape `(N, 1)`, from its words, shape `(N, T)`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.out = nn.Linear(6, 1)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.rnn(self.words(words))[0].mean(1))


def spambase(folder: Path, seed: int) -> Split:
    file = np.load(folder / "classification" / "spambase.npz")
    x, y = torch.tensor(file["X"]).float().log1p(), torch.tensor(file["y"] == file["y"].max()).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    learn, test = order[: len(x) // 3], order[-(len(x) // 3) :]
    x = (x - x[learn].mean(0)) / x[learn].std(0).clamp_min(1e-6)
    return (x[learn], y[learn]), (x[test], y[test])


def text(folder: Path, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (4000, LENGTH), generator=generator)
    worth = torch.zeros(WORDS)
    worth[:SPEAKING] = torch.tensor([3.0, -3.0]).repeat(SPEAKING // 2)
    y = torch.bernoulli(worth[words].sum(1).sigmoid(), generator=generator)
    return (words[:3000], y[:3000]), (words[-1000:], y[-1000:])


# A task: its data, what is cut of its network, and of each the parameters with the axis that counts parts.
TASKS = {
    "spambase": (spambase, {"weights": {"0": None, "2": None}, "inputs": {"0": 1}}),
    "text": (text, {"rows": {"words": 0}}),
}
# Whether weights are normals of random scales in the funnel.
FUNNELS = {"funnel, apart": False, "funnel, centred": True}


def network(task: str) -> nn.Module:
    return Text() if task == "text" else nn.Sequential(nn.Linear(57, 16), nn.Tanh(), nn.Linear(16, 1))


def by_draws(task: str, prior: str, split: Split, steps: int) -> Iterator[dict]:
    """For every share: the draws' log predictive density of the test data, and the single network's."""
    (x, y), test = split
    model = bayesianize(network(task), "bernoulli", prior=prior)
    guide = AutoHypernet(model, "linear", init_loc_fn=init_to_value(values=model.initial_values))
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    fit(model, guide, batches, num_steps=steps, progress=False)
    samples = guide.sample_posterior(100)
    for parts, by, share in product(TASKS[task][1], ("signal", "scale"), SHARES):
        found = sparsify(model, samples, test, parts=parts, by=by, shares=[share], max_loss=math.inf)
        whole = found.curve[0][1]
        yield {"parts": parts, "by": by, "share": share, "draws": whole - found.loss, "single": whole - found.net_loss}


def learn(net: nn.Module, batches: DataLoader, steps: int) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits[:, 0], labels)

    passes = adam_passes(net, loss, lambda: batches, 3e-3, weight_decay=1e-4)
    next(done for done in passes if done >= steps)


def by_magnitude(task: str, split: Split, steps: int) -> Iterator[dict]:
    (x, y), (x_test, y_test) = split
    batches = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    whole = network(task)
    learn(whole, batches, steps)

    @torch.no_grad()
    def density(net: nn.Module) -> float:
        return -float(binary_cross_entropy_with_logits(net(x_test)[:, 0], y_test))

    for (parts, places), share in product(TASKS[task][1].items(), SHARES):
        net = network(task)
        net.load_state_dict(whole.state_dict())
        weights = [(net.get_submodule(name), "weight") for name in places]
        if parts == "weights":
            prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=share)
        else:
            for (module, name), axis in zip(weights, places.values(), strict=True):
                prune.ln_structured(module, name, share, n=2, dim=axis)
        before = density(net)
        learn(net, batches, steps // 3)
        yield {"parts": parts, "by": "magnitude", "share": share, "single": before, "tuned": density(net)}


def funnel(prior: str, centred: bool, steps: int) -> dict:
    """ELBO and score of the default guide where weights are, or are not, normals of random scales."""

    def sample(self: Scaled, name: str) -> Tensor:
        sites = self.names(name)
        parts = {part: pyro.sample(sites[part], each) for part, each in self.priors.items() if part != "z"}
        scale = self.weights({**parts, "z": torch.ones(self.shape)})
        return pyro.sample(sites["z"], dist.Normal(0.0, scale).to_event(len(self.shape)))

    x = torch.randn(280, 8)
    y = torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.2 * torch.randn(280)
    model = bayesianize(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1)), "gaussian", prior=prior)
    guide = AutoHypernet(model)
    with patch.object(Scaled, "sample", sample if centred else Scaled.sample):
        elbo = fit(model, guide, (x[:80], y[:80]), num_steps=steps, progress=False).elbo
        return {"elbo": float(elbo), "draws": score(model, guide, (x[80:], y[80:])).log_predictive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="100 steps, one seed")
    options = options_with_data(parser, what="tables", help="folder that holds classification/spambase.npz")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds, steps = (1, 100) if options.quick else (options.seeds, 1000)

    def run(task: str, prior: str, seed: int) -> list[dict]:
        if task in FUNNELS:
            return [funnel(prior, FUNNELS[task], steps)]
        split = TASKS[task][0](Path(options.data), seed)
        return list(by_magnitude(task, split, steps) if prior == "none" else by_draws(task, prior, split, steps))

    kinds = [*product(FUNNELS, PRIORS[1:]), *product(TASKS, ("none", *PRIORS))]
    cells = [{"task": task, "prior": prior, "seed": seed} for seed in range(seeds) for task, prior in kinds]
    run_cells("sparsity", cells, run, report, quick=options.quick)


def report(records: list[dict]) -> str:
    """The tables."""

    def cells(chosen: list[dict], key: str, digits: int = 3) -> str:
        return spread([record[key] for record in chosen], digits)

    def rows(chosen: list[dict], *names: str) -> dict[tuple, list[dict]]:
        grouped: dict[tuple, list[dict]] = {}
        for record in chosen:
            grouped.setdefault(tuple(record[name] for name in names), []).append(record)
        return grouped

    tables = []
    for (task, parts), chosen in rows([r for r in records if "parts" in r], "task", "parts").items():
        for key in ("draws", "single", "tuned"):
            lines = []
            for names, mine in rows([r for r in chosen if key in r], "prior", "by").items():
                each = [cells([r for r in mine if r["share"] == share], key) for share in SHARES]
                lines.append([*names, *each, cells(mine, "seconds", 0)])
            headings = ["prior", "by", *(f"{share:.0%} cut" for share in SHARES), "seconds"]
            tables += [f"## {task}, {parts}: {key}", table(headings, lines)] if lines else []
    found = rows([r for r in records if r["task"].startswith("funnel")], "task", "prior")
    lines = [
        [*names, cells(mine, "elbo", 1), cells(mine, "draws"), cells(mine, "seconds", 0)]
        for names, mine in found.items()
    ]
    tables += ["## The funnel", table(["sites", "prior", "ELBO", "test", "seconds"], lines)]
    return "\n\n".join([f"{__doc__}\nMedian [least, greatest] of the seeds.", *tables])


if __name__ == "__main__":
    main()

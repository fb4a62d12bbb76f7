"""sbc: draw weights from the prior and data from the weights, fit, and see where the weights rank among the draws."""

import copy
import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_hypernet.calibration.ecdf import ecdf, uniform_p_value
from pyro_hypernet.calibration.journal import Journal
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.traces import predictive_nodes
from pyro_hypernet.model.vectorize import Model, outside_of_pyro
from pyro_hypernet.sample.processes import count_processes, share_out
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound, Target, Whole, bind_guide
from pyro_hypernet.train.fit import fit

LIKELIHOOD = "log likelihood"
Train = Callable[..., Any]


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """Ranks of true values among the draws of their fits.

    Attributes:
        ranks: From every entry of every site, such as "w[0,1]", and "log likelihood", to the shares of the draws below
            the true value, ties and steps broken at random, shape `(M,)`: uniform on [0, 1] where fits are right.
        p_values: For every entry how often uniform ranks would stray further from the diagonal somewhere.
        shapes: For every entry "uniform", "too narrow" (ranks ∪-shaped), "too wide" (∩-shaped), "too low" or "too
            high" (draws lie to one side of the truth), by whichever departure is larger; "uniform" where the p-value
            times the number of entries is above `alpha`.
        alpha: The chance that fits which are right are flagged in any entry.
        num_failed: Simulations whose fit raised an error.
        seconds: Wall time of this call.
    """

    ranks: dict[str, Tensor] = field(repr=False)
    p_values: dict[str, float]
    shapes: dict[str, str]
    alpha: float
    num_failed: int
    seconds: float

    @property
    def is_calibrated(self) -> bool:
        """Whether no entry is flagged."""
        return all(shape == "uniform" for shape in self.shapes.values())

    @property
    def p_value(self) -> float:
        """The least p-value times the number of entries (Bonferroni), at most 1."""
        return min(1.0, min(self.p_values.values()) * len(self.p_values))

    def bias(self) -> dict[str, tuple[float, float]]:
        """VSBC: mean rank less ½, in its standard errors, and the p-value of ranks being symmetric about ½.

        Source: Yao, Vehtari, Simpson and Gelman 2018, section 3.2: the Kolmogorov–Smirnov test of u against 1 − u.
        """
        return {
            name: (float((u.mean() - 0.5) * math.sqrt(12 * len(u))), _symmetry_p_value(u))
            for name, u in self.ranks.items()
        }

    def to_string(self) -> str:
        """One line for every entry that is flagged, or one in all."""
        count = len(next(iter(self.ranks.values())))
        if self.is_calibrated:
            return f"calibrated: ranks of {len(self.ranks)} entries over {count} simulations look uniform."
        flagged = {name: shape for name, shape in self.shapes.items() if shape != "uniform"}
        lines = [f"not calibrated: {len(flagged)} of {len(self.ranks)} entries over {count} simulations."]
        return "\n".join(
            lines + [f"  {name}: {shape} (p = {self.p_values[name]:.2g})" for name, shape in flagged.items()]
        )

    def __str__(self) -> str:
        return self.to_string()


def sbc(
    model: Model,
    *args: Any,
    train: Train | None = None,
    num_simulations: int = 100,
    num_draws: int = 500,
    alpha: float = 0.05,
    num_processes: int | None = None,
    path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of a way to fit: whether its intervals hold what they say, over the whole prior.

    Weights are drawn from the prior and data from the model given them; the model is fitted to these data, and the rank
    of every true weight among the fit's draws is noted, and that of its log likelihood. Ranks are uniform where fits
    are right. With a variational fit this is VSBC, see `Calibration.bias`.

    Args:
        model: A Pyro model whose observed sites can be sampled.
        args: Its arguments as in training; their data only give shapes, and are replaced.
        train: `train(model, *args)` to a posterior of any kind that `draws` takes; None for the default AutoHypernet
            and a `fit` of 1 000 steps.
        num_simulations: Fits M.
        num_draws: Draws of every fit.
        alpha: The chance of a false alarm, over all entries together.
        num_processes: Processes to share the fits; None for one per core, 1 for none.
        path: A file of JSON lines to which every fit is added when done; where it exists already, what it holds is not
            done again. None for no file.
        seed: Simulation i depends on this and i alone, not on the number of processes.
        kwargs: The model's keyword arguments.

    Returns:
        Ranks, p-values and shapes.

    Raises:
        ValueError: If the model observes nothing or has `pyro.factor`s, a number is out of range, the file was made
            with other settings, or every fit failed.

    Source: Talts et al. 2018, arXiv 1804.06788; the log likelihood as a test quantity: Modrák et al. 2023.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> def prior_instead(model, y):
        ...     return {"mean": torch.randn(100)}
        >>> found = sbc(model, torch.tensor(0.0), train=prior_instead, num_simulations=20, num_processes=1)
        >>> found.ranks["mean"].shape
        torch.Size([20])
    """
    if num_simulations < 2 or num_draws < 2 or not 0 < alpha < 1:
        raise ValueError(
            "num_simulations and num_draws must be at least 2 and alpha inside (0, 1); got "
            f"{num_simulations}, {num_draws} and {alpha}."
        )
    start = time.perf_counter()
    if kwargs:
        model = functools.partial(model, **kwargs)
    task = _Task(model, args, train or _train_by_default, num_draws, seed)
    journal = Journal(path, {"num_draws": num_draws, "seed": seed, "entries": task.entries})
    missing = [i for i in range(num_simulations) if i not in journal.lines]
    for line in share_out(task, missing, count_processes(len(missing), num_processes)):
        journal.add(line)
    lines = [journal.lines[i] for i in range(num_simulations)]
    good = [line["ranks"] for line in lines if line["ranks"] is not None]
    if not good:
        raise ValueError(f"All {num_simulations} fits failed; the first with: {lines[0]['error']}.")
    ranks = {name: torch.tensor([row[i] for row in good]).double() for i, name in enumerate(task.entries)}
    p_values = {name: uniform_p_value(u) for name, u in ranks.items()}
    shapes = {name: "uniform" if p_values[name] * len(ranks) > alpha else _shape(u) for name, u in ranks.items()}
    return Calibration(ranks, p_values, shapes, alpha, len(lines) - len(good), time.perf_counter() - start)


class _Task:
    """One simulation and its fit, by number."""

    def __init__(self, model: Model, args: tuple, train: Train, num_draws: int, seed: int) -> None:
        self.model = model
        self.args = args
        self.train = train
        self.num_draws = num_draws
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            target = bind_guide(model, None, args, {})
            trace = target.trace_prior()
        self.log_joint, self.layout = target.log_joint, target.layout
        latent = dict.fromkeys(self.layout.names)
        self.observed = [name for name, node in predictive_nodes(trace, latent).items() if node["is_observed"]]
        if not self.observed:
            raise ValueError("The model observes nothing, so no data can be simulated: pass its data, as in training.")
        hidden = [n for n, node in trace.nodes.items() if isinstance(node.get("fn"), pyro.distributions.Unit)]
        if hidden:
            raise ValueError(f"The model has pyro.factor sites {hidden}, from which no data can be simulated.")

    @property
    def entries(self) -> list[str]:
        """Names of all numbers ranked."""
        return [name for site in self.layout.sites for name in _entries(site.name, site.shape)] + [LIKELIHOOD]

    def __call__(self, index: int) -> dict[str, Any]:
        """One line of the journal."""
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            torch.manual_seed(1_000_003 * self.seed + index)
            try:
                return {"index": index, "ranks": self._ranks()}
            except (ValueError, RuntimeError, FloatingPointError) as error:
                return {"index": index, "ranks": None, "error": f"{type(error).__name__}: {error}"}

    def _ranks(self) -> list[float]:
        blank = poutine.condition(self.model, data=dict.fromkeys(self.observed))
        trace = Bound(blank, self.args, {}).trace_prior()
        data = {name: trace.nodes[name]["value"].detach() for name in self.observed}
        # A module owns its learnt parameters, and is trained here: every simulation starts at the same ones.
        model = copy.deepcopy(self.model) if isinstance(self.model, torch.nn.Module) else self.model
        simulated = poutine.condition(model, data=data)
        posterior = self.train(simulated, *self.args)
        samples = draws(posterior, *self.args, num_samples=self.num_draws)
        truth = {name: trace.nodes[name]["value"].detach()[None] for name in self.layout.names}
        target = Whole(self.log_joint.of(simulated, mode="eager"), self.args, {})
        with torch.no_grad(), outside_of_pyro():
            values = torch.cat([_columns(target, values) for values in (truth, samples)])
        below = (values[1:] < values[0]).double().sum(0)
        ties = (values[1:] == values[0]).double().sum(0)
        ranks = below + torch.rand(below.shape, dtype=below.dtype) * (ties + 1)
        return (ranks / len(values)).tolist()


def _columns(target: Target, samples: dict[str, Tensor]) -> Tensor:
    """All numbers to be ranked, those of one draw in a row: the entries of the sites and the log likelihood."""
    likelihood = target.parts(target.layout.unconstrain(samples)[0])[:, 1:]
    flat = [samples[name].reshape(len(likelihood), -1) for name in target.layout.names]
    return torch.cat([*flat, likelihood], 1).double()


def _train_by_default(model: Model, *args: Any) -> AutoHypernet:
    guide = AutoHypernet(model)
    fit(model, guide, args, num_steps=1000, progress=False)
    return guide


def _entries(name: str, shape: torch.Size) -> list[str]:
    return [f"{name}[{','.join(map(str, at))}]" if at else name for at in np.ndindex(*shape)]


def _shape(u: Tensor) -> str:
    """The larger of two departures from uniform ranks, each in its standard errors: of the mean, of the spread."""
    shift = float((u.mean() - 0.5) * math.sqrt(12 * len(u)))
    square = (u - 0.5) ** 2
    spread = float((square.mean() - 1 / 12) * math.sqrt(180 * len(u)))
    if abs(shift) > abs(spread):
        return "too low" if shift > 0 else "too high"
    return "too narrow" if spread > 0 else "too wide"


def _symmetry_p_value(u: Tensor) -> float:
    """Kolmogorov–Smirnov p-value of u against 1 − u, by the asymptotic series."""
    points = torch.cat([u, 1 - u]).sort().values
    distance = float((ecdf(u, points) - ecdf(1 - u, points)).abs().max())
    root = math.sqrt(len(u) / 2)
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:
        return 1.0
    terms = [(-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101)]
    return min(1.0, max(0.0, 2 * math.fsum(terms)))

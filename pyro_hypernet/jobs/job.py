"""The main job: a Bayesian network on a table, by `infer` and by two of Pyro's guides, held against NUTS."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_hypernet.evaluation.compare import Comparison, align, compare
from pyro_hypernet.evaluation.importance import elbo, khat
from pyro_hypernet.evaluation.metrics import coverage, ece, nll, rmse
from pyro_hypernet.evaluation.predict import log_likelihood, predict
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.infer import prepare, pursue
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.pipeline.budget import Clock, read_budget, round_up, spell_seconds
from pyro_hypernet.pipeline.forecast import NUM_PARTICLES, price_of_a_run
from pyro_hypernet.pipeline.posterior import Posterior, Task
from pyro_hypernet.pipeline.steps import silenced
from pyro_hypernet.sample.nuts import Nuts, NutsKernel, nuts
from pyro_hypernet.sklearn import HypernetClassifier, HypernetRegressor, probabilities
from pyro_hypernet.tables.tabular import Split, Table, split
from pyro_hypernet.target import bind_guide
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.fit import fit
from pyro_hypernet.train.optimiser import Optim

HYPERNET, NORMAL, MULTIVARIATE, NUTS = "AutoHypernet", "AutoNormal", "AutoMultivariateNormal", "NUTS"
NUM_DRAWS = 1000
# Seconds where none are asked for, and where waiting longer ends.
DEFAULT_BUDGET, _MOST_BUDGET = 180.0, 1500.0
# Shares of the budget: `infer`, each of Pyro's guides, NUTS; comparison, table and report take what is left.
_INFER, _GUIDE, _NUTS, _REST = 0.42, 0.08, 0.25, 0.17
# Densities of all data that comparison, table and report take.
_DENSITIES = 20_000
# Steps of a guide of Pyro's to time, and the least that are taken.
_TIMED_STEPS, _LEAST_STEPS = 3, 4
# A trajectory of NUTS takes at most this share of its time.
_TRAJECTORY, _MOST_DOUBLINGS = 0.04, 10
LEVEL = 0.9


@dataclass(frozen=True)
class Options:
    """How much work the job does.

    Attributes:
        num_steps: Steps of every guide's training, fewer where the budget does not allow for so many.
        budget: Time for all of it, of which `infer` takes two fifths; it holds within a factor of about 1.5. None for
            three minutes, and twice or four times as much on a machine that is too slow for that.
        hidden: Hidden units of the network.
        nuts_draws: Draws kept in every chain of NUTS, after as many of warm-up.
        nuts_chains: Number of chains.
        seed: Of the split, the fits and the chains.
        engine: As in `infer`; where it needs no guide, one is trained beside it for comparison.
    """

    num_steps: int = 2000
    budget: str | float | None = None
    hidden: int = 10
    nuts_draws: int = 500
    nuts_chains: int = 2
    seed: int = 0
    engine: str = "auto"


@dataclass(frozen=True)
class Result:
    """What the job found.

    Attributes:
        rows: One dict for every guide and for NUTS, the columns of the table in order.
        comparison: The distances from NUTS, by site too.
        estimator: The network that `infer` fitted, on standardised inputs.
        posteriors: From the name of a row to the trained guide, the mended draws, or the result of `nuts`.
        data: The standardised data.
        posterior: What `infer` found.
    """

    rows: tuple[dict[str, Any], ...]
    comparison: Comparison
    estimator: HypernetClassifier | HypernetRegressor
    posteriors: dict[str, Any]
    data: Split
    posterior: Posterior

    @property
    def model(self) -> Model:
        """The Pyro model."""
        return self.estimator.model_

    def cells(self) -> list[list[str]]:
        """The table as text, the headings first."""
        return [list(self.rows[0]), *([_spell(value) for value in row.values()] for row in self.rows)]

    def to_string(self) -> str:
        """The table, aligned, and the verdict under it."""
        return f"{align(self.cells())}\n\nVerdict: {self.posterior.verdict}. {self.posterior.because}"


def run(table: Table, options: Options, *, say: Callable[[str], None], progress: bool = True) -> Result:
    """Fits the three guides, runs NUTS and compares them on held-out rows.

    Args:
        table: The data.
        options: How much work to do.
        say: Called with a line whenever a part is done.
        progress: Whether to show bars.

    Returns:
        The table's rows and all that was trained.

    Raises:
        ValueError: Where the budget does not allow for the least of it, before any of it, with what is needed.
    """
    data = split(table, seed=options.seed)
    args = (data.x_train, data.y_train)
    estimator = (HypernetClassifier if table.classes else HypernetRegressor)((options.hidden,))
    estimator.prepare(data.x_train.numpy(), table.y[data.rows].numpy())
    budget = DEFAULT_BUDGET if options.budget is None else read_budget(options.budget)
    task = Task(estimator.model_, args, {}, Clock(budget), NUM_DRAWS, say, progress)
    task, posterior = _begin(task, options)
    found = {HYPERNET: _guide_of(task, posterior, options)}
    if posterior.source != "guide":
        found[f"{HYPERNET}, {posterior.source}"] = (posterior, posterior.seconds)
    for name, make in {NORMAL: AutoNormal, MULTIVARIATE: AutoMultivariateNormal}.items():
        found[name] = _train_by_svi(task, name, make(task.model), options)
    guides = {name: guide for name, (guide, _) in found.items()}
    reference = _sample(task, guides[HYPERNET], options)
    options_of_table = {"train_args": args, "num_samples": NUM_DRAWS, "canonical": True}
    comparison = compare(guides, reference, task.model, data.x_test, **options_of_table)
    found[NUTS] = (reference, reference.seconds)
    with silenced("The verdict on this guide"):  # stands under the table
        rows = [
            {"guide": name, **_figures(task, name, guide, data, table, comparison), "seconds": seconds}
            for name, (guide, seconds) in found.items()
        ]
    estimator.posterior_ = posterior
    return Result(tuple(rows), comparison, estimator, {**guides, NUTS: reference}, data, posterior)


def _begin(task: Task, options: Options) -> tuple[Task, Posterior]:
    """What `infer` finds, and the task with the budget that this takes: one that nobody asked for may grow."""
    while True:
        shortage = _shortage(task)
        posterior, shortage = (None, shortage) if shortage else _infer(task, options)
        if posterior is not None:
            return task, posterior
        budget = task.clock.budget
        if options.budget is not None or budget >= _MOST_BUDGET:
            raise ValueError(shortage)
        task = replace(task, clock=Clock(2 * budget))
        task.say(f"This machine is too slow for {budget:.0f} s; the budget is {2 * budget:.0f} s")


def _shortage(task: Task) -> str:
    """Why the budget is too short for what comes after `infer`; empty where it is not."""
    each = price_of_a_run(task).each
    needed = _DENSITIES * each / _REST
    if needed <= task.clock.budget:
        return ""
    return (
        f"The budget of {task.clock.budget:.3g} s is too short: the density of {len(task.args[1])} rows takes about "
        f"{spell_seconds(each)} a draw, so that three guides, NUTS, their comparison and the report take about "
        f"{spell_seconds(needed)} here. Give --budget {round_up(needed)} or more, or fewer rows; or train one guide "
        "alone on minibatches, from Python, by fit(model, guide, loader)."
    )


def _infer(task: Task, options: Options) -> tuple[Posterior | None, str]:
    """What `infer` finds in its share of the budget; or None, and why that is too short."""
    pyro.set_rng_seed(options.seed)
    task = replace(task, clock=Clock(_INFER * task.clock.budget), log=[])
    guide = AutoHypernet(task.model)
    with silenced("The verdict on this"):  # stands under the table
        forecast, shortage = prepare(task, guide, options.num_steps)
        if not shortage:
            return pursue(task, guide, forecast, options.engine, options.num_steps), ""
    times = f"{1 / _INFER:.1f} times what is asked for here"
    return None, f"Of --budget {_INFER:.0%} are for the first guide: give {times}. {shortage}"


def _guide_of(task: Task, posterior: Posterior, options: Options) -> tuple[AutoHypernet, float]:
    """The guide and the seconds of its training; one to be seen beside exact draws, where these needed none."""
    if posterior.guide is not None:
        return posterior.guide, posterior.fit.seconds if posterior.fit else math.nan
    pyro.set_rng_seed(options.seed)
    guide, budget = AutoHypernet(task.model), task.clock.budget
    seconds = max(_GUIDE * budget, (_INFER * budget - posterior.seconds) / 2)
    amounts = {"num_steps": options.num_steps, "optim": Optim(max_seconds=seconds)}
    with silenced("The ELBO was still rising"):  # the table says how far it came
        fitted = fit(task.model, guide, task.args, **amounts, progress=task.progress)
    task.say(f"{HYPERNET}: {fitted.num_steps} steps in {fitted.seconds:.1f} s, for comparison")
    return guide, fitted.seconds


def _train_by_svi(task: Task, name: str, guide: Any, options: Options) -> tuple[Any, float]:
    """Trains one of Pyro's guides with as many steps and particles as ours, decay and clipping included.

    Returns:
        The guide and the seconds it took: fewer steps where a few that are timed say that there is no time for all.
    """
    pyro.set_rng_seed(options.seed)
    clock = Clock(_GUIDE * task.clock.budget)
    guide(*task.args)
    loss = VectorizedELBO(NUM_PARTICLES)(task.model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)

    def differentiate(_: int = 1) -> None:
        optimizer.zero_grad()
        loss(*task.args).backward()
        torch.nn.utils.clip_grad_norm_(guide.parameters(), 100.0)

    for _ in range(_TIMED_STEPS):
        each = clock.measure(differentiate, (1,)).each
    num_steps = min(options.num_steps, max(_LEAST_STEPS, int(clock.left / each)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for number in range(1, num_steps + 1):
        differentiate()
        optimizer.step()
        schedule.step()
        if number >= _LEAST_STEPS and clock.left < -0.5 * clock.budget:
            break
    word = f" of {options.num_steps}, for want of time: trained too briefly," if number < options.num_steps else ""
    task.say(f"{name}: {number} steps{word} in {clock.spent:.1f} s")
    return guide, clock.spent


def _sample(task: Task, guide: AutoHypernet, options: Options) -> Nuts:
    """The reference: chains of NUTS, cut short where the time is up."""
    pyro.set_rng_seed(options.seed)
    draws, chains, seconds = options.nuts_draws, options.nuts_chains, _NUTS * task.clock.budget
    target, start = bind_guide(task.model, guide, task.args, {}, mode="eager"), torch.zeros(chains, guide.layout.dim)
    gradient = task.clock.measure(lambda _: target.value_and_grad(start), (1,)).each
    doublings = int(math.log2(max(8.0, min(2.0**_MOST_DOUBLINGS, _TRAJECTORY * seconds / max(gradient, 1e-9)))))
    amounts = {"num_samples": draws, "warmup_steps": draws, "num_chains": chains}
    reference = task.call(nuts, **amounts, kernel=NutsKernel(max_tree_depth=doublings), max_seconds=seconds)
    kept = reference.diverging.shape[1]
    word = "" if kept == draws else f", {kept} of them kept for want of time: compare with care,"
    task.say(
        f"NUTS: {chains} chains of {draws} + {draws}{word} in {reference.seconds:.1f} s; "
        f"worst R-hat in function space {reference.max_function_rhat:.3f}, divergences {sum(reference.divergences)}"
    )
    return reference


def _figures(
    task: Task, name: str, posterior: Any, data: Split, table: Table, comparison: Comparison
) -> dict[str, float]:
    """A row of the table."""
    is_guide, options = name in (HYPERNET, NORMAL, MULTIVARIATE), {"num_samples": NUM_DRAWS}
    row = {
        "ELBO": task.call(elbo, posterior, **options)[0] if is_guide else math.nan,
        "k-hat": task.call(khat, posterior) if is_guide else math.nan,
    }
    density = -float(nll(log_likelihood(task.model, posterior, data.x_test, data.y_test, **options)["y"]))
    draws = predict(task.model, posterior, data.x_test, **options)
    if table.classes:
        mean = probabilities(draws["f"]).mean(0)
        row["test accuracy"] = float((mean.argmax(-1) == data.y_test).double().mean())
        row |= {"test log density": density, "ECE": float(ece(mean, data.y_test))}
    else:
        row["test RMSE"] = float(rmse(draws["y"].mean(0), data.y_test))
        row |= {"test log density": density, "90 % coverage": float(coverage(draws["y"], data.y_test, level=LEVEL))}
    floor = comparison.row("noise floor")["w1_over_sd"]
    distance = floor if name == NUTS else comparison.row(name)["w1_over_sd"]
    return {**row, "W1/sd": distance, "W1 over floor": distance / floor if floor > 0 else math.nan}


def _spell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if abs(value) >= 20 else f"{value:.3f}"

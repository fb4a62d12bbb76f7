"""The main job: a Bayesian network on a table, by `infer` and by two of Pyro's guides, held against NUTS."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

from pyro_hypernet.bnn import bayesianize
from pyro_hypernet.budget import Clock, measure, read_budget, round_up, spell_seconds
from pyro_hypernet.density import LogJoint
from pyro_hypernet.evaluation.compare import Comparison, compare
from pyro_hypernet.evaluation.importance import elbo, khat
from pyro_hypernet.evaluation.metrics import calibration_bins, coverage, ece, nll, rmse
from pyro_hypernet.evaluation.predict import log_likelihood, predict
from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.infer import Posterior, infer, price_of_a_run
from pyro_hypernet.inference.checkpoint import save
from pyro_hypernet.inference.elbo import VectorizedELBO
from pyro_hypernet.inference.fit import Fit, fit
from pyro_hypernet.inference.nuts import Nuts, nuts
from pyro_hypernet.output.plots import calibration_curve, marginals, predictive_band
from pyro_hypernet.priors import fan_in
from pyro_hypernet.tabular import Split, Table, split
from pyro_hypernet.vectorize import Model

HYPERNET, NORMAL, MULTIVARIATE, NUTS = "AutoHypernet", "AutoNormal", "AutoMultivariateNormal", "NUTS"
_NUM_DRAWS = 1000
# Seconds where none are asked for, and where waiting longer ends.
DEFAULT_BUDGET, _MOST_BUDGET = 180.0, 1500.0
# Shares of the budget: `infer`, each of Pyro's guides, NUTS; comparison, table and report take what is left.
_INFER, _GUIDE, _NUTS, _REST = 0.42, 0.08, 0.25, 0.17
# Densities of all data that comparison, table and report take.
_DENSITIES = 20_000
# The step of a guide of Pyro's that is timed.
_TIMED_STEPS = 3
# A trajectory of NUTS takes at most this share of its time.
_TRAJECTORY, _MOST_DOUBLINGS = 0.04, 10
_LEVEL = 0.9


@dataclass(frozen=True)
class Options:
    """How much work the job does.

    Attributes:
        num_steps: Steps of every guide's training, fewer where the budget does not allow for so many.
        budget: Time for all of it, of which `infer` takes two fifths; it holds within a factor of about 1.5. None for
            three minutes, and twice or four times as much on a machine that is too slow for that.
        num_particles: Draws in one estimate of the ELBO, the same for every guide.
        hidden: Hidden units of the network.
        nuts_draws: Draws kept in every chain of NUTS, after as many of warm-up.
        nuts_chains: Number of chains.
        seed: Of the split, the fits and the chains.
        engine: As in `infer`; where it needs no guide, one is trained beside it for comparison.
    """

    num_steps: int = 2000
    budget: str | float | None = None
    num_particles: int = 32
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
        model: The Pyro model.
        posteriors: From the name of a row to the trained guide, the mended draws, or the result of `nuts`.
        data: The standardised data.
        posterior: What `infer` found.
    """

    rows: tuple[dict[str, Any], ...]
    comparison: Comparison
    model: Model
    posteriors: dict[str, Any]
    data: Split
    posterior: Posterior

    def cells(self) -> list[list[str]]:
        """The table as text, the headings first."""
        return [list(self.rows[0]), *([_spell(value) for value in row.values()] for row in self.rows)]

    def to_string(self) -> str:
        """The table, aligned, and the verdict under it."""
        cells = self.cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in cells
        ]
        return "\n".join([*lines, "", f"Verdict: {self.posterior.verdict}. {self.posterior.because}"])


def make_model(table: Table, hidden: int) -> Model:
    """A tanh network of one hidden layer with weights `N(0, 1.5 / sqrt(fan_in))`, for a table's task.

    Args:
        table: The data, for the numbers of inputs and of classes.
        hidden: Number of hidden units.
    """
    outputs = len(table.classes) if len(table.classes) > 2 else 1
    net = nn.Sequential(nn.Linear(len(table.features), hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    likelihood = "gaussian" if not table.classes else ("bernoulli" if outputs == 1 else "categorical")
    return bayesianize(net, likelihood, prior=fan_in(gain=1.5))


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
    model = make_model(table, options.hidden)
    args = (data.x_train, data.y_train)
    posterior, clock = _begin(model, args, options, say, progress)
    guide, fitted = posterior.guide, posterior.fit
    if guide is None:
        left = max(_GUIDE * clock.budget, (_INFER * clock.budget - posterior.seconds) / 2)
        guide, fitted = _train_beside(model, args, options, left, say, progress)
    posteriors, seconds = {HYPERNET: guide}, {HYPERNET: fitted.seconds if fitted else math.nan}
    if posterior.source != "guide":
        mended = f"{HYPERNET}, {posterior.source}"
        posteriors[mended], seconds[mended] = posterior, posterior.seconds
    for name, make in {NORMAL: AutoNormal, MULTIVARIATE: AutoMultivariateNormal}.items():
        pyro.set_rng_seed(options.seed)
        start = time.perf_counter()
        posteriors[name], steps = _train_by_svi(model, make(model), args, options, _GUIDE * clock.budget)
        seconds[name] = time.perf_counter() - start
        word = "" if steps == options.num_steps else f" of {options.num_steps}, for want of time: trained too briefly,"
        say(f"{name}: {steps} steps{word} in {seconds[name]:.1f} s")
    posteriors[NUTS] = reference = _sample(model, args, options, guide, _NUTS * clock.budget, say)
    seconds[NUTS] = reference.seconds
    guides = {name: posterior for name, posterior in posteriors.items() if name != NUTS}
    comparison = compare(guides, reference, model, data.x_test, train_args=args, num_samples=_NUM_DRAWS, canonical=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The verdict on this guide", UserWarning)  # stands under the table
        rows = [_row(name, model, posterior, args, data, table, comparison) for name, posterior in posteriors.items()]
    for row in rows:
        row["seconds"] = seconds[row["guide"]]
    return Result(tuple(rows), comparison, model, posteriors, data, posterior)


def write(result: Result, table: Table, out: Path) -> list[Path]:
    """Writes `posterior.nc`, `guide.safetensors`, `table.txt`, `log.txt`, `predictive.png` and `posterior.png`.

    Args:
        result: What `run` returned.
        table: The data.
        out: The folder; made if need be.

    Returns:
        The files; without `posterior.nc` where there was no time for it, which the log says.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = ("posterior.nc", "guide.safetensors", "table.txt", "log.txt", "predictive.png", "posterior.png")
    paths = [out / name for name in names]
    if result.posterior.idata is not None:
        result.posterior.idata.to_netcdf(str(paths[0]))
    save(result.posteriors[HYPERNET], paths[1])
    paths[2].write_text(result.to_string() + "\n\n" + result.comparison.to_string() + "\n")
    paths[3].write_text("\n\n".join(map(str, filter(None, [result.posterior, result.posterior.diagnosis]))) + "\n")
    _draw_predictions(result, table, paths[4])
    _draw_posterior(result, paths[5])
    return [path for path in paths if path.exists()]


def _begin(
    model: Model, args: tuple, options: Options, say: Callable[[str], None], progress: bool
) -> tuple[Posterior, Clock]:
    """What `infer` finds, and the clock that the rest goes by."""
    budget = DEFAULT_BUDGET if options.budget is None else read_budget(options.budget)
    while True:
        clock = Clock(budget)
        try:
            _refuse_what_cannot_end(model, args, clock)
            return _infer(model, args, options, budget, say, progress), clock
        except ValueError as error:
            # Nobody asked for the default; what was asked for is refused, before any work.
            if options.budget is not None or "is too short" not in str(error) or budget >= _MOST_BUDGET:
                raise
        budget *= 2
        say(f"This machine is too slow for {budget / 2:.0f} s; the budget is {budget:.0f} s")


def _refuse_what_cannot_end(model: Model, args: tuple, clock: Clock) -> None:
    each = price_of_a_run(model, args, clock).each
    needed = _DENSITIES * each / _REST
    if needed > clock.budget:
        raise ValueError(
            f"The budget of {clock.budget:.3g} s is too short: the density of {len(args[1])} rows takes about "
            f"{spell_seconds(each)} a draw, so that three guides, NUTS, their comparison and the report take about "
            f"{needed:.2g} s here. Give --budget {round_up(needed)} or more, or fewer rows; or train one guide alone "
            "on minibatches, from Python, by fit(model, guide, loader)."
        )


def _infer(
    model: Model, args: tuple, options: Options, seconds: float, say: Callable[[str], None], progress: bool
) -> Posterior:
    pyro.set_rng_seed(options.seed)
    amounts = {"num_samples": _NUM_DRAWS, "num_steps": options.num_steps, "engine": options.engine}
    budget = _INFER * seconds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The verdict on this", UserWarning)  # stands under the table
        try:
            return infer(model, *args, budget=budget, say=say, progress=progress, **amounts)
        except ValueError as error:
            if "is too short" not in str(error):
                raise
            times = f"{1 / _INFER:.1f} times what is asked for here"
            raise ValueError(f"Of --budget {_INFER:.0%} are for the first guide: give {times}. {error}") from None


def _train_beside(
    model: Model, args: tuple, options: Options, seconds: float, say: Callable[[str], None], progress: bool
) -> tuple[AutoHypernet, Fit]:
    """The guide, where exact draws have made it needless: to be seen beside them."""
    pyro.set_rng_seed(options.seed)
    guide = AutoHypernet(model)
    limits = {"num_steps": options.num_steps, "max_seconds": seconds}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ELBO was still rising", UserWarning)  # the table says how far it came
        fitted = fit(model, guide, args, **limits, progress=progress)
    say(f"{HYPERNET}: {fitted.num_steps} steps in {fitted.seconds:.1f} s, for comparison")
    return guide, fitted


def _sample(
    model: Model, args: tuple, options: Options, guide: AutoHypernet, seconds: float, say: Callable[[str], None]
) -> Nuts:
    """The reference: chains of NUTS, cut short where the time is up."""
    pyro.set_rng_seed(options.seed)
    log_joint = LogJoint(model, guide.layout, mode="eager")
    start = torch.zeros(options.nuts_chains, guide.layout.dim)
    gradient = measure(lambda _: log_joint.value_and_grad(start, *args), (1,), seconds=_TRAJECTORY * seconds).each
    doublings = int(math.log2(max(8.0, min(2.0**_MOST_DOUBLINGS, _TRAJECTORY * seconds / max(gradient, 1e-9)))))
    amounts = {"num_samples": options.nuts_draws, "warmup_steps": options.nuts_draws, "num_chains": options.nuts_chains}
    reference = nuts(model, *args, **amounts, max_tree_depth=doublings, max_seconds=seconds)
    kept = reference.diverging.shape[1]
    word = "" if kept == options.nuts_draws else f", {kept} of them kept for want of time: compare with care,"
    say(
        f"NUTS: {options.nuts_chains} chains of {options.nuts_draws} + {options.nuts_draws}{word} in "
        f"{reference.seconds:.1f} s; worst R-hat in function space {reference.max_function_rhat:.3f}, "
        f"divergences {sum(reference.divergences)}"
    )
    return reference


def _train_by_svi(model: Model, guide: Any, args: tuple, options: Options, max_seconds: float) -> tuple[Any, int]:
    """Trains one of Pyro's guides with as many steps and particles as ours, decay and clipping included.

    Returns:
        The guide and its steps, fewer where a few that are timed say that there is no time for all.
    """
    start = time.perf_counter()
    guide(*args)
    loss = VectorizedELBO(options.num_particles)(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.num_steps)
    number, num_steps = 0, options.num_steps
    while number < num_steps:
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss(*args).backward()
        torch.nn.utils.clip_grad_norm_(guide.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        number += 1
        spent = time.perf_counter() - start
        if number == _TIMED_STEPS and num_steps > _TIMED_STEPS:
            affordable = number + int((max_seconds - spent) / (time.perf_counter() - begin))
            if affordable < num_steps:
                num_steps = max(number + 1, affordable)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps - number)
        if number > _TIMED_STEPS and spent > 1.5 * max_seconds:
            break
    return guide, number


def _row(
    name: str, model: Model, posterior: Any, args: tuple, data: Split, table: Table, comparison: Comparison
) -> dict[str, Any]:
    bound, reading = math.nan, math.nan
    if name in (HYPERNET, NORMAL, MULTIVARIATE):
        bound = elbo(model, posterior, *args, num_samples=_NUM_DRAWS)[0]
        reading = khat(model, posterior, *args)
    floor = comparison.row("noise floor")["w1_over_sd"]
    distance = floor if name == NUTS else comparison.row(name)["w1_over_sd"]
    density = -float(nll(log_likelihood(model, posterior, data.x_test, data.y_test, num_samples=_NUM_DRAWS)["y"]))
    y = predict(model, posterior, data.x_test, num_samples=_NUM_DRAWS)
    row = {"guide": name, "ELBO": bound, "k-hat": reading}
    if table.classes:
        probabilities = _probabilities(y["f"])
        row["test accuracy"] = float((probabilities.argmax(-1) == data.y_test).double().mean())
        row["test log density"] = density
        row["ECE"] = float(ece(probabilities, data.y_test))
    else:
        row["test RMSE"] = float(rmse(y["y"].mean(0), data.y_test))
        row["test log density"] = density
        row["90 % coverage"] = float(coverage(y["y"], data.y_test, level=_LEVEL))
    row["W1/sd"] = distance
    row["W1 over floor"] = distance / floor if floor > 0 else math.nan
    return row


def _probabilities(f: Tensor) -> Tensor:
    """Class probabilities averaged over draws, shape `(N, C)`, from outputs of shape `(S, N, out)`."""
    if f.shape[-1] == 1:
        positive = f.squeeze(-1).sigmoid().mean(0)
        return torch.stack([1 - positive, positive], dim=-1)
    return f.softmax(-1).mean(0)


def line_through_inputs(data: Split) -> tuple[int, Tensor, Tensor]:
    """The input that tells most of the target by itself, 80 places along it, and the inputs there.

    Args:
        data: The standardised data.

    Returns:
        The column, positions of shape `(80,)`, and inputs of shape `(80, d)`, the others at their means.
    """
    slopes = [abs(float(torch.corrcoef(torch.stack([x, data.y_train.to(x.dtype)]))[0, 1])) for x in data.x_train.T]
    column = max(range(len(slopes)), key=slopes.__getitem__)
    line = torch.linspace(float(data.x_train[:, column].min()), float(data.x_train[:, column].max()), 80)
    grid = line.new_zeros(80, data.x_train.shape[1])
    grid[:, column] = line
    return column, line, grid


def _draw_predictions(result: Result, table: Table, path: Path) -> None:
    """Left: the network along its most telling input. Right: whether its uncertainty is right on held-out rows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    data = result.data
    column, line, grid = line_through_inputs(data)
    for name, posterior in {HYPERNET: result.posterior, NUTS: result.posteriors[NUTS]}.items():
        f = predict(result.model, posterior, grid, num_samples=_NUM_DRAWS)["f"]
        output = f[..., 0] if f.shape[-1] == 1 else f.softmax(-1)[..., -1]
        predictive_band(line, output, ax=axes[0], levels=(_LEVEL,), label=f"{name}, 90 %")
    label = f"network output for {table.target}" if not table.classes else f"score of {table.classes[-1]!r}"
    axes[0].set_xlabel(f"{table.features[column]} (standardised), the others at their means", parse_math=False)
    axes[0].set_ylabel(label, parse_math=False)
    _draw_calibration(result, table, axes[1])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_calibration(result: Result, table: Table, ax: Any) -> None:
    data, levels = result.data, torch.linspace(0.1, 0.9, 9)
    chosen = {name: result.posteriors[name] for name in (NORMAL, NUTS)}
    for name, posterior in {HYPERNET: result.posterior, **chosen}.items():
        draws = predict(result.model, posterior, data.x_test, num_samples=_NUM_DRAWS)
        if table.classes:
            confidence, accuracy, _ = calibration_bins(_probabilities(draws["f"]), data.y_test, num_bins=8)
            calibration_curve(confidence, accuracy, ax=ax, label=name)
        else:
            observed = torch.stack([torch.as_tensor(coverage(draws["y"], data.y_test, level=float(p))) for p in levels])
            calibration_curve(levels, observed, ax=ax, label=name)
    ax.set_xlabel("confidence" if table.classes else "level of the predictive interval")
    ax.set_ylabel("accuracy" if table.classes else "held-out targets inside")


def _draw_posterior(result: Result, path: Path) -> None:
    """Marginals of a few weights under what `infer` returned, and NUTS."""
    import matplotlib.pyplot as plt

    draws = {HYPERNET: result.posterior.samples, NUTS: result.posteriors[NUTS].samples}
    layout = result.posteriors[HYPERNET].layout
    entries = [site.name + ("[" + ",".join("0" * len(site.shape)) + "]" if site.shape else "") for site in layout.sites]
    axes = marginals(draws, entries[:8])
    axes[0].figure.savefig(path, dpi=130)
    plt.close(axes[0].figure)


def _spell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if abs(value) >= 20 else f"{value:.3f}"

"""What the job writes: its draws, table and pictures, and the page on what `infer` found."""

from pathlib import Path

import torch
from torch import Tensor

from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.guide.checkpoint import save
from pyro_hypernet.jobs.job import HYPERNET, LEVEL, NORMAL, NUM_DRAWS, NUTS, Result
from pyro_hypernet.jobs.predictor import PREDICTOR_NAME, keep
from pyro_hypernet.output.axes import new_axes
from pyro_hypernet.output.pictures import draw_intervals
from pyro_hypernet.output.plots import marginals, predictive_band, reliability, spell_entry
from pyro_hypernet.output.report import Band, Page, Show, report
from pyro_hypernet.output.report import Table as TableOfText
from pyro_hypernet.sklearn import probabilities
from pyro_hypernet.tables.tabular import Split, Table

_NOTE = (
    "ELBO in nats, on the rows of training; k-hat above 0.7 says that a guide misses something; the rest on held-out "
    "rows{unit}. W1/sd: distance of the network's outputs from those of NUTS, in standard deviations; W1 over floor: "
    "the same as a multiple of the distance of one half of the draws of NUTS from the other."
)
_DPI = 130


def write(result: Result, table: Table, out: Path) -> list[Path]:
    """Writes draws, guide, table, log, two pictures, what predicts new tables, and the page with `report.json`.

    Args:
        result: What `run` returned.
        table: The data.
        out: The folder; made if need be.

    Returns:
        The files; without `posterior.nc` where there was no time for it, which the log says.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = (
        "posterior.nc",
        "guide.safetensors",
        "table.txt",
        "log.txt",
        "predictive.png",
        "posterior.png",
        PREDICTOR_NAME,
    )
    paths = [out / name for name in names]
    if result.posterior.idata is not None:
        result.posterior.idata.to_netcdf(str(paths[0]))
    save(result.posteriors[HYPERNET], paths[1])
    if table.encoder is not None:
        keep(result, table, paths[6])
    paths[2].write_text(result.to_string() + "\n\n" + result.comparison.to_string() + "\n")
    paths[3].write_text("\n\n".join(map(str, filter(None, [result.posterior, result.posterior.diagnosis]))) + "\n")
    _draw_predictions(result, table, paths[4])
    _draw_posterior(result, paths[5])
    return [*filter(Path.exists, paths), _write_page(result, table, out)]


def _write_page(result: Result, table: Table, out: Path) -> Path:
    data, source = result.data, result.posterior.source
    name = HYPERNET if source == "guide" else f"{HYPERNET}, {source}"
    headings, *cells = [tuple(line) for line in result.cells()]
    fates = table.encoder.fates if table.encoder else {}
    columns = [(column, fate or "numbers, as they are") for column, fate in fates.items()]
    made = (
        [TableOfText("What became of the columns", ("column", "what became of it"), tuple(columns))] if columns else []
    )
    guides = TableOfText("Guides and NUTS on this table", headings, tuple(cells), _NOTE.format(unit=_unit(table, data)))
    facts = {
        "Table": f"{len(table.y)} rows, {len(data.y_train)} to fit and {len(data.y_test)} held out; "
        f"{table.task} of {table.target}" + (f", classes {', '.join(table.classes)}" if table.classes else ""),
        "Inputs": ", ".join(table.features),
        **({"Notes": " ".join(table.notes)} if table.notes else {}),
    }
    return report(
        result.model,
        result.posterior,
        data.x_train,
        data.y_train,
        out=out,
        comparison=result.comparison,
        page=Page(
            f"{table.target}: a Bayesian network and how far to trust it",
            facts,
            [guides, *made],
            figures=[_figure(result, name)],
        ),
        show=Show(
            name,
            beside={NUTS: result.posteriors[NUTS], NORMAL: result.posteriors[NORMAL]},
            held_out=(data.x_test, data.y_test),
            band=_band(result, table),
        ),
    )


def _unit(table: Table, data: Split) -> str:
    """In what a number is predicted, empty for classes."""
    return "" if table.classes else f", in standard deviations of {table.target}, {table.y[data.rows].std():.3g} each"


def _figure(result: Result, name: str) -> tuple[str, str, str]:
    """How well held-out rows are met, beside the mean field and NUTS."""
    rows = {row["guide"]: row for row in result.rows}
    label = next(key for key in ("test accuracy", "test RMSE") if key in rows[name])
    others = ", ".join(f"{other} {rows[other][label]:.3f}" for other in (NORMAL, NUTS))
    return label, f"{rows[name][label]:.3f}", others


def _band(result: Result, table: Table) -> Band:
    column, line, grid = _line_through_inputs(result.data)
    label = f"{table.features[column]} (standardised), the others at their means"
    if not table.classes:
        data = (result.data.x_train[:, column], result.data.y_train)
        return Band(label, line, (grid,), output=f"{table.target} (standardised)", data=data)
    kind = "sigmoid" if len(table.classes) == 2 else "softmax"
    return Band(label, line, (grid,), output=f"probability of {table.classes[-1]}", column=-1, kind=kind)


def _line_through_inputs(data: Split) -> tuple[int, Tensor, Tensor]:
    """The input that tells most of the target by itself, 80 places along it, and the inputs there.

    Args:
        data: The standardised data.

    Returns:
        The column, positions of shape `(80,)`, and inputs of shape `(80, d)`, the others at their means.
    """
    x = data.x_train
    slopes = torch.corrcoef(torch.vstack([x.T, data.y_train.to(x)]))[-1, :-1].abs()
    column = int(slopes.nan_to_num().argmax())
    line = torch.linspace(float(x[:, column].min()), float(x[:, column].max()), 80)
    grid = line.new_zeros(80, x.shape[1])
    grid[:, column] = line
    return column, line, grid


def _draw_predictions(result: Result, table: Table, path: Path) -> None:
    """Left: the network along its most telling input. Right: whether its uncertainty is right on held-out rows."""
    along, right = new_axes(2, (11, 4.2), is_on_screen=False)
    column, line, grid = _line_through_inputs(result.data)
    shown = {HYPERNET: result.posterior, **{name: result.posteriors[name] for name in (NORMAL, NUTS)}}
    for name, posterior in shown.items():
        f = predict(result.model, posterior, grid, num_samples=NUM_DRAWS)["f"]
        output = f[..., 0] if f.shape[-1] == 1 else f.softmax(-1)[..., -1]
        predictive_band(line, output, ax=along, levels=(LEVEL,), label=f"{name}, 90 %")
    label = f"network output for {table.target}" if not table.classes else f"score of {table.classes[-1]!r}"
    along.set_xlabel(f"{table.features[column]} (standardised), the others at their means", parse_math=False)
    along.set_ylabel(label, parse_math=False)
    for name, posterior in shown.items():
        draws = predict(result.model, posterior, result.data.x_test, num_samples=NUM_DRAWS)
        if table.classes:
            reliability(probabilities(draws["f"]).mean(0), result.data.y_test, ax=right, num_bins=8, label=name)
        else:
            draw_intervals(right, draws["y"], result.data.y_test, name)
            right.set(xlabel="level of the predictive interval", ylabel="held-out targets inside")
    along.figure.savefig(path, dpi=_DPI)


def _draw_posterior(result: Result, path: Path) -> None:
    """Marginals of a few weights under what `infer` returned, and NUTS."""
    draws = {HYPERNET: result.posterior.samples, NUTS: result.posteriors[NUTS].samples}
    sites = result.posteriors[HYPERNET].layout.sites[:8]
    axes = new_axes(len(sites), is_on_screen=False)
    marginals(draws, [spell_entry(site.name, [0] * len(site.shape)) for site in sites], axes=axes)
    axes[0].figure.savefig(path, dpi=_DPI)

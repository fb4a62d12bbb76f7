"""The job's report: the page on what `infer` found on a table, beside Pyro's guides and NUTS."""

from pathlib import Path

from pyro_hypernet.job import HYPERNET, NORMAL, NUTS, Result, line_through_inputs
from pyro_hypernet.output.report import Band, report
from pyro_hypernet.output.report import Table as TableOfText
from pyro_hypernet.tabular import Table

_NOTE = (
    "ELBO in nats, on the rows of training; k-hat above 0.7 says that a guide misses something; the rest on held-out "
    "rows. W1/sd: distance of the network's outputs from those of NUTS, in standard deviations; W1 over floor: the "
    "same as a multiple of the distance of one half of the draws of NUTS from the other."
)


def write_report(result: Result, table: Table, out: Path) -> Path:
    """Writes `report.html` and `report.json`.

    Args:
        result: What `run` returned.
        table: The data.
        out: The folder.

    Returns:
        The page.
    """
    data = result.data
    cells = [tuple(line) for line in result.cells()]
    source = result.posterior.source
    return report(
        result.model,
        result.posterior,
        data.x_train,
        data.y_train,
        out=out,
        title=f"{table.target}: a Bayesian network and how far to trust it",
        comparison=result.comparison,
        name=HYPERNET if source == "guide" else f"{HYPERNET}, {source}",
        beside={NUTS: result.posteriors[NUTS], NORMAL: result.posteriors[NORMAL]},
        held_out=(data.x_test, data.y_test),
        band=_band(result, table),
        facts={
            "Table": f"{len(table.y)} rows, {len(data.y_train)} to fit and {len(data.y_test)} held out; "
            f"{table.task} of {table.target}" + (f", classes {', '.join(table.classes)}" if table.classes else ""),
            "Inputs": ", ".join(table.features),
            **({"Notes": " ".join(table.notes)} if table.notes else {}),
        },
        tables=[TableOfText("Guides and NUTS on this table", cells[0], tuple(cells[1:]), _NOTE)],
    )


def _band(result: Result, table: Table) -> Band:
    column, line, grid = line_through_inputs(result.data)
    label = f"{table.features[column]} (standardised), the others at their means"
    if not table.classes:
        data = (result.data.x_train[:, column], result.data.y_train)
        return Band(label, line, (grid,), output=f"{table.target} (standardised)", data=data)
    kind = "sigmoid" if len(table.classes) == 2 else "softmax"
    return Band(label, line, (grid,), output=f"probability of {table.classes[-1]}", column=-1, kind=kind)

"""A report's page: one HTML file with its style and pictures inside, which needs no network and runs no script."""

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import starmap

from pyro_hypernet.evaluation.comparison import NOISE_FLOOR, Comparison
from pyro_hypernet.evaluation.verdict import BAD, DO_NOT_TRUST, DOUBTFUL, GOOD, REFINE, USE, Check
from pyro_hypernet.output.pictures import Picture
from pyro_hypernet.output.record import Record, Table

_LEVEL_OF = {USE: GOOD, REFINE: DOUBTFUL, DO_NOT_TRUST: BAD}
_MARKS = {GOOD: "✓", DOUBTFUL: "!", BAD: "✗"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(record: Record, pictures: Sequence[Picture], files: Sequence[str] = ()) -> str:
    """Writes the page.

    Args:
        record: What it says.
        pictures: Its pictures, in order.
        files: Names of the files that lie beside it.

    Returns:
        HTML. All texts are escaped; there is no script and no address.
    """
    style = resources.files("pyro_hypernet.output").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(record.title)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        f'<header>\n<h1>{title}</h1>\n<p class="soft">Report of pyro_hypernet, {escape(record.created)}</p>\n</header>',
        "<main>",
        _verdict(record),
        _checks(record),
        _facts(record.facts),
        _tables([*record.tables, *_comparison_tables(record.comparison)]),
        _pictures(pictures),
        _log(record.log),
        "</main>",
        _footer(files),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _verdict(record: Record) -> str:
    if not record.verdict:
        return (
            '<section class="verdict" aria-labelledby="verdict">\n<h2 id="verdict">No verdict</h2>\n'
            "<p>Stored draws have no density by which to judge them. Look at the chains' own diagnostics, and at the "
            "distance from a reference where there is one.</p>\n</section>"
        )
    level = _LEVEL_OF[record.verdict]
    mark = f'<span aria-hidden="true">{_MARKS[level]} </span>'
    return (
        f'<section class="verdict {level}" aria-labelledby="verdict">\n'
        f'<h2 id="verdict">{mark}{escape(_capitalised(record.verdict))}</h2>\n'
        f"<p>{escape(record.because)}</p>\n</section>"
    )


def _checks(record: Record) -> str:
    if record.diagnosis is None:
        return ""
    items = "\n".join(_check(check) for check in record.diagnosis.checks)
    note = (
        f'<p class="soft">These checks are of the guide as it was trained, on which the verdict was '
        f"“{escape(record.diagnosis.verdict)}”. The draws of this report have been mended since.</p>\n"
    )
    note = note if record.diagnosis.verdict != record.verdict else ""
    return f'<section>\n<h2>What was looked at</h2>\n{note}<ul class="checks">\n{items}\n</ul>\n</section>'


def _check(check: Check) -> str:
    remedy = f"\n<p><strong>What to do:</strong> {escape(check.remedy)}</p>" if check.remedy else ""
    badge = (
        f'<span class="badge {check.level}"><span aria-hidden="true">{_MARKS[check.level]}</span> {check.level}</span>'
    )
    name, reading = escape(_capitalised(check.name)), escape(check.reading)
    return f"<li>{badge}<div><h3>{name}</h3>\n<p>{reading}</p>{remedy}</div></li>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    entries = "\n".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in facts)
    return f"<section>\n<h2>What was fitted</h2>\n<dl>\n{entries}\n</dl>\n</section>"


def _comparison_tables(comparison: Comparison | None) -> list[Table]:
    if comparison is None:
        return []
    titles = ["Distance from the reference, in function space"]
    titles += [f"Distance from the reference, {table[0][0]}" for table in comparison.tables()[1:]]
    share = f"{100 * comparison.level:.0f} %"
    note = (
        "W1/sd: Wasserstein distance of the marginals in sds of the reference; sd ratio: below 1 is too narrow; MMD²: "
        "maximum mean discrepancy of the joint values; TV: total variation of class probabilities. The noise floor is "
        "one half of the reference against the other: below it nothing can be told apart."
        + (f" In brackets: {share} bootstrap intervals." if comparison.level else "")
    )
    notes = [note] + [""] * (len(titles) - 1)
    tables = zip(titles, comparison.tables(intervals=True), notes, strict=True)
    return [Table(title, ("", *cells[0][1:]), tuple(map(tuple, cells[1:])), note) for title, cells, note in tables]


def _tables(tables: Sequence[Table]) -> str:
    if not tables:
        return ""
    return "<section>\n<h2>How good it is</h2>\n" + "\n".join(starmap(_table, enumerate(tables))) + "\n</section>"


def _table(number: int, table: Table) -> str:
    corner, *headings = table.headings
    head = f"<td>{escape(corner)}</td>" + "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    lines = []
    for first, *rest in table.rows:
        kind = ' class="floor"' if first == NOISE_FLOOR else ""
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in rest)
        lines.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{cells}</tr>')
    note = f'\n<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3 id="table-{number}">{escape(table.title)}</h3>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="table-{number}">\n'
        f'<table aria-labelledby="table-{number}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody>\n</table>\n</div>{note}"
    )


def _cell(text: str) -> str:
    """A number, its interval, if it has one, on a line of its own."""
    value, bracket, interval = text.partition(" [")
    return escape(value) + (f'<span class="interval">[{escape(interval)}</span>' if bracket else "")


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    shown = "\n".join(_picture(picture) for picture in pictures)
    return f'<section>\n<h2>Pictures</h2>\n<div class="pictures">\n{shown}\n</div>\n</section>'


def _picture(picture: Picture) -> str:
    source = "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode("ascii")
    return (
        f"<figure>\n<h3>{escape(picture.title)}</h3>\n"
        f'<img alt="{escape(picture.alt)}" src="{source}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )


def _log(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section>\n<h2>What was done</h2>\n<ol class="log">\n{items}\n</ol>\n</section>'


def _footer(files: Sequence[str]) -> str:
    if not files:
        return ""
    listed = ", ".join(f"<code>{escape(name)}</code>" for name in files)
    return f"<footer>\n<h2>Files beside this page</h2>\n<p>{listed}</p>\n</footer>"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]

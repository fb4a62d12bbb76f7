"""A CSV file as columns of text, every row with the number of its line."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEPARATORS = (",", ";", "\t", "|")
# Rows are read up to so many cells more than there are headings.
_MORE_CELLS = 20


@dataclass(frozen=True)
class Sheet:
    """The cells of a file, trimmed, blank lines left out.

    Attributes:
        columns: From a column's heading to its cells, N of them.
        lines: The line of the file in which each row begins, N of them; the first line is 1.
        separator: What stands between the cells.
    """

    columns: dict[str, list[str]] = field(repr=False)
    lines: list[int] = field(repr=False)
    separator: str


def read_sheet(path: Path) -> Sheet:
    """Reads a file whose first line that is not blank names the columns.

    Args:
        path: A text file in UTF-8; the separator, one of `SEPARATORS`, is told by that line.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pandas is not installed.
        ValueError: If it is empty or no such file, or rows differ in length, naming the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; save it as CSV with that encoding.") from None
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty; a line that names the columns, and rows, are needed.")
    headings = {mark: len(next(csv.reader([first], delimiter=mark))) for mark in SEPARATORS}
    separator = max(headings, key=headings.__getitem__)
    rows = _read_rows(text, separator, headings[separator] + _MORE_CELLS, path)
    lines, count = [], 1
    for row in rows:
        lines.append(count)
        count += 1 + sum(cell.count("\n") for cell in row)
    kept = [number for number, row in enumerate(rows) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in rows[kept[0]]]
    for number in kept[1:]:
        if len(rows[number]) != len(header):
            raise ValueError(
                f"Line {lines[number]} has {len(rows[number])} cells; the header has {len(header)} columns."
            )
    names = _named(header, path)
    columns = {name: [rows[number][i].strip() for number in kept[1:]] for i, name in enumerate(names)}
    return Sheet(columns, [lines[number] for number in kept[1:]], separator)


def _named(header: list[str], path: Path) -> list[str]:
    """Different names: headings that are empty become those that pandas gives them."""
    names = [name or f"Unnamed: {i}" for i, name in enumerate(header)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"Column names must differ; {', '.join(map(repr, doubled))} stands more than once.")
    return names


def _read_rows(text: str, separator: str, most_cells: int, path: Path) -> list[list[str]]:
    """The cells of every row, blank lines included as rows without cells."""
    pandas = _pandas()
    try:
        frame: Any = pandas.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            names=range(most_cells),
            index_col=False,
            dtype=object,
            keep_default_na=False,
            skip_blank_lines=False,
            engine="python",  # the one that tells an empty cell from one that is not there
        )
    except (pandas.errors.ParserError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as CSV ({str(error).rstrip('.')}): look for a quotation mark that is not closed "
            "and for rows that are too long."
        ) from None
    return [[cell for cell in row if isinstance(cell, str)] for row in frame.to_numpy().tolist()]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Reading a CSV file needs pandas: pip install 'pyro-hypernet[cli]'.") from error
    return pandas

"""A CSV file as tensors to learn from, or a clear word on why not."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_hypernet.sheet import Sheet, read_sheet

TASKS = ("regression", "classification")
MIN_ROWS = 20
# Stand for a missing value; the last two only among numbers, for among words they may name a class.
_MISSING, _MISSING_NUMBER = {"", "na", "n/a", "nan", "<na>", "#n/a", "?"}, {"null", "none", "-"}
# A numeric target with at most this many values counts as classes, unless told otherwise.
_MAX_CLASSES = 2
# Rows in which a number to predict must differ from its most frequent value: with fewer there is nothing to learn.
_LEAST_DIFFERING = 5
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": "1", "false": "0"}
_UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)*")


@dataclass(frozen=True)
class Table:
    """Inputs and target of a table, not yet standardised.

    Attributes:
        x: Inputs, shape `(N, d)`.
        y: Target, shape `(N,)`: floats, or class numbers as int64.
        features: Names of the inputs.
        target: Name of the target.
        classes: Names of the classes, empty for a regression.
        notes: What was read otherwise than it stands there, or looks odd, a sentence each.
    """

    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """ "regression" or "classification"."""
        return "classification" if self.classes else "regression"


@dataclass(frozen=True)
class Split:
    """A table cut in two and standardised by its training part.

    Attributes:
        x_train: Shape `(N, d)`, zero mean and unit sd; all zero in a column that varies in the held-out part alone.
        y_train: Shape `(N,)`; zero mean and unit sd for a regression.
        x_test: Shape `(M, d)`, on the scale of the training part.
        y_test: Shape `(M,)`.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def read_csv(path: str | Path, target: str, task: str | None = None) -> Table:
    """Reads a CSV file with a header and columns of numbers, or of True and False.

    Commas, semicolons, tabs or bars may stand between the cells; beside semicolons and tabs, commas within numbers are
    decimal. A row number without a heading, as pandas writes it, is left out. Classes that differ in case only, or
    are the same number, are one. What was done of that stands in the table's notes. Nothing depends on how `split`
    will cut the table.

    Args:
        path: The file.
        target: Name of the column to predict.
        task: "regression", "classification", or None to judge by the target: text or two distinct values are classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pandas is not installed.
        ValueError: Naming the column and the line, if the header is missing, values are missing, a column is constant,
            has no name or holds text, a target has one class or next to one value, or there are too few rows.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}.")
    sheet, notes = read_sheet(Path(path)), []
    header = list(sheet.columns)
    if all(_NUMBER.fullmatch(name) or _UNNAMED.fullmatch(name) for name in header):
        raise ValueError(
            f"The first line of {path} holds only numbers ({', '.join(header[:3])}, …); a header is needed."
        )
    if target not in header:
        raise ValueError(f"No column is named {target!r}; the columns are {', '.join(header)}.")
    if len(sheet.lines) < MIN_ROWS:
        raise ValueError(f"The file has {len(sheet.lines)} rows; at least {MIN_ROWS} are needed to fit and to test.")
    columns = _with_decimal_points(sheet, notes)
    columns = {name: cells for name, cells in columns.items() if name == target or not _is_left_out(name, cells, notes)}
    if len(columns) < 2:
        raise ValueError(f"The file has the column {target!r} alone; at least one input column is needed.")
    for name, cells in columns.items():
        _refuse_missing(name, cells, sheet.lines)
    features = tuple(name for name in columns if name != target)
    x = np.column_stack([_numbers(name, columns[name], sheet.lines) for name in features])
    notes += [_ROW_NUMBER.format(name) for name, values in zip(features, x.T, strict=True) if _counts_rows(values)]
    y, classes = _target(target, columns[target], sheet.lines, task, notes)
    return Table(torch.from_numpy(x), y, features, target, classes, tuple(notes))


def split(table: Table, *, test_share: float = 0.25, seed: int = 0) -> Split:
    """Cuts a table at random and standardises both parts by the training part.

    A column that varies in the held-out part alone is divided by its spread over the whole table.

    Args:
        table: The table.
        test_share: Share of the rows held out, in (0, 1).
        seed: Of the cut.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(table.y)))
    num_test = max(1, round(test_share * len(order)))
    train, test = order[num_test:], order[:num_test]
    x = _standardised(table.x, train)
    y = table.y if table.classes else _standardised(table.y, train)
    dtype = torch.get_default_dtype()
    x, y = x.to(dtype), y if table.classes else y.to(dtype)
    return Split(x[train], y[train], x[test], y[test])


def _standardised(values: Tensor, train: Tensor) -> Tensor:
    sd = values[train].std(0)
    return (values - values[train].mean(0)) / torch.where(sd > 0, sd, values.std(0))


def _with_decimal_points(sheet: Sheet, notes: list[str]) -> dict[str, list[str]]:
    """The columns; decimal commas become points where commas do not part the cells and no number has a point."""
    cells = [cell for column in sheet.columns.values() for cell in column]
    has_points = any("." in cell and _NUMBER.fullmatch(cell) for cell in cells)
    if sheet.separator == "," or has_points or not any(_COMMA_NUMBER.fullmatch(cell) for cell in cells):
        return dict(sheet.columns)
    notes.append("Commas in numbers were read as decimal commas.")
    return {
        name: [cell.replace(",", ".") if _COMMA_NUMBER.fullmatch(cell) else cell for cell in column]
        for name, column in sheet.columns.items()
    }


def _is_left_out(name: str, cells: Sequence[str], notes: list[str]) -> bool:
    """Whether a column without a name is empty or numbers the rows; if it is neither, it is refused."""
    if not _UNNAMED.fullmatch(name):
        return False
    if not any(cells):
        return True
    if all(re.fullmatch(r"\d+(\.0)?", cell, re.ASCII) for cell in cells) and len(set(cells)) == len(cells):
        notes.append(f"The column without a name ({name!r}) numbers the rows and was left out.")
        return True
    raise ValueError(f"A column has no name ({name!r}, first cell {cells[0]!r}): name it in the header, or remove it.")


_ROW_NUMBER = "Column {!r} counts the rows from first to last: remove it, if it is no more than a row number."


def _counts_rows(values: np.ndarray) -> bool:
    return bool((np.diff(values) == 1).all())


def _refuse_missing(name: str, cells: Sequence[str], lines: Sequence[int]) -> None:
    among_numbers = sum(map(_is_number, cells)) > len(cells) // 2
    words = _MISSING | _MISSING_NUMBER if among_numbers else _MISSING
    missing = [line for line, cell in zip(lines, cells, strict=True) if cell.lower() in words]
    if missing:
        raise ValueError(
            f"Column {name!r} has {len(missing)} missing values, the first in line {missing[0]}: drop those rows or "
            "fill them in."
        )


def _numbers(name: str, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    if {cell.lower() for cell in cells} <= set(_TRUTH):
        cells = [_TRUTH[cell.lower()] for cell in cells]
    for line, cell in zip(lines, cells, strict=True):
        if not _is_number(cell):
            hint = " (decimal commas are read in files that part their cells by semicolons or tabs)"
            raise ValueError(
                f"Column {name!r} holds text, {cell!r} in line {line}, where a number is expected: encode it as "
                f"numbers or remove it{hint if _COMMA_NUMBER.fullmatch(cell) else ''}."
            )
    values = np.array([float(cell) for cell in cells])
    if np.ptp(values) == 0:
        raise ValueError(f"Column {name!r} has the same value, {cells[0]}, in all rows: remove it.")
    return values


def _target(
    name: str, cells: Sequence[str], lines: Sequence[int], task: str | None, notes: list[str]
) -> tuple[Tensor, tuple[str, ...]]:
    """The target and its classes, none for a regression."""
    spelt = _spellings(cells)
    numeric = all(_is_number(cell) for cell in cells)
    if task is None:
        task = "regression" if numeric and len(spelt) > _MAX_CLASSES else "classification"
    if task == "regression":
        values = _numbers(name, cells, lines)
        most = max(Counter(values.tolist()).values())
        if len(values) - most < _LEAST_DIFFERING:
            raise ValueError(
                f"Target {name!r} has one and the same value in {most} of {len(values)} rows; at least "
                f"{_LEAST_DIFFERING} must differ from it for a regression to learn anything."
            )
        return torch.from_numpy(values), ()
    for variants in spelt.values():
        if len(variants) > 1:
            notes.append(f"{', '.join(map(repr, sorted(variants)))} were taken for one class of {name!r}.")
    names = {key: variants.most_common(1)[0][0] for key, variants in spelt.items()}
    order = sorted(names, key=lambda key: (isinstance(key, str), key if isinstance(key, float) else 0, names[key]))
    if len(order) < 2:
        raise ValueError(f"Target {name!r} has the one class {cells[0]!r}; a classification needs at least two.")
    if len(order) > len(cells) // 4:
        raise ValueError(
            f"Target {name!r} has {len(order)} classes in {len(cells)} rows, too many to learn: for a number to "
            "predict use --task regression."
        )
    place = {key: number for number, key in enumerate(order)}
    return torch.tensor([place[_key(cell)] for cell in cells]), tuple(names[key] for key in order)


def _spellings(cells: Sequence[str]) -> Mapping[float | str, Counter]:
    """From a class to how often each of its spellings occurs."""
    found: dict[float | str, Counter] = {}
    for cell in cells:
        found.setdefault(_key(cell), Counter())[cell] += 1
    return found


def _key(cell: str) -> float | str:
    """The same for cells that mean the same: numbers by value, words without regard to case."""
    return float(cell) if _is_number(cell) else cell.casefold()


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))

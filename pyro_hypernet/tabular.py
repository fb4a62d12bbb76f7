"""A CSV file as tensors to learn from, or a clear word on why not."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TASKS = ("regression", "classification")
MIN_ROWS = 20
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}
# A numeric target with at most this many whole values counts as classes, unless told otherwise.
_MAX_CLASSES = 2


@dataclass(frozen=True)
class Table:
    """Inputs and target of a table, not yet standardised.

    Attributes:
        x: Inputs, shape `(N, d)`.
        y: Target, shape `(N,)`: floats, or class numbers as int64.
        features: Names of the inputs.
        target: Name of the target.
        classes: Names of the classes, empty for a regression.
    """

    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...]

    @property
    def task(self) -> str:
        """ "regression" or "classification"."""
        return "classification" if self.classes else "regression"


@dataclass(frozen=True)
class Split:
    """A table cut in two and standardised by its training part.

    Attributes:
        x_train: Shape `(N, d)`, zero mean and unit sd.
        y_train: Shape `(N,)`; zero mean and unit sd for a regression.
        x_test: Shape `(M, d)`, on the scale of the training part.
        y_test: Shape `(M,)`.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def read_csv(path: str | Path, target: str, task: str | None = None) -> Table:
    """Reads a CSV file with a header and numeric columns.

    Args:
        path: The file.
        target: Name of the column to predict.
        task: "regression", "classification", or None to judge by the target: text or two distinct values are classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the column and the line, if the header is missing, values are missing, a column is constant
            or holds text, a target has one class, or there are too few rows.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}.")
    header, rows = _read_rows(Path(path))
    if target not in header:
        raise ValueError(f"No column is named {target!r}; the columns are {', '.join(header)}.")
    if len(header) < 2:
        raise ValueError(f"The file has the column {target!r} alone; at least one input column is needed.")
    if len(rows) < MIN_ROWS:
        raise ValueError(f"The file has {len(rows)} rows; at least {MIN_ROWS} are needed to fit and to test.")
    _refuse_missing(header, rows)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    features = tuple(name for name in header if name != target)
    x = torch.from_numpy(np.column_stack([_numbers(name, columns[name]) for name in features]))
    y, classes = _target(target, columns[target], task)
    return Table(x, y, features, target, classes)


def split(table: Table, *, test_share: float = 0.25, seed: int = 0) -> Split:
    """Cuts a table at random and standardises both parts by the training part.

    Args:
        table: The table.
        test_share: Share of the rows held out, in (0, 1).
        seed: Of the cut.

    Raises:
        ValueError: If a column is constant in the training part.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(table.y)))
    num_test = max(1, round(test_share * len(order)))
    train, test = order[num_test:], order[:num_test]
    mean, sd = table.x[train].mean(0), table.x[train].std(0)
    if bool((sd == 0).any()):
        name = table.features[int((sd == 0).nonzero()[0])]
        raise ValueError(f"Column {name!r} has one and the same value in all training rows: remove it.")
    x = (table.x - mean) / sd
    y = table.y
    if not table.classes:
        y = (y - y[train].mean()) / y[train].std()
    dtype = torch.get_default_dtype()
    x, y = x.to(dtype), y if table.classes else y.to(dtype)
    return Split(x[train], y[train], x[test], y[test])


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(cell.strip() for cell in line)]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; save it as CSV with that encoding.") from None
    if not lines:
        raise ValueError(f"{path} is empty; a header and at least {MIN_ROWS} rows are needed.")
    header, rows = lines[0], lines[1:]
    if all(_is_number(name) for name in header):
        raise ValueError(
            f"The first line of {path} holds only numbers ({', '.join(header[:3])}, …); a header is needed."
        )
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ValueError(f"Column names must differ; {', '.join(map(repr, doubled))} stands more than once.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"Line {number} has {len(row)} cells; the header has {len(header)} columns.")
    return header, rows


def _refuse_missing(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for i, name in enumerate(header):
        missing = [number for number, row in enumerate(rows, start=2) if row[i].lower() in _MISSING]
        if missing:
            raise ValueError(
                f"Column {name!r} has {len(missing)} missing values, the first in line {missing[0]}: drop those "
                "rows or fill them in."
            )


def _numbers(name: str, cells: Sequence[str]) -> np.ndarray:
    for number, cell in enumerate(cells, start=2):
        if not _is_number(cell):
            raise ValueError(
                f"Column {name!r} holds text, {cell!r} in line {number}, where a number is expected: encode it as "
                "numbers or remove it."
            )
    values = np.array([float(cell) for cell in cells])
    if np.ptp(values) == 0:
        raise ValueError(f"Column {name!r} has the same value, {cells[0]}, in all rows: remove it.")
    return values


def _target(name: str, cells: Sequence[str], task: str | None) -> tuple[Tensor, tuple[str, ...]]:
    distinct = sorted(set(cells), key=lambda cell: (not _is_number(cell), float(cell) if _is_number(cell) else 0, cell))
    numeric = all(_is_number(cell) for cell in cells)
    if task is None:
        task = "regression" if numeric and len(distinct) > _MAX_CLASSES else "classification"
    if task == "regression":
        return torch.from_numpy(_numbers(name, cells)), ()
    if len(distinct) < 2:
        raise ValueError(f"Target {name!r} has the one class {distinct[0]!r}; a classification needs at least two.")
    if len(distinct) > len(cells) // 4:
        raise ValueError(
            f"Target {name!r} has {len(distinct)} classes in {len(cells)} rows, too many to learn: for a number to "
            "predict use --task regression."
        )
    return torch.tensor([distinct.index(cell) for cell in cells]), tuple(distinct)


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False

"""A CSV file as tensors to learn from, or a clear word on why not."""

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TASKS = ("regression", "classification")
SEPARATORS = (",", ";", "\t", "|")
MIN_ROWS = 20
# Stand for a missing value; the last two only among numbers, for among words they may name a class.
_MISSING, _MISSING_NUMBER = {"", "na", "n/a", "nan", "<na>", "#n/a", "?"}, {"null", "none", "-"}
# A numeric target with at most this many values counts as classes, unless told otherwise.
_MAX_CLASSES = 2
# Rows in which a number to predict must differ from its most frequent value: with fewer there is nothing to learn.
_LEAST_DIFFERING = 5
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COMMA_NUMBER = re.compile(r"^([+-]?\d*),(\d+(?:e[+-]?\d+)?)$", re.ASCII | re.IGNORECASE)
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


@dataclass(frozen=True)
class Scaler:
    """To zero mean and unit standard deviation, and back.

    Attributes:
        loc: Means, shape `shape`.
        scale: Standard deviations, shape `shape`.
    """

    loc: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor, weight: Tensor | None = None, *, otherwise: Tensor | float = 1.0) -> "Scaler":
        """The scaler by which these values have zero mean and unit deviation.

        Args:
            values: Shape `(N, *shape)`.
            weight: How often every row counts, positive, shape `(N,)`; None for once.
            otherwise: The scale where all values are the same.
        """
        weight = values.new_ones(len(values)) if weight is None else weight
        total = weight.sum()
        loc = weight @ values / total
        # As many rows as weights count, less the one that the mean takes; of fewer than two nothing is left of that.
        sd = (weight @ (values - loc) ** 2 / torch.maximum(total - 1, total / 2)).sqrt()
        return cls(loc, torch.where(values.amax(0) > values.amin(0), sd, otherwise))

    def __call__(self, values: Tensor) -> Tensor:
        """Values as standardised ones, shape `(..., *shape)`."""
        return (values - self.loc) / self.scale

    def undo(self, values: Tensor) -> Tensor:
        """Standardised values as they were, shape `(..., *shape)`."""
        return values * self.scale + self.loc


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
    frame, notes = _read_text(Path(path)), []
    header = list(frame.columns)
    if all(_NUMBER.fullmatch(name) or _UNNAMED.fullmatch(name) for name in header):
        raise ValueError(
            f"The first line of {path} holds only numbers ({', '.join(header[:3])}, …); a header is needed."
        )
    if target not in header:
        raise ValueError(f"No column is named {target!r}; the columns are {', '.join(header)}.")
    if len(frame) < MIN_ROWS:
        raise ValueError(f"The file has {len(frame)} rows; at least {MIN_ROWS} are needed to fit and to test.")
    frame = _with_decimal_points(frame, notes)
    frame = frame[[name for name in header if name == target or not _is_left_out(frame[name], notes)]]
    if len(frame.columns) < 2:
        raise ValueError(f"The file has the column {target!r} alone; at least one input column is needed.")
    frame.apply(_refuse_missing)
    inputs = frame.drop(columns=target).apply(_numbers)
    notes += [_ROW_NUMBER.format(name) for name in inputs if (inputs[name].diff()[1:] == 1).all()]
    y, classes = _target(frame[target], task, notes)
    return Table(torch.from_numpy(np.array(inputs)), y, tuple(inputs), target, classes, tuple(notes))


def read_diabetes() -> Table:
    """The diabetes data that scikit-learn carries: 442 patients, 10 inputs, progression after one year.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError("The demo needs scikit-learn for its data: pip install 'pyro-hypernet[cli]'.") from error
    data = load_diabetes(scaled=False)
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target)
    return Table(x, y, tuple(data.feature_names), "progression", ())


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
    x, y = (Scaler.of(values[train], otherwise=values.std(0))(values) for values in (table.x, table.y.double()))
    y = table.y if table.classes else y
    dtype = torch.get_default_dtype()
    x, y = x.to(dtype), y if table.classes else y.to(dtype)
    return Split(x[train], y[train], x[test], y[test])


def _read_text(path: Path) -> Any:
    """A DataFrame of trimmed text, by the line of the file in which a row begins; the separator is in its `attrs`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Reading a CSV file needs pandas: pip install 'pyro-hypernet[cli]'.") from error
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; save it as CSV with that encoding.") from None
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty; a line that names the columns, and rows, are needed.")
    separator = max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    try:
        rows = _read_rows(text, separator)
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as CSV ({error}): look for a quotation mark that is not closed."
        ) from None
    header = [name or f"Unnamed: {i}" for i, name in enumerate(rows.pop(min(rows)))]
    for line, cells in rows.items():
        if len(cells) != len(header):
            raise ValueError(f"Line {line} has {len(cells)} cells; the header has {len(header)} columns.")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ValueError(f"Column names must differ; {', '.join(map(repr, doubled))} stands more than once.")
    frame = pandas.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
    frame.attrs["separator"] = separator
    return frame


def _read_rows(text: str, separator: str) -> dict[int, list[str]]:
    """From the line in which a row begins to its cells, blank lines left out: pandas tells neither lines nor cells."""
    reader, rows, line = csv.reader(io.StringIO(text), delimiter=separator, strict=True), {}, 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            rows[line] = [cell.strip() for cell in cells]
        line = reader.line_num + 1
    return rows


def _with_decimal_points(frame: Any, notes: list[str]) -> Any:
    """The same; decimal commas become points where commas do not part the cells and no number has a point."""
    has_points = any("." in cell and _NUMBER.fullmatch(cell) for cell in frame.to_numpy().flat)
    changed = frame.replace(_COMMA_NUMBER, r"\1.\2", regex=True)
    if frame.attrs["separator"] == "," or has_points or changed.equals(frame):
        return frame
    notes.append("Commas in numbers were read as decimal commas.")
    return changed


def _is_left_out(column: Any, notes: list[str]) -> bool:
    """Whether a column without a name is empty or numbers the rows; if it is neither, it is refused."""
    if not _UNNAMED.fullmatch(column.name):
        return False
    if (column == "").all():
        return True
    if column.str.fullmatch(r"[0-9]+(\.0)?").all() and column.is_unique:
        notes.append(f"The column without a name ({column.name!r}) numbers the rows and was left out.")
        return True
    raise ValueError(
        f"A column has no name ({column.name!r}, first cell {column.iloc[0]!r}): name it in the header, or remove it."
    )


_ROW_NUMBER = "Column {!r} counts the rows from first to last: remove it, if it is no more than a row number."


def _refuse_missing(column: Any) -> None:
    among_numbers = column.map(_is_number).mean() > 0.5
    missing = column[column.str.lower().isin(_MISSING | _MISSING_NUMBER if among_numbers else _MISSING)]
    if len(missing):
        raise ValueError(
            f"Column {column.name!r} has {len(missing)} missing values, the first in line {missing.index[0]}: drop "
            "those rows or fill them in."
        )


def _numbers(column: Any) -> Any:
    if column.str.lower().isin(_TRUTH).all():
        column = column.str.lower().map(_TRUTH)
    text = column[~column.map(_is_number)]
    if len(text):
        hint = " (decimal commas are read in files that part their cells by semicolons or tabs)"
        raise ValueError(
            f"Column {column.name!r} holds text, {text.iloc[0]!r} in line {text.index[0]}, where a number is expected: "
            f"encode it as numbers or remove it{hint if _COMMA_NUMBER.fullmatch(text.iloc[0]) else ''}."
        )
    values = column.astype(float)
    if values.nunique() == 1:
        raise ValueError(f"Column {column.name!r} has the same value, {column.iloc[0]}, in all rows: remove it.")
    return values


def _target(column: Any, task: str | None, notes: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The target and its classes, none for a regression."""
    keys = column.map(_key)
    is_regression = column.map(_is_number).all() and keys.nunique() > _MAX_CLASSES if task is None else task == TASKS[0]
    if not is_regression:
        return _classes(column, keys, notes)
    values = _numbers(column)
    most = values.value_counts().max()
    if len(values) - most < _LEAST_DIFFERING:
        raise ValueError(
            f"Target {column.name!r} has one and the same value in {most} of {len(values)} rows; at least "
            f"{_LEAST_DIFFERING} must differ from it for a regression to learn anything."
        )
    return torch.tensor(values.to_numpy()), ()


def _classes(column: Any, keys: Any, notes: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of classes and their names: of the spellings of a class the one that is most frequent."""
    spelt = dict(iter(column.groupby(keys, sort=False)))
    for cells in spelt.values():
        if cells.nunique() > 1:
            variants = ", ".join(map(repr, sorted(cells.unique())))
            notes.append(f"{variants} were taken for one class of {column.name!r}.")
    names = {key: cells.mode()[0] for key, cells in spelt.items()}
    order = sorted(names, key=lambda key: (isinstance(key, str), names[key] if isinstance(key, str) else key))
    if len(order) < 2:
        raise ValueError(
            f"Target {column.name!r} has the one class {column.iloc[0]!r}; a classification needs at least two."
        )
    if len(order) > len(column) // 4:
        raise ValueError(
            f"Target {column.name!r} has {len(order)} classes in {len(column)} rows, too many to learn: for a number "
            "to predict use --task regression."
        )
    place = {key: number for number, key in enumerate(order)}
    return torch.tensor([place[key] for key in keys]), tuple(names[key] for key in order)


def _key(cell: str) -> float | str:
    """The same for cells that mean the same: numbers by value, words without regard to case."""
    return float(cell) if _is_number(cell) else cell.casefold()


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))

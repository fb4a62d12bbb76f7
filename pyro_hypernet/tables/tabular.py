"""A CSV file as tensors to learn from, or a clear word on why not."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_hypernet.tables.columns import (
    Encoder,
    in_one,
    is_gap,
    is_header,
    is_number,
    numbers_of,
    spell_some,
    with_decimal_points,
)

TASKS = ("regression", "classification")
SEPARATORS = (",", ";", "\t", "|")
MIN_ROWS = 20
# A numeric target with at most this many values counts as classes, unless told otherwise.
_MAX_CLASSES = 2
# Rows in which a number to predict must differ from its most frequent value: with fewer there is nothing to learn.
_LEAST_DIFFERING = 5


@dataclass(frozen=True)
class Table:
    """Inputs and target of a table, not yet standardised.

    Attributes:
        x: Inputs, shape `(N, d)`.
        y: Target, shape `(N,)`: floats, or class numbers as int64.
        features: Names of the inputs.
        target: Name of the target.
        classes: Names of the classes, empty for a regression.
        notes: What was read otherwise than it stands there, a sentence each.
        encoder: How the inputs were made of the columns of a file; None where they are no file's.
    """

    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    target: str
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    encoder: Encoder | None = None

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
        rows: Numbers of the rows of the training part, shape `(N,)`.
        scaler: By which the inputs were standardised.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    rows: Tensor
    scaler: "Scaler"


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


def read_csv(path: str | Path, target: str | None = None, task: str | None = None, drop: Sequence[str] = ()) -> Table:
    """Reads a CSV file with a header: numbers as they stand, words one-hot encoded, missing inputs filled in.

    Commas, semicolons, tabs or bars may stand between the cells; beside semicolons and tabs, commas within numbers are
    decimal. Rows without a target are left out, and so are columns of which nothing can be learnt: row numbers without
    a heading, dates, one value in all rows, ids. Classes that differ in case only, or are the same number, are one.
    What was done of that stands in the table's notes and its encoder's fates. Nothing depends on how `split` will cut
    the table: medians and words are those of all rows.

    Args:
        path: The file.
        target: Name of the column to predict; None for the last.
        task: "regression", "classification", or None to judge by the target: text or two distinct values are classes.
        drop: Names of columns to leave out.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pandas or scikit-learn are not installed.
        ValueError: Naming all that is wrong, with columns and lines: no header, rows of other lengths, columns without
            a name, text among numbers, no column that can be used, a target of one class or next to one value, too
            few rows.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}.")
    frame, notes = read_cells(path)
    header = list(frame.columns)
    if target is None:
        target = ([name for name in header if name not in drop] or header)[-1]
        notes.append(f"No target was named: it is the last column, {target!r}.")
    if target in drop:
        raise ValueError(f"The target, {target!r}, must be another column than those to leave out, {', '.join(drop)}.")
    unknown = [name for name in (target, *drop) if name not in header]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ValueError(f"No column is named {names}; the columns are {', '.join(header)}.")
    frame = _with_target(frame.drop(columns=list(drop)), target, notes)
    if len(frame) < MIN_ROWS:
        raise ValueError(f"The file has {len(frame)} rows; at least {MIN_ROWS} are needed to fit and to test.")
    if len(frame.columns) < 2:
        raise ValueError(f"The file has the column {target!r} alone; at least one input column is needed.")
    faults: list[str] = []
    encoder = Encoder.of(frame.drop(columns=target), faults)
    try:
        y, classes = _target(frame[target], task, notes)
    except ValueError as fault:
        faults.append(str(fault))
    if faults:
        raise ValueError(in_one(faults))
    inputs, _ = encoder(frame)
    return Table(torch.from_numpy(inputs), y, encoder.features, target, classes, tuple(notes), encoder)


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

    A column that varies in the held-out part alone is divided by its spread over the whole table. Of every class at
    least one row is among those of training.

    Args:
        table: The table.
        test_share: Share of the rows held out, in (0, 1).
        seed: Of the cut.
    """
    order = np.random.default_rng(seed).permutation(len(table.y))
    num_test = max(1, round(test_share * len(order)))
    train, test = order[num_test:], order[:num_test]
    if table.classes:
        held_out, firsts = np.unique(table.y[test], return_index=True)
        lonely = firsts[~np.isin(held_out, table.y[train])]
        train, test = np.append(train, test[lonely]), np.delete(test, lonely)
    scaler, of_target = (Scaler.of(v[train], otherwise=v.std(0)) for v in (table.x, table.y.double()))
    dtype = torch.get_default_dtype()
    x, y = scaler(table.x).to(dtype), table.y if table.classes else of_target(table.y.double()).to(dtype)
    return Split(x[train], y[train], x[test], y[test], torch.from_numpy(train), scaler)


def read_cells(path: str | Path) -> tuple[Any, list[str]]:
    """A CSV file as text.

    Args:
        path: The file.

    Returns:
        A DataFrame of trimmed text, by the line of the file in which a row begins, and what was read otherwise than it
        stands there, a sentence each.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pandas is not installed.
        ValueError: If it is no CSV file with a header and rows of equal lengths.
    """
    frame = _read_text(Path(path))
    if not is_header(frame.columns):
        raise ValueError(
            f"The first line of {path} holds only numbers ({', '.join(frame.columns[:3])}, …); a header is needed."
        )
    changed = with_decimal_points(frame)
    return changed, [] if changed.equals(frame) else ["Commas in numbers were read as decimal commas."]


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
    faults = _wrong_lengths({line: len(cells) for line, cells in rows.items()}, len(header))
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        faults.append(f"Column names must differ; {', '.join(map(repr, doubled))} stands more than once.")
    if faults:
        raise ValueError(in_one(faults))
    frame = pandas.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
    # Spreadsheets end lines by empty cells.
    frame = frame.drop(columns=[name for name in frame if name.startswith("Unnamed: ") and (frame[name] == "").all()])
    frame.attrs["separator"] = separator
    return frame


def _wrong_lengths(lengths: dict[int, int], right: int) -> list[str]:
    """A sentence for all lines that have one wrong number of cells."""
    faults = []
    for wrong in sorted(set(lengths.values()) - {right}):
        lines = [str(line) for line, length in lengths.items() if length == wrong]
        which = f"Line {lines[0]} has" if len(lines) == 1 else f"Lines {spell_some(lines)} have"
        faults.append(f"{which} {wrong} cells; the header has {right} columns.")
    return faults


def _read_rows(text: str, separator: str) -> dict[int, list[str]]:
    """From the line in which a row begins to its cells, blank lines left out: pandas tells neither lines nor cells."""
    reader, rows, line = csv.reader(io.StringIO(text), delimiter=separator, strict=True), {}, 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            rows[line] = [cell.strip() for cell in cells]
        line = reader.line_num + 1
    return rows


def _with_target(frame: Any, target: str, notes: list[str]) -> Any:
    """The rows that have a target."""
    missing = is_gap(frame[target])
    if missing.any():
        have, were = ("row has", "was") if missing.sum() == 1 else ("rows have", "were")
        line = frame.index[missing][0]
        notes.append(f"{missing.sum()} {have} no {target!r}, the first in line {line}, and {were} left out.")
    return frame[~missing]


def _target(column: Any, task: str | None, notes: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The target and its classes, none for a regression."""
    keys = column.map(_key)
    is_regression = column.map(is_number).all() and keys.nunique() > _MAX_CLASSES if task is None else task == TASKS[0]
    if not is_regression:
        return _classes(column, keys, notes)
    values = numbers_of(column)
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
        text = column[~column.map(is_number)]
        if len(text) <= len(column) / 2:
            numbers_of(column)  # says where the text is
        raise ValueError(
            f"Target {column.name!r} has {len(order)} classes in {len(column)} rows, too many to learn: for a number "
            "to predict use --task regression."
        )
    place = {key: number for number, key in enumerate(order)}
    return torch.tensor([place[key] for key in keys]), tuple(names[key] for key in order)


def _key(cell: str) -> float | str:
    """The same for cells that mean the same: numbers by value, words without regard to case."""
    return float(cell) if is_number(cell) else cell.casefold()

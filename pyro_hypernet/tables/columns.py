"""Columns of a table as inputs of a network, by scikit-learn: gaps filled, words one-hot encoded, the rest left out."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Stand for a missing value; the last three only among numbers, for among words they may name a class.
_MISSING, _MISSING_NUMBER = {"", "na", "n/a", "nan", "<na>", "#n/a", "?"}, {"null", "none", "-"}
_TRUTH = {"true": "1", "false": "0"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COMMA_NUMBER = re.compile(r"^([+-]?\d*),(\d+(?:e[+-]?\d+)?)$", re.ASCII | re.IGNORECASE)
_DATE = re.compile(r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{2,4})([ T].*)?|\d{1,2}:\d{2}(:\d{2})?")
_UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)*")
# Faults that are told at a time, and names of a kind.
_MOST_FAULTS, _MOST_NAMES = 20, 8
# Rows in which a word must stand to be an input of its own, and the most inputs that a column becomes.
_LEAST_ROWS, _MOST_INPUTS = 5, 20
_GAP, _RARE = "missing", "infrequent_sklearn"
_LEFT_OUT = "left out, for "


@dataclass(frozen=True)
class Encoder:
    """How columns become inputs, as it was found out on one table.

    Attributes:
        fates: From every column of that table to what became of it; empty for numbers that are taken as they are.
        numbers: Names of the columns of numbers that are used.
        words: Names of the columns of words that are used.
        transformer: What scikit-learn makes of them, fitted.
    """

    fates: Mapping[str, str]
    numbers: tuple[str, ...]
    words: tuple[str, ...]
    transformer: Any

    @classmethod
    def of(cls, frame: Any, faults: list[str]) -> "Encoder | None":
        """Finds out what to make of every column.

        Args:
            frame: A DataFrame of trimmed text, by the line of its file in which a row begins.
            faults: Gets a sentence for every column that only its owner can mend.

        Returns:
            None where there is such a fault.
        """
        kinds: dict[str, bool] = {}
        fates: dict[str, str] = {}
        for name in frame:
            try:
                is_of_numbers = _is_of_numbers(frame[name])
                fates[name] = (_fate_of_numbers if is_of_numbers else _fate_of_words)(frame[name])
                if not fates[name].startswith(_LEFT_OUT):
                    kinds[name] = is_of_numbers
            except ValueError as fault:
                faults.append(str(fault))
        if not kinds and not faults:
            left_out = "; ".join(f"{name!r} is {fate}" for name, fate in fates.items())
            faults.append(f"No column is left to predict from: {left_out}.")
        if faults:
            return None
        numbers, words = (tuple(name for name in kinds if kinds[name] is kind) for kind in (True, False))
        return cls(fates, numbers, words, _transformer(numbers, words).fit(_typed(frame, numbers, words)))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs, such as "age", "age = missing" and "city = Oslo"."""
        names = (name.split("__", 1)[1] for name in self.transformer.get_feature_names_out())
        return tuple(re.sub("^missingindicator_(.*)", rf"\1 = {_GAP}", name) for name in names)

    def __call__(self, frame: Any) -> tuple[np.ndarray, list[str]]:
        """The inputs of a table with these columns, in any order and among others.

        Args:
            frame: A DataFrame of trimmed text, by the line of its file in which a row begins.

        Returns:
            Inputs, shape `(N, d)`, and a sentence for every column with words that were not learnt from.

        Raises:
            ValueError: If columns are missing, or some that should hold numbers hold text, all of them named.
        """
        missing = [name for name in (*self.numbers, *self.words) if name not in frame]
        if missing:
            lacks, has = (spell_some(map(repr, names)) for names in (missing, frame))
            raise ValueError(f"The table must have all columns that were learnt from; it lacks {lacks} and has {has}.")
        typed, notes = _typed(frame, self.numbers, self.words), []
        encoder = self.transformer.named_steps["encode"].named_transformers_["words"]
        for place, name in enumerate(self.words):
            new = set(typed[name].fillna(_GAP)) - set(encoder[-1].categories_[place])
            what = "none of the words there" if encoder[-1].infrequent_categories_[place] is None else "rare words"
            if new:
                told = spell_some(map(repr, sorted(new)))
                notes.append(f"Column {name!r} has words that were not learnt from, {told}: taken as {what}.")
        return self.transformer.transform(typed), notes


def is_number(cell: str) -> bool:
    """Whether a cell holds a finite number."""
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def is_header(names: Iterable[str]) -> bool:
    """Whether the cells of a first line can name columns: not where all are numbers or empty."""
    return not all(_NUMBER.fullmatch(name) or _UNNAMED.fullmatch(name) for name in names)


def is_gap(column: Any) -> Any:
    """Which cells of a column of text stand for a missing value, a Series."""
    cells = column.str.lower()
    is_missing, may_be = cells.isin(_MISSING), cells.isin(_MISSING | _MISSING_NUMBER)
    return may_be if column[~may_be].map(is_number).mean() > 0.5 else is_missing


def numbers_of(column: Any) -> Any:
    """A column of text as floats, NaN where a value is missing, True and False as 1 and 0.

    Raises:
        ValueError: If a cell holds text, naming it and its line.
    """
    cells = column.str.lower().replace(_TRUTH)
    is_missing = cells.isin(_MISSING | _MISSING_NUMBER)
    text = column[~cells.map(is_number) & ~is_missing]
    if len(text):
        cells = spell_some(f"{cell!r} in line {line}" for line, cell in text.items())
        hint = " (decimal commas are read in files that part their cells by semicolons or tabs)"
        raise ValueError(
            f"Column {column.name!r} holds text, {cells}, where numbers are expected: write numbers, leave the "
            f"cells empty, or leave the column out by --drop{hint if _COMMA_NUMBER.fullmatch(text.iloc[0]) else ''}."
        )
    return cells.where(~is_missing, "nan").astype(float)


def with_decimal_points(frame: Any) -> Any:
    """The same; decimal commas become points where commas do not part the cells and no number has a point."""
    has_points = any("." in cell and _NUMBER.fullmatch(cell) for cell in frame.to_numpy().flat)
    is_clear = frame.attrs["separator"] != "," and not has_points
    return frame.replace(_COMMA_NUMBER, r"\1.\2", regex=True) if is_clear else frame


def _is_of_numbers(column: Any) -> bool:
    """Whether most cells that hold something hold numbers, or all True and False."""
    cells = column[~is_gap(column)]
    return bool(len(cells) and (cells.str.lower().isin(_TRUTH).all() or cells.map(is_number).mean() > 0.5))


def _fate_of_numbers(column: Any) -> str:
    values = numbers_of(column)
    if _UNNAMED.fullmatch(column.name):
        if values.is_unique and (values % 1 == 0).all():
            return f"{_LEFT_OUT}it has no name and numbers the rows"
        raise ValueError(_no_name(column))
    number = int(values.isna().sum())
    if values.nunique(dropna=False) == 1:
        return f"{_LEFT_OUT}it has the same value, {column.iloc[0]}, in all rows"
    if number:
        return f"numbers; {_count(number, 'missing value')} filled in by the median, {values.median():.4g}, and marked"
    return "numbers; it counts the rows: leave it out, if it is no more" if (values.diff()[1:] == 1).all() else ""


def _fate_of_words(column: Any) -> str:
    missing = is_gap(column)
    cells = column[~missing]
    if not len(cells):
        return f"{_LEFT_OUT}it is empty"
    if _UNNAMED.fullmatch(column.name):
        raise ValueError(_no_name(column))
    if cells.map(lambda cell: _DATE.fullmatch(cell) is not None).mean() > 0.5:
        return (
            f"{_LEFT_OUT}it holds dates or times, such as {cells.iloc[0]!r}: write what should count of them as "
            "numbers, such as days since the first, the month or the hour"
        )
    counts = column.where(~missing, _GAP).value_counts()
    if len(counts) == 1:
        return f"{_LEFT_OUT}it has the same value, {cells.iloc[0]}, in all rows"
    number = int((counts >= _LEAST_ROWS).sum())
    if not number:
        return (
            f"{_LEFT_OUT}it has {len(counts)} different words and none in {_LEAST_ROWS} rows or more, such as "
            f"{cells.iloc[0]!r}: nothing can be learnt from ids, names and free text"
        )
    kept = number if number == len(counts) and number <= _MOST_INPUTS else min(number, _MOST_INPUTS - 1)
    rare = f", one for the {_count(len(counts) - kept, 'rarer one')}" if kept < len(counts) else ""
    gaps = f"; {_count(int(missing.sum()), 'missing value')} taken as a word" if missing.any() else ""
    return f"words; an input of 0 and 1 for each of {kept}{rare}{gaps}"


def _no_name(column: Any) -> str:
    return (
        f"A column has no name ({column.name!r}, first cell {column.iloc[0]!r}): name it in the header, or leave it "
        "out by --drop."
    )


def _typed(frame: Any, numbers: Iterable[str], words: Iterable[str]) -> Any:
    """The columns of numbers as floats, those of words as they stand, NaN in both where a value is missing."""
    columns, faults = {}, []
    for name in numbers:
        try:
            columns[name] = numbers_of(frame[name])
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError(in_one(faults))
    columns |= {name: frame[name].where(~frame[name].str.lower().isin(_MISSING), np.nan) for name in words}
    return frame[[]].assign(**columns)


def _transformer(numbers: tuple[str, ...], words: tuple[str, ...]) -> Any:
    """From typed columns to inputs, those that are the same in all rows left out."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=_LEAST_ROWS,
        max_categories=_MOST_INPUTS,
        sparse_output=False,
        feature_name_combiner=_name_of_word,
    )
    of_words = make_pipeline(SimpleImputer(strategy="constant", fill_value=_GAP), one_hot)
    of_numbers = SimpleImputer(strategy="median", add_indicator=True)
    encode = ColumnTransformer([("numbers", of_numbers, list(numbers)), ("words", of_words, list(words))])
    return Pipeline([("encode", encode), ("vary", VarianceThreshold())])


def _name_of_word(column: str, word: str) -> str:
    return f"{column} = {'rarer ones' if word == _RARE else word}"


def in_one(faults: list[str]) -> str:
    """All faults as one message."""
    if len(faults) == 1:
        return faults[0]
    rest = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
    return "\n  ".join([f"The table has {len(faults)} faults:", *faults[:_MOST_FAULTS], *rest])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def spell_some(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    )

"""What a comparison of posteriors found: rows, two or three tables, a DataFrame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOISE_FLOOR = "noise floor"
FUNCTION = "function"
FUNCTION_SPACE, WEIGHT_SPACE, CANONICAL_SPACE = "function", "weights", "weights up to symmetry"

HEADINGS = {
    "name": "",
    "elbo": "ELBO",
    "elbo_error": "± se",
    "w1_over_sd": "W1/sd",
    "sd_ratio": "sd ratio",
    "mmd_squared": "MMD²",
    "agreement": "agreement",
    "total_variation": "TV",
    "seconds": "seconds",
}
_SITE_TITLES = {WEIGHT_SPACE: "W1/sd by site", CANONICAL_SPACE: "W1/sd up to symmetry"}


@dataclass(frozen=True)
class Comparison:
    """Distances of posteriors from a reference, and the reference's distance from itself.

    Attributes:
        rows: Dicts, one for every posterior, `space` and `where`; the rows named "noise floor" hold one half of the
            reference against the other, averaged over random splits: nothing can be told apart below them. The keys are
            "name"; "space": "function", "weights", or "weights up to symmetry"; "where": "function", or the name of a
            latent site; "w1_over_sd", Wasserstein distance of the marginals in sds of the reference; "sd_ratio", below
            1 for too narrow. In the function rows also "mmd_squared"; for classifiers "agreement" and
            "total_variation" of the class probabilities; for guides "elbo" and "elbo_error" in nats; "seconds" where
            they were given. Every distance `d` comes with `d + "_low"` and `d + "_high"`: its bootstrap interval, and
            for the noise floor the range of that share of the splits. "within_floor" tells whether the interval of
            "w1_over_sd" reaches down into the noise floor's.
        level: Probability of the intervals; 0 where there are none.
    """

    rows: tuple[dict[str, Any], ...]
    level: float = 0.0

    def row(self, name: str, where: str = FUNCTION, *, canonical: bool = False) -> dict[str, Any]:
        """The row of one posterior.

        Args:
            name: Its name, or "noise floor".
            where: "function" or a site's name.
            canonical: Whether a site's weights are to be those up to symmetry.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            matches = (row["name"], row["where"]) == (name, where)
            if matches and (row.get("space") == CANONICAL_SPACE) == canonical:
                return row
        known = sorted({(row["name"], row["where"]) for row in self.rows})
        raise KeyError(f"No row for {name!r} in {where!r}{' up to symmetry' if canonical else ''}; there are {known}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the posteriors in order, the noise floor last."""
        return tuple(dict.fromkeys(row["name"] for row in self.rows))

    def tables(self, *, intervals: bool = False) -> list[list[list[str]]]:
        """Function space with all columns, then W1/sd of every latent site, then up to symmetry where that was asked.

        Args:
            intervals: Whether every distance is followed by its interval.

        Returns:
            Tables of cells, the headings in the first line of each.
        """
        in_functions = [row for row in self.rows if row["where"] == FUNCTION]
        columns = [key for key in HEADINGS if any(key in row for row in in_functions)]
        first = [[HEADINGS[key] for key in columns]]
        first += [[_spell_entry(row, key, intervals) for key in columns] for row in in_functions]
        spaces = dict.fromkeys(row.get("space", WEIGHT_SPACE) for row in self.rows if row["where"] != FUNCTION)
        return [first, *(self._site_table(space, intervals) for space in spaces)]

    def to_string(self, *, intervals: bool = False) -> str:
        """The tables, aligned.

        Args:
            intervals: Whether every distance is followed by its interval.
        """
        return "\n\n".join(_align(table) for table in self.tables(intervals=intervals))

    def __str__(self) -> str:
        return self.to_string()

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame, one column for every key.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas, or use .rows.") from error
        return pandas.DataFrame(list(self.rows))

    def _site_table(self, space: str, intervals: bool) -> list[list[str]]:
        rows = [row for row in self.rows if row["where"] != FUNCTION and row.get("space", WEIGHT_SPACE) == space]
        found = {(row["name"], row["where"]): row for row in rows}
        sites = list(dict.fromkeys(row["where"] for row in rows))
        lines = [
            [name, *(_spell_entry(found.get((name, site), {}), "w1_over_sd", intervals) for site in sites)]
            for name in self.names
        ]
        return [[_SITE_TITLES[space], *sites], *lines]


def _spell_entry(row: dict[str, Any], key: str, intervals: bool) -> str:
    text = _spell(row.get(key))
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    return f"{text} [{_spell(low)}, {_spell(high)}]" if intervals and not math.isnan(low) else text


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _align(table: Sequence[Sequence[str]]) -> str:
    """Joins cells into lines, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in table)
    ]
    return "\n".join(line.rstrip() for line in lines)

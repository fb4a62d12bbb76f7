"""All that a report says, in one JSON file, from which the page can be made again."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyro_hypernet.evaluation.comparison import Comparison
from pyro_hypernet.evaluation.verdict import VERDICTS, Check, Diagnosis
from pyro_hypernet.output.figures import Figure

FILE_NAME = "report.json"
_FORMAT, _VERSION = "pyro_hypernet.report", 1
_TEXT_KEYS = {"name", "space", "where"}


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: Its heading.
        headings: Of the columns.
        rows: The cells, as text.
        note: How to read it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Record:
    """What a report says.

    Attributes:
        title: Of the page.
        created: Date and time.
        facts: What was fitted: labels and texts.
        verdict: "use it", "refine it" or "do not trust it"; "" where the posterior has no density to judge it by.
        because: Why.
        diagnosis: The checks of the guide, or None. Its verdict is another one where the draws have been mended since.
        comparison: The distances from a reference, or None.
        tables: Further tables.
        figures: From the name of a figure to its numbers; see `output.figures`.
        log: What was done, line by line.
    """

    title: str
    created: str
    facts: tuple[tuple[str, str], ...]
    verdict: str = ""
    because: str = ""
    diagnosis: Diagnosis | None = None
    comparison: Comparison | None = None
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    log: tuple[str, ...] = ()


def write_record(record: Record, folder: Path) -> Path:
    """Writes `report.json`, whole or not at all.

    Args:
        record: What to write.
        folder: Where; made if need be.

    Returns:
        The file.
    """
    text = json.dumps(_plain({"format": _FORMAT, "version": _VERSION, **asdict(record)}), ensure_ascii=False, indent=1)
    path = folder / FILE_NAME
    write_whole(path, text)
    return path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_record(folder: Path) -> Record:
    """Reads `report.json` back.

    Args:
        folder: A folder that `report`, `pyro-hypernet fit` or `pyro-hypernet demo` wrote.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        NotADirectoryError: If it is a file.
        ValueError: If the file is cut short, not ours, or of another version.
    """
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a folder that fit or demo has written with --out is needed.")
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {FILE_NAME}: it is not a folder of results, or of an earlier version. Make one with "
            f"pyro-hypernet fit … --out {folder}."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is cut short or no JSON: {error}. Run fit or demo again.") from None
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        raise ValueError(f"{path} was not written by pyro_hypernet's report.")
    if stored.get("version") != _VERSION:
        raise ValueError(f"{path} has version {stored.get('version')}; this library reads version {_VERSION}.")
    try:
        return _record(stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Run fit or demo again.") from error


def _record(stored: dict[str, Any]) -> Record:
    return Record(
        title=str(stored["title"]),
        created=str(stored["created"]),
        facts=tuple((str(label), str(text)) for label, text in stored["facts"]),
        verdict=_verdict(stored["verdict"]),
        because=str(stored["because"]),
        diagnosis=None if stored["diagnosis"] is None else _diagnosis(stored["diagnosis"]),
        comparison=None if stored["comparison"] is None else _comparison(stored["comparison"]),
        tables=tuple(_table(table) for table in stored["tables"]),
        figures=dict(stored["figures"]),
        log=tuple(str(line) for line in stored["log"]),
    )


def _verdict(text: str) -> str:
    if text and text not in VERDICTS:
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, or empty; got {text!r}")
    return text


def _diagnosis(stored: dict[str, Any]) -> Diagnosis:
    texts, checks = {"verdict", "because"}, stored["checks"]
    figures = {key: float(value) for key, value in stored.items() if key not in {*texts, "checks", "num_draws"}}
    return Diagnosis(
        verdict=stored["verdict"],
        because=stored["because"],
        checks=tuple(Check(**{**check, "value": float(check["value"])}) for check in checks),
        num_draws=int(stored["num_draws"]),
        **figures,
    )


def _comparison(stored: dict[str, Any]) -> Comparison:
    def entry(key: str, value: Any) -> Any:
        return value if key in _TEXT_KEYS or isinstance(value, bool) else float(value)

    rows = tuple({key: entry(key, value) for key, value in row.items()} for row in stored["rows"])
    return Comparison(rows, float(stored["level"]))


def _table(stored: dict[str, Any]) -> Table:
    rows = tuple(tuple(map(str, row)) for row in stored["rows"])
    return Table(stored["title"], tuple(stored["headings"]), rows, stored["note"])


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite as text, which `float` reads."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value

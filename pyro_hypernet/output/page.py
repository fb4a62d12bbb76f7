"""The page of a report: `report.json`, which holds all that it says, and `report.html`, a template around that."""

import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from pyro_hypernet.evaluation.compare import NOISE_FLOOR
from pyro_hypernet.evaluation.verdict import BAD, DO_NOT_TRUST, DOUBTFUL, GOOD, REFINE, USE

PAGE_NAME, FILE_NAME = "report.html", "report.json"
_FORMAT = {"format": "pyro_hypernet.report", "version": 2}
_LEVELS = {USE: GOOD, REFINE: DOUBTFUL, DO_NOT_TRUST: BAD}
# The pictures that stand unfolded.
_LEADING = ("band", "calibration")
_MARKS = {GOOD: "✓", DOUBTFUL: "!", BAD: "✗"}


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
class Page:
    """What a report says beside what it finds out itself.

    Attributes:
        title: Of the page.
        facts: Further lines under "What was fitted".
        tables: Further tables.
        log: What was done, line by line; none for that of `infer`.
        figures: What a reader in a hurry should know, `(label, value, note)` each: three are shown, these first.
    """

    title: str = "A posterior and how far to trust it"
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    log: Sequence[str] = ()
    figures: Sequence[tuple[str, str, str]] = ()


def write_report(content: Mapping[str, Any], folder: Path) -> Path:
    """Writes `report.json` and `report.html` into a folder, which is made if need be.

    Args:
        content: What the template shows, of types that JSON knows.
        folder: Where.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**_FORMAT, **content}, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    return _write_page(content, folder)


def report_from(folder: str | os.PathLike[str]) -> Path:
    """Makes `report.html` again from the `report.json` in a folder.

    Args:
        folder: A folder that `report`, `pyro-hypernet fit` or `pyro-hypernet demo` wrote.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        ValueError: If the file is damaged, not ours, or of another version.
    """
    path = Path(folder) / FILE_NAME
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {FILE_NAME}: it is not a folder of results. Make one with pyro-hypernet fit … --out "
            f"{folder}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is cut short or no JSON: {error}. Run fit or demo again.") from None
    found = {key: content.get(key) for key in _FORMAT} if isinstance(content, dict) else "something else"
    if found != _FORMAT:
        raise ValueError(f"{path} must hold a report, {_FORMAT}; got {found}. Run fit or demo again.")
    try:
        return _write_page(content, path.parent)
    except (jinja2.UndefinedError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Run fit or demo again.") from error


def render(content: Mapping[str, Any], files: Sequence[str] = ()) -> str:
    """The page: HTML with its style and pictures inside, all texts escaped, no script and no address.

    Args:
        content: What it says.
        files: Names of the files that lie beside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_hypernet.output", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(levels=_LEVELS, marks=_MARKS, noise_floor=NOISE_FLOOR)
    environment.filters["base64"] = lambda text: b64encode(text.encode()).decode("ascii")
    shown = content["pictures"]
    leading = {kind: shown[kind] for kind in _LEADING if kind in shown}
    others = {kind: picture for kind, picture in shown.items() if kind not in leading}
    return environment.get_template("page.html").render(content, files=files, leading=leading, others=others)


def _write_page(content: Mapping[str, Any], folder: Path) -> Path:
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != PAGE_NAME)
    (folder / PAGE_NAME).write_text(render(content, files), encoding="utf-8")
    return folder / PAGE_NAME

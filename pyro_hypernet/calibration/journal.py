"""A file of JSON lines that long work adds to and goes on from."""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Finished parts by number, in memory and, where there is a path, in a file that outlives the process.

    Args:
        path: The file; None for none. The first line holds the settings, every further one a part.
        settings: What must be the same for parts to belong together.

    Attributes:
        lines: From the number of a part to its line, a dict with the key "index".

    Raises:
        ValueError: If the file holds other settings or is no journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.lines: dict[int, dict[str, Any]] = {}
        if self.path is None:
            return
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"settings": settings})
            return
        header, *lines = self._read() or [{}]
        if "settings" not in header:
            raise ValueError(f"{self.path} is no file of sbc: name another path.")
        if header["settings"] != settings:
            raise ValueError(
                f"{self.path} was made with other settings, {header['settings']}; these are {settings}: name another "
                "path."
            )
        self.lines = {line["index"]: line for line in lines}

    def add(self, line: dict[str, Any]) -> None:
        """Keeps a part, and writes it at once."""
        self.lines[line["index"]] = line
        if self.path is not None:
            self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        assert self.path is not None
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines; one cut short by a kill is taken off the file, to be done again."""
        assert self.path is not None
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError:
            raise ValueError(f"{self.path} is no file of JSON lines: name another path.") from None

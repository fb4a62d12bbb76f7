"""The pages of the site as they are written: their pieces of code, headings and links."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "docs"
PAGES = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.md"))}


def code(text: str) -> list[str]:
    """All pieces fenced as python, which run; others of Python's are `{code-block}` directives."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)


def recipes(text: str) -> dict[str, list[str]]:
    """From a recipe's question to its pieces of code."""
    parts = re.split(r"^### … (.*)\n", text, flags=re.M)
    return dict(zip(parts[1::2], map(code, parts[2::2]), strict=True))

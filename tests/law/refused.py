"""What is refused, with the reason and the message that is due: the one table of the law's exceptions.

A pair of a style and an idiom that is listed here must raise what stands here; one that is not must work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.law.style import Style
from tests.law.styles import STYLES


@dataclass(frozen=True)
class Refusal:
    """Triples of a style, an idiom and a guide that raise.

    Attributes:
        styles: Patterns of names, joined by "|"; or a function that tells by the style.
        idioms: Patterns of names, joined by "|".
        guides: Likewise.
        reason: Why, for the table in the documentation.
        error: What is raised.
        message: A regular expression that its message holds.
        by: "us"; "Pyro", whose own guide raises at the same place; or "nobody", where the idiom has no meaning.
    """

    styles: str | Callable[[Style], bool]
    idioms: str
    guides: str
    reason: str
    error: type[Exception]
    message: str
    by: str = "us"

    def covers(self, style: str, idiom: str, guide: str) -> bool:
        """Whether a triple is refused by this."""
        return _matches(self.idioms, idiom) and _matches(self.guides, guide) and style in self.named()

    def named(self) -> list[str]:
        """The names of the styles."""
        if isinstance(self.styles, str):
            return [name for name in STYLES if _matches(self.styles, name)]
        return [name for name, make in STYLES.items() if self.styles(make())]


def _matches(patterns: str, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split("|"))


REFUSED: list[Refusal] = []


def refusal_of(style: str, idiom: str, guide: str) -> Refusal | None:
    """The first entry that covers a triple; None where it must work."""
    return next((refusal for refusal in REFUSED if refusal.covers(style, idiom, guide)), None)


def table() -> str:
    """The page `docs/idioms.md`."""
    return ""

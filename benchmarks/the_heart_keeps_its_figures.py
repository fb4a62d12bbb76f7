"""The default guide's figures before and after a change, side by side, from the result files of two commits.

    python benchmarks/the_heart_keeps_its_figures.py --before COMMIT [--quick]

Runs nothing: make the files again first, each by the script that it names (closer, robust, known, verdicts-held-out).
A figure is kept where its median is no worse than the worst seed before, but for a margin: half a nat, .01 sds, .02.
"""

import argparse
import json
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timing import RESULTS, table

Figures = dict[tuple[str, str], list[float]]
HEADINGS = ("table", "figure", "before", "after", "seeds", "kept")
# Bounds in nats, distances in sds, total variation in ones.
_MARGINS = {"ELBO": 0.5, "bound, 500 steps": 0.5, "W1/sd": 0.01, "TV": 0.002}
_MARGIN = 0.02
_HIGHER_IS_BETTER = ("ELBO", "bound, 500 steps")


def closer(text: str) -> Iterator[tuple[str, str, float]]:
    """ELBO and distances of the default guide by `closer.jsonl`."""
    for row in map(json.loads, text.splitlines()):
        if row["guide"] == "AutoHypernet" and row["budget"] == "default":
            for name, title in {"elbo": "ELBO", "w1_over_sd": "W1/sd", "total_variation": "TV"}.items():
                if row.get(name) is not None:
                    yield f"closer, {row['task']}", title, row[name]


def robust(text: str) -> Iterator[tuple[str, str, float]]:
    """Bounds after 500 steps by `robust.jsonl`."""
    for row in map(json.loads, text.splitlines()):
        yield f"robust, {row['task']}", "bound, 500 steps", row["elbo"]
        yield f"robust, {row['task']}", "skipped steps", row["skipped"]


def verdicts(text: str) -> Iterator[tuple[str, str, float]]:
    """Right verdicts by `verdicts-held-out.jsonl`."""
    for row in map(json.loads, text.splitlines()):
        yield f"verdicts, {row['is']} guides", "right", float(row["right"])


def known(text: str) -> Iterator[tuple[str, str, float]]:
    """Errors of means, sds and evidence by the table in `known.md`."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 8 and cells[2].isdigit():
            for title, cell in zip(("worst mean", "worst sd", "gap to the evidence"), cells[3:6], strict=True):
                if cell != "–":
                    yield f"known, {cells[0]}, {cells[1]}", title, abs(float(cell))


FILES: dict[str, Callable[[str], Iterator[tuple[str, str, float]]]] = {
    "closer.jsonl": closer,
    "robust.jsonl": robust,
    "known.md": known,
    "verdicts-held-out.jsonl": verdicts,
}


def figures(read: Callable[[str], str]) -> Figures:
    """All figures of a commit, by table and name.

    Args:
        read: From a file's name to its text.
    """
    found: Figures = defaultdict(list)
    for name, parse in FILES.items():
        for where, title, value in parse(read(name)):
            found[where, title].append(value)
    return found


def rows(before: Figures, after: Figures) -> list[list[Any]]:
    """One row for every figure that both have."""
    made = []
    for (where, title), new in after.items():
        old = before.get((where, title))
        if old is None:
            continue
        made.append([where, title, _spell(old), _spell(new), f"{len(old)}, {len(new)}", _is_kept(title, old, new)])
    return made


def _is_kept(title: str, old: list[float], new: list[float]) -> str:
    if title == "right":
        return "yes" if statistics.mean(new) >= statistics.mean(old) else "NO"
    middle, margin = statistics.median(new), _MARGINS.get(title, _MARGIN)
    worst = min(old) - margin if title in _HIGHER_IS_BETTER else max(old) + margin
    is_worse = middle < worst if title in _HIGHER_IS_BETTER else middle > worst
    return "NO" if is_worse else "yes"


def _spell(values: list[float]) -> str:
    spread = f" [{min(values):.3g}, {max(values):.3g}]" if len(values) > 1 else ""
    return f"{statistics.median(values):.4g}{spread}"


def main() -> None:
    """Writes `results/heart.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD", help="the commit to compare with")
    parser.add_argument("--quick", action="store_true", help="as without: nothing is run; to a file of its own")
    options = parser.parse_args()
    path = Path("benchmarks/results")

    def committed(name: str) -> str:
        command = ["git", "show", f"{options.before}:{(path / name).as_posix()}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parents[1]).stdout

    before, after = figures(committed), figures(lambda name: (RESULTS / name).read_text())
    head = f"Medians [least, greatest] over seeds, before ({options.before}) and after. Made by {Path(__file__).name}."
    text = head + "\n\n" + table(HEADINGS, rows(before, after))
    (RESULTS / ("heart-quick.md" if options.quick else "heart.md")).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

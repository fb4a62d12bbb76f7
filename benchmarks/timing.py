"""Timings of contestants in turn, and the files that hold them."""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro

RESULTS = Path(__file__).parent / "results"


def in_turn(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every contestant, in an order that is turned round after every repeat.

    Args:
        contestants: What to time, warmed up.
        repeats: How often each comes on.
        calls: Calls in a row that one timing averages over.
        clock: What time it is, in seconds; `time.process_time` counts the process's own.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(repeats):
        for name in order:
            gc.collect()
            start = clock()
            for _ in range(calls):
                contestants[name]()
            seconds[name].append((clock() - start) / calls)
        order.reverse()
    return seconds


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int) -> str:
    """Median, least and greatest, such as "95.6 [95.3, 95.8]"."""
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios of timings that stood next to each other."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def spell_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Such as "0.12 [0.11, 0.14]"."""
    return "{:.3g} [{:.3g}, {:.3g}]".format(*ratio(ours, theirs))


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def kept(name: str, *, quick: bool = False) -> list[dict[str, Any]]:
    """The records of `results/NAME.jsonl`, or of a quick run's file; none where there is no such file."""
    path = _path(name, quick).with_suffix(".jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(name: str, records: Sequence[Mapping[str, Any]], text: str, *, quick: bool) -> None:
    """Writes `results/NAME.jsonl` and `.md`, of a quick run beside them, and prints the text."""
    path = _path(name, quick)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


def _path(name: str, quick: bool) -> Path:
    return RESULTS / (f"{name}-quick" if quick else name)


def cpu_seconds() -> float:
    """Of this process and of those that it started and waited for, such as chains of `nuts`."""
    return sum(os.times()[:4])


def run_cells(
    name: str,
    cells: Iterable[Mapping[str, Any]],
    run: Callable[..., dict[str, Any] | list[dict[str, Any]]],
    report: Callable[[list[dict]], str],
    *,
    quick: bool,
) -> None:
    """Runs the cells of a table that `results/NAME.jsonl` lacks, and keeps file and table after each.

    Args:
        name: Of the files.
        cells: What is to be run: arguments of `run`, "seed" among them, by which random numbers are set.
        run: From these to the cell's figures, or those of several records; its CPU seconds are noted as "seconds",
            unless they are among them.
        report: From all records to the table's page.
        quick: Whether the files are those of a quick run.
    """
    records = kept(name, quick=quick)
    for cell in cells:
        if any(cell.items() <= record.items() for record in records):
            continue
        pyro.clear_param_store()
        pyro.set_rng_seed(cell["seed"])
        start = cpu_seconds()
        found = run(**cell)
        seconds = cpu_seconds() - start
        records += [{**cell, "seconds": seconds, **one} for one in (found if isinstance(found, list) else [found])]
        print(records[-1], flush=True)
        keep(name, records, report(records), quick=quick)
    keep(name, records, report(records), quick=quick)


def medians(records: Sequence[Mapping[str, Any]], keys: Mapping[str, int]) -> list[str]:
    """`spread` of the records' values of every key, with its digits; a dash where there are none."""
    values = {key: [record[key] for record in records if key in record] for key in keys}
    return [spread(values[key], digits) if values[key] else "–" for key, digits in keys.items()]

"""The command line: `pyro-hypernet demo`, `fit`, `predict` and `report`."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain, count
from pathlib import Path

import torch

from pyro_hypernet.infer import ENGINES
from pyro_hypernet.jobs.job import Options, run
from pyro_hypernet.jobs.job_report import write
from pyro_hypernet.jobs.predictor import predictor_from
from pyro_hypernet.output.page import PAGE_NAME
from pyro_hypernet.output.report import report_from
from pyro_hypernet.pipeline.budget import read_budget
from pyro_hypernet.tables.tabular import TASKS, read_csv, read_diabetes

_NEEDED = ("matplotlib", "sklearn", "pandas")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Its words; None for those of the process.

    Returns:
        0; or 2 where the input is at fault, after a word on every fault, what was expected and what to do.
    """
    options = _parser().parse_args(argv)
    try:
        return options.do(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"pyro-hypernet: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-hypernet", description="A Bayesian network on a table, its posterior by an invertible hypernetwork."
    )
    parser.add_argument("--version", action="version", version=f"pyro-hypernet {sys.modules[__package__].__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="fit scikit-learn's diabetes data and hold the posterior against NUTS")
    demo.set_defaults(do=_do_job, read=lambda _: read_diabetes())
    table = commands.add_parser("fit", help="the same on a CSV file of your own")
    table.add_argument("csv", type=Path, help="a file with a header; words and missing values among inputs are fine")
    table.add_argument("--target", help="the column to predict (the last)")
    table.add_argument("--task", choices=TASKS, help="judged by the target if not given")
    table.add_argument("--drop", nargs="+", default=(), metavar="COLUMN", help="columns to leave out")
    table.set_defaults(do=_do_job, read=lambda given: read_csv(given.csv, given.target, given.task, given.drop))
    for command in (demo, table):
        _add_options(command)
    new = commands.add_parser("predict", help="predict the rows of another CSV file by what fit has found")
    new.add_argument(
        "folder", type=Path, metavar="DIR", help="the folder that fit has written; open only what you trust"
    )
    new.add_argument("csv", type=Path, help="a file with the columns that were learnt from, in any order")
    new.add_argument("--out", type=Path, help="the file to write (the name of the table and -predicted.csv)")
    new.set_defaults(do=_do_predict)
    page = commands.add_parser("report", help="make report.html again from a folder that demo or fit has written")
    page.add_argument("folder", type=Path, metavar="DIR", help="the folder given to --out")
    page.set_defaults(do=_do_report)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    """Those of a job, named like the fields of its Options."""
    command.add_argument("--out", type=Path, help="the folder for the results (a new one, named after the table)")
    command.add_argument(
        "--steps", type=int, dest="num_steps", metavar="STEPS", help="of training, at most (%(default)s)"
    )
    command.add_argument("--budget", help='time for all of it ("3 minutes", and more where the machine is slow)')
    command.add_argument("--hidden", type=int, help="hidden units (%(default)s)")
    command.add_argument("--nuts-draws", type=int, help="in every chain (%(default)s)")
    command.add_argument("--engine", choices=ENGINES, help="of the draws (%(default)s)")
    command.add_argument("--seed", type=int, help="(%(default)s)")
    command.set_defaults(**vars(Options()))


def _do_job(options: argparse.Namespace) -> int:
    _check(options)
    table = options.read(options)
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, and chains run in processes
    print(f"{table.task} of {table.target!r} on {len(table.y)} rows, {len(table.features)} inputs", flush=True)
    fates = table.encoder.fates if table.encoder else {}
    _print_notes([*table.notes, *(f"column {column!r}: {fate}" for column, fate in fates.items() if fate)])
    out = options.out or _unused(f"{Path(getattr(options, 'csv', 'demo')).stem}-results")
    if (out / PAGE_NAME).exists():
        _print_notes([f"{out} holds earlier results, which are written over"])
    out.mkdir(parents=True, exist_ok=True)
    amount = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    result = run(table, amount, say=lambda line: print(line, flush=True))
    paths = write(result, table, out)
    print(f"\n{result.to_string()}\n\nwrote {', '.join(path.name for path in paths)}; open {paths[-1]}")
    return 0


def _do_predict(options: argparse.Namespace) -> int:
    predicted, notes = predictor_from(options.folder)(options.csv)
    _print_notes(notes)
    out = options.out or _unused(f"{options.csv.stem}-predicted", ".csv")
    predicted.to_csv(out, index=False)
    print(f"wrote {out}: {len(predicted)} rows, with {', '.join(c for c in predicted if c.startswith('predicted '))}")
    return 0


def _do_report(options: argparse.Namespace) -> int:
    print(f"wrote {report_from(options.folder)}")
    return 0


def _check(options: argparse.Namespace) -> None:
    least_of = {"num_steps": ("--steps", 1), "hidden": ("--hidden", 1), "nuts_draws": ("--nuts-draws", 10)}
    for field, (name, least) in least_of.items():
        value = getattr(options, field)
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}.")
    if options.budget is not None:
        read_budget(options.budget)
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out must be a folder; {options.out} is a file.")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The command line needs {', '.join(missing)}: pip install 'pyro-hypernet[cli]'.")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", flush=True)


def _unused(name: str, ending: str = "") -> Path:
    """A path in this folder that there is not yet: the name, or the name with a number."""
    numbered = (Path(f"{name}-{number}{ending}") for number in count(2))
    return next(path for path in chain([Path(name + ending)], numbered) if not path.exists())


if __name__ == "__main__":
    sys.exit(main())

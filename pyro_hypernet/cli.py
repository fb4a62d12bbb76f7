"""The command line: `pyro-hypernet demo`, `pyro-hypernet fit` and `pyro-hypernet report`."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from pyro_hypernet.infer import ENGINES
from pyro_hypernet.jobs.job import Options, run
from pyro_hypernet.jobs.job_report import write
from pyro_hypernet.output.report import report_from
from pyro_hypernet.pipeline.budget import read_budget
from pyro_hypernet.tabular import TASKS, read_csv, read_diabetes

_NEEDED = ("matplotlib", "sklearn", "pandas")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Its words; None for those of the process.

    Returns:
        0; or 2 where the input is at fault, after one line on what was expected and what to do.
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
    table.add_argument("csv", type=Path, help="a file with a header and numeric columns")
    table.add_argument("--target", required=True, help="the column to predict")
    table.add_argument("--task", choices=TASKS, help="judged by the target if not given")
    table.set_defaults(do=_do_job, read=lambda options: read_csv(options.csv, options.target, options.task))
    for command in (demo, table):
        _add_options(command)
    page = commands.add_parser("report", help="make report.html again from a folder that demo or fit has written")
    page.add_argument("folder", type=Path, metavar="DIR", help="the folder given to --out")
    page.set_defaults(do=_do_report)
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    """Those of a job, named like the fields of its Options."""
    command.add_argument("--out", type=Path, required=True, help="the folder for the results")
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
    table = options.read(options)
    _check(options)
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, and chains run in processes
    print(f"{table.task} of {table.target!r} on {len(table.y)} rows, {len(table.features)} inputs", flush=True)
    for note in table.notes:
        print(f"note: {note}", flush=True)
    amount = Options(**{field.name: getattr(options, field.name) for field in fields(Options)})
    result = run(table, amount, say=lambda line: print(line, flush=True))
    paths = write(result, table, options.out)
    print(f"\n{result.to_string()}\n\nwrote {', '.join(str(path) for path in paths)}")
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
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out must be a folder; {options.out} is a file.")
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The command line needs {', '.join(missing)}: pip install 'pyro-hypernet[cli]'.")


if __name__ == "__main__":
    sys.exit(main())

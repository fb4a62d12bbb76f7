"""The folder of data that a script takes by `--data` or PYRO_HYPERNET_DATA; no data are kept beside the scripts."""

import argparse
import os


def options_with_data(
    parser: argparse.ArgumentParser, *, what: str = "reference posteriors", help: str = "folder that holds references/"
) -> argparse.Namespace:
    """The options of the command line, `data` among them; where no folder is given, says so and ends the script.

    Args:
        parser: Of the script's other options.
        what: What the folder holds, for the message.
        help: Of `--data`.
    """
    parser.add_argument("--data", default=os.environ.get("PYRO_HYPERNET_DATA"), help=help)
    options = parser.parse_args()
    if options.data is None:
        print(f"No {what}: pass --data FOLDER or set PYRO_HYPERNET_DATA. Nothing was run.")
        raise SystemExit(0)
    return options

"""Importing pyro_hypernet takes at most half a second more than importing pyro.

python benchmarks/speed_of_import.py [--quick]
"""

import argparse
import subprocess
import sys

from timing import keep, median, table

CODE = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"


def seconds(module: str) -> float:
    """Of the import, in a process of its own."""
    return float(subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, text=True).stdout)


def main() -> None:
    """Times both in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    options = parser.parse_args()
    modules = ["pyro", "pyro_hypernet"]
    found: dict[str, list[float]] = {module: [] for module in modules}
    for module in modules:
        seconds(module)
    for _ in range(3 if options.quick else 9):
        for module in modules:
            found[module].append(seconds(module))
        modules.reverse()
    rows = [[module, f"{median(values):.3f}"] for module, values in found.items()]
    more = median(found["pyro_hypernet"]) - median(found["pyro"])
    text = (
        f"Seconds to import, median of {len(found['pyro'])}; {more:.3f} s more than pyro. "
        "Made by speed_of_import.py.\n\n" + table(["module", "seconds"], rows)
    )
    keep("speed_import", [{"module": m, "seconds": v} for m, v in found.items()], text, quick=options.quick)


if __name__ == "__main__":
    main()

"""Whether runs that are killed (`kill -9`) at random times end as one that nobody killed: losses, parameters and bound.

    python benchmarks/kills_are_survived.py [KILLS]

A net of two layers on shuffled minibatches, annealed, with patience and a deadline, a checkpoint every .05 s, each
process with a seed of its own. Prints every kill, then how many of 30 were survived.
"""

import sys
import tempfile
from pathlib import Path

from tests.train.kills import survives

if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        same = survives(Path(folder), count, seed=0, say=lambda *words: print(*words, flush=True))
    print(f"{same} of {count} kills survived, to the last bit")

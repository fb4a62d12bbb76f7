"""`kill -9` at random times: runs in processes of their own, and whether they end as one that nobody killed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_PROGRAM = """
import sys, time, json, hashlib, torch, pyro
from torch.utils.data import DataLoader, TensorDataset
from pyro_hypernet import AutoHypernet, Checkpoint, Optim, Plan, VectorizedELBO, bayesianize, fit
from pyro_hypernet.train.optimiser import Optimiser
folder, seed, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pyro.set_rng_seed(seed)
x = torch.linspace(-1, 1, 44)[:, None]
net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
model = bayesianize(net, "gaussian", num_data=44)
loader = DataLoader(TensorDataset(x, (3 * x).sin().squeeze(-1)), batch_size=10, shuffle=True)
guide = AutoHypernet(model, "linear")
step = Optimiser.step
def slow(self, *args):
    open(out + ".going", "a").write(".")
    time.sleep(0.002)
    step(self, *args)
Optimiser.step = slow
result = fit(model, guide, loader, num_steps=200, progress=False, elbo=VectorizedELBO(2),
    optim=Optim(0.02, patience=200, max_seconds=1000), plan=Plan(anneal=0.1), checkpoint=Checkpoint(folder, 0.05))
values = torch.cat([value.detach().flatten().double() for value in guide.state_dict().values()])
found = {"losses": hashlib.sha256(result.losses.numpy().tobytes()).hexdigest(), "elbo": result.elbo,
    "values": hashlib.sha256(values.numpy().tobytes()).hexdigest(), "num_steps": result.num_steps,
    "compile": result.compile}
json.dump(found, open(out, "w"))
"""


def survives(folder: Path, count: int, seed: int, say=lambda *_: None) -> int:
    """How many of `count` runs, killed in turn, ended as the one that was not.

    Args:
        folder: Where to work.
        count: How many kills; each run is killed up to three times before it may end.
        seed: Of the times.
        say: Told of every kill and every end.
    """
    times, kills, same, runs = random.Random(seed), 0, 0, 0
    whole = _run(folder / "whole", 0, folder / "whole.json", None)
    while kills < count:
        runs += 1
        here, out, killed = folder / f"run{runs}", folder / f"run{runs}.json", 0
        for _ in range(min(3, count - kills)):
            # From the first step on: before it there is nothing to lose, and imports take most of the time.
            if _run(here, runs, out, times.uniform(0.0, 100.0)) is None:
                killed += 1
            say("killed with", sorted(path.name for path in here.iterdir()))
        kills += killed
        found = _run(here, runs, out, None)
        say(found == whole, found)
        same += killed if found == whole else 0
        if not killed:
            kills += 1
            same += found == whole
    return same


def _run(folder: Path, seed: int, out: Path, kill_after: float | None) -> dict | None:
    """What a run found, or None if it was killed after so many steps of its own and up to .05 s."""
    out.unlink(missing_ok=True)
    going = Path(f"{out}.going")
    going.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # The seed matters at the first start only; later ones go on whatever theirs is.
    is_first = not folder.exists()
    command = [sys.executable, "-c", _PROGRAM, str(folder), str(0 if is_first else seed + 1), str(out)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    if kill_after is not None:
        while process.poll() is None and not (going.exists() and going.stat().st_size > kill_after):
            time.sleep(0.001)
        time.sleep(0.05 * (kill_after % 1))
        process.kill()
    code = process.wait()
    assert code in (0, -9), code
    return json.loads(out.read_text()) if out.exists() else None

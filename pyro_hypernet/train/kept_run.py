"""A fit as its folder keeps it: written as it goes, gone on with after whatever ended it."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pyro_hypernet.graphs.culprits import warn_caller
from pyro_hypernet.train import random_states
from pyro_hypernet.train.learner import Learner
from pyro_hypernet.train.optimiser import Optimiser, copies, put
from pyro_hypernet.train.processes import fingerprint
from pyro_hypernet.train.resume import RunFolder
from pyro_hypernet.train.training import Trainer

# Relative difference of the log densities of a site from which the model is another one.
_TOLERANCE = 1e-3


class KeptRun:
    """What of a fit goes into its folder and comes back from there; without a folder nothing.

    Args:
        folder: The folder, or None.
        at_start: Where random numbers stood when `fit` was called.
        learner: What is trained; it is put back to where it was in the folder's run.

    Attributes:
        start: When the run began by `time.perf_counter`, were all its processes one.
        is_over: Whether the folder's run came to its end before its last step.

    Raises:
        ValueError: If the folder holds another run.
    """

    def __init__(self, folder: RunFolder | None, at_start: dict[str, Any], learner: Learner) -> None:
        self.folder, self.learner, self.start = folder, learner, time.perf_counter()
        self.saved = folder.saved if folder else None
        self.is_over = bool(self.saved) and self.saved["stopped_because"] == "no improvement"
        if folder is None:
            return
        # Every step has a seed of its own: runs that are captured or not differ in how many numbers they draw.
        seed, options = int(torch.randint(2**62, ())), _describe(learner)
        self._constant = {"start": at_start, "annealing": learner.anneal, "seed": seed, "options": options}
        if self.saved:
            self._restore()

    def _restore(self) -> None:
        self.folder.check(self._constant["options"], self.learner.guide)
        self._before = copies(list(self.learner.learnt().values()))
        self.folder.restore(self.learner.guide, self.learner.elbo.params)
        self.start -= self.saved["seconds"]
        self._constant = {name: self.saved[name] for name in self._constant}
        self.learner.anneal = self.saved["annealing"]

    def begin(self, trainer: Trainer, run: Optimiser) -> None:
        """Takes what steps, and puts it back to where the checkpoint was written.

        Raises:
            ValueError: If model or data are others; the guide is then what it was before.
        """
        self.trainer, self.run = trainer, run
        if not self.saved:
            self.reseed(0)
            return
        try:
            self._go_on()
        except ValueError:
            put(list(self.learner.learnt().values()), self._before)
            raise
        del self._before

    def reseed(self, number: int) -> None:
        """Sets the random numbers of a step, counted from 0."""
        if self.folder:
            torch.manual_seed(self._constant["seed"] + number)

    def write(self, stopped_because: str | None = None) -> None:
        """Writes all that a process needs to go on from here, if it is time or the run has stopped."""
        num_steps, is_last = len(self.run.losses), stopped_because is not None
        if not self.folder or not self.folder.is_due(num_steps, is_last=is_last):
            return
        trainer, batches = self.trainer, self.learner.batches
        state = {**self._constant, "trainer": trainer.state_dict(), "run": self.run.state_dict()}
        state |= {"stopped_because": stopped_because or "", "seconds": time.perf_counter() - self.start}
        state["random"] = random_states.snapshot(batches.args)
        batch = batches.peek()  # after random numbers and places are noted
        state |= {"data": fingerprint((batch, self.learner.kwargs)), "densities": trainer.densities(batch)}
        self.folder.write(self.learner.guide, state)
        self.log()

    def log(self) -> None:
        """Writes the losses that are new."""
        if self.folder:
            self.folder.log(self.run.losses)

    def _go_on(self) -> None:
        folder, saved, batches = self.folder, self.saved, self.learner.batches
        self.run.load_state_dict(saved["run"])
        self.trainer.load_state_dict(saved["trainer"])
        random_states.put_back(saved["random"], batches.args)
        if not folder.writes:
            return
        batch = batches.peek()
        if fingerprint((batch, self.learner.kwargs)) == saved["data"]:
            _refuse_another_model(folder.folder, saved["densities"], self.trainer.densities(batch))
        elif batches.is_fixed:
            raise ValueError(
                f"{folder.folder} holds a run on other data: give the arguments that it had, or another folder; to "
                "train a guide further on new data, load it and fit it."
            )
        else:
            warn_caller(
                f"The loader does not give the batch that came next when {folder.path.name} was written, for other "
                "data or an order by random numbers of its own: the run goes on, but not as it would have without a "
                "break. Let the order come from a torch.Generator that the loader or its sampler holds."
            )
        self.log()


def _describe(learner: Learner) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain values."""
    asked, optim = learner.asked, learner.asked.optim
    by_name = {item.name: getattr(optim, item.name) for item in fields(optim) if item.name != "max_seconds"}
    if optim.method is not None:
        made = optim.make([torch.zeros(1)])
        by_name["method"] = f"{type(made).__qualname__}({made.defaults})"
    of_plan = {name: getattr(learner.plan, name) for name in ("anneal", "rejection", "temperature")}
    return json.loads(json.dumps({"num_steps": asked.num_steps, **learner.elbo.options, **by_name, **of_plan}))


def _refuse_another_model(folder: Path, there: Mapping[str, float], here: Mapping[str, float]) -> None:
    """Raises where the log densities of sites at the same weights and data, in nats, are not what they were."""
    for name in sorted({*there, *here}, key=lambda name: (name not in there or name not in here, name)):
        one, other = there.get(name, math.nan), here.get(name, math.nan)
        is_same = abs(one - other) <= _TOLERANCE * max(1.0, abs(one)) or (math.isnan(one) and math.isnan(other))
        if not is_same and one != other:
            raise ValueError(
                f"{folder} holds the run of another model: at the same weights and data the log density of site "
                f"{name!r} was {one:.6g} and is {other:.6g}. Give the model that it was, or another folder."
            )

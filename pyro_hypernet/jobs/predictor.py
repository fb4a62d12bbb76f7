"""A finished job, kept in a file, and what it predicts of new tables."""

import os
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from pyro_hypernet.jobs.job import LEVEL, Result
from pyro_hypernet.tables.columns import Encoder
from pyro_hypernet.tables.tabular import Scaler, Table, read_cells

PREDICTOR_NAME = "predictor.joblib"


@dataclass(frozen=True)
class Predictor:
    """The posterior of a job, with all that makes inputs of a table.

    Attributes:
        encoder: From columns to inputs.
        scaler: By which the inputs are standardised.
        estimator: A HypernetRegressor or HypernetClassifier of standardised inputs, with the posterior of its weights.
        target: Name of what is predicted.
        classes: Names of the classes, empty for a regression.
    """

    encoder: Encoder
    scaler: Scaler
    estimator: Any
    target: str
    classes: tuple[str, ...]

    def __call__(self, path: str | Path) -> tuple[Any, list[str]]:
        """Predicts the target of every row of a CSV file.

        Args:
            path: The file, with the columns that were learnt from, in any order and among others.

        Returns:
            The table with columns added: the mean, sd and a 90 % interval; or the likeliest class and the probability
            of each. And what was read otherwise than it stands there, a sentence each.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, lacks columns, or holds text where numbers were learnt from.
        """
        frame, notes = read_cells(path)
        inputs, more = self.encoder(frame)
        return frame.assign(**self._predicted(self.scaler(torch.from_numpy(inputs)).numpy())), [*notes, *more]

    def _predicted(self, x: np.ndarray) -> dict[str, np.ndarray]:
        if self.classes:
            probability = self.estimator.predict_proba(x)
            likeliest = np.array(self.classes)[probability.argmax(1)]
            each = {
                f"P({self.target} = {name})": column for name, column in zip(self.classes, probability.T, strict=True)
            }
            return {f"predicted {self.target}": likeliest, **each}
        levels = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        mean, sd = self.estimator.predict(x, return_std=True)
        _, ends = self.estimator.predict(x, quantiles=levels)
        columns = {"": mean, " sd": sd, **{f" {level:.0%}": end for level, end in zip(levels, ends.T, strict=True)}}
        return {f"predicted {self.target}{name}": column for name, column in columns.items()}


def keep(result: Result, table: Table, path: Path) -> None:
    """Writes what predicts new tables, for a job on a file's table.

    Args:
        result: What `run` returned.
        table: The data, with their encoder.
        path: The file.
    """
    estimator = copy(result.estimator)
    estimator.posterior_ = replace(result.posterior, idata=None)
    joblib.dump(Predictor(table.encoder, result.data.scaler, estimator, table.target, table.classes), path)


def predictor_from(folder: str | os.PathLike[str]) -> Predictor:
    """What `keep` wrote into a folder of results. It runs code that is in the file: open only what you trust.

    Args:
        folder: A folder that `pyro-hypernet fit` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(folder) / PREDICTOR_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {PREDICTOR_NAME}: give the folder of results of pyro-hypernet fit, of this version."
        )
    return joblib.load(path)

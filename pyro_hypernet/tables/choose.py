"""Parameters of a scikit-learn estimator chosen by rows that are held out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.utils import check_random_state

# A fifth is held out; with fewer rows than this there is too little to choose by.
_HELD_OUT, _LEAST_ROWS = 5, 25


def choose(
    estimator: Any,
    candidates: Mapping[str, Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    random_state: Any,
) -> tuple[dict[str, Any], list[str]]:
    """The values that give the greatest mean log density of a fifth of the rows after a fit to the others.

    One parameter after the other, those that come later at their first value.

    Args:
        estimator: Fitted anew, as a clone, for every value; `score_samples` judges it.
        candidates: From a parameter's name to the values that are tried; with too few rows the first is taken.
        X: Inputs, shape `(N, d)`.
        y: Targets, shape `(N, ...)`. Of a classifier no class is held out that no other row has.
        weight: Of the rows, shape `(N,)`, or None.
        random_state: What rows are held out by, and what fits draw by.

    Returns:
        The value of every parameter, and a line on every one for a log.
    """
    chosen = {name: values[0] for name, values in candidates.items()}
    if len(X) < _LEAST_ROWS:
        return chosen, [f"choice: {len(X)} rows are too few to hold some out, so {_spelt(chosen)}"]
    random = check_random_state(random_state)
    order = random.permutation(len(X))
    held, kept = order[: len(X) // _HELD_OUT], order[len(X) // _HELD_OUT :]
    if is_classifier(estimator):
        is_known = np.isin(y[held], y[kept])
        held, kept = held[is_known], np.concatenate([kept, held[~is_known]])
    seed, lines = random.randint(2**31 - 1), []
    for name, values in candidates.items():
        found = {}
        for number, value in enumerate(values):
            fitted = clone(estimator).set_params(**(chosen | {name: value}), random_state=seed)
            fitted.fit(X[kept], y[kept], None if weight is None else weight[kept])
            density = fitted.score_samples(X[held], y[held])
            found[number] = float(np.average(density, weights=None if weight is None else weight[held]))
        chosen[name] = values[max(found, key=found.get)]
        told = ", ".join(f"{value!r} {found[number]:.3f}" for number, value in enumerate(values))
        lines.append(f"choice: {name}={chosen[name]!r} by the log density of {len(held)} rows held out ({told})")
    return chosen, lines


def _spelt(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())

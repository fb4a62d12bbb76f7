"""ArviZ, quietly and whichever version: its import, and its Pareto-smoothed importance sampling."""

import importlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def import_module_quietly(name: str) -> ModuleType:
    """Imports ArviZ or a part of it without the FutureWarning that ArviZ 0.23 gives once a day.

    Args:
        name: "arviz", "arviz_base", "arviz_stats.base".

    Returns:
        The module.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        return importlib.import_module(name)


def arviz_is_split() -> bool:
    """Whether the installed ArviZ is 1.x, a set of packages with another interface than 0.x."""
    return int(import_module_quietly("arviz").__version__.split(".")[0]) >= 1


def smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor | float]:
    """Pareto-smoothed importance weights.

    Args:
        log_weights: Logarithms of independent weights, in nats, shape `(S,)` or, several sets at once, `(N, S)`.

    Returns:
        Their smoothed logarithms, normalised so that every set sums to one, of the same shape in double precision;
        and k-hat, the shape of the generalised Pareto distribution fitted to their upper tail, a float, or a tensor of
        shape `(N,)`; infinite where there are too few weights to fit a tail.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024, through ArviZ.
    """
    values = log_weights.detach().double().cpu().numpy()
    log_w, k = _psislw(values)
    result = torch.as_tensor(log_w, dtype=torch.float64)
    result = result - result.logsumexp(-1, keepdim=True)
    return result, torch.as_tensor(k, dtype=torch.float64) if values.ndim > 1 else float(k)


def _psislw(values: np.ndarray) -> tuple[Any, Any]:
    """Smoothed log weights and k-hat, from whichever ArviZ there is."""
    with np.errstate(over="ignore"):  # candidates of the tail's fit that are hopeless
        if arviz_is_split():
            # ArviZ 1.x takes log likelihoods and turns their sign itself; 0.x takes log weights.
            return import_module_quietly("arviz_stats.base").array_stats.psislw(-values)
        return import_module_quietly("arviz").psislw(values)

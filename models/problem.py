"""A problem: a Pyro model, its data, and the truth about its posterior where it is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A Pyro model with everything needed to fit it and to judge the fit.

    Attributes:
        name: Its key in PROBLEMS.
        description: One sentence on what makes it hard, or why it is here.
        model: The Pyro model.
        args: The model's arguments, data included, in torch's default dtype of the moment of making.
        truth: What is known exactly, or by quadrature to four digits or better; empty where nothing is. Keys: "mean",
            "sd", dicts from site to tensors of the site's shape; "covariance", the same with two axes per axis;
            "log_evidence", in nats, a float; "modes", a list of dicts from site to tensors, and
            "masses", the posterior probability of each.
        init_values: A dict from site to a sensible start, for `init_to_value`; empty for the prior's median.
        x_test: Inputs not in the data, first argument of the model, or None.
        y_test: Their targets, or None where `x_test` is only a grid to draw on.
    """

    name: str
    description: str
    model: Callable[..., Any]
    args: tuple = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    init_values: Mapping[str, Tensor] = field(default_factory=dict)
    x_test: Tensor | None = None
    y_test: Tensor | None = None

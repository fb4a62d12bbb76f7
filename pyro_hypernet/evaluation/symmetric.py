"""Draws up to the symmetries of a network: one copy to compare, all copies to spread, and the bound they allow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.density import trace_prior
from pyro_hypernet.evaluation.diagnostics import elbo
from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.knowledge import learn
from pyro_hypernet.layout import Layout
from pyro_hypernet.symmetries import Symmetries
from pyro_hypernet.vectorize import Model


@dataclass(frozen=True)
class SymmetricBound:
    """The bound of a guide, and an upper figure for what its symmetric copies could add.

    Attributes:
        elbo: The guide's own bound in nats.
        error: Its standard error.
        log_order: log|G| in nats, where the guide is not symmetric itself; 0 where it is.
        upper: `elbo + log_order`. No bound: reached only if the guide's symmetric copies do not overlap at all.
    """

    elbo: float
    error: float
    log_order: float

    @property
    def upper(self) -> float:
        """The bound and log|G| together."""
        return self.elbo + self.log_order


def symmetries_of(model: Model, *args: Any) -> tuple[Symmetries, Layout]:
    """The permutations of hidden units and flips of signs that leave the model's density unchanged, found by trying.

    Args:
        model: A Pyro model.
        args: Its arguments, data included.

    Returns:
        The symmetries and the layout of the weights on which they act.

    Raises:
        ValueError: If the model cannot be tried: see `knowledge.learn`.
    """
    trace = trace_prior(model, args)
    layout = Layout.from_trace(trace)
    found = learn(model, layout, trace, torch.zeros(layout.dim), args, {})
    if found is None:
        raise ValueError(
            "The model's symmetries cannot be tried: it needs a prior that can be sampled, a density that can be "
            "vmapped without randomness or pyro.params of its own, and arguments that are tensors and plain values."
        )
    return found.symmetries, layout


def canonical(samples: Mapping[str, Tensor], model: Model, *args: Any) -> dict[str, Tensor]:
    """The one symmetric copy of every draw whose hidden units are sorted, so that weights of two posteriors compare.

    Args:
        samples: A dict from site to draws of shape `(S, *shape)`.
        model: The Pyro model.
        args: Its arguments, data included.

    Returns:
        A dict from site to draws of the same shapes.
    """
    symmetries, layout = symmetries_of(model, *args)
    return layout.constrain(symmetries.canonicalise(layout.unconstrain(samples)[0])[0])[0]


def symmetric_copies(samples: Mapping[str, Tensor], model: Model, *args: Any) -> dict[str, Tensor]:
    """A symmetric copy of every draw, chosen at random, as good a draw of the posterior. Arguments as `canonical`."""
    symmetries, layout = symmetries_of(model, *args)
    return layout.constrain(symmetries.random_copies(layout.unconstrain(samples)[0]))[0]


def symmetric_bound(model: Model, guide: AutoHypernet, *args: Any, num_samples: int = 1000) -> SymmetricBound:
    """The guide's bound and `ELBO + log|G|`, an upper figure for guides on one symmetric mode.

    Args:
        model: The Pyro model.
        guide: A trained guide.
        args: The model's arguments.
        num_samples: Draws behind the bound.
    """
    bound, error = elbo(model, guide, *args, num_samples=num_samples)
    is_symmetric = guide.knowledge is not None and bool(guide.knowledge.symmetries.groups)
    return SymmetricBound(bound, error, 0.0 if is_symmetric else symmetries_of(model, *args)[0].log_order)

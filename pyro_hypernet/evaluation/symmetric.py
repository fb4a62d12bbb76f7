"""Copies of the same weights: the symmetries of a bound model, and hidden units of draws put in one order."""

import torch
from torch import Tensor, nn

from pyro_hypernet.bnn.cutting import hidden_layers
from pyro_hypernet.informed.detect import detect
from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.target import Target

_ROUNDS = 3


def symmetries_of(target: Target) -> Symmetries:
    """The permutations of hidden units and flips of signs that leave the model's density unchanged, found by trying.

    Args:
        target: The model with its arguments, data included.

    Returns:
        The symmetries, which act on weights in the target's layout.

    Raises:
        ValueError: If the model cannot be tried: see `detect`.
    """
    log_joint, trace = target.log_joint.of(target.model, mode="eager"), target.trace_prior()
    drawn = target.layout.unconstrain({name: trace.nodes[name]["value"] for name in target.layout.names})[0]
    found = detect(log_joint, trace, torch.zeros_like(drawn), target.args, target.kwargs)
    if found is None:
        raise ValueError(
            "The model's symmetries cannot be tried: it needs a prior that can be sampled, a density that can be "
            "vmapped without randomness or pyro.params of its own, and arguments that are tensors and plain values."
        )
    return found.symmetries


def align_units(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts hidden units of all draws in one order, in place: first by what comes in, after the first draw's order.

    Then by all weights, after the order of the mean. Source: Stephens 2000, algorithm 4.1, matched greedily.
    """
    for step in range(_ROUNDS):
        for before, after, flips in hidden_layers(net):
            axes = {f"{before}.weight": 1, f"{before}.bias": 1, f"{after}.weight": 2}
            axes = {name: axis for name, axis in axes.items() if name in weights}
            moved = {name: weights[name].movedim(axis, 1) for name, axis in axes.items()}
            used = [value.reshape(*value.shape[:2], -1) for name, value in moved.items() if step or axes[name] == 1]
            units = torch.cat(used, dim=2)
            order, signs = _match(units, units.mean(0) if step else units[0], flips)
            for name, value in moved.items():
                shape = (*order.shape, *[1] * (value.dim() - 2))
                value = value.take_along_dim(order.view(shape), 1) * signs.view(shape)
                weights[name] = value.movedim(1, axes[name])


def _match(units: Tensor, reference: Tensor, flips: bool) -> tuple[Tensor, Tensor]:
    """For each unit of the reference `(H, k)`, the largest first, the nearest of each draw's `(S, H, k)`; signs."""
    products = units @ reference.T
    distance = units.square().sum(-1)[:, :, None] - 2 * (products.abs() if flips else products)
    order = torch.empty(units.shape[:2], dtype=torch.long, device=units.device)
    for unit in reference.norm(dim=1).argsort(descending=True):
        order[:, unit] = distance[:, :, unit].argmin(1)
        distance[torch.arange(len(units)), order[:, unit]] = torch.inf
    signs = products.take_along_dim(order[:, None], 1)[:, 0]
    return order, signs.sign() if flips else torch.ones_like(signs)

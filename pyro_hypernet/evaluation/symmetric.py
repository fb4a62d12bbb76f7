"""The symmetries of a model bound to its arguments: which of its weights are copies of each other."""

import torch

from pyro_hypernet.informed.detect import detect
from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.target import Target


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

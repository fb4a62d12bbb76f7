"""Plain networks by Adam: what guides are held against."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def adam_passes(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Callable[[], Iterable],
    learning_rate: float = 1e-3,
    **options: Any,
) -> Iterator[int]:
    """Passes over data for ever; after each how many steps have been made.

    Args:
        net: The network, changed in place.
        loss: From its outputs and targets to a number.
        batches: Makes the batches of a pass, pairs of inputs and targets.
        learning_rate: Adam's.
        options: More of Adam's options.
    """
    optimizer, done = torch.optim.Adam(net.parameters(), learning_rate, **options), 0
    while True:
        for inputs, targets in batches():
            optimizer.zero_grad()
            loss(net(inputs), targets).backward()
            optimizer.step()
            done += 1
        yield done

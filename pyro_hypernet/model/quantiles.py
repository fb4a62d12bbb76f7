"""Quantiles of draws, in tensors of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor


def quantiles_of(draws: Tensor, probabilities: Sequence[float] | Tensor) -> Tensor:
    """Quantiles over the first axis, linear between order statistics; `torch.quantile` refuses 16 million numbers.

    Args:
        draws: Shape `(S, *shape)`.
        probabilities: Q numbers in [0, 1].

    Returns:
        Shape `(Q, *shape)`.

    Raises:
        ValueError: If the probabilities are no list of such numbers.
    """
    p = torch.as_tensor(probabilities, dtype=draws.dtype, device=draws.device)
    if p.dim() != 1 or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"quantiles must be a list of probabilities in [0, 1]; got {probabilities!r}.")
    position = p * (len(draws) - 1)
    weight = (position - position.floor()).reshape((-1,) + (1,) * (draws.dim() - 1))
    ordered = draws.sort(0).values
    return torch.lerp(ordered[position.floor().long()], ordered[position.ceil().long()], weight)

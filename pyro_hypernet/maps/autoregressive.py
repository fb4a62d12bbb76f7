"""Inverse autoregressive layers: sampling in one pass, every coordinate steered by all before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_hypernet.maps.bijection import Bijection, widened
from pyro_hypernet.maps.coupling import soft_bound


class InverseAutoregressive(Bijection):
    """`y_i = x_i exp(s_i) + t_i`, where s and t are functions of `x_1 … x_{i−1}` by one masked network.

    The map costs one pass, its inverse D of them. Log scales are softly bounded; the last layer is zero at the start.

    Args:
        dim: D, at least 2.
        hidden: Width of the network's one hidden layer; at least D − 1 for every coordinate to see all before it.

    Raises:
        ValueError: If D is less than 2.

    Source: Kingma et al. 2016, arXiv 1606.04934; masks: Germain et al. 2015, arXiv 1502.03509.
    """

    fast_inverse = False

    def __init__(self, dim: int, *, hidden: int = 64) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"An autoregressive layer needs at least 2 coordinates; got {dim}.")
        self.first = nn.Linear(dim, hidden)
        self.last = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        rank = torch.arange(1, dim + 1)
        sees_up_to = 1 + torch.arange(hidden) * (dim - 1) // hidden  # evenly spread over 1 … D − 1
        first = (sees_up_to[:, None] >= rank).to(self.first.weight.dtype)
        last = (rank[:, None] > sees_up_to).to(first.dtype).repeat(2, 1)
        self.register_buffer("first_mask", first, persistent=False)
        self.register_buffer("last_mask", last, persistent=False)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._steer(x)
        return x * log_scale.exp() + shift, widened(log_scale).sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # the pass number i makes x_i right, whatever stands after it
            log_scale, shift = self._steer(x)
            x = (y - shift) * (-log_scale).exp()
        log_scale, _ = self._steer(x)
        return x, -widened(log_scale).sum(-1)

    def _steer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = functional.silu(functional.linear(x, self.first.weight * self.first_mask, self.first.bias))
        raw, shift = functional.linear(inner, self.last.weight * self.last_mask, self.last.bias).chunk(2, dim=-1)
        return soft_bound(raw), shift

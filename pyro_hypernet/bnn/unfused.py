"""What vmap cannot batch of torch's layers, by plain operations: recurrence, packed sequences, weight norm."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decompositions
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


class Unfused(TorchFunctionMode):
    """Runs these operations by plain ones."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _PLAIN.get(func, func)(*args, **(kwargs or {}))


def _lstm(*args: Any) -> tuple[Tensor, ...]:
    if isinstance(args[3], (list, tuple)):
        return decompositions.lstm_data_impl(*args)
    x, hidden, flat, has_biases, *options = args
    params = decompositions.gather_params(flat, has_biases, hidden[0].shape[2] != hidden[1].shape[2])
    states = list(zip(*hidden, strict=True))
    y, finals = decompositions._rnn_helper(x, states, params, has_biases, *options, _lstm_layer)
    return y, *(torch.stack(final) for final in zip(*finals, strict=True))


def _lstm_layer(
    x: Tensor, hidden: tuple[Tensor, Tensor], params: Sequence[Tensor], has_biases: bool, reverse: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer in one direction, of few operations a step: all gates by one sigmoid, tanh(a) = 2 sigmoid(2 a) - 1."""
    h, c = (state.squeeze(0) if state.dim() == 3 else state for state in hidden)
    twice = torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=x.dtype, device=x.device).repeat_interleave(len(params[1]) // 4)
    bias = twice * (params[2] + params[3]) if has_biases else None
    projection = params[-1] if len(params) in (3, 5) else None
    inputs = linear(x, twice[:, None] * params[0], bias).unbind(0)
    recurrent, states = (twice[:, None] * params[1]).mT, []
    for step in reversed(inputs) if reverse else inputs:
        i, f, g, o = torch.addmm(step, h, recurrent).sigmoid().chunk(4, -1)
        c = torch.addcmul(f * c - i, i, g, value=2.0)
        h = o * c.tanh()
        h = h if projection is None else linear(h, projection)
        states.append(h)
    return torch.stack(states[::-1] if reverse else states), (h, c)


def _either(of_padded: Callable, of_packed: Callable) -> Callable:
    return lambda *args: (of_packed if isinstance(args[3], (list, tuple)) else of_padded)(*args)


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    x, sizes = x.transpose(0, 1) if batch_first else x, lengths.tolist()
    counts = [sum(size > step for size in sizes) for step in range(max(sizes))]
    return torch.cat([x[step, :count] for step, count in enumerate(counts)]), torch.tensor(counts)


def _unpack(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    counts = batch_sizes.tolist()
    steps = [
        torch.cat([part, part.new_full((counts[0] - len(part), *part.shape[1:]), padding_value)])
        for part in data.split(counts)
    ]
    steps += [torch.full_like(steps[0], padding_value)] * (total_length - len(steps))
    lengths = torch.tensor([sum(count > row for count in counts) for row in range(counts[0])])
    return torch.stack(steps, 1 if batch_first else 0), lengths


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
    return v * (g / v.norm(dim=axes, keepdim=True))


_PLAIN: dict[Any, Callable] = {
    torch.lstm: _lstm,
    torch.gru: _either(decompositions.gru_impl, decompositions.gru_impl_data),
    torch.rnn_tanh: _either(decompositions.rnn_tanh_input, decompositions.rnn_tanh_data),
    torch.rnn_relu: _either(decompositions.rnn_relu_input, decompositions.rnn_relu_data),
    torch._pack_padded_sequence: _pack,
    torch._pad_packed_sequence: _unpack,
    torch._weight_norm: _weight_norm,
}

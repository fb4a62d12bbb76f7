"""A group of operations on long vectors, worked out block after block: number by number, with sums and lookups."""

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

# Numbers of a row that are worked on at once.
_BLOCK = 2**15


class Key(NamedTuple):
    """What is worked on together: matrices of `rows` times `size` numbers, after so many groups before."""

    level: int
    rows: int
    size: int


class Operand(NamedTuple):
    """How a group takes an input.

    Attributes:
        shape: Its shape as a matrix.
        is_whole: Whether every block takes all of it, as a table in which numbers are looked up.
    """

    shape: tuple[int, int]
    is_whole: bool = False


class Result(NamedTuple):
    """What a group gives.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        is_sum: Whether it is a sum, over every row, or within every row by groups.
        index: The number of the input that says for every place of a row its group; None for a sum over all.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_sum: bool = False
    index: int | None = None


class Blockwise(nn.Module):
    """Operations number by number, lookups in tables and sums, block after block.

    Args:
        body: From blocks of shape `(rows or 1, b)`, or `(rows or 1, 1)`, or tables `(rows or 1, n)`, to blocks and sums
            over rows.
        key: What of.
        inputs: How they are taken.
        outputs: What it gives.
    """

    def __init__(self, body: fx.GraphModule, key: Key, inputs: list[Operand], outputs: list[Result]) -> None:
        super().__init__()
        self.body, self.key, self.inputs, self.outputs = body, key, inputs, outputs
        self.donors: dict[int, int] = {}  # from results to the inputs that they are written over
        self.places: dict[int, Tensor] = {}  # or to memory that is kept for them

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        _, rows, size = self.key
        matrices = [tensor.reshape(operand.shape) for tensor, operand in zip(tensors, self.inputs, strict=True)]
        results = [self._empty(number, matrices) for number in range(len(self.outputs))]
        width = max(1, _BLOCK // rows)
        for at in range(0, size, width):
            blocks = [
                matrix if operand.is_whole or matrix.shape[1] == 1 else matrix[:, at : at + width]
                for matrix, operand in zip(matrices, self.inputs, strict=True)
            ]
            for result, block, output in zip(results, self.body(*blocks), self.outputs, strict=True):
                if output.index is not None:
                    for row, values in zip(result, block.to(result).expand(rows, -1), strict=True):
                        row.index_add_(0, blocks[output.index][0], values)
                elif output.is_sum:
                    result += block
                else:
                    result[:, at : at + width] = block
        return tuple(
            (result if output.shape[:1] == (rows,) or rows == 1 else result.sum())
            .to(output.dtype)
            .reshape(output.shape)
            for result, output in zip(results, self.outputs, strict=True)
        )

    def _empty(self, number: int, matrices: list[Tensor]) -> Tensor:
        """Where a result is put together."""
        output, (_, rows, size) = self.outputs[number], self.key
        if output.is_sum:
            shape = (rows,) if output.index is None else (rows, output.shape[-1])
            return torch.zeros(shape, dtype=torch.float64, device=matrices[0].device)
        if number in self.donors:
            return matrices[self.donors[number]]
        if number in self.places:
            return self.places[number]
        return torch.empty(rows, size, dtype=output.dtype, device=matrices[0].device)

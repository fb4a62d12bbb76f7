"""The density of a minibatch in parts: every draw of the weights meets a part of the data of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.culprits import first_line
from pyro_hypernet.model.called import blaming_arguments
from pyro_hypernet.model.density import LogJoint, zero_density
from pyro_hypernet.model.single_run import trace_one
from pyro_hypernet.model.tempered import TemperedModel
from pyro_hypernet.model.vectorize import MODES, Vectorized, grad_and_value, outside_of_pyro

# Likelihoods of parts add up to that of the whole within this, relative, in float32, and the square of it in float64.
_TOLERANCE = 1e-3


class SplitJoint:
    """log p(data, w) of a minibatch, each draw's by its own part of it, scaled to the whole; called as a `LogJoint` is.

    Of K draws and B rows each gets B / K consecutive rows, some one row more where K does not divide B; where there are
    fewer rows than draws the last draws have none. The mean over draws has the expectation of the ordinary one, for
    every row counts as often as there. Of draws with unequal weights each stands for the whole instead, by rows that
    are drawn at random.

    Args:
        log_joint: The density of the model, whose data are the rows of all tensors among its arguments.
        w: Weights at which the model is tried, shape `(D,)`.
        args: Its arguments.
        kwargs: Its keyword arguments.
        num_draws: K, of all processes.
        is_turned: Whether rows are turned round by a random number first, for draws of unequal weights, or not alike.
        mode: As of `LogJoint`.

    Attributes:
        share: Which of the draws it is called with; None for all.

    Raises:
        ValueError: If the arguments are no rows, or the likelihood is no sum over them.
    """

    def __init__(
        self,
        log_joint: LogJoint,
        w: Tensor,
        args: tuple,
        kwargs: dict[str, Any],
        *,
        num_draws: int,
        is_turned: bool = False,
        mode: str = "graph",
    ) -> None:
        self.layout, self._plain, self._model = log_joint.layout, log_joint.model, TemperedModel(log_joint.model)
        self._num_draws, self._is_turned = num_draws, is_turned
        self.share: slice | None = None
        self._is_scaled = is_scaled(log_joint, w, args, kwargs, 'draws="split"')
        self._value = Vectorized(self._value_of_one, mode=mode, failed=lambda draw, _: zero_density(draw[0]))
        self._grad_and_value = Vectorized(
            self._grad_and_value_of_one,
            mode=mode,
            differentiable=False,
            failed=lambda draw, _: (0 * draw[0], zero_density(draw[0])),
        )

    def __call__(self, w: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p in nats, shape `(K,)`, at `w` of shape `(K, D)`."""
        return torch.cat([self._value(*group) for group in self._groups(w, args, kwargs)])

    def value_and_grad(self, w: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The same and its gradient, shape `(K, D)`, both detached."""
        with torch.no_grad():
            pairs = [self._grad_and_value(*group) for group in self._groups(w.detach(), args, kwargs)]
        return torch.cat([value for _, value in pairs]), torch.cat([gradient for gradient, _ in pairs])

    @property
    def mode(self) -> str:
        """How the density runs now, as of `LogJoint`."""
        used = {self._value.mode, self._grad_and_value.mode}
        return next(mode for mode in reversed(MODES) if mode in used)

    def _groups(self, w: Tensor, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[tuple, tuple]]:
        """Draws with as many rows, as a `Vectorized` is called: those with a row more, the others, those with none."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        number, are_rows = num_rows(args, kwargs), tuple(map(_is_rows, leaves))
        rows = [leaf for leaf, is_row in zip(leaves, are_rows, strict=True) if is_row]
        rest = pytree.tree_unflatten([None if is_row else x for x, is_row in zip(leaves, are_rows, strict=True)], spec)
        length = number
        if self._is_turned:  # and every draw has a row, some the same
            length = max(number, self._num_draws)
            index = (torch.arange(length, device=w.device) + torch.randint(number, (1,), device=w.device)) % number
            rows = [row[index] for row in rows]
        each, more = divmod(length, self._num_draws)
        positions, at = range(self._num_draws)[self.share or slice(None)], 0
        for count, first, last in ((each + 1, 0, more), (each, more, self._num_draws)):
            own = [position - first for position in positions if first <= position < last]
            if not own:
                continue
            start = first * (each + 1)
            parts = [self._part(row, start, count, last - first, own) for row in rows]
            yield (w[at : at + len(own)], parts), (self._factor(count, number), are_rows, rest)
            at += len(own)

    @staticmethod
    def _part(row: Tensor, start: int, count: int, num_draws: int, own: list[int]) -> Tensor:
        """Rows of some draws of a group, shape `(len(own), count, …)`; one that does not count where they have none."""
        if count == 0:
            return row[:1].expand(len(own), 1, *row.shape[1:])
        parts = row[start : start + count * num_draws].reshape(num_draws, count, *row.shape[1:])
        return parts if len(own) == num_draws else parts[own]

    def _factor(self, count: int, number: int) -> float:
        """How often the likelihood of so many of the rows counts."""
        if count == 0:
            return 0.0
        if self._is_turned:  # each part stands for the whole
            return 1.0 if self._is_scaled else number / count
        return self._num_draws * count / number if self._is_scaled else float(self._num_draws)

    def _value_of_one(self, draw: tuple[Tensor, list[Tensor]], args: tuple, _: dict) -> Tensor:
        w, parts = draw
        factor, are_rows, rest = args
        values, log_det = self.layout.constrain(w)
        leaves, spec = pytree.tree_flatten(rest)
        remaining = iter(parts)
        merged = [next(remaining) if is_row else leaf for leaf, is_row in zip(leaves, are_rows, strict=True)]
        args, kwargs = pytree.tree_unflatten(merged, spec)
        model, args = (self._plain, args) if factor == 1 else (self._model, (factor, *args))
        with blaming_arguments(self._plain, args, kwargs):
            return trace_one(model, values, args, kwargs).log_prob_sum() + log_det

    def _grad_and_value_of_one(self, draw: tuple[Tensor, list[Tensor]], args: tuple, _: dict) -> tuple[Tensor, Tensor]:
        w, parts = draw
        return grad_and_value(lambda w: self._value_of_one((w, parts), args, {}))(w)


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def num_rows(args: tuple, kwargs: dict[str, Any], what: str = "Splitting a batch") -> int:
    """The number of data among a model's arguments: the length of all tensors that have one.

    Args:
        args: The arguments.
        kwargs: The keyword arguments.
        what: What needs rows, for the message.

    Raises:
        ValueError: If there is none, or they differ.
    """
    lengths = [len(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if _is_rows(leaf)]
    if len(set(lengths)) != 1:
        raise ValueError(
            f"{what} needs data as rows, along the first axis of all tensors among the model's arguments; their "
            f'lengths are {lengths}. Give what is no row by a partial of the model, or use draws="batch".'
        )
    return lengths[0]


def _rows_of(args: tuple, kwargs: dict[str, Any], rows: slice) -> tuple[tuple, dict[str, Any]]:
    """The same arguments of some of the data."""
    return pytree.tree_map(lambda leaf: leaf[rows] if _is_rows(leaf) else leaf, (args, kwargs))


def is_scaled(log_joint: LogJoint, w: Tensor, args: tuple, kwargs: dict[str, Any], what: str) -> bool:
    """Whether a model scales the likelihood of a minibatch to all data, found by trying two parts of it.

    Args:
        log_joint: Its density.
        w: Weights at which it is tried, shape `(D,)`.
        args: Its arguments.
        kwargs: Its keyword arguments.
        what: What needs a likelihood that is a sum over rows, for the messages.

    Raises:
        ValueError: If it is none, or the prior is another for a part of the rows.
    """
    number = num_rows(args, kwargs, what)
    if number < 2:
        raise ValueError(
            f"{what} shares the rows of a batch among draws; the first batch holds {number}: make it larger."
        )
    eager, half = log_joint.of(log_joint.model, mode="eager"), number // 2
    parts = [_rows_of(args, kwargs, rows) for rows in (slice(half), slice(half, None))]
    with torch.no_grad(), outside_of_pyro(seed=0):
        whole = eager.parts(w[None], *args, **kwargs)[0].double()
        try:
            halves = [eager.parts(w[None], *a, **k)[0].double() for a, k in parts]
        except Exception as error:
            raise ValueError(
                f"{what} takes a model that runs on parts of a batch; on a half of its {number} rows it fails "
                f'({first_line(error)}). Its latents and its shapes must not depend on the rows: use draws="batch".'
            ) from error
    size = max(1.0, float(sum(part[1].abs() for part in halves)), float(whole[0].abs()))
    most = size * (_TOLERANCE if w.dtype == torch.float32 else _TOLERANCE**2)
    shares = torch.tensor([half, number - half], dtype=torch.float64) / number
    scaled = float(sum(share * part[1] for share, part in zip(shares, halves, strict=True)))
    once = float(sum(part[1] for part in halves))
    has_one_prior = all(abs(float(part[0] - whole[0])) <= most for part in halves)
    if has_one_prior and abs(scaled - float(whole[1])) <= most:
        return True
    if has_one_prior and abs(once - float(whole[1])) <= most:
        return False
    found = f"{float(whole[1]):.6g} nats; of its halves {once:.6g} if they count once, {scaled:.6g} if they are scaled"
    raise ValueError(
        f"{what} needs a likelihood that is a sum over the rows of the batch, in one plate, and a prior that does not "
        f"depend on them: that of the whole batch is {found}{'' if has_one_prior else '; and the prior is another'}. "
        'Use draws="batch".'
    )

"""What draws of a Pyro model's weights say of its outcomes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_hypernet.model.traces import predictive_nodes
from pyro_hypernet.model.vectorize import Model, Vectorized, trace_one

# Outcomes, draws times points, that are worked out at once.
_MAX_VALUES = 2**18


class Outcomes:
    """The distribution of a Pyro model's one observed site, given each of many draws; differentiable in all arguments.

    Points are independent given the draw, and the model takes them as its first argument.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._moments = Vectorized(self._moments_of_one, mode="eager", randomness="different")
        self._log_prob = Vectorized(self._log_prob_of_one, mode="eager", randomness="different")

    def __reduce__(self) -> tuple:
        return type(self), (self.model,)

    def moments(self, samples: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances.

        Args:
            samples: A dict from every latent site to draws of shape `(S, *shape)`.
            x: Points, shape `(*b, q, d)`.

        Returns:
            Both of shape `(*b, S, q, m)`, in the dtype of x.

        Raises:
            ValueError: If the model has not one site beside those with draws.
        """
        parts = zip(*_in_parts(self._moments, samples, x.flatten(0, -2)), strict=True)
        means, variances = (
            torch.cat(part, 1).to(x).unflatten(1, x.shape[:-1]).movedim(0, x.dim() - 2) for part in parts
        )
        return means, variances

    def log_prob(self, samples: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Log density of q outcomes together.

        Args:
            samples: As above.
            x: Points, shape `(*b, q, d)`.
            y: Outcomes, shape `(*b, q, m)`; batch axes of x and y are broadcast.

        Returns:
            In nats, shape `(*b, S)`.
        """
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        rows = [value.expand(*batch, *value.shape[-2:]).flatten(0, -2) for value in (x, y)]
        log_prob = torch.cat(list(_in_parts(self._log_prob, samples, *rows)), 1)
        return log_prob.to(x).unflatten(1, (*batch, x.shape[-2])).sum(-1).movedim(0, -1)

    def _moments_of_one(self, draw: dict[str, Tensor], args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        fn = self._site(draw, *args)
        mean, variance = (value if value.dim() > 1 else value.unsqueeze(-1) for value in (fn.mean, fn.variance))
        return mean, variance

    def _log_prob_of_one(self, draw: dict[str, Tensor], args: tuple, kwargs: dict) -> Tensor:
        x, y = args
        fn = self._site(draw, x)
        log_prob = fn.log_prob(y.reshape(fn.batch_shape + fn.event_shape))
        return log_prob if log_prob.dim() == 1 else log_prob.sum(-1)

    def _site(self, draw: dict[str, Tensor], x: Tensor) -> TorchDistributionMixin:
        nodes = predictive_nodes(trace_one(self.model, draw, (x,), {}), draw)
        if len(nodes) != 1:
            raise ValueError(
                f"The model must have one site beside those with draws, its outcomes; it has {list(nodes)}: give draws "
                "of all latent sites, and observe one."
            )
        return next(iter(nodes.values()))["fn"]


def _in_parts(run: Callable[..., Any], samples: Mapping[str, Tensor], *rows: Tensor) -> Iterator[Any]:
    """Results for a bounded number of rows at a time, in the dtype of the draws."""
    like = next(iter(samples.values()))
    parts = [value.to(like).split(max(1, _MAX_VALUES // len(like))) for value in rows]
    return (run(dict(samples), part) for part in zip(*parts, strict=True))

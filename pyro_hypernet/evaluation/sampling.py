"""`pyro.sample` statements that draw fresh noise for every row of a `torch.func.vmap`."""

import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode


class VmappedSampling(Messenger):
    """Samples the sites that are neither observed nor named, such that different rows of a vmap get different values.

    torch's distributions fill an empty tensor with noise in place, which vmap refuses to do differently in every row.

    Args:
        conditioned: Names of the sites that an outer handler gives a value.
    """

    def __init__(self, conditioned: Collection[str]) -> None:
        super().__init__()
        self.conditioned = frozenset(conditioned)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] in self.conditioned or site_is_subsample(msg):
            return
        with warnings.catch_warnings(), _NoiseOutOfPlace():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            warnings.filterwarnings("ignore", "An output with one or more elements was resized", UserWarning)
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["done"] = True


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn_like(like)


def _uniform(like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand_like(like)


def _exponential(like: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-torch.rand_like(like)) / rate


def _cauchy(like: Tensor, median: float = 0.0, scale: float = 1.0) -> Tensor:
    return median + scale * torch.tan(math.pi * (torch.rand_like(like) - 0.5))


_NOISE: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: _normal,
    Tensor.uniform_: _uniform,
    Tensor.exponential_: _exponential,
    Tensor.cauchy_: _cauchy,
}


class _NoiseOutOfPlace(TorchFunctionMode):
    """Gives new noise where a distribution would overwrite an empty tensor with it."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _NOISE.get(func, func)(*args, **(kwargs or {}))

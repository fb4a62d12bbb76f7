"""Flows of other libraries as bijections: Pyro's own transforms, and zuko's."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_hypernet.maps.bijection import Bijection

# A float32 flow inverts to about 1e-5; this tells a wrong inverse from a rounded one.
_INVERSE_ERROR = 1e-2


class _Foreign(Bijection):
    """A flow of another library. It need not be the identity at the start, nor is its inverse known to be cheap.

    Args:
        flow: A Pyro `TransformModule`, or a zuko flow, run in the direction in which it scores data, for that is the
            one that takes one pass.
        dim: D, for a try at the start.

    Raises:
        ValueError: If it has no parameters, or cannot invert a value that it did not just map.
    """

    fast_inverse = False

    def __init__(self, flow: nn.Module, dim: int) -> None:
        super().__init__()
        self.flow = flow
        parameters = list(flow.parameters()) if isinstance(flow, nn.Module) else []
        if not parameters:
            raise ValueError(
                f"The foreign flow {type(flow).__name__} has no parameters to train; pass a function from a dimension "
                "to a Pyro TransformModule or a zuko flow (the flow itself, not flow.transform())."
            )
        if not parameters[0].is_meta:
            self._check_inverse(dim, parameters[0])

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_lazy():
            y, log_det = self.flow.transform().call_and_ladj(x)
            return y, _whole(log_det, x)
        y = self.flow(x)
        return y, self._log_det(x, y)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_lazy():
            transform = self.flow.transform()
            x = transform.inv(y)
            return x, -_whole(transform.call_and_ladj(x)[1], x)
        x = self.flow.inv(y)
        return x, -self._log_det(x, y)

    def _is_lazy(self) -> bool:
        """Whether it is zuko's, which builds a transform anew from the parameters at every call.

        `call_and_ladj` is no sign of it: once zuko is imported, torch's and Pyro's transforms have that too.
        """
        return callable(getattr(self.flow, "transform", None))

    def _log_det(self, x: Tensor, y: Tensor) -> Tensor:
        log_det = _whole(self.flow.log_abs_det_jacobian(x, y), x)
        # The map keeps the last pair itself, and Pyro's own caches hold tensors with a history, which no copy survives.
        for module in self.flow.modules():
            if isinstance(module, Transform):
                names = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
                cached = {name: None for name in names if name.startswith("_cache")}
                vars(module).update(cached | {"_cached_x_y": (None, None), "_inv": None})
        return log_det

    def _check_inverse(self, dim: int, like: Tensor) -> None:
        name = type(self.flow).__name__
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = torch.randn(3, dim, dtype=like.dtype, device=like.device)
            try:
                y = self.forward_and_log_det(x)[0]
                error = float((self.inverse_and_log_det(y.clone())[0] - x).abs().max())
            except (NotImplementedError, KeyError, RuntimeError, AttributeError) as reason:
                raise ValueError(
                    f"The foreign flow {name} cannot invert ({type(reason).__name__}); a guide needs the density of "
                    "given weights. Use a coupling, spline or autoregressive flow."
                ) from None
        if not error < _INVERSE_ERROR:
            raise ValueError(
                f"The foreign flow {name} does not invert: after a round trip values differ by {error:.2g}."
            )


def _whole(log_det: Tensor, x: Tensor) -> Tensor:
    """Log determinant of shape `(...)`, also of flows that give one for every coordinate, or one for all points."""
    return (log_det.sum(-1) if log_det.dim() == x.dim() else log_det).expand(x.shape[:-1])


def foreign(make: Callable[[int], nn.Module]) -> Callable[[int], Bijection]:
    """A hypernetwork out of another library's flow.

    Args:
        make: From a dimension to a Pyro `TransformModule` or a zuko flow.

    Returns:
        A function from a dimension to a Bijection, for `AutoHypernet(model, hypernet=...)`.

    Example:
        >>> import functools, pyro.distributions.transforms as transforms
        >>> hypernet = foreign(functools.partial(transforms.affine_coupling, hidden_dims=[16]))
        >>> y, log_det = hypernet(4).forward_and_log_det(torch.zeros(2, 4))
        >>> y.shape, log_det.shape
        (torch.Size([2, 4]), torch.Size([2]))
    """
    return partial(_make_foreign, make=make)


def _make_foreign(dim: int, *, make: Callable[[int], nn.Module]) -> _Foreign:
    return _Foreign(make(dim), dim)

"""Adversarial inputs: small changes that make the mean prediction over draws of the weights wrong."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws, run_by
from pyro_hypernet.model.density import map_model
from pyro_hypernet.model.traces import deterministic_nodes
from pyro_hypernet.model.vectorize import Model

# From inputs (N, ...) to logits of every draw (S, N, C), differentiable in the inputs.
Logits = Callable[[Tensor], Tensor]
_ANY = (-math.inf, math.inf)


def logits_of(model: Model, posterior: Any, *, num_samples: int = 20, fresh: bool = False, site: str = "f") -> Logits:
    """What a posterior predicts, differentiable in the inputs, which `predict` is not.

    Args:
        model: A Pyro model of one argument that matters, the inputs.
        posterior: A guide, a result of `nuts`, or a dict of samples; see `draws`.
        num_samples: Draws S of the weights.
        fresh: Whether every call takes draws of its own. By default all take those of the first: who attacks knows the
            very networks that predict. For fresh ones in the prediction alone, make another of these.
        site: The deterministic site of the logits: of a network of `bayesianize`, "f".

    Returns:
        A function from inputs, shape `(N, ...)`, to logits, shape `(S, N, C)`; where the network gives log odds, C = 2.

    Raises:
        ValueError: When called, if the model has no such site.
    """
    kept: dict[str, Tensor] = {}

    def logits(x: Tensor) -> Tensor:
        if fresh or not kept:
            kept.update(draws(posterior, x, num_samples=num_samples))
        f = map_model(run_by(model, posterior), kept, (x,), collect=partial(_value_of, site))
        return f if f.shape[-1] > 1 else torch.cat([-f / 2, f / 2], -1)

    return logits


def fgsm(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    sizes: Sequence[float],
    *,
    clip: tuple[float, float] = _ANY,
) -> Tensor:
    """One step along the sign of the gradient of `−log mean_s p(label | x, w_s)`, of several sizes.

    Args:
        logits: From inputs to logits of every draw, as of `logits_of`; or of an ensemble,
            `lambda x: torch.stack([net(x) for net in nets])`.
        x: Inputs, shape `(N, ...)`.
        labels: Their classes, shape `(N,)`; the network's own guesses where the true ones are not to leak.
        sizes: Of the step in every coordinate, E numbers, in the units of x.
        clip: The least and the greatest value that an input may have.

    Returns:
        Changed inputs, shape `(E, N, ...)`.

    Raises:
        ValueError: If x lies outside of `clip`, or a size is negative.

    Source: Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572.

    Example:
        >>> net = torch.nn.Linear(4, 3)
        >>> fgsm(lambda x: net(x)[None], torch.rand(8, 4), torch.zeros(8).long(), [0.1, 0.2], clip=(0, 1)).shape
        torch.Size([2, 8, 4])
    """
    _check(x, sizes, clip)
    direction = _gradient(logits, x, labels).sign()
    return torch.stack([(x + size * direction).clamp(*clip) for size in sizes])


def pgd(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    sizes: Sequence[float],
    *,
    num_steps: int = 10,
    clip: tuple[float, float] = _ANY,
) -> Tensor:
    """Steps as those of `fgsm`, each put back into the cube around x, from a start drawn in it.

    Args: As those of `fgsm`; `num_steps` steps of 2.5 / num_steps of the size each.

    Returns:
        Changed inputs, shape `(E, N, ...)`.

    Raises:
        ValueError: As `fgsm`.

    Source: Madry et al. 2018, arXiv 1706.06083.
    """
    _check(x, sizes, clip)
    found = []
    for size in sizes:
        low, high = (x - size).clamp(*clip), (x + size).clamp(*clip)
        at = torch.lerp(low, high, torch.rand_like(x))
        for _ in range(num_steps):
            step = 2.5 * size / num_steps * _gradient(logits, at, labels).sign()
            at = (at + step).clamp(low, high)
        found.append(at)
    return torch.stack(found)


def _gradient(logits: Logits, x: Tensor, labels: Tensor) -> Tensor:
    """Of `−Σ_n log mean_s p(label_n | x_n, w_s)` to x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        log_p = logits(x).log_softmax(-1)[:, torch.arange(len(x)), labels]
        return torch.autograd.grad(-log_p.logsumexp(0).sum(), x)[0]


def _check(x: Tensor, sizes: Sequence[float], clip: tuple[float, float]) -> None:
    if not all(size >= 0 for size in sizes) or not len(sizes):
        raise ValueError(f"sizes must not be negative, and there must be one; got {list(sizes)}.")
    if not bool(((x >= clip[0]) & (x <= clip[1])).all()):  # NaN does not either
        raise ValueError(f"Inputs must lie within clip, {clip}; theirs are {x.min():.3g} to {x.max():.3g}.")


def _value_of(site: str, trace: Any) -> Tensor:
    nodes = deterministic_nodes(trace)
    if site not in nodes:
        raise ValueError(f"The model has no deterministic site {site!r}; it has {list(nodes)}: name one by site=.")
    return nodes[site]["value"]

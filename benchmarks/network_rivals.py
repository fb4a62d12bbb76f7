"""Posteriors over a network's weights that others use: SWAG, a Laplace approximation of the last layer, IVON."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# Minibatches, each with the share of the seconds that has passed.
Clocked = Iterator[tuple[float, Tensor, Tensor]]
HAS_IVON = find_spec("ivon") is not None


def map_loss(net: nn.Module, x: Tensor, y: Tensor, *, num_data: int, precision: float) -> Tensor:
    """Minus the log posterior density of a network in nats a datum, by a minibatch; options as of `swag`."""
    return cross_entropy(net(x), y) + precision / 2 * sum(p.square().sum() for p in net.parameters()) / num_data


def swag(
    net: nn.Module, batches: Clocked, *, num_data: int, precision: float, num_draws: int, rank: int = 20
) -> Tensor:
    """Draws of the weights, shape `(S, D)`: SGD goes on from a trained network, a normal is fitted to its path.

    The step size is constant; a point is noted after every pass over the data, and at a twentieth of the time at the
    latest. The covariance is half the points' variances and half that of the last `rank` points about the mean.

    Args:
        net: The trained network, changed in place.
        batches: Minibatches for as long as it may take.
        num_data: Of all of them.
        precision: Of the normal prior of every weight.
        num_draws: S.
        rank: Points whose deviations make up the covariance beyond its diagonal.

    Source: Maddox et al. 2019, arXiv 1902.02476.
    """
    optimizer, noted = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9), []
    seen, next_share = 0, 0.05
    for share, x, y in batches:
        optimizer.zero_grad()
        map_loss(net, x, y, num_data=num_data, precision=precision).backward()
        optimizer.step()
        seen += len(x)
        if seen >= num_data - len(x) or share >= next_share:
            noted.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
            seen, next_share = 0, share + 0.05
    points = torch.stack(noted)
    mean, last = points.mean(0), points[-rank:]
    deviations, sds = last - mean, points.var(0, correction=0).sqrt()
    diagonal = sds * torch.randn(num_draws, len(mean), device=mean.device)
    ranked = torch.randn(num_draws, len(last), device=mean.device) @ deviations / max(1, len(last) - 1) ** 0.5
    return mean + 0.5**0.5 * (diagonal + ranked)


def last_layer_laplace(net: nn.Sequential, parts: list[Tensor], precision: float, num_draws: int) -> Tensor:
    """Draws of the last layer's weights and shifts, shape `(S, features + 1, classes)`, about a trained network's.

    The generalised Gauss-Newton matrix of all inputs and the prior's precision, all of it, at the network's values.

    Args:
        net: The trained network, a linear layer its last.
        parts: All inputs, in parts.
        precision: Of the normal prior of every weight.
        num_draws: S.

    Source: Daxberger et al. 2021, arXiv 2106.14806.
    """
    with torch.no_grad():
        w = torch.cat([net[-1].weight.T, net[-1].bias[None]]).double()
        hessian = precision * torch.eye(w.numel(), dtype=w.dtype, device=w.device)
        for x in parts:
            phi = features(net, x)
            p = (phi @ w).softmax(-1)
            inner = p.diag_embed() - p[:, :, None] * p[:, None]
            hessian += torch.einsum("na,nb,ncd->acbd", phi, phi, inner).reshape_as(hessian)
        root = torch.linalg.cholesky(hessian)
        noise = torch.randn(w.numel(), num_draws, dtype=w.dtype, device=w.device)
        shifts = torch.linalg.solve_triangular(root.T, noise, upper=True).T
    return w + shifts.reshape(num_draws, *w.shape)


def features(net: nn.Sequential, x: Tensor) -> Tensor:
    """What the last layer sees, and a one, shape `(N, features + 1)`, in float64."""
    phi = net[:-1](x).double()
    return torch.cat([phi, torch.ones_like(phi[:, :1])], 1)


def ivon(net: nn.Module, batches: Clocked, *, num_data: int, precision: float, num_draws: int) -> Tensor:
    """Draws of the weights, shape `(S, D)`, by the package ivon-opt: a mean field by natural gradients.

    Args:
        net: The network, changed in place.
        batches: Minibatches for as long as it may take; the step size falls to zero.
        num_data: Of all of them.
        precision: Of the normal prior of every weight.
        num_draws: S.

    Source: Shen et al. 2024, arXiv 2402.17641.
    """
    from ivon import IVON

    optimizer = IVON(net.parameters(), lr=0.1, ess=num_data, weight_decay=precision / num_data, hess_init=0.5)
    for share, x, y in batches:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - share)
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
        optimizer.step()
    drawn = []
    for _ in range(num_draws):
        with optimizer.sampled_params():
            drawn.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(drawn)

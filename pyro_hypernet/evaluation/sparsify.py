"""Which weights, units, inputs or words a posterior can do without, and the smaller network that is left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesian_net import BayesianNet
from pyro_hypernet.bnn.cutting import PARTS, Part, cut_out, find_parts
from pyro_hypernet.bnn.parameters import at_its_parameters, weights_of
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.evaluation.score import score
from pyro_hypernet.evaluation.symmetric import align_units
from pyro_hypernet.shown import Shown

BY = ("signal", "scale")
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True, repr=False)
class Sparse(Shown):
    """What `sparsify` found; log densities are means over held-out data, in nats per datum.

    Attributes:
        net: The smaller network, at the mean of the draws.
        kept: From a parameter's name to what of it is kept, torch.bool: of weights its own shape; of units, inputs and
            rows one number for each.
        share: The share of parts that were removed.
        loss: The log predictive density that removing them costs the draws.
        net_loss: What the smaller network costs, at its single weights, against all draws with nothing removed.
        curve: Pairs of a share and the log predictive density of the draws without it, from share 0 on.
        samples: The draws without what was removed, by name of a parameter and of the model's other sites.
    """

    net: nn.Module
    kept: dict[str, Tensor]
    share: float
    loss: float
    net_loss: float
    curve: list[tuple[float, float]]
    samples: dict[str, Tensor]

    def __str__(self) -> str:
        kept, size = (sum(int(f(mask)) for mask in self.kept.values()) for f in (torch.sum, torch.numel))
        return (
            f"{kept} of {size} parts kept; log predictive density lower by {self.loss:.4f} nats per datum, by "
            f"{self.net_loss:.4f} with single weights"
        )


@torch.no_grad()
def sparsify(
    model: BayesianNet,
    posterior: Any,
    args: tuple | Mapping[str, Any] | Iterable[Any],
    *,
    parts: str = "weights",
    by: str = "signal",
    max_loss: float = 0.01,
    shares: Sequence[float] = _SHARES,
    num_samples: int = 200,
) -> Sparse:
    """Removes as many parts of a network as held-out data allow, the least needed first.

    A part's *signal* is |mean| / sd of its weights over the draws, root mean square over its weights; its *scale* the
    root mean square of its weights over the draws, which a shrinking prior, `ard()` or `horseshoe()`, drives to zero.
    Hidden units of a Sequential of Linear layers may change places and signs from draw to draw: they are put in one
    order first. Elsewhere use a guide whose draws stay at one of the copies, such as `structure="full"`.

    Args:
        model: What `bayesianize` returned.
        posterior: A guide, a result of `nuts`, or a dict of samples; see `draws`.
        args: Held-out data as in `score`: a tuple, a dict, or an iterable of such.
        parts: "weights", one by one, which are set to zero; "units", hidden ones of a Sequential of Linear layers, and
            "inputs" of its first, which are cut out; "rows" of all embeddings, words, of which those removed share one
            row of zeros.
        by: "signal" or "scale".
        max_loss: What may be lost of the log predictive density, in nats per datum.
        shares: Shares of the parts to try, in [0, 1).
        num_samples: Draws of the posterior.

    Returns:
        The smaller network, what it keeps, and what that costs.

    Raises:
        TypeError: If the model is none of `bayesianize`.
        ValueError: If a choice is unknown, a share is not in [0, 1), or the network has no such parts.

    Source: Graves 2011 and Blundell et al. 2015, section 5.1, for pruning by signal to noise.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> from pyro_hypernet import bayesianize
        >>> model, x = bayesianize(net), torch.randn(30, 3)
        >>> samples = {site: value.expand(20, *value.shape) for site, value in model.initial_values.items()}
        >>> held_out = (x, net(x).detach()[:, 0])
        >>> samples["sigma"] = torch.ones(20)
        >>> found = sparsify(model, samples, held_out, parts="units", shares=[0.5], max_loss=9)
        >>> found.net
        Sequential(
          (0): Linear(in_features=3, out_features=4, bias=True)
          (1): Tanh()
          (2): Linear(in_features=4, out_features=1, bias=True)
        )
    """
    if not isinstance(model, BayesianNet):
        raise TypeError(f"model must be what bayesianize returned; got {type(model).__name__}.")
    if parts not in PARTS or by not in BY:
        raise ValueError(f"parts must be one of {', '.join(PARTS)}, by one of {', '.join(BY)}; got {parts!r}, {by!r}.")
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares must lie in [0, 1); got {list(shares)}.")
    args = args if isinstance(args, (tuple, Mapping)) else list(args)
    chosen = find_parts(model.net, {site.parameter for site in model._random}, parts)
    samples = draws(posterior, num_samples=num_samples)
    weights = weights_of(model, samples)
    others = {name: value for name, value in samples.items() if name not in model.initial_values}
    align_units(model.net, weights)
    plain, worth = at_its_parameters(model), {part: _worth(weights[part.name], part.axis, by) for part in chosen}

    def without(share: float) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        kept = _kept(worth, share)
        less = {**weights, **{p.name: _masked(weights[p.name], kept[p.name], p.axis) for p in worth}}
        return score(plain, less | others, args).log_predictive, kept, less

    tried = {share: without(share) for share in sorted({0.0, *shares})}
    whole = tried[0.0][0]
    share = max(share for share, (density, *_) in tried.items() if density >= whole - max_loss)
    density, kept, less = tried[share]
    means = {name: value.mean(0, keepdim=True) for name, value in (less | others).items()}
    single = score(plain, means, args).log_predictive
    net = cut_out(model.net, {name: means[name][0] for name in less}, kept, parts)
    curve = [(share, density) for share, (density, *_) in tried.items()]
    return Sparse(net, kept, share, whole - density, whole - single, curve, less | others)


def _worth(value: Tensor, axis: int | None, by: str) -> Tensor:
    """What parts of draws `(S, *shape)` are worth."""
    square = value.mean(0) ** 2 / value.var(0).clamp_min(1e-30) if by == "signal" else value.square().mean(0)
    return square if axis is None else square.movedim(axis, 0).flatten(1).mean(1)


def _kept(worth: Mapping[Part, Tensor], share: float) -> dict[str, Tensor]:
    """What is kept of each parameter where a share of all parts goes; the best part of each stays."""
    flat = torch.cat([each.flatten() for each in worth.values()])
    number = round(share * len(flat))
    bound = flat.sort().values[number - 1] if number else -torch.inf
    return {part.name: (each > bound) | (each == each.max()) for part, each in worth.items()}


def _masked(value: Tensor, kept: Tensor, axis: int | None) -> Tensor:
    shape = [1] * (value.dim() - 1)
    return value * (kept if axis is None else kept.view(*shape[:axis], -1, *shape[axis + 1 :]))

"""Which weights, units, inputs or words a posterior can do without, and the smaller network that is left."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_hypernet.bnn.bayesianize import BayesianNet
from pyro_hypernet.bnn.shrinkage import Scaled
from pyro_hypernet.bnn.weight_norm import Normed
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.evaluation.score import score
from pyro_hypernet.shown import Shown

PARTS = ("weights", "units", "inputs", "rows")
BY = ("signal", "scale")
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_ROUNDS = 3


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


@dataclass(frozen=True)
class _Part:
    """Parts that are counted along one axis of one parameter, or its weights one by one where `axis` is None."""

    name: str
    axis: int | None


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
    chosen = _parts(model, parts)
    samples = draws(posterior, num_samples=num_samples)
    weights = weights_of(model, samples)
    others = {name: value for name, value in samples.items() if name not in model.initial_values}
    _align(model.net, weights)
    plain, worth = _plain(model), {part: _worth(weights[part.name], part.axis, by) for part in chosen}

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
    net = _smaller(model.net, {name: means[name][0] for name in less}, kept, parts)
    curve = [(share, density) for share, (density, *_) in tried.items()]
    return Sparse(net, kept, share, whole - density, whole - single, curve, less | others)


@torch.no_grad()
def weights_of(model: BayesianNet, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters in draws of the model's sites: products of scales and directions multiplied out.

    Args:
        model: What `bayesianize` returned.
        samples: A dict from site to draws of shape `(S, *shape)`.

    Returns:
        A dict from the name of every parameter to draws of shape `(S, *shape)`, the same in all where it is not random.

    Example:
        >>> from pyro_hypernet import bayesianize
        >>> model = bayesianize(nn.Linear(3, 1), prior="ard")
        >>> samples = {name: value.expand(20, *value.shape) for name, value in model.initial_values.items()}
        >>> sorted(samples), weights_of(model, samples)["weight"].shape
        (['bias', 'weight.local', 'weight.z'], torch.Size([20, 1, 3]))
    """
    number = len(next(iter(samples.values())))
    found = {name: p.detach().expand(number, *p.shape) for name, p in model.net.named_parameters()}
    for site in model._random:
        prior = model.priors[site.name]
        if isinstance(prior, Scaled):
            value = prior.weights({part: samples[name] for part, name in prior.names(site.name).items()})
        else:
            value = samples[site.name]
        if site.kind == "scale":
            value = torch.stack([Normed(found[site.parameter][0], g, site.axis).weight for g in value])
        found[site.parameter] = value
    return found


def _plain(model: BayesianNet) -> BayesianNet:
    """The same model, whose sites are the parameters themselves, all of them: to be run at draws of these."""
    plain = copy.copy(model)
    (like,) = model._random[:1]
    random = [(name, p.detach()) for name, p in model.net.named_parameters()]
    plain._random = tuple(replace(like, name=name, parameter=name, value=p, kind="weight") for name, p in random)
    plain.priors = {name: dist.Normal(torch.zeros_like(p), 1.0).to_event(p.dim()) for name, p in random}
    plain._learnt = {}
    return plain


def _parts(model: BayesianNet, parts: str) -> list[_Part]:
    net = model.net
    if parts == "weights":
        random = {site.parameter for site in model._random}
        return [_Part(name, None) for name, p in net.named_parameters() if name in random and p.dim() > 1]
    if parts == "rows":
        found = [_Part(f"{n}.weight", 0) for n, module in net.named_modules() if isinstance(module, nn.Embedding)]
    elif parts == "units":
        found = [_Part(f"{after}.weight", 1) for _, after, _ in _hidden(net)]
    else:
        found = [_Part(f"{n}.weight", 1) for n, m in list(net.named_children())[:1] if _is_chain(net, m)]
    if not found:
        needs = {"rows": "an Embedding", "units": "hidden units of a Sequential of Linear layers"}
        raise ValueError(
            f"{type(net).__name__} has no {parts} to remove, which needs "
            f"{needs.get(parts, 'a Sequential that begins with a Linear layer')}: take parts='weights'."
        )
    return found


def _is_chain(net: nn.Module, module: nn.Module) -> bool:
    return isinstance(net, nn.Sequential) and type(module) is nn.Linear


def _hidden(net: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """Of every layer of hidden units, the Linear layers before and after it, and whether signs may flip between."""
    modules = list(net.named_children())
    linear = [place for place, (_, module) in enumerate(modules) if _is_chain(net, module)]
    for start, end in pairwise(linear):
        between = nn.Sequential(*(module for _, module in modules[start + 1 : end]))
        x = torch.linspace(-2, 2, modules[start][1].out_features).to(modules[start][1].weight)[None]
        f = between(x)
        if not list(between.parameters()) and f.shape == x.shape and torch.equal(between(x.flip(1)), f.flip(1)):
            yield modules[start][0], modules[end][0], torch.allclose(between(-x), -f, atol=1e-6)


def _align(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts hidden units of all draws in one order, in place: first by what comes in, after the first draw's order.

    Then by all weights, after the order of the mean. Source: Stephens 2000, algorithm 4.1, matched greedily.
    """
    for step in range(_ROUNDS):
        for before, after, flips in _hidden(net):
            axes = {f"{before}.weight": 1, f"{before}.bias": 1, f"{after}.weight": 2}
            axes = {name: axis for name, axis in axes.items() if name in weights}
            moved = {name: weights[name].movedim(axis, 1) for name, axis in axes.items()}
            used = [value.reshape(*value.shape[:2], -1) for name, value in moved.items() if step or axes[name] == 1]
            units = torch.cat(used, dim=2)
            order, signs = _match(units, units.mean(0) if step else units[0], flips)
            for name, value in moved.items():
                shape = (*order.shape, *[1] * (value.dim() - 2))
                value = value.take_along_dim(order.view(shape), 1) * signs.view(shape)
                weights[name] = value.movedim(1, axes[name])


def _match(units: Tensor, reference: Tensor, flips: bool) -> tuple[Tensor, Tensor]:
    """For each unit of the reference `(H, k)`, the largest first, the nearest of each draw's `(S, H, k)`; signs."""
    products = units @ reference.T
    distance = units.square().sum(-1)[:, :, None] - 2 * (products.abs() if flips else products)
    order = torch.empty(units.shape[:2], dtype=torch.long, device=units.device)
    for unit in reference.norm(dim=1).argsort(descending=True):
        order[:, unit] = distance[:, :, unit].argmin(1)
        distance[torch.arange(len(units)), order[:, unit]] = torch.inf
    signs = products.take_along_dim(order[:, None], 1)[:, 0]
    return order, signs.sign() if flips else torch.ones_like(signs)


def _worth(value: Tensor, axis: int | None, by: str) -> Tensor:
    """What parts of draws `(S, *shape)` are worth."""
    square = value.mean(0) ** 2 / value.var(0).clamp_min(1e-30) if by == "signal" else value.square().mean(0)
    return square if axis is None else square.movedim(axis, 0).flatten(1).mean(1)


def _kept(worth: Mapping[_Part, Tensor], share: float) -> dict[str, Tensor]:
    """What is kept of each parameter where a share of all parts goes; the best part of each stays."""
    flat = torch.cat([each.flatten() for each in worth.values()])
    number = round(share * len(flat))
    bound = flat.sort().values[number - 1] if number else -torch.inf
    return {part.name: (each > bound) | (each == each.max()) for part, each in worth.items()}


def _masked(value: Tensor, kept: Tensor, axis: int | None) -> Tensor:
    shape = [1] * (value.dim() - 1)
    return value * (kept if axis is None else kept.view(*shape[:axis], -1, *shape[axis + 1 :]))


def _smaller(net: nn.Module, values: Mapping[str, Tensor], kept: Mapping[str, Tensor], parts: str) -> nn.Module:
    """The network at these values, without what is not kept."""
    net = copy.deepcopy(net).requires_grad_(True)
    for name, parameter in net.named_parameters():
        parameter.copy_(values[name])
    if parts == "weights":
        return net
    if parts == "rows":
        for name, mask in kept.items():
            _replace(net, name.removesuffix(".weight"), _FewerRows(net.get_parameter(name), mask))
        return net
    before = {after: before for before, after, _ in _hidden(net)}
    for name, mask in kept.items():
        after = name.removesuffix(".weight")
        _cut(net.get_submodule(after), mask, 1)
        if parts == "units":
            _cut(net.get_submodule(before[after]), mask, 0)
        else:
            return nn.Sequential(_FewerInputs(mask), *net)
    return net


def _cut(linear: nn.Module, mask: Tensor, axis: int) -> None:
    """Leaves of a Linear layer the inputs (axis 1) or outputs (axis 0) of a mask."""
    index = mask.nonzero()[:, 0]
    linear.weight = nn.Parameter(linear.weight.index_select(axis, index))
    linear.out_features, linear.in_features = linear.weight.shape
    if axis == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[index])


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(owner), leaf, module)


class _FewerInputs(nn.Module):
    """Columns of its input, those of a mask `(D,)`: `(N, D)` to `(N, d)`."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", kept.nonzero()[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """The columns."""
        return x.index_select(-1, self.index)


class _FewerRows(nn.Module):
    """An embedding with the rows of a mask `(V,)`, and one of zeros for all words without a row.

    Args:
        weight: The whole table, shape `(V, E)`.
        kept: The mask.
    """

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([weight.detach()[kept], weight.new_zeros(1, weight.shape[1])]))
        self.register_buffer("index", torch.where(kept, kept.cumsum(0) - 1, kept.sum()))

    def forward(self, words: Tensor) -> Tensor:
        """Vectors of words, shape `(*shape, E)`."""
        return nn.functional.embedding(self.index[words], self.weight)

"""Structures: which coordinates of weight space the hypernetwork moves. Each gives one bijection of R^D.

At the start every structure sends N(0, I) to N(loc, scale²), whatever the hypernetwork.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_hypernet.informed.conditional import GaussianConditional
from pyro_hypernet.informed.detect import Knowledge
from pyro_hypernet.informed.set_couplings import set_couplings
from pyro_hypernet.informed.sorting import KeyedAffine, Sorted, Symmetrized
from pyro_hypernet.informed.symmetries import Symmetries
from pyro_hypernet.maps.bijection import Bijection, Blocks, Chain
from pyro_hypernet.maps.bounds import bounds
from pyro_hypernet.maps.coordinates import All, GroupNorms, Steer, Subset, Subspace
from pyro_hypernet.maps.hypernets import MAX_TRIANGULAR_DIM, Hypernet, by_nickname, sets
from pyro_hypernet.maps.linear import Affine
from pyro_hypernet.maps.patterns import Patterned
from pyro_hypernet.model.layout import Layout, Site

Structure = Callable[[Layout, Hypernet, Tensor, Tensor], Bijection]
_RANK = 20


def full(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor) -> Bijection:
    """One hypernetwork over all weights, in the manner of flow posteriors (Rezende and Mohamed 2015).

    Args:
        hypernet: A function from a dimension to a Bijection, the identity at the start.
        loc: Centre at the start, shape `(D,)`; fixes dtype and device.
        scale: Standard deviations at the start, shape `(D,)`.

    Returns:
        A bijection of R^D.
    """
    return _steer_noise(Steer(All(), hypernet(layout.dim)), layout, loc, scale)


def layerwise(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor) -> Bijection:
    """A hypernetwork of its own for every site: a block-diagonal flow, sites independent. Arguments as in `full`."""
    sizes = [site.size for site in layout.sites]
    return _steer_noise(Blocks([hypernet(size) for size in sizes], sizes), layout, loc, scale)


def last_layer(
    layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, sites: Sequence[str] | None = None
) -> Bijection:
    """A hypernetwork over some sites, the mean field over the others; in the manner of last-layer Laplace.

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        sites: Names of the sites; None for the last layer: the sites of the last site's module, so `net.2.weight` and
            `net.2.bias`; where names have no dots, the last weight of two or more axes and what comes after it.

    Raises:
        ValueError: If a name is unknown or comes twice, or there is none.
        TypeError: If `sites` is one string.
    """
    chosen = last_layer_sites(layout) if sites is None else _named_sites(layout, sites)
    index = torch.cat([torch.arange(site.start, site.start + site.size, device="cpu") for site in chosen])
    return _steer_noise(Steer(Subset(index), hypernet(len(index))), layout, loc, scale)


def low_rank(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, rank: int | None = None) -> Bijection:
    """A hypernetwork in r learnt directions, the mean field across them: O(D r), never D × D.

    In the manner of subspace inference (Izmailov et al. 2019), whose directions are fixed beforehand and which has no
    spread across them.

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        rank: r; None for 20, or D where that is less.

    Raises:
        ValueError: If the rank is not between 1 and D.
    """
    rank = min(_RANK, layout.dim) if rank is None else rank
    return _steer_noise(Steer(Subspace(layout.dim, rank), hypernet(rank)), layout, loc, scale)


def weight_norm(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, output_axis: int = 0) -> Bijection:
    """Moves the norms of the weights into each output unit, and the biases: few coordinates, all weights random.

    In the manner of Krueger, Huang et al., with exact density over all weights: theirs has random norms and biases and
    learns the directions as point values (`bayesianize(..., parametrization="weight_norm")`).

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        output_axis: The axis of a weight that counts its output units or channels: 0 for torch's layers, −1 for
            weights used as `x @ W`.
    """
    return _steer_norms(layout, hypernet, loc, scale, output_axis)


def multiplicative(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, input_axis: int = 1) -> Bijection:
    """Moves the norms of the weights out of each input unit, and the biases.

    In the manner of multiplicative normalizing flows (Louizos and Welling 2017), which multiply the means of a Gaussian
    by a flow and bound its density with an auxiliary network; here the density is exact.

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        input_axis: The axis of a weight that counts its input units or channels: 1 for torch's layers, 0 for weights
            used as `x @ W`.
    """
    return _steer_norms(layout, hypernet, loc, scale, input_axis)


def patterns(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, rank: int = 8) -> Bijection:
    """Multiplies every weight matrix by r random patterns of rank one, `W ⊙ exp(A diag(z) B)`; moves z and the biases.

    z are r of the matrix's own weights, which carry the strengths of the learnt patterns A, B: see `Patterned`. In the
    manner of rank-one factors (Dusenberry et al. 2020), which multiply by one pattern and put no density on the
    weights; here it is exact, over all of them. Weights of more axes are matrices of their first axis and all others.

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        rank: r, at least 1; half of a matrix's weights at most.

    Raises:
        ValueError: If the rank is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}.")
    sites = [site for site in layout.sites if _is_weight(site) and site.size > 1]
    if not sites:
        return full(layout, hypernet, loc, scale)
    counts = [min(rank, site.size // 2) for site in sites]
    carriers = [
        site.start + torch.arange(count, device="cpu") * site.size // count
        for site, count in zip(sites, counts, strict=True)
    ]
    is_moved = torch.ones(layout.dim, dtype=torch.bool, device="cpu")
    for site, index in zip(sites, carriers, strict=True):
        is_moved[site.slice] = False
        is_moved[index] = True
    index = is_moved.nonzero()[:, 0]
    shapes = [(site.start, site.shape[0], site.size // site.shape[0]) for site in sites]
    steer = Steer(Subset(index), hypernet(len(index)))
    return Chain(steer, Patterned(loc, scale, shapes, carriers), *bounds(layout, loc)).to(loc)


def informed(
    layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, *, knowledge: Knowledge | None = None
) -> Bijection:
    """One hypernetwork over all weights, with what the guide found out about the model built in.

    Weights to which the observations answer linearly (a network's last layer, a regression's coefficients) are drawn
    from a Gaussian given all others (`GaussianConditional`); permutations of hidden units and flips of signs that leave
    the density unchanged are respected, so that draws cover all symmetric modes. With the hypernet "sets" hidden units
    are moved as a set (`set_couplings`); with another one, and where only signs flip, noise is sorted and moved back
    (`Symmetrized`). At the start the linear weights have their conditional posterior; all others are normal with the
    given centre and scale, but for what permutations carry into each other, which has one common scale, and what flips,
    or is sorted by, which has centre zero.

    Args:
        layout: As in `full`, like hypernet, loc and scale.
        knowledge: What `guide.setup` found; None stands for nothing, and so for `full`.
    """
    if not knowledge:
        return full(layout, hypernet, loc, scale)
    linear, symmetries = knowledge.linear_block, knowledge.symmetries
    none = torch.empty(0, dtype=torch.long, device="cpu")
    moved = torch.cat([none, *(units.index.cpu().flatten() for units in symmetries.groups)])
    # Before the conditional, which reads the other weights on their supports.
    last = bounds(layout, loc, shared=moved)
    if linear is not None:
        start = knowledge.targets, knowledge.log_precisions
        last.append(GaussianConditional(linear, *start, knowledge.args, knowledge.kwargs))
        scale = scale.index_fill(0, linear.index.to(scale.device), 1.0)
        loc = loc.index_fill(0, linear.index.to(loc.device), 0.0)
    if hypernet is sets and any(len(units.index) > 1 for units in symmetries.groups):
        # The linear weights' noise is left alone: it belongs to no unit until the conditional has turned it.
        block = none if linear is None else linear.index.cpu()
        others = torch.ones(layout.dim, dtype=torch.bool, device="cpu").index_fill(0, block, False).nonzero().flatten()
        steered = Steer(Subset(others), hypernet(len(others)))
        roles = _sorted(steered, torch.zeros_like(loc), torch.ones_like(scale), symmetries, still=block)
        is_exact = linear is not None and linear.is_exact
        couplings = set_couplings(layout, loc, scale, symmetries, none_of=block, is_exact=is_exact)
        return Chain(roles, couplings, *last).to(loc)
    return _sorted(hypernet(layout.dim), loc, scale, symmetries, *last).to(loc)


def _sorted(
    network: Bijection,
    loc: Tensor,
    scale: Tensor,
    symmetries: Symmetries,
    *last: Bijection,
    still: Tensor | None = None,
) -> Bijection:
    """A network over noise whose units are sorted by their keys, then shifted and scaled, and moved back.

    Coordinates in `still` are left alone.
    """
    loc, scale = symmetries.canonicalise(loc[None])[0][0] if not loc.is_meta else loc, scale.clone()
    for units in symmetries.groups:
        scale[units.keys] = scale[units.keys].mean()
    sort = [Sorted(units.keys, units.flips) for units in symmetries.groups]
    still = torch.empty(0, dtype=torch.long, device="cpu") if still is None else still
    keys = torch.cat([still, *(units.keys.cpu() for units in symmetries.groups)])
    noise = KeyedAffine(torch.zeros_like(loc), torch.ones_like(scale), still)
    inner = Chain(network, noise, *sort, KeyedAffine(loc, scale, keys), *last)
    return Symmetrized(inner, Chain(*sort), symmetries) if sort else inner


def auto(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor) -> Bijection:
    """The default for this number of weights, see `choose_structure`. Arguments as in `full`."""
    return STRUCTURES[choose_structure(layout.dim)](layout, hypernet, loc, scale)


STRUCTURES: dict[str, Structure] = {
    "auto": auto,
    "informed": informed,
    "full": full,
    "layerwise": layerwise,
    "last_layer": last_layer,
    "low_rank": low_rank,
    "weight_norm": weight_norm,
    "multiplicative": multiplicative,
    "patterns": patterns,
}


def choose_structure(dim: int, *, is_informed: bool = False) -> str:
    """The nickname that "auto" stands for: while D² numbers are cheap "informed" or "full", beyond that "low_rank"."""
    if dim > MAX_TRIANGULAR_DIM:
        return "low_rank"
    return "informed" if is_informed else "full"


def resolve_structure(choice: str | Structure) -> Structure:
    """A function as `full` is one, given by itself or by its nickname; raises as `by_nickname`."""
    return by_nickname("structure", choice, STRUCTURES, "of (layout, hypernet, loc, scale)")


def _steer_noise(steer: Bijection, layout: Layout, loc: Tensor, scale: Tensor) -> Bijection:
    """Linear structures: the noise is steered, then scaled and shifted."""
    return Chain(steer, Affine(loc, scale), *bounds(layout, loc)).to(loc)


def _steer_norms(layout: Layout, hypernet: Hypernet, loc: Tensor, scale: Tensor, axis: int) -> Bijection:
    """Norm structures: weights are drawn by the mean field, then rescaled group by group."""
    group, start = torch.full((layout.dim,), -1, device="cpu"), 0
    for site in layout.sites:
        if _is_weight(site):
            groups = _groups(site, axis)
            group[site.slice] = start + groups
            start += int(groups.max()) + 1
    if start == 0:
        return full(layout, hypernet, loc, scale)
    # The groups' numbers are needed to size everything, so these are made for real also where parameters are not.
    coordinates = GroupNorms(group, torch.zeros(layout.dim, device="cpu"), torch.ones(layout.dim, device="cpu"))
    if not loc.is_meta:
        coordinates = GroupNorms(group, loc.detach(), scale.detach())
    steer = Steer(coordinates, hypernet(len(coordinates.centre)))
    return Chain(Affine(loc, scale), steer, *bounds(layout, loc)).to(loc)


def _groups(site: Site, axis: int) -> Tensor:
    """For every weight of a site the index of its unit along `axis`."""
    if not -len(site.shape) <= axis < len(site.shape):
        raise ValueError(f"axis {axis} is out of range for site {site.name!r} of shape {tuple(site.shape)}.")
    view = [1] * len(site.shape)
    view[axis] = site.shape[axis]
    return torch.arange(site.shape[axis], device="cpu").view(view).expand(site.shape).reshape(-1)


def _is_weight(site: Site) -> bool:
    return len(site.shape) >= 2 and site.is_unconstrained


def _named_sites(layout: Layout, names: Sequence[str]) -> list[Site]:
    if isinstance(names, str):
        raise TypeError(f"sites must be a list of names; got the string {names!r}: pass [{names!r}].")
    listed = f"the model's sites are {', '.join(layout.names)}"
    unknown = [name for name in names if name not in layout.names]
    if unknown:
        raise ValueError(f"sites names {unknown}; {listed}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sites must name at least one site, and none twice; got {list(names)}; {listed}.")
    return [layout[name] for name in names]


def last_layer_sites(layout: Layout) -> list[Site]:
    """The sites of the last layer, as `last_layer` takes them where none are named."""
    prefix, dot, _ = layout.names[-1].rpartition(".")
    if dot:  # norms of its weight have the weight's name, as "2.weight.g"
        return [
            s for s in layout.sites if prefix in (n.rpartition(".")[0] for n in (s.name, s.name.removesuffix(".g")))
        ]
    weights = [i for i, site in enumerate(layout.sites) if _is_weight(site)]
    return list(layout.sites[weights[-1] if weights else -1 :])

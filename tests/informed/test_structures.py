"""What each structure and its permutations choose, and that densities of norms are whole."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.distributions import constraints

from pyro_hypernet.informed.structures import STRUCTURES, choose_structure, last_layer, patterns, resolve_structure
from pyro_hypernet.maps import coordinates
from pyro_hypernet.maps.coordinates import GroupNorms
from pyro_hypernet.maps.hypernets import HYPERNETS, coupling, identity, resolve_hypernet
from pyro_hypernet.maps.linear import Permute
from pyro_hypernet.model.layout import Layout, Site
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def layout_of(**shapes):
    sites, start = [], 0
    for name, shape in shapes.items():
        shape = torch.Size(shape)
        sites.append(Site(name, shape, shape, len(shape), constraints.real, start, (None,) * len(shape)))
        start += shape.numel()
    return Layout(tuple(sites))


DOTTED = {"net.0.weight": (3, 2), "net.0.bias": (3,), "net.2.weight": (1, 3), "net.2.bias": (1,)}
REVERSED = {"net.0.bias": (3,), "net.0.weight": (3, 2), "net.2.bias": (1,), "net.2.weight": (1, 3)}
PLAIN = {"a": (3, 2), "b": (3,), "c": (1, 3), "d": (1,)}


@pytest.mark.parametrize("shapes", [DOTTED, REVERSED, PLAIN], ids=["weight first", "bias first", "no dots"])
def test_last_layer_is_the_last_module(shapes):
    layout = layout_of(**shapes)
    bijection = last_layer(layout, coupling, torch.zeros(layout.dim), torch.ones(layout.dim))
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        bijection.bijections[1].loc.zero_(), bijection.bijections[1].log_scale.zero_()
        x = torch.randn(20, layout.dim)
        moved = ((bijection.forward_and_log_det(x)[0] - x).abs() > 1e-6).any(0)
    assert moved.tolist() == [False] * 9 + [True] * 4


@pytest.mark.parametrize(
    "sites, error, message",
    [
        ([], ValueError, "sites must name at least one site"),
        (["a", "a"], ValueError, "sites must name at least one site, and none twice"),
        (["x"], ValueError, r"sites names \['x'\]; the model's sites are a, b, c, d"),
        ("a", TypeError, r"sites must be a list of names; got the string 'a'"),
    ],
)
def test_sites_that_cannot_be(sites, error, message):
    layout = layout_of(**PLAIN)
    with pytest.raises(error, match=message):
        last_layer(layout, identity, torch.zeros(layout.dim), torch.ones(layout.dim), sites=sites)


@pytest.mark.parametrize("dim", range(2, 8))
@pytest.mark.parametrize("name", ["nice", "coupling", "spline", "iaf"])
def test_no_permutation_between_layers_is_the_identity(name, dim):
    layers = HYPERNETS[name](dim, num_layers=9, mix="none").bijections
    between = [layer for layer in layers if isinstance(layer, Permute)][:-1]  # the last restores the order
    assert len(between) == 8
    assert not any(torch.equal(layer.permutation, torch.arange(dim)) for layer in between)


def test_permutations_follow_the_default_device():
    with torch.device("meta"):
        assert all(buffer.is_meta for make in HYPERNETS.values() for buffer in make(6).buffers())


@pytest.mark.parametrize(
    "structure, hypernet",
    [
        ("multiplicative", "coupling"),
        *itertools.product(["weight_norm"], ["linear", "nice", "coupling", "spline", "iaf"]),
    ],
)
def test_density_over_two_norms_integrates_to_one(structure, hypernet):
    """Over log|w|: near an axis the density has a pole and far out a slow tail, so no grid over w sees all of it.

    The parameters are moved so far that nothing is the identity, and no ridge is narrower than the grid.
    """
    torch.manual_seed(seed(0))
    layout = layout_of(w={"weight_norm": (2, 1), "multiplicative": (1, 2)}[structure])
    make = partial(
        HYPERNETS[hypernet], **({} if hypernet == "linear" else {"hidden": 8 if hypernet == "iaf" else (8,)})
    )
    bijection = STRUCTURES[structure](layout, make, torch.zeros(2), torch.ones(2))
    line = torch.linspace(-20.0, 15.0, 351)
    log_norms = torch.cartesian_prod(line, line)
    mass = 0.0
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for signs in itertools.product([1.0, -1.0], repeat=2):
            eps, log_det = bijection.inverse_and_log_det(log_norms.exp() * torch.tensor(signs))
            log_q = -(eps**2).sum(-1) / 2 - math.log(2 * math.pi) + log_det + log_norms.sum(-1)
            mass += float(log_q.exp().sum() * (line[1] - line[0]) ** 2)
    assert abs(mass - 1) < 0.03  # what the grid leaves; a kink of a spline cost up to .011 over seven seeds


@pytest.mark.parametrize("loc", [0.0, 1.0, 30.0])
def test_norm_coordinates_are_of_order_one_at_the_start(loc):
    size, scale = 20, 0.3
    centre, spread = torch.full((size + 1,), loc), torch.full((size + 1,), scale)
    norms = GroupNorms(torch.tensor([0] * size + [-1]), centre, spread)
    read = norms.read(centre + spread * torch.randn(20_000, size + 1))
    torch.testing.assert_close(read.mean(0), torch.zeros(2), atol=0.2, rtol=0)
    torch.testing.assert_close(read.std(0), torch.ones(2), atol=0.1, rtol=0)


def test_structures_of_weights_move_everything_where_there_is_none():
    layout = layout_of(a=(3,), b=())
    for name in ("weight_norm", "multiplicative", "patterns"):
        seen = []
        STRUCTURES[name](
            layout, lambda dim, seen=seen: seen.append(dim) or identity(dim), torch.zeros(4), torch.ones(4)
        )
        assert seen == [4]


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 3, 3), (1, 2)], ids=["linear", "convolution", "two weights"])
def test_patterns_multiply_weights_by_low_rank_factors_of_their_carriers(shape):
    """Against the formula, in float64; biases, and a matrix of one weight, are the mean field's."""
    torch.manual_seed(seed(0))
    layout = layout_of(w=shape, b=(3,), one=(1, 1))
    dim, count = layout.dim, min(2, layout["w"].size // 2)
    loc, scale = torch.randn(dim).double(), torch.rand(dim).double() + 0.5
    bijection = patterns(layout, identity, loc, scale, rank=2)
    left = torch.randn(shape[0], count, dtype=torch.float64)
    patterned = bijection.bijections[1]
    patterned.left[0].data = left
    eps = torch.randn(7, dim, dtype=torch.float64)
    w, log_det = bijection.forward_and_log_det(eps)
    carriers = torch.arange(count) * layout["w"].size // count + layout["w"].start
    log_factors = torch.stack([(left * z) @ patterned.right[0] for z in eps[:, carriers]]).flatten(1)
    log_factors = 2 * (log_factors / 2).tanh()
    expected = loc + scale * eps
    others = torch.ones(dim, dtype=torch.bool).index_fill(0, carriers, False)
    factors = torch.zeros_like(eps)
    factors[:, layout["w"].slice] = log_factors
    factors = torch.where(others, factors, 0.0)
    torch.testing.assert_close(w, expected * factors.exp())
    torch.testing.assert_close(log_det, scale.log().sum() + factors.sum(-1))


def test_patterns_need_a_rank():
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        patterns(layout_of(w=(2, 2)), identity, torch.zeros(4), torch.ones(4), rank=0)


def test_what_auto_chooses():
    assert choose_structure(2000) == "full"
    assert choose_structure(2001) == "low_rank"


@pytest.mark.parametrize("resolve", [resolve_hypernet, resolve_structure])
def test_nicknames(resolve):
    assert resolve(identity) is identity
    assert callable(resolve("auto"))
    with pytest.raises(ValueError, match=r"Unknown .* 'none'; choose one of auto, "):
        resolve("none")
    with pytest.raises(TypeError, match="must be a nickname or a function"):
        resolve(3)


def test_norms_are_saved_by_the_numbers_of_the_grouped_weights():
    group, loc = torch.tensor([0, 0, -1, 1, 1, -1]), torch.arange(1.0, 7.0)
    norms = GroupNorms(group, loc, torch.ones(6))
    saved = norms.state_dict()
    assert list(saved) == ["grouped", "free", "group", "sizes", "centre", "spread"]
    assert saved["grouped"].tolist() == [0, 1, 3, 4]
    assert saved["group"].tolist() == [0, 0, 1, 1]
    other = GroupNorms(torch.tensor([1, 0, 0, -1, -1, 1]), loc, torch.ones(6))
    other.load_state_dict(saved)
    torch.testing.assert_close(other.read(loc), norms.read(loc))


def test_groups_of_many_weights_are_short_integers(monkeypatch):
    group, loc = torch.tensor([0, 0, -1, 1, 1, -1]), torch.arange(1.0, 7.0)
    long = GroupNorms(group, loc, torch.ones(6))
    monkeypatch.setattr(coordinates, "_MANY", 6)
    short = GroupNorms(group, loc, torch.ones(6))
    assert (long.group.dtype, short.group.dtype) == (torch.long, torch.int32)
    old = long.read(loc)
    torch.testing.assert_close(short.write(loc, old, 2 * old), long.write(loc, old, 2 * old))

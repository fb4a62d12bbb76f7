"""Maps that respect symmetries: laws, the law of sorted draws, extreme inputs, unit mass."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

from models.abx import model as factors
from models.references import ReferenceNet
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.informed.sorting import KeyedAffine, Sorted, Symmetrized
from pyro_hypernet.informed.symmetries import Symmetries, Units
from pyro_hypernet.maps.bijection import Chain
from pyro_hypernet.maps.hypernets import coupling
from pyro_hypernet.model.layout import Layout, Site
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")

DIM = 7
KEYS = torch.tensor([5, 0, 3, 2])
LOG_2PI = math.log(2 * math.pi)


def shaken(module, size=0.1):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn_like(parameter)
    return module


def jacobian_log_det(bijection, x, direction="forward_and_log_det"):
    jacobian = torch.autograd.functional.jacobian(lambda v: getattr(bijection, direction)(v)[0], x)
    return torch.linalg.slogdet(jacobian).logabsdet


@pytest.fixture(params=[False, True], ids=["any sign", "positive"])
def positive(request):
    return request.param


@pytest.mark.parametrize("batch_shape", [(), (50,), (3, 1, 5)])
def test_sorted_inverts(positive, batch_shape):
    bijection, x = Sorted(KEYS, positive), torch.randn(*batch_shape, DIM)
    y, log_det = bijection.forward_and_log_det(x)
    back, log_det_back = bijection.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)
    assert log_det.shape == batch_shape


def test_sorted_log_det_agrees_with_autograd(positive):
    bijection = Sorted(KEYS, positive)
    for x in 1.5 * torch.randn(5, DIM):
        y, log_det = bijection.forward_and_log_det(x)
        torch.testing.assert_close(log_det, jacobian_log_det(bijection, x), rtol=1e-9, atol=1e-9)
        expected = jacobian_log_det(bijection, y, "inverse_and_log_det")
        torch.testing.assert_close(bijection.inverse_and_log_det(y)[1], expected, rtol=1e-7, atol=1e-7)


def test_only_keys_are_sorted(positive):
    x = torch.randn(100, DIM)
    y = Sorted(KEYS, positive).forward_and_log_det(x)[0]
    assert bool((y[:, KEYS].diff(dim=-1) > 0).all())
    assert not positive or bool((y[:, KEYS] > 0).all())
    others = [i for i in range(DIM) if i not in KEYS]
    torch.testing.assert_close(y[:, others], x[:, others], rtol=0, atol=0)


def test_noise_becomes_sorted_noise(positive):
    """Kolmogorov–Smirnov for four keys and their three gaps, each at 1e-7: false-alarm rate below 2e-6 for both."""
    x, direct = torch.randn(20_000, 4), torch.randn(20_000, 4)
    mapped = Sorted(torch.arange(4), positive).forward_and_log_det(x)[0]
    direct = (direct.abs() if positive else direct).sort(-1).values
    for found, expected in ((mapped, direct), (mapped.diff(dim=-1), direct.diff(dim=-1))):
        for i in range(found.shape[1]):
            assert stats.ks_2samp(found[:, i].numpy(), expected[:, i].numpy()).pvalue > 1e-7


def test_the_image_of_noise_has_the_density_of_sorted_noise(positive):
    x = torch.randn(50, 4)
    y, log_det = Sorted(torch.arange(4), positive).forward_and_log_det(x)
    log_q = -(x**2).sum(-1) / 2 - log_det
    order = math.log(24) + (4 * math.log(2) if positive else 0)
    torch.testing.assert_close(log_q, order - (y**2).sum(-1) / 2, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("value", [8.0, -8.0, 20.0, -20.0, 60.0, -60.0])
@pytest.mark.parametrize("place", ["all", "first", "last", "alternating"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_noise_is_finite(positive, value, place, dtype):
    x = torch.zeros(4, dtype=dtype)
    x[{"all": slice(None), "first": slice(1), "last": slice(3, 4), "alternating": slice(0, 4, 2)}[place]] = value
    x.requires_grad_()
    y, log_det = Sorted(torch.arange(4), positive).forward_and_log_det(x)
    assert bool(y.isfinite().all())
    assert bool((y.diff() >= 0).all())
    assert bool(log_det.isfinite())
    for output in (*y, log_det):
        (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "keys",
    [[1e-6, 8.0, 8.0, 20.0], [0.0, 0.0, 0.0, 0.0], [8.0, 8.1, 8.2, 8.3], [1e-30, 1e-20, 1.0, 20.0], [20.0] * 4],
    ids=["far", "zeros", "all far", "near zero", "ties"],
)
def test_extreme_keys_are_finite(positive, keys, dtype):
    y = torch.tensor(keys, dtype=dtype, requires_grad=True)
    x, log_det = Sorted(torch.arange(4), positive).inverse_and_log_det(y)
    assert bool(x.isfinite().all())
    assert bool(log_det.isfinite())
    for output in (*x, log_det):
        (gradient,) = torch.autograd.grad(output, y, retain_graph=True)
        assert bool(gradient.isfinite().all())


def test_keyed_affine():
    loc, scale, fixed = torch.randn(5), torch.rand(5) + 0.5, torch.tensor([3, 1])
    bijection = shaken(KeyedAffine(loc, scale, fixed))
    x = torch.randn(6, 5)
    y, log_det = bijection.forward_and_log_det(x)
    torch.testing.assert_close(y[:, fixed], scale[fixed] * x[:, fixed])
    assert bool((y[:, [0, 2, 4]] != (loc + scale * x)[:, [0, 2, 4]]).all())
    torch.testing.assert_close(bijection.inverse_and_log_det(y)[0], x)
    torch.testing.assert_close(log_det[0], jacobian_log_det(bijection, x[0]))
    torch.testing.assert_close(bijection.inverse_and_log_det(y)[1], -log_det)


def data(num=12, dim=1):
    x = torch.randn(num, dim)
    return x, torch.tanh(x.sum(-1)) + 0.1 * torch.randn(num)


def middle_layer_first(x, y):
    """A tanh net of two hidden layers; the weights that stand first belong to both."""
    shapes = {"second": (2, 3), "first": (1, 2), "out": (3,)}
    w = {name: pyro.sample(name, dist.Normal(torch.zeros(s), 1.0).to_event(len(s))) for name, s in shapes.items()}
    with pyro.plate("data", len(x)):
        f = torch.tanh(torch.tanh(x @ w["first"]) @ w["second"]) @ w["out"]
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


NETS = {
    "one layer": lambda: (ReferenceNet([1, 3, 1], "normal", 0.1), *data()),
    "two layers": lambda: (ReferenceNet([2, 3, 3, 1], "normal", 0.3), *data(dim=2)),
    "middle layer first": lambda: (middle_layer_first, *data()),
    "a b x": lambda: (factors, data()[0][:, 0], data()[1]),
}


@pytest.fixture(params=NETS)
def guide(request):
    model, *args = NETS[request.param]()
    guide = shaken(AutoHypernet(model, "coupling").setup(*args), 0.05)
    assert isinstance(guide.bijection, Symmetrized)
    assert guide.knowledge.symmetries.groups
    return guide


def test_symmetrized_inverts(guide):
    x = torch.randn(3, 4, guide.latent_dim)
    y, log_det = guide.bijection.forward_and_log_det(x)
    back, log_det_back = guide.bijection.inverse_and_log_det(y)
    assert log_det.shape == (3, 4)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-7)


def test_symmetrized_log_det_agrees_with_autograd(guide):
    for x in torch.randn(4, guide.latent_dim):
        log_det = guide.bijection.forward_and_log_det(x)[1]
        torch.testing.assert_close(log_det, jacobian_log_det(guide.bijection, x), rtol=1e-8, atol=1e-8)


def test_symmetrized_is_equivariant(guide):
    symmetries, eps = guide.knowledge.symmetries, torch.randn(50, guide.latent_dim)
    w, log_det = guide.bijection.forward_and_log_det(eps)
    pyro.set_rng_seed(seed(3))
    moved_eps = symmetries.random_copies(eps)
    pyro.set_rng_seed(seed(3))
    moved_w = symmetries.random_copies(w)
    assert float((moved_eps != eps).any(-1).double().mean()) > 0.3
    found, log_det_moved = guide.bijection.forward_and_log_det(moved_eps)
    torch.testing.assert_close(found, moved_w, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det_moved, log_det, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(guide.unconstrained_log_prob(moved_w), guide.unconstrained_log_prob(w))


def mass(log_prob, symmetries, is_log, to_point):
    """The integral over one part of the plane, in coordinates in which no pole is narrower than the grid.

    At the edges of a part the density may have a pole, so distances from there go by their logarithms, down to e^-30:
    closer by, the distance of two keys of about ten is lost in rounding. Points are moved to random copies, and the
    result counts for all parts.

    Args:
        log_prob: The density.
        symmetries: The group.
        is_log: For both coordinates whether it is the log of a distance.
        to_point: From both coordinates, logs undone, to a point of the canonical part; of unit determinant.
    """
    axes = [torch.linspace(-30.0, 5.0, 351) if log else torch.linspace(-10.0, 10.0, 401) for log in is_log]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    plain = torch.where(torch.tensor(is_log), grid.exp(), grid)
    points = symmetries.random_copies(to_point(plain))
    with torch.no_grad():
        log_q = log_prob(points) + (grid * torch.tensor(is_log)).sum(-1)
    return float(log_q.exp().sum()) * cell * math.exp(symmetries.log_order)


def test_two_factors_have_unit_mass():
    x = torch.linspace(-1, 1, 10)
    guide = AutoHypernet(factors, "coupling").setup(x, 1.5 * x)
    for _ in range(2):
        whole = mass(guide.unconstrained_log_prob, guide.knowledge.symmetries, [True, False], lambda w: w)
        assert abs(whole - 1) < 0.06  # of the grid, over 20 seeds up to .017; a copy more or less is a half
        shaken(guide, 0.05)


@pytest.mark.parametrize("axes, flips", [("one", False), ("one", True), ("scalar", True)])
def test_a_group_in_the_plane_has_unit_mass(axes, flips):
    """Two weights that may change places, may flip too, or flip together: 2, 8 or 2 parts of the plane."""
    layout = Layout((Site("w", torch.Size([2]), torch.Size([2]), 1, constraints.real, 0, (None,)),))
    units = Units.make(layout, [("w", 0 if axes == "one" else -1)], "w", flips)
    sort, symmetries = Sorted(units.keys, flips), Symmetries((units,))
    assert symmetries.log_order == pytest.approx(sort.log_order)
    last = KeyedAffine(torch.tensor([0.3, -0.4]), torch.full((2,), 1.3), units.keys)
    bijection = Symmetrized(shaken(Chain(coupling(2), sort, last), 0.05), Chain(sort), symmetries)

    def log_prob(w):
        eps, log_det = bijection.inverse_and_log_det(w)
        return -(eps**2).sum(-1) / 2 - LOG_2PI + log_det

    if axes == "scalar":
        whole = mass(log_prob, symmetries, [True, False], lambda w: w)
    else:  # the lesser key and the distance of the other from it
        whole = mass(log_prob, symmetries, [flips, True], lambda w: w.cumsum(-1))
    assert abs(whole - 1) < 0.01

"""Maps of sets of units: they commute with permutations and flips, and are invertible with exact log determinants."""

import pyro
import pytest
import torch

from models.references import ReferenceNet
from pyro_hypernet import AutoHypernet
from pyro_hypernet.informed.deep_sets import SetCoupling, SharedAffine, Slots
from pyro_hypernet.informed.set_couplings import _halves, set_couplings
from tests.informed.test_sorting import NETS, jacobian_log_det, shaken
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def permuted(net):
    """A guide of a network whose units may change places, its parameters away from the start."""
    model, *args = NETS[net]()
    guide = AutoHypernet(model).setup(*args)
    assert any(isinstance(part, SetCoupling) for part in guide.bijection.modules())
    return shaken(guide, 0.05)


@pytest.fixture(params=["one layer", "two layers", "middle layer first"])
def guide(request):
    return permuted(request.param)


def test_it_inverts(guide):
    x = torch.randn(3, 4, guide.latent_dim)
    y, log_det = guide.bijection.forward_and_log_det(x)
    back, log_det_back = guide.bijection.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-7)


def test_log_det_agrees_with_autograd(guide):
    for x in torch.randn(4, guide.latent_dim):
        log_det = guide.bijection.forward_and_log_det(x)[1]
        torch.testing.assert_close(log_det, jacobian_log_det(guide.bijection, x), rtol=1e-8, atol=1e-8)


def test_every_symmetric_copy_is_as_likely(guide):
    """Where likelihood and priors are normal; elsewhere what is learnt of the last layer tells units apart."""
    assert guide.knowledge.linear_block.is_exact
    w = guide.sample_and_log_prob(20)[0]
    moved = guide.knowledge.symmetries.random_copies(w)
    assert float((moved != w).any(-1).double().mean()) > 0.3
    torch.testing.assert_close(guide.unconstrained_log_prob(moved), guide.unconstrained_log_prob(w))


def test_couplings_commute_with_symmetries():
    """Without the last layer's conditional, whose noise has no units, the map itself commutes."""
    guide = permuted("two layers")
    symmetries, layout = guide.knowledge.symmetries, guide.layout
    flow = shaken(set_couplings(layout, torch.zeros(layout.dim), torch.ones(layout.dim), symmetries), 0.1)
    eps = torch.randn(50, layout.dim)
    w, log_det = flow.forward_and_log_det(eps)
    pyro.set_rng_seed(seed(3))
    moved_eps = symmetries.random_copies(eps)
    pyro.set_rng_seed(seed(3))
    moved_w = symmetries.random_copies(w)
    found, log_det_moved = flow.forward_and_log_det(moved_eps)
    torch.testing.assert_close(found, moved_w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_moved, log_det, rtol=1e-9, atol=1e-9)


def test_it_starts_at_the_prior():
    """Weights before the last layer: N(0, width²), and their density is that."""
    guide = AutoHypernet(NETS["one layer"]()[0]).setup(*NETS["one layer"]()[1:])
    w = guide.sample_and_log_prob(20_000)[0].detach()
    for name in ("W0", "b0"):
        site = guide.layout[name]
        spread = w[:, site.slice].std()
        width = guide.knowledge.width[site.slice].mean()  # from 256 draws of the prior
        assert abs(float(spread / width) - 1) < 0.02


def test_a_single_slot_passes_and_moves_in_turn():
    moves = [len(_halves(1, number)[1]) for number in range(4)]
    assert sorted(moves[:2]) == [0, 1]
    assert sorted(moves[2:]) == [0, 1]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_two_couplings_move_every_slot(count):
    for number in (0, 2, 4):
        moved = torch.cat([_halves(count, number)[1], _halves(count, number + 1)[1]])
        assert torch.equal(moved.sort().values, torch.arange(count))


def test_units_of_no_slot_and_no_globals_are_left_alone():
    none = torch.empty(0, dtype=torch.long)
    empty = SetCoupling(
        [Slots(torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long), True)], none, none
    )
    x = torch.randn(4, 5)
    y, log_det = empty.forward_and_log_det(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_det, torch.zeros(4))


def test_shared_affine_keeps_what_may_flip_at_zero():
    affine = SharedAffine(
        torch.tensor([0, 1]),
        torch.tensor([0.7, 0.7]),
        torch.ones(2),
        torch.tensor([True, False]),
        torch.tensor([False, False]),
    )
    y = affine.forward_and_log_det(torch.zeros(2))[0]
    torch.testing.assert_close(y, torch.tensor([0.0, 0.7]))


def test_parameters_do_not_grow_with_the_number_of_units():
    """8 or 64 units, the same networks."""
    counts = []
    for width in (8, 64):
        guide = AutoHypernet(ReferenceNet([2, width, 1], "normal", 0.3)).setup(torch.randn(12, 2), torch.randn(12))
        loc, scale = torch.zeros(guide.latent_dim), torch.ones(guide.latent_dim)
        block = guide.knowledge.linear_block.index
        flow = set_couplings(guide.layout, loc, scale, guide.knowledge.symmetries, none_of=block, is_exact=True)
        couplings = [part for part in flow.modules() if isinstance(part, SetCoupling)]
        counts.append(sum(parameter.numel() for part in couplings for parameter in part.parameters()))
    assert counts[0] == counts[1]

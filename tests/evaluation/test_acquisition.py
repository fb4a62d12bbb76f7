"""What is labelled next: the greatest scores, and batches whose labels together tell most."""

import itertools
import math

import pytest
import torch

from pyro_hypernet.evaluation.acquisition import acquire, batch_bald
from pyro_hypernet.evaluation.scores import SCORES
from tests.seeds import seed

NAMES = [*SCORES, "batchbald", "random"]
every_score = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def logits(double):
    torch.manual_seed(seed(0))
    return 2 * torch.randn(12, 30, 3)


@every_score
def test_different_data_of_the_pool_are_taken(name, logits):
    chosen = acquire(logits, 7, name)
    assert chosen.shape == (7,)
    assert len(set(chosen.tolist())) == 7
    assert sorted(acquire(logits, 30, name).tolist()) == list(range(30))


@pytest.mark.parametrize("name", SCORES)
def test_the_greatest_scores_are_taken_first(name, logits):
    values = SCORES[name](logits)
    torch.testing.assert_close(values[acquire(logits, 5, name)], values.sort(descending=True).values[:5])


def information(logits, chosen):
    """I(labels; w) of given data, summed over all labellings."""
    p = logits.softmax(-1)[:, chosen]
    joint = 0.0
    for labels in itertools.product(range(p.shape[-1]), repeat=len(chosen)):
        of_labels = p[:, torch.arange(len(chosen)), list(labels)].prod(1).mean()
        joint -= of_labels * of_labels.log()
    return joint - torch.special.entr(p).sum(-1).mean(0).sum()


def test_batch_bald_is_the_information_of_the_batch(logits):
    chosen, found = batch_bald(logits, 4)
    for count in range(1, 5):
        torch.testing.assert_close(found[count - 1], information(logits, chosen[:count].tolist()))
        others = [information(logits, [*chosen[: count - 1].tolist(), i]) for i in range(30) if i not in chosen]
        assert all(found[count - 1] >= other for other in others)
    assert chosen[0] == acquire(logits, 1, "bald")[0]


def test_drawn_labels_say_nearly_the_same(logits):
    """200 errors had a root mean square of .003, the greatest was .014: beyond .05 is no chance."""
    found = batch_bald(logits, 9, num_labellings=3**8)[1]
    for number in range(5):
        torch.manual_seed(seed(number))
        errors = batch_bald(logits, 9, num_labellings=2000)[1] - found
        assert errors.abs().max() < 0.05
        assert errors[:7].abs().max() < 1e-12  # before there are so many labellings nothing is drawn
        assert errors[7:].abs().min() > 0


def test_information_is_bounded_by_the_draws(logits):
    """20 labels by draws that are nearly sure tell which draw it is; eight seeds were within .01."""
    found = batch_bald(4 * logits, 20)[1]
    assert bool((found.diff() >= 0).all())
    assert float(found[-1]) == pytest.approx(math.log(12), abs=0.05)


def test_copies_of_a_datum_are_not_taken_together(double):
    """All 16 labellings of four data, one by each draw, and the same data again: a copy tells nothing more."""
    certain = 200 * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    twins = torch.stack([certain, -certain], -1).repeat(1, 2, 1)
    chosen, found = batch_bald(twins, 4)
    assert len(set((chosen % 4).tolist())) == 4
    torch.testing.assert_close(found, torch.arange(1, 5) * math.log(2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(3, 4, 2), 1, "bold"), "score must be one of variation_ratio, .*; got 'bold'"),
        ((torch.zeros(4, 2), 1), r"logits must have shape \(S, N, C\)"),
        ((torch.full((4, 5, 2), torch.nan), 1), "5 data have NaN"),
        ((torch.zeros(3, 4, 2), 5), "number must be from 1 to the pool's 4 data; got 5"),
    ],
)
def test_what_cannot_be_taken_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        acquire(*arguments)


def test_what_predict_gives_is_no_tensor():
    with pytest.raises(TypeError, match=r'got dict: of what predict gives pass \["f"\]'):
        acquire({"f": torch.randn(3, 5, 2)}, 2)

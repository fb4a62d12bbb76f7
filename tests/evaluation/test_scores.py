"""Scores of unsure predictions and strange inputs: what every one of them must say, and how well they tell apart."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from pyro_hypernet.evaluation import metrics
from pyro_hypernet.evaluation.scores import SCORES, told_apart

OF_DRAWS = ("bald", "mean_sd", "logit_disagreement")
every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())


@pytest.fixture
def logits(double):
    return 3 * torch.randn(15, 40, 5)


@every_score
def test_a_score_is_one_number_a_datum_whatever_the_order_of_draws_and_classes(score, logits):
    found = score(logits)
    assert found.shape == (40,)
    torch.testing.assert_close(score(logits.flip(0)), found)
    torch.testing.assert_close(score(logits[..., torch.randperm(5)]), found)
    torch.testing.assert_close(score(logits[:, 7:20]), found[7:20])


@pytest.mark.parametrize("name", SCORES)
def test_what_all_classes_share_counts_for_the_expected_logit_alone(name, logits):
    shifted = SCORES[name](logits + 2) - SCORES[name](logits)
    torch.testing.assert_close(shifted, torch.full((40,), -2.0 if name == "expected_logit" else 0.0))


@pytest.mark.parametrize("name", SCORES)
def test_sure_draws_that_agree_score_least(name, double):
    """Three data: draws sure of one class, sure of different ones, unsure together."""
    sure = 20 * torch.eye(3)[[0, 0, 0]]
    logits = torch.stack([sure, 20 * torch.eye(3), torch.zeros(3, 3)], 1)
    agree, differ, unsure = SCORES[name](logits)
    assert differ > agree
    if name in OF_DRAWS:
        torch.testing.assert_close(torch.stack([agree, unsure]), torch.zeros(2))
    else:
        assert unsure > agree


def test_disagreement_of_logits_goes_on_where_that_of_probabilities_ends(double):
    logits = torch.tensor([[[30.0, 0.0]], [[60.0, 0.0]]])
    assert SCORES["bald"](logits) < 1e-10
    torch.testing.assert_close(SCORES["logit_disagreement"](logits), torch.tensor([7.5 / 22.5]))
    torch.testing.assert_close(SCORES["logit_disagreement"](10 * logits), torch.tensor([7.5 / 22.5]))


def test_average_precision_agrees_with_sklearn():
    scores, labels = torch.randint(0, 20, (300,)) / 20, torch.arange(300) % 3 == 0  # with ties
    theirs = average_precision_score(labels.numpy(), scores.numpy())
    assert float(metrics.average_precision(scores, labels)) == pytest.approx(theirs)
    with pytest.raises(ValueError, match="There must be positives"):
        metrics.average_precision(scores, torch.zeros(300).bool())


def test_two_kinds_are_told_apart():
    low, high = torch.arange(4.0), torch.arange(10.0, 16.0)
    assert told_apart(low, high) == {"auroc": 1.0, "aupr_out": 1.0, "aupr_in": 1.0}
    assert told_apart(high, low)["auroc"] == 0.0
    same = told_apart(torch.ones(4), torch.ones(6))
    assert same == pytest.approx({"auroc": 0.5, "aupr_out": 0.6, "aupr_in": 0.4})


def test_draws_are_no_scores():
    with pytest.raises(ValueError, match=r"a score of every datum.* got \(3, 5, 2\) and \(3, 4, 2\)"):
        told_apart(torch.randn(3, 5, 2), torch.randn(3, 4, 2))

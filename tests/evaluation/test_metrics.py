"""Metrics against closed forms and torchmetrics."""

import math

import pytest
import torch
import torchmetrics

from pyro_hypernet.evaluation import metrics


@pytest.fixture
def classes():
    probabilities = torch.randn(200, 4).softmax(-1)
    return probabilities, torch.randint(0, 4, (200,))


def test_nll_is_that_of_the_mixture_of_draws():
    means, y = torch.randn(30).double(), torch.randn(5).double()
    log_likelihood = torch.distributions.Normal(means[:, None], 1.0).log_prob(y)
    mixture = log_likelihood.exp().mean(0).log()
    torch.testing.assert_close(metrics.nll(log_likelihood), -mixture.mean())


def test_nll_of_one_draw_and_of_tiny_likelihoods():
    assert metrics.nll(torch.full((1, 3), -2.0)) == 2.0
    torch.testing.assert_close(metrics.nll(torch.full((7, 3), -2000.0)), torch.tensor(2000.0))


def test_rmse():
    torch.testing.assert_close(metrics.rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])), torch.tensor(2**0.5))


def test_rmse_does_not_broadcast():
    with pytest.raises(ValueError, match="Both arguments must have the same shape"):
        metrics.rmse(torch.zeros(5, 1), torch.zeros(5))


@pytest.mark.parametrize("num_bins", [5, 15])
def test_ece_agrees_with_torchmetrics(classes, num_bins):
    probabilities, labels = classes
    oracle = torchmetrics.classification.MulticlassCalibrationError(4, n_bins=num_bins, norm="l1")
    torch.testing.assert_close(metrics.ece(probabilities, labels, num_bins=num_bins), oracle(probabilities, labels))


def test_ece_of_two_classes_is_that_of_both_columns():
    p, labels = torch.rand(100), torch.randint(0, 2, (100,))
    torch.testing.assert_close(metrics.ece(p, labels), metrics.ece(torch.stack([1 - p, p], -1), labels))


def test_ece_knows_the_truth():
    certain = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert metrics.ece(certain, torch.tensor([0, 1, 2, 0])) == 0
    assert metrics.ece(certain, torch.tensor([1, 2, 0, 1])) == 1


def test_calibration_bins_count_all_data(classes):
    confidence, accuracy, counts = metrics.calibration_bins(*classes)
    assert counts.sum() == 200
    assert confidence.shape == accuracy.shape == counts.shape
    assert bool((confidence.diff() > 0).all())


def test_labels_must_fit():
    with pytest.raises(ValueError, match="probabilities must have shape"):
        metrics.ece(torch.rand(5, 2), torch.zeros(5, 1))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_a_calibrated_prediction_is_the_level(level):
    # 4 000 independent data: 5 standard errors, a false alarm once in two million runs.
    loc = torch.randn(4000)
    y = loc + torch.randn(4000)
    draws = loc + torch.randn(2000, 4000)
    error = math.sqrt(level * (1 - level) / 4000)
    assert abs(float(metrics.coverage(draws, y, level=level)) - level) < 5 * error + 1e-3


def test_coverage_refuses_other_shapes_and_levels():
    with pytest.raises(ValueError, match="draws must have shape"):
        metrics.coverage(torch.zeros(10, 3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="level must lie inside"):
        metrics.coverage(torch.zeros(10, 3), torch.zeros(3), level=1.0)


def test_total_variation_and_agreement_of_known_cases():
    p, q = torch.tensor([[1.0, 0.0], [0.4, 0.6]]), torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    torch.testing.assert_close(metrics.total_variation(p, q), torch.tensor(0.55))
    assert metrics.agreement(p, q) == 0.5
    assert metrics.total_variation(p, p) == 0
    torch.testing.assert_close(metrics.total_variation(p[:, 1], q[:, 1]), metrics.total_variation(p, q))
    assert metrics.agreement(p[:, 1], q[:, 1]) == 0.5


def test_entropy_is_split_into_what_draws_agree_on_and_what_not():
    sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two draws, each certain, of one datum
    torch.testing.assert_close(metrics.predictive_entropy(sure), torch.tensor([math.log(2)]))
    torch.testing.assert_close(metrics.mutual_information(sure), torch.tensor([math.log(2)]))
    unsure = torch.full((2, 1, 2), 0.5)  # two draws that agree
    torch.testing.assert_close(metrics.predictive_entropy(unsure), torch.tensor([math.log(2)]))
    torch.testing.assert_close(metrics.mutual_information(unsure), torch.zeros(1))


def test_auroc_agrees_with_torchmetrics():
    scores, labels = torch.randint(0, 20, (300,)).float() / 20, torch.arange(300) % 3 == 0  # with ties
    theirs = torchmetrics.functional.classification.binary_auroc(scores, labels.long())
    torch.testing.assert_close(metrics.auroc(scores, labels).float(), theirs)


def test_auroc_needs_both_kinds():
    with pytest.raises(ValueError, match="Both kinds are needed; got 3 positives of 3"):
        metrics.auroc(torch.rand(3), torch.ones(3, dtype=torch.bool))

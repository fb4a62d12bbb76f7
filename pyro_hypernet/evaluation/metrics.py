"""How good predictions are: pure functions of tensors, each returning a scalar tensor unless it says otherwise."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_hypernet.model.quantiles import quantiles_of


def nll(log_likelihood: Tensor) -> Tensor:
    """Negative log pointwise predictive density, `-mean_n log mean_s p(y_n | w_s)`.

    Args:
        log_likelihood: Log density of every datum under every draw, in nats, shape `(S, *batch)`.

    Returns:
        Nats per datum, lower is better.

    Source: Gelman, Hwang and Vehtari 2014, equation 5.
    """
    return -log_predictive(log_likelihood).mean()


def log_predictive(log_likelihood: Tensor) -> Tensor:
    """Log pointwise predictive density, `log mean_s p(y_n | w_s)`, in nats, shape `batch`; arguments as of `nll`."""
    return torch.logsumexp(log_likelihood, 0) - math.log(log_likelihood.shape[0])


def log_predictive_of_all(by_site: Mapping[str, Tensor]) -> Tensor:
    """`log_predictive` of every datum of all sites, from what `log_likelihood` returns, in float64, shape `(N,)`."""
    return torch.cat([log_predictive(value.double()).flatten() for value in by_site.values()])


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error, in the units of the target.

    Args:
        prediction: Predictive means, any shape.
        target: What came, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_same_shape(prediction, target)
    return (prediction - target).square().mean().sqrt()


def calibration_bins(probabilities: Tensor, labels: Tensor, *, num_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence against accuracy of the most probable class, in bins of equal width.

    Args:
        probabilities: Class probabilities, shape `(N, C)`, or those of the positive class, shape `(N,)`.
        labels: Classes 0 to C − 1, shape `(N,)`.
        num_bins: Number of bins on [0, 1].

    Returns:
        Mean confidence, accuracy and number of data of every bin that is not empty, three tensors of shape `(B,)`.
    """
    if probabilities.dim() not in (1, 2) or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "probabilities must have shape (N, C) or (N,) and labels shape (N,); got "
            f"{tuple(probabilities.shape)} and {tuple(labels.shape)}."
        )
    confidence, predicted = with_both_classes(probabilities).max(-1)
    return bins_of_confidence(confidence, predicted == labels, num_bins=num_bins)


def bins_of_confidence(confidence: Tensor, is_correct: Tensor, *, num_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """`calibration_bins` of what is known of the most probable class: its probability, and whether it came, `(N,)`."""
    index = (confidence * num_bins).long().clamp(0, num_bins - 1)
    counts = confidence.new_zeros(num_bins).index_add(0, index, torch.ones_like(confidence))
    full = counts > 0
    values = (confidence, is_correct.to(confidence))
    sums = [confidence.new_zeros(num_bins).index_add(0, index, value)[full] for value in values]
    return sums[0] / counts[full], sums[1] / counts[full], counts[full]


def ece(probabilities: Tensor, labels: Tensor, *, num_bins: int = 15) -> Tensor:
    """Expected calibration error of the most probable class: mean |confidence − accuracy| over equal-width bins.

    Args: As those of `calibration_bins`.

    Returns:
        A probability, lower is better; biased upwards where bins hold few data.

    Source: Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, section 2.
    """
    return error_of_bins(*calibration_bins(probabilities, labels, num_bins=num_bins))


def error_of_bins(confidence: Tensor, accuracy: Tensor, counts: Tensor) -> Tensor:
    """`ece` of the bins that `calibration_bins` and `bins_of_confidence` return."""
    return ((confidence - accuracy).abs() * counts).sum() / counts.sum()


def coverage(draws: Tensor, target: Tensor, *, level: float = 0.9) -> Tensor:
    """Fraction of the data inside the central predictive interval.

    Args:
        draws: Draws of the observations (noise included), shape `(S, *batch)`.
        target: What came, shape `batch`.
        level: Probability of the interval.

    Returns:
        A probability; a calibrated prediction gives `level`.

    Raises:
        ValueError: If the shapes do not fit or the level is not inside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1); got {level}.")
    if draws.shape[1:] != target.shape:
        raise ValueError(
            f"draws must have shape (S, *{tuple(target.shape)}), one axis more than the target; got "
            f"{tuple(draws.shape)}."
        )
    lower, upper = quantiles_of(draws, [(1 - level) / 2, (1 + level) / 2])
    return ((target >= lower) & (target <= upper)).to(draws).mean()


def total_variation(probabilities: Tensor, reference: Tensor) -> Tensor:
    """Mean total variation distance of two predictive distributions over classes.

    Args:
        probabilities: Class probabilities, shape `(N, C)`, or those of the positive class, shape `(N,)`.
        reference: The same shape.

    Returns:
        In [0, 1], lower is closer.
    """
    ours, theirs = _comparable(probabilities, reference)
    return (ours - theirs).abs().sum(-1).mean() / 2


def agreement(probabilities: Tensor, reference: Tensor) -> Tensor:
    """Fraction of data on which two predictions name the same class.

    Args: As those of `total_variation`.

    Returns:
        In [0, 1], higher is closer.
    """
    ours, theirs = _comparable(probabilities, reference)
    return (ours.argmax(-1) == theirs.argmax(-1)).to(probabilities).mean()


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the mean prediction, all uncertainty about a label, in nats.

    Args:
        probabilities: Class probabilities of every draw, shape `(S, N, C)`.

    Returns:
        Shape `(N,)`.
    """
    return _entropy(probabilities.mean(0))


def mutual_information(probabilities: Tensor) -> Tensor:
    """What a label would tell of the weights (BALD): the entropy of the mean less the mean entropy, in nats.

    Args:
        probabilities: Class probabilities of every draw, shape `(S, N, C)`.

    Returns:
        Shape `(N,)`, zero where all draws agree.

    Source: Houlsby et al. 2011, arXiv 1112.5745.
    """
    return (_entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)).clamp(min=0.0)


def auroc(scores: Tensor, is_positive: Tensor) -> Tensor:
    """Area under the receiver operating characteristic: how often a positive scores above a negative, ties half.

    Args:
        scores: Shape `(N,)`, higher for positives.
        is_positive: Which are, bool, shape `(N,)`; some must be and some not.

    Raises:
        ValueError: If all are positive, or none is.
    """
    count = int(is_positive.sum())
    if not 0 < count < len(scores):
        raise ValueError(f"Both kinds are needed; got {count} positives of {len(scores)}.")
    negatives = scores[~is_positive].sort().values
    positives = scores[is_positive].contiguous()
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return (below.double() / 2 / len(negatives)).mean()


def average_precision(scores: Tensor, is_positive: Tensor) -> Tensor:
    """Area under the curve of precision against recall, in steps, equal scores taken together.

    Args: As those of `auroc`.

    Returns:
        In [0, 1]; scores at random give about the share of positives.

    Raises:
        ValueError: If there is no positive.
    """
    if not bool(is_positive.any()):
        raise ValueError(f"There must be positives; got none among {len(scores)}.")
    ordered, order = scores.sort(descending=True)
    hits = is_positive[order].double().cumsum(0)
    last = torch.searchsorted(-ordered, -scores[is_positive].contiguous(), right=True) - 1
    return (hits[last] / (last + 1)).mean()


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def _comparable(probabilities: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    _check_same_shape(probabilities, reference)
    return with_both_classes(probabilities), with_both_classes(reference)


def with_both_classes(probabilities: Tensor) -> Tensor:
    """Class probabilities, shape `(N, C)`, also of those of the positive class, shape `(N,)`."""
    if probabilities.dim() == 1:
        return torch.stack([1 - probabilities, probabilities], -1)
    return probabilities


def _check_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"Both arguments must have the same shape; got {tuple(first.shape)} and {tuple(second.shape)}."
        )

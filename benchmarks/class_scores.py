"""How well mean predictions of classes do, for the benchmarks on images."""

import torch
from torch import Tensor

from pyro_hypernet.evaluation.metrics import ece


@torch.no_grad()
def class_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in percent, nats per image, and calibration error of mean predictions.

    Args:
        probabilities: Shape `(N, C)`.
        labels: Shape `(N,)`.
    """
    rows = torch.arange(len(labels), device=labels.device)
    return {
        "accuracy": 100 * float((probabilities.argmax(-1) == labels).double().mean()),
        "nll": -float(probabilities[rows, labels].clamp(min=1e-30).log().mean()),
        "ece": float(ece(probabilities, labels)),
    }

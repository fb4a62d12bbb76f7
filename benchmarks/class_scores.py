"""What draws predict of images, and how well their means name the classes, for the benchmarks on images."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_hypernet import predict
from pyro_hypernet.evaluation.metrics import ece


@torch.no_grad()
def outputs_of(model: nn.Module, posterior: Any, x: Tensor, num_draws: int, *, rows: int = 1000) -> Tensor:
    """Logits by every draw, shape `(num_draws, N, C)`, so many rows at a time.

    Args:
        model: A model of `bayesianize`.
        posterior: Whatever `predict` takes.
        x: Inputs, shape `(N, ...)`.
        num_draws: How many.
        rows: Of a part.
    """
    parts = [predict(model, posterior, part, num_samples=num_draws, return_sites=["f"])["f"] for part in x.split(rows)]
    return torch.cat(parts, 1)


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

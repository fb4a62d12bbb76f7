"""How unsure a prediction of classes is, or how strange its input, by draws of logits: one number a datum."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_hypernet.evaluation.metrics import auroc, average_precision, mutual_information, predictive_entropy


def variation_ratio(logits: Tensor) -> Tensor:
    """What the most probable class of the mean prediction lacks to one: "max softmax", negated.

    Args:
        logits: Of every draw, shape `(S, N, C)`; log probabilities serve as well.

    Returns:
        Shape `(N,)`, higher for the less sure.

    Source: Freeman 1965, as in Gal, Islam and Ghahramani 2017; Hendrycks and Gimpel 2017 for strange inputs.
    """
    return 1 - logits.softmax(-1).mean(0).amax(-1)


def mean_sd(logits: Tensor) -> Tensor:
    """The sd of a class's probability over draws, mean over classes; arguments as of `variation_ratio`.

    Source: Kampffmeyer, Salberg and Jenssen 2016, as in Gal, Islam and Ghahramani 2017.
    """
    return logits.softmax(-1).std(0, correction=0).mean(-1)


def expected_logit(logits: Tensor) -> Tensor:
    """The greatest mean logit over draws, negated; what all classes share counts, unlike in probabilities.

    Args:
        logits: Of every draw as the network gives them, shape `(S, N, C)`.

    Returns:
        Shape `(N,)`.

    Source: Hendrycks et al. 2022, arXiv 1911.11132, for one network: "max logit"; arXiv 2510.06025 for draws.
    """
    return -logits.mean(0).amax(-1)


def logit_disagreement(logits: Tensor) -> Tensor:
    """The sd of a logit over draws, root mean square over classes, over the greatest mean: logits centred over classes.

    A ratio, for logits that are larger differ by more; it sees draws differ that are all sure. Arguments as of
    `variation_ratio`.

    Source: In the manner of Raina 2025, arXiv 2502.15648, whose scores are of the greatest logit's spread alone.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    sd = centred.var(0, correction=0).mean(-1).sqrt()
    return sd / centred.mean(0).amax(-1).clamp(min=torch.finfo(logits.dtype).tiny)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "variation_ratio": variation_ratio,
    "entropy": lambda logits: predictive_entropy(logits.softmax(-1)),
    "bald": lambda logits: mutual_information(logits.softmax(-1)),
    "mean_sd": mean_sd,
    "expected_logit": expected_logit,
    "logit_disagreement": logit_disagreement,
}


def told_apart(usual: Tensor, strange: Tensor) -> dict[str, float]:
    """How well a score tells two kinds apart.

    Args:
        usual: Scores of the one kind, shape `(N,)`.
        strange: Scores of the other, expected to be higher, shape `(M,)`.

    Returns:
        "auroc", and the average precision of finding the strange, "aupr_out", and the usual, "aupr_in"; in [0, 1],
        higher is better. At random they are a half, and about the shares of the strange and the usual.

    Raises:
        ValueError: If either is not of one axis.

    Example:
        >>> logits, others = torch.randn(20, 50, 10), torch.randn(20, 30, 10)
        >>> list(told_apart(SCORES["bald"](logits), SCORES["bald"](others)))
        ['auroc', 'aupr_out', 'aupr_in']
    """
    if usual.dim() != 1 or strange.dim() != 1:
        raise ValueError(
            "told_apart takes a score of every datum, of shapes (N,) and (M,); got "
            f'{tuple(usual.shape)} and {tuple(strange.shape)}: of draws of logits, SCORES["entropy"](logits).'
        )
    scores, is_strange = torch.cat([usual, strange]), torch.arange(len(usual) + len(strange)) >= len(usual)
    is_strange = is_strange.to(scores.device)
    return {
        "auroc": float(auroc(scores, is_strange)),
        "aupr_out": float(average_precision(scores, is_strange)),
        "aupr_in": float(average_precision(-scores, ~is_strange)),
    }

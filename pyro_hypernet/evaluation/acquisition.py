"""Active learning: which data of a pool to label next, by what draws of class probabilities say of them."""

import math

import torch
from torch import Tensor

from pyro_hypernet.evaluation.scores import SCORES

# Candidates that batch_bald looks at together: 80 MB for 1 000 labellings of ten classes.
_CANDIDATES = 1000


def acquire(logits: Tensor, number: int, score: str = "bald") -> Tensor:
    """The next data of a pool to label.

    Args:
        logits: Of every draw, as of `predict(model, guide, pool, return_sites=["f"])["f"]`, shape `(S, N, C)`; log
            probabilities serve as well.
        number: How many to take, k.
        score: A key of `scores.SCORES`, of which the k greatest are taken; or "batchbald", see `batch_bald`; or
            "random". The caller's `pyro.set_rng_seed` decides what is random.

    Returns:
        Indices of different data of the pool, the most wanted first, shape `(k,)`. They stay in the pool unless its
        owner takes them out.

    Raises:
        TypeError: If the logits are no tensor.
        ValueError: If the score is unknown, the shape another, or the pool has no k data.

    Example:
        >>> chosen = acquire(torch.randn(20, 100, 10), 5, "batchbald")
        >>> len(set(chosen.tolist()))
        5
    """
    known = [*SCORES, "batchbald", "random"]
    if score not in known:
        raise ValueError(f"score must be one of {', '.join(known)}; got {score!r}.")
    if not isinstance(logits, Tensor):
        raise TypeError(f'logits must be a tensor; got {type(logits).__name__}: of what predict gives pass ["f"].')
    if logits.dim() != 3:
        raise ValueError(f"logits must have shape (S, N, C): draws, data, classes; got {tuple(logits.shape)}.")
    if logits.isnan().any():
        raise ValueError(
            f"logits must be numbers; {int(logits.isnan().any(-1).any(0).sum())} data have NaN among theirs."
        )
    if not 0 < number <= logits.shape[1]:
        raise ValueError(f"number must be from 1 to the pool's {logits.shape[1]} data; got {number}.")
    if score == "batchbald":
        return batch_bald(logits, number)[0]
    values = torch.rand_like(logits[0, :, 0]) if score == "random" else SCORES[score](logits)
    return values.topk(number).indices


def batch_bald(logits: Tensor, number: int, *, num_labellings: int = 1000) -> tuple[Tensor, Tensor]:
    """Data of a pool whose labels together tell most of the weights, taken one by one.

    `I(y_1 … y_k; w) = Σ_i I(y_i; w | y_1 … y_{i−1})`, under the draws. A term is a mean over labels taken before: all
    their joint values while these are few, then some that are drawn from the predictive.

    Args:
        logits: Of every draw, shape `(S, N, C)`.
        number: How many to take, k.
        num_labellings: Joint values of the labels to sum over, or to draw for every further datum.

    Returns:
        Indices, shape `(k,)`, and I after each of them, in nats, shape `(k,)`: at most log S, but for what is drawn.

    Source: Kirsch, van Amersfoort and Gal 2019, arXiv 1906.08158; where labels are drawn, by the chain rule instead of
        by weights, which leaves less to chance.
    """
    log_p = logits.double().log_softmax(-1)
    p, num_classes = log_p.exp(), log_p.shape[-1]
    entropy_of_draws = torch.special.entr(p).sum(-1)
    taken: list[int] = []
    found = []
    for _ in range(number):
        is_exact = num_classes ** len(taken) <= num_labellings
        labels = _all_labels(num_classes, taken) if is_exact else _drawn_labels(p[:, taken], num_labellings)
        log_likelihood = log_p.new_zeros(len(labels), len(p))
        for at, label in zip(taken, labels.T, strict=True):
            log_likelihood += log_p[:, at, label].T
        # What is known of the weights once labels are: shape (M, S).
        posterior = log_likelihood.softmax(-1)
        weights = log_likelihood.exp().mean(1) if is_exact else log_p.new_full((len(labels),), 1 / len(labels))
        parts = []
        for part in p.split(_CANDIDATES, 1):
            entropy = torch.special.entr(posterior @ part.flatten(1)).unflatten(1, (-1, num_classes)).sum(-1)
            parts.append(weights @ entropy)
        gain = torch.cat(parts) - weights @ posterior @ entropy_of_draws
        gain[taken] = -math.inf
        taken.append(int(gain.argmax()))
        found.append(gain.max())
    return torch.tensor(taken, device=logits.device), torch.stack(found).cumsum(0).to(logits)


def _all_labels(num_classes: int, taken: list[int]) -> Tensor:
    """All joint values of the labels taken so far, shape `(C^n, n)`."""
    powers = num_classes ** torch.arange(len(taken))
    return torch.arange(num_classes ** len(taken))[:, None] // powers % num_classes


def _drawn_labels(p: Tensor, number: int) -> Tensor:
    """Joint values drawn from the predictive, by every draw of the weights as often: shape `(number, n)`."""
    return torch.distributions.Categorical(probs=p[torch.arange(number) % len(p)]).sample()

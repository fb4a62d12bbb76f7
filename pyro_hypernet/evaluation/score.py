"""How a posterior predicts held-out data, batch by batch: what tells of networks for which no importance weights do."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_hypernet.evaluation.draws import draws, run_by
from pyro_hypernet.evaluation.metrics import (
    bins_of_confidence,
    error_of_bins,
    log_predictive,
    mutual_information,
    predictive_entropy,
    with_both_classes,
)
from pyro_hypernet.model.chunks import MAX_BYTES, Chunked
from pyro_hypernet.model.traces import class_probabilities, observed_nodes, pointwise_log_prob
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown
from pyro_hypernet.target import Bound
from pyro_hypernet.train.batches import one_pass


@dataclass(frozen=True, repr=False)
class Score(Shown):
    """How a posterior predicts data; see `score`. What only classes have is None of other data.

    Attributes:
        num_data: Data N.
        num_samples: Draws S of the posterior.
        log_predictive: Mean of `log mean_s p(y_n | w_s)` over the data, in nats per datum; higher is better.
        log_predictive_error: Its standard error over the data.
        by_draws: Mean log likelihood of single draws, in nats per datum; below `log_predictive` by what averaging over
            the posterior is worth.
        accuracy: Share of the data whose most probable class came.
        ece: Expected calibration error of the most probable class, see `metrics.ece`.
        entropy: Of the mean prediction, in nats, mean over the data.
        mutual_information: What a label would tell of the weights, in nats, mean over the data.
        disagreement: How often two draws name different classes, mean over the data.
    """

    num_data: int
    num_samples: int
    log_predictive: float
    log_predictive_error: float
    by_draws: float
    accuracy: float | None = None
    ece: float | None = None
    entropy: float | None = None
    mutual_information: float | None = None
    disagreement: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.num_data} data, {self.num_samples} draws: log predictive density {self.log_predictive:.4f} ± "
            f"{self.log_predictive_error:.4f} nats per datum ({self.by_draws:.4f} by single draws)"
        )
        if self.accuracy is None:
            return text
        return text + (
            f"; accuracy {self.accuracy:.2%}, calibration error {self.ece:.4f}, entropy {self.entropy:.3f}, mutual "
            f"information {self.mutual_information:.3f}, two draws disagree on {self.disagreement:.1%}"
        )


@torch.no_grad()
def score(
    model: Model,
    posterior: Any,
    args: tuple | Mapping[str, Any] | Iterable[Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 100,
    max_bytes: int = MAX_BYTES,
) -> Score:
    """How well a posterior predicts data, in one pass over them and in memory that does not grow with them.

    All batches are seen by the same draws. For data that were held out; of those of the training it tells how well they
    are fitted.

    Args:
        model: A Pyro model.
        posterior: A guide, a result of `nuts`, or a dict of samples; see `draws`.
        args: The model's arguments, data included, as a tuple, or a dict by name, or an iterable of such (a
            DataLoader), as in `fit`.
        kwargs: The model's keyword arguments, the same for all batches.
        num_samples: Draws of the posterior.
        max_bytes: Memory for the intermediate results of one chunk, in bytes.

    Returns:
        The scores; those of classes where the model observes one site, Bernoulli, categorical or one-hot.

    Raises:
        TypeError: If `args` is none of these.
        ValueError: If there are no batches, the model observes nothing, NaN among the data makes densities NaN, or
            samples do not fit the model.

    Source: Gelman, Hwang and Vehtari 2014, equation 5, for the log predictive density.

    Example:
        >>> from pyro_hypernet import bayesianize
        >>> model = bayesianize(torch.nn.Linear(3, 2), "categorical")
        >>> samples = {site: value.expand(20, *value.shape) for site, value in model.initial_values.items()}
        >>> batches = [(torch.randn(8, 3), torch.zeros(8).long()) for _ in range(3)]
        >>> found = score(model, samples, batches)
        >>> found.num_data, found.disagreement
        (24, 0.0)
    """
    run, found, samples = None, [], {}
    for batch, named in one_pass(args, kwargs or {}):
        if run is None:
            samples = draws(posterior, *batch, num_samples=num_samples, **named)
            run = Chunked(run_by(model, posterior), samples, partial(_collect, samples), max_bytes=max_bytes)
        found.append(_of_batch(run(batch, named)))
        if bool(found[-1]["log_predictive"].isnan().any()):
            Bound(model, batch, named).raise_for_nan()
    if not found:
        raise ValueError("There are no batches to score; an iterator that is used up gives none: pass a DataLoader.")
    values = {name: torch.cat([each[name] for each in found]).double() for name in found[0]}
    densities, means = values["log_predictive"], {name: float(value.mean()) for name, value in values.items()}
    error = float(densities.std() / len(densities) ** 0.5) if len(densities) > 1 else math.nan
    confidence = values.pop("confidence", None)
    means.pop("confidence", None)
    if confidence is not None:
        means["ece"] = float(error_of_bins(*bins_of_confidence(confidence, values["accuracy"])))
    return Score(len(densities), len(next(iter(samples.values()))), log_predictive_error=error, **means)


def _collect(samples: Mapping[str, Tensor], trace: Trace) -> dict[str, Tensor]:
    """Of one draw: log densities of all data, and the probabilities of classes where there is one site of such."""
    nodes = observed_nodes(trace, samples)
    if not nodes:
        raise ValueError("The model observes nothing: pass its data, too, as to the guide's training.")
    log_p = torch.cat([pointwise_log_prob(node).flatten() for node in nodes.values()])
    node = next(iter(nodes.values()))
    probabilities = class_probabilities(node["fn"]) if len(nodes) == 1 else None
    if probabilities is None or len(probabilities) != len(log_p):
        return {"log_p": log_p}
    probabilities = with_both_classes(probabilities)
    one_hot = node["value"].shape[-1:] == probabilities.shape[-1:] and node["fn"].event_shape
    labels = node["value"].argmax(-1) if one_hot else node["value"]
    return {"log_p": log_p, "probabilities": probabilities, "labels": labels.flatten().long()}


def _of_batch(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of every datum, each of shape `(N,)`."""
    log_p = found["log_p"].double()
    kept = {"log_predictive": log_predictive(log_p), "by_draws": log_p.mean(0)}
    if "probabilities" not in found:
        return kept
    probabilities, labels = found["probabilities"], found["labels"][0]
    confidence, predicted = probabilities.mean(0).max(-1)
    votes = torch.nn.functional.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).sum(0).double()
    num = len(probabilities)
    agreeing = ((votes**2).sum(-1) - num) / max(1, num * (num - 1)) if num > 1 else torch.ones_like(confidence)
    return kept | {
        "accuracy": predicted == labels,
        "confidence": confidence,
        "entropy": predictive_entropy(probabilities),
        "mutual_information": mutual_information(probabilities),
        "disagreement": 1 - agreeing,
    }

"""Leave-one-out predictive density from draws of a guide, corrected for the guide not being the posterior."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_hypernet.evaluation.importance import (
    BELIEVABLE_KHAT,
    EQUAL_WEIGHTS,
    bind_to_weigh,
    draw_weighted,
    finite_log_weights,
)
from pyro_hypernet.evaluation.predict import log_likelihood_at
from pyro_hypernet.evaluation.psis import smoothed
from pyro_hypernet.guide.guide_mixture import JointGuide
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.shown import Shown


@dataclass(frozen=True, repr=False)
class Loo(Shown):
    """Expected log predictive density of new data, by leaving out each datum.

    Attributes:
        elpd: The sum over data, in nats.
        error: Its standard error over data.
        p_loo: The effective number of parameters: what the density of seen data exceeds that of unseen ones by.
        pointwise: Of every datum in nats, shape `(N,)`.
        khat: Pareto shape of every datum's weights, shape `(N,)`.
    """

    elpd: float
    error: float
    p_loo: float
    pointwise: Tensor = field(repr=False)
    khat: Tensor = field(repr=False)

    @property
    def num_bad(self) -> int:
        """Data whose k-hat is above 0.7, whose part in the sum is not to be believed."""
        return int((self.khat > BELIEVABLE_KHAT).sum())

    def __str__(self) -> str:
        text = f"elpd_loo {self.elpd:.1f} ± {self.error:.1f} nats, p_loo {self.p_loo:.1f}"
        return text + (f"; k-hat above 0.7 for {self.num_bad} of {len(self.khat)} data" if self.num_bad else "")


@torch.no_grad()
def loo(model: Model, guide: Any, *args: Any, num_samples: int = 4000, site: str | None = None, **kwargs: Any) -> Loo:
    """PSIS-LOO with the weights `p(w | data without i) / q(w)`, so right for draws of q as far as k-hat says.

    Plain PSIS-LOO takes draws for draws of the posterior and weighs them by `1 / p(y_i | w)` alone; here log p − log q
    comes in beside that.

    Args:
        model: The Pyro model.
        guide: A trained guide with a density.
        args: The model's arguments, data included.
        num_samples: Number of draws of the guide.
        site: The observed site, where there are several.
        kwargs: The model's keyword arguments.

    Raises:
        ValueError: If the model observes nothing, or several sites and none is named, or draws minibatches; or the
            guide is of another temperature than 1.

    Source: Magnusson, Andersen, Jonasson and Vehtari 2019, arXiv 1904.10679, equation 6; PSIS-LOO: Vehtari, Gelman and
        Gabry 2017.
    """
    if isinstance(guide, JointGuide) and guide.temperature != 1:
        raise ValueError(
            f"loo leaves out data that count once; this guide is of temperature {guide.temperature:g}. Hold data "
            "out, as choose_temperature does, or fit a guide at temperature 1."
        )
    target = bind_to_weigh(model, guide, args, kwargs)
    drawn = draw_weighted(target, guide, num_samples=num_samples, what="loo")
    likelihood = log_likelihood_at(target, drawn.samples)
    if site is None and len(likelihood) > 1:
        raise ValueError(f"The model observes {list(likelihood)}: name one by site=.")
    if site is not None and site not in likelihood:
        raise ValueError(f"site must be one of {list(likelihood)}; got {site!r}.")
    chosen = site if site is not None else next(iter(likelihood))
    values = likelihood[chosen].reshape(num_samples, -1).T.double()
    log_weights = finite_log_weights(drawn.log_weights)
    pointwise, khat = leave_out(values, log_weights)
    own = log_weights.log_softmax(0)
    seen = (own + values).logsumexp(1)
    count = len(pointwise)
    error = math.sqrt(count) * float(pointwise.std()) if count > 1 else math.nan
    return Loo(float(pointwise.sum()), error, float((seen - pointwise).sum()), pointwise, khat)


def leave_out(log_likelihood: Tensor, log_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Every datum left out by Pareto-smoothed weights.

    Args:
        log_likelihood: Of every datum under every draw, in nats, shape `(N, S)`.
        log_weights: `log p − log q` of the draws in nats, shape `(S,)`; None for draws of the posterior itself, which
            makes this the usual PSIS-LOO.

    Returns:
        Log density of every datum given the others in nats, and k-hat of its weights, 0 where these are all equal; both
        of shape `(N,)`.
    """
    values = log_likelihood.double().cpu()
    log_weights = values.new_zeros(values.shape[1]) if log_weights is None else log_weights.cpu()
    alive = log_weights.isfinite()
    values, log_weights = values[:, alive], log_weights[alive]
    excluded = values.isneginf().any(1)  # some draw rules the datum out: without it, all weight is that draw's
    values = values.where(~excluded[:, None], 0.0)
    ratios = log_weights - values
    shares, khat = smoothed(ratios)
    pointwise = (shares + values).logsumexp(1).where(~excluded, -math.inf)
    khat = torch.as_tensor(khat).where(ratios.max(1).values - ratios.min(1).values >= EQUAL_WEIGHTS, 0.0)
    return pointwise, khat.where(~excluded, math.inf)

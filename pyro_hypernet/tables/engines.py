"""How an estimator finds a posterior: by `infer`, by a mixture of guides, by chains of networks, or by no clock."""

import math
from typing import Any

from torch import Tensor

from pyro_hypernet.correction.microcanonical import Microcanonical, microcanonical
from pyro_hypernet.evaluation.convergence import fits_agree
from pyro_hypernet.evaluation.draws import draws
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.guide_mixture import GuideMixture, JointGuide
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.infer import ENGINES as ENGINES_OF_INFER
from pyro_hypernet.infer import infer
from pyro_hypernet.model.vectorize import Model
from pyro_hypernet.pipeline.budget import read_budget
from pyro_hypernet.pipeline.posterior import Posterior
from pyro_hypernet.sample.nuts import nuts
from pyro_hypernet.sample.refine import refine
from pyro_hypernet.train.fit import fit

ENGINES = (*ENGINES_OF_INFER, "mixture", "chains")
# Guides of a mixture; networks that become chains, and their steps where there is no budget, and at most; chains and
# populations of the exact engines where there is no budget; steps of training there.
_STARTS, _NETWORKS, _CHAIN_STEPS, _MOST_STEPS = 3, 5, 10_000, 10**7
_POPULATIONS, _USUAL_STEPS = 4, 3000
# Rows at whose predictions chains are compared.
_MOST_ROWS = 100
_ROUGH = "Chains of networks are biased by their steps and stay in their modes; only held-out rows judge them."
_NOT_JUDGED = "Nothing was judged, for there was no budget: diagnose(model_, posterior_, …) judges a guide."


def find(
    model: Model,
    args: tuple[Tensor, Tensor],
    kwargs: dict[str, Tensor],
    *,
    engine: str,
    budget: str | float | None,
    num_steps: int | None,
    num_samples: int,
    plan: Plan | None,
) -> Posterior:
    """The posterior, by one of `ENGINES`.

    Args:
        model: Of inputs and targets.
        args: These.
        kwargs: Its keyword arguments.
        engine: As of `HypernetRegressor`, as are the others.
        budget: None for no look at the clock; engine is not "auto" then.
        num_steps: Most steps of training, or of chains.
        num_samples: Draws.
        plan: Of guides.
    """
    amounts: dict[str, Any] = {"num_samples": num_samples, "num_steps": num_steps}
    if engine == "chains":
        return _by_chains(model, args, kwargs, budget, **amounts)
    guide: JointGuide | None = None
    if engine == "mixture":
        guide = GuideMixture.from_starts(model, _STARTS, plan=plan)
    elif plan is not None or budget is None:
        guide = AutoHypernet(model, plan=plan)
    if budget is None:
        return _without_budget(model, guide, args, kwargs, engine, **amounts)
    engine = "guide" if engine == "mixture" else engine
    return infer(model, *args, engine=engine, guide=guide, budget=budget, **amounts, progress=False, **kwargs)


def _by_chains(
    model: Model,
    args: tuple[Tensor, Tensor],
    kwargs: dict[str, Tensor],
    budget: str | float | None,
    num_samples: int,
    num_steps: int | None,
) -> Posterior:
    amounts = {"num_samples": num_samples, "max_seconds": math.inf if budget is None else read_budget(budget)}
    amounts["num_steps"] = num_steps or (_CHAIN_STEPS if budget is None else _MOST_STEPS)
    found = microcanonical(model, _NETWORKS, *args, **amounts, progress=False, **kwargs)
    log = (
        f"chains: {found.num_steps} steps of each of {_NETWORKS} in {found.seconds:.1f} s",
        _agreement(model, found, args, kwargs),
    )
    return Posterior(found.samples, "microcanonical", because=_ROUGH, log=log, seconds=found.seconds)


def _agreement(model: Model, found: Microcanonical, args: tuple[Tensor, Tensor], kwargs: dict[str, Tensor]) -> str:
    """How far the chains predict the same, for the log."""
    if next(iter(found.samples_by_chain.values())).shape[1] < 2:
        return "chains: one draw of each, too few to compare what they predict"
    x, y = (part[:_MOST_ROWS] for part in args)
    kwargs = {name: part[:_MOST_ROWS] for name, part in kwargs.items()}
    count = min(map(len, found.samples_by_chain.values()))
    chains = [{name: value[c] for name, value in found.samples_by_chain.items()} for c in range(count)]
    rhat = fits_agree(model, chains, x, y, num_samples=len(next(iter(chains[0].values()))), **kwargs).rhat
    how = f"R-hat of predictions over chains: median {float(rhat.median()):.2f}, greatest {float(rhat.max()):.2f}"
    return f"chains: {how} (1.05 is one distribution; above it predictions average over modes)"


def _without_budget(
    model: Model,
    guide: JointGuide,
    args: tuple[Tensor, Tensor],
    kwargs: dict[str, Tensor],
    engine: str,
    num_samples: int,
    num_steps: int | None,
) -> Posterior:
    """What one engine finds by itself: the same at every call, for no time is taken."""
    each = math.ceil(num_samples / _POPULATIONS)
    options = {"progress": False, **kwargs}
    if engine == "refine":
        sizes = {"num_samples": _POPULATIONS * each, "num_populations": _POPULATIONS}
        refined = refine(model, *args, **sizes, **options)
        return Posterior(refined.samples, "refined", because=_NOT_JUDGED, refined=refined)
    if engine == "nuts":
        found = nuts(model, *args, num_samples=each, num_chains=_POPULATIONS, **options)
        return Posterior(found.samples, "nuts", because=_NOT_JUDGED)
    trained = fit(model, guide, args, kwargs=kwargs, num_steps=num_steps or _USUAL_STEPS, progress=False)
    return Posterior(draws(guide, num_samples=num_samples), because=_NOT_JUDGED, guide=guide, fit=trained)

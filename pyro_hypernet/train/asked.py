"""What a fit is asked to do, what of that it refuses, and where options went that were once its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.moved_options import spell_value, warn_of_moved
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.notices import warn_once
from pyro_hypernet.train.optimiser import Optim
from pyro_hypernet.train.traits import Traits

_OF_ELBO = ("num_particles", "gradient", "bound", "mode", "compile")
_OF_OPTIM = tuple(field.name for field in fields(Optim) if field.name != "method")
_OF_PLAN = ("anneal", "rejection")


@dataclass(frozen=True)
class Asked:
    """The values that a fit goes by; of the bound only its options count, the plan is what differs from the guide's."""

    elbo: VectorizedELBO
    optim: Optim
    plan: Plan


def put_in_place(asked: Asked, moved: Mapping[str, Any]) -> tuple[Asked, int]:
    """What was asked in all, options that `fit` once took itself included, with a warning; and how many starts to try.

    Raises:
        TypeError: If there never was such an option.
    """
    unknown = [name for name in moved if name not in (*_OF_ELBO, *_OF_OPTIM, *_OF_PLAN, "num_restarts")]
    if unknown:
        raise TypeError(f"fit() got an unexpected keyword argument {unknown[0]!r}.")
    if not moved:
        return asked, 1
    named = {"elbo": _OF_ELBO, "optim": _OF_OPTIM, "plan": _OF_PLAN}
    given = {where: {name: moved[name] for name in names if name in moved} for where, names in named.items()}
    made = {"elbo": "VectorizedELBO", "optim": "Optim", "plan": "Plan"}
    now = [spell_value(where, made[where], options) for where, options in given.items() if options]
    if "num_restarts" in moved:
        now.append("best_start(model, guide, args) before it")
    warn_of_moved("fit", moved, now)
    elbo = asked.elbo.with_options(**given["elbo"])
    asked = Asked(elbo, replace(asked.optim, **given["optim"]), replace(asked.plan, **given["plan"]))
    return asked, moved.get("num_restarts", 1)


def check(guide: Any, num_steps: int, elbo: Any, plan: Any = None) -> None:
    """Raises where the arguments of a fit are of the wrong kind, as `fit` says."""
    if not isinstance(guide, AutoHypernet):
        raise TypeError(
            f"fit trains an AutoHypernet; got {type(guide).__name__}. Train other guides with pyro.infer.SVI, which "
            "takes VectorizedELBO too; of a GuideMixture best_start takes the components, one by one."
        )
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a positive integer; got {num_steps!r}.")
    if elbo is not None and not isinstance(elbo, VectorizedELBO):
        raise TypeError(f"elbo must be a VectorizedELBO; got {type(elbo).__name__}: pyro.infer.SVI trains by others.")
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, such as Plan(rejection=None); got {plan!r}.")


def check_restarts(num_restarts: int, *, most: float) -> None:
    """Raises unless the number of restarts is an integer from 1 to `most`."""
    if not isinstance(num_restarts, int) or not 1 <= num_restarts <= most:
        raise ValueError(f"num_restarts must be an integer from 1 to {most}; got {num_restarts!r}.")


def check_traits(traits: Traits, batches: Batches, rejection: str | tuple[float, ...] | None) -> None:
    """Raises where minibatches cannot give the posterior of all data, or rejection has no density to go by."""
    are_shards = batches.processes.are_shards
    is_several = are_shards or (batches.length is not None and batches.length > 1)
    if traits.is_unscaled and is_several:
        raise ValueError(_spell_unscaled(traits, batches))
    has_all = (batches.is_fixed or batches.length == 1) and not are_shards
    if rejection not in ("auto", None) and (traits.noise or not has_all):
        why, spelt = traits.noise or "args gives minibatches", rejection[0] if len(rejection) == 1 else rejection
        raise ValueError(
            f"rejection={spelt} needs the same density of all data at every call, but {why}. Pass all data as "
            "one tuple, without subsample_size, or leave rejection out."
        )


def _spell_unscaled(traits: Traits, batches: Batches) -> str:
    size, count = batches.spell_size(), "several" if batches.length is None else batches.length
    whose = "every process other" if batches.processes.are_shards else count
    return (
        f"args gives {whose} minibatches, but the likelihood of {', '.join(map(repr, traits.unscaled))} counts every "
        "minibatch once (scale 1): the posterior would be that of one minibatch, far too wide. Scale it to all data: "
        f"bayesianize(..., num_data={size}), or pyro.plate(..., size={size}, subsample_size=len(x))."
    )


def check_scales(guide: AutoHypernet, batches: Batches, traits: Traits) -> None:
    """At the second step: raises for what was not certain before, and says what is not certainly wrong."""
    if batches.is_fixed or batches.number == 0 or not traits.unscaled:
        return
    if traits.is_unscaled:
        raise ValueError(_spell_unscaled(traits, batches))
    warn_once(guide, "not scaled", _spell_unscaled(traits, batches))


@contextmanager
def told_num_data(model: Model, batches: Batches) -> Iterator[None]:
    """Gives a model whose `num_data` is None, a network of `bayesianize`, that of the batches for the while."""
    asks = getattr(model, "num_data", 0) is None and not batches.is_fixed
    if asks:
        model.num_data = batches.num_data
    try:
        yield
    finally:
        if asks:
            model.num_data = None

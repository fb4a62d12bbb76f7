"""What a fit is asked to do, and what of that it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.single_run import Model
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.notices import warn_once
from pyro_hypernet.train.optimiser import Optim
from pyro_hypernet.train.traits import Traits


@dataclass(frozen=True)
class Asked:
    """The values that a fit goes by; of the bound only its options count, the plan is what differs from the guide's."""

    num_steps: int
    elbo: VectorizedELBO
    optim: Optim
    plan: Plan


def check(guide: Any, num_steps: int, elbo: Any, plan: Any = None, *, kind: Any = AutoHypernet) -> None:
    """Raises where the arguments of a fit are of the wrong kind, as `fit` says."""
    if not isinstance(guide, kind):
        if _is_wrapper(guide):
            raise TypeError(
                f"fit takes the guide itself, not in a {type(guide).__name__}: the processes of a group exchange the "
                "guide's gradients by themselves, and only data loaders are to be set up for it."
            )
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


def refuse_wrapped(model: Any) -> None:
    """Raises where the model is a module in a wrapper for several processes, which cannot be run at drawn weights."""
    if _is_wrapper(model):
        raise TypeError(
            f"fit takes the model itself, not in a {type(model).__name__}: pass model.module. The processes of a group "
            "exchange gradients by themselves, and only data loaders are to be set up for it."
        )


def _is_wrapper(value: Any) -> bool:
    """Whether it is a module in a wrapper for several processes, of torch's or of Lightning Fabric's."""
    return isinstance(value, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or (
        isinstance(value, nn.Module) and hasattr(value, "_original_module")
    )


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

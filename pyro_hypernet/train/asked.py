"""What a fit is asked to do, and where options went that were once its own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.model.moved_options import spell_value, warn_of_moved
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.optimiser import Optim

_OF_ELBO = ("num_particles", "gradient", "bound", "mode", "compile")
_OF_OPTIM = tuple(field.name for field in fields(Optim) if field.name != "method")
_OF_PLAN = ("anneal", "rejection")


@dataclass(frozen=True)
class Asked:
    """The values that a fit goes by.

    Attributes:
        elbo: The bound; only its options count.
        optim: How parameters are stepped.
        plan: What is to be otherwise than in the guide's plan.
    """

    elbo: VectorizedELBO
    optim: Optim
    plan: Plan


def put_in_place(asked: Asked, moved: Mapping[str, Any]) -> tuple[Asked, int]:
    """Puts options that `fit` once took itself where they are now, with a warning.

    Args:
        asked: What was asked by the values.
        moved: Options by their old names.

    Returns:
        What was asked in all, and how many starts to try.

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
    elbo = VectorizedELBO(**{**asked.elbo.options, **given["elbo"]})
    asked = Asked(elbo, replace(asked.optim, **given["optim"]), replace(asked.plan, **given["plan"]))
    return asked, moved.get("num_restarts", 1)

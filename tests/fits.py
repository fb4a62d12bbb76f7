"""`fit` with the options of its bound, optimiser and plan given flat, as tests vary them one at a time."""

from dataclasses import fields, replace
from typing import Any

from pyro_hypernet import Fit, Optim, Plan, VectorizedELBO
from pyro_hypernet import fit as fit_by_values

_OF_ELBO = ("num_particles", "gradient", "bound", "mode", "compile")
_OF_OPTIM = tuple(field.name for field in fields(Optim) if field.name != "method")
_OF_PLAN = ("anneal", "rejection")


def fit(*args: Any, **options: Any) -> Fit:
    """Trains a guide; options that are of a value are put into it."""

    def taken(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if name in options}

    if of_elbo := taken(_OF_ELBO):
        options["elbo"] = (options.get("elbo") or VectorizedELBO()).with_options(**of_elbo)
    if of_optim := taken(_OF_OPTIM):
        options["optim"] = replace(options.get("optim") or Optim(), **of_optim)
    if of_plan := taken(_OF_PLAN):
        options["plan"] = replace(options.get("plan") or Plan(), **of_plan)
    return fit_by_values(*args, **options)

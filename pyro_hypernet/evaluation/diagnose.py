"""diagnose: everything that can be said of a guide without a reference, as a verdict in words."""

from typing import Any

from pyro_hypernet.evaluation.diagnostics import elbo, khat
from pyro_hypernet.evaluation.verdict import BAD, DOUBTFUL, GOOD, Check, Diagnosis, diagnosis_of
from pyro_hypernet.vectorize import Model


def diagnose(
    model: Model, guide: Any, *args: Any, fit: Any = None, num_samples: int = 2000, **kwargs: Any
) -> Diagnosis:
    """Looks at a guide from all sides that need no reference and says whether to use it.

    Args:
        model: The Pyro model.
        guide: A trained guide.
        args: The model's arguments, data included.
        fit: What `fit` returned, to look at how training went.
        num_samples: Number of draws of the guide.
        kwargs: The model's keyword arguments.

    Returns:
        The verdict, its reasons and its figures.
    """
    bound, error = elbo(model, guide, *args, num_samples=num_samples, **kwargs)
    k = khat(model, guide, *args, num_samples=num_samples, **kwargs)
    level = GOOD if k <= 0.5 else DOUBTFUL if k <= 0.7 else BAD
    remedy = "" if level == GOOD else "Train longer, use a richer guide, or refine(model, *args)."
    check = Check("k-hat", k, level, f"The importance weights of its draws have k-hat {k:.2f}.", remedy)
    return diagnosis_of((check,), elbo=bound, elbo_error=error, khat=k, num_draws=num_samples)

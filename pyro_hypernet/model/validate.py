"""What a guide checks before any work: data, sites, supports, density and memory."""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions
import torch
from pyro.infer.autoguide import init_to_value
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout, Site, minibatch_plates, minibatches
from pyro_hypernet.model.single_run import Model, outside_of_pyro, trace_aside, trace_outside

# Supports of finite volume; and the masked places of a site that are looked at.
_WITH_ENDS = (
    constraints.interval,
    constraints.half_open_interval,
    type(constraints.simplex),
    type(constraints.corr_cholesky),
    type(pyro.distributions.constraints.corr_matrix),
)
_MAX_MASKED = 100


def spell_bytes(count: float) -> str:
    """A number of bytes with a unit, such as "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def raise_for_nan(arguments: dict[str, Any]) -> None:
    """Raises a ValueError that names the first argument with NaN in it, if there is one."""
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            raise ValueError(
                f"Argument {name!r} holds NaN in {int(value.isnan().sum())} of {value.numel()} places, and the model's "
                "density is NaN there: drop or impute those rows, or mask them in the model (poutine.mask, over "
                f"{name}.nan_to_num())."
            )


def refuse_local_latents(trace: Trace) -> None:
    """Raises a ValueError where a latent site lies inside a subsampled plate."""
    for name, node in trace.iter_stochastic_nodes():
        for frame in minibatch_plates(node):
            raise ValueError(
                f"Latent site {name!r} lies inside the subsampled plate {frame.name!r} ({frame.size} of "
                f"{frame.full_size}): one flow over all weights cannot serve latents that change with the "
                "minibatch. Draw it outside of the plate, sum or integrate it out, or block it from this guide and "
                "give it a guide of its own in an AutoGuideList."
            )


def refuse_vanished_priors(model: Model, layout: Layout, trace: Trace, args: tuple, kwargs: dict) -> None:
    """Raises a ValueError where a mask takes away a latent's prior and nothing else of the model depends on it.

    With no prior and no likelihood its posterior is flat on an endless support, so that there is none; where the
    likelihood depends on it, or the support has an end, it may have one, as after `ImproperUniform`. Latents that
    `obs_mask` makes have a prior in all places in our densities, see `single_run.trace_one`.
    """
    values = {name: trace.nodes[name]["value"].detach() for name in layout.names}
    for site in layout.sites:
        node = trace.nodes[site.name]
        mask, is_of_obs_mask = node["mask"], site.name.endswith("_unobserved")
        if mask is None or mask is True or is_of_obs_mask or not _is_endless(site):
            continue
        batch_shape = node["fn"].batch_shape
        masked = ~torch.as_tensor(mask, device=node["value"].device).expand(batch_shape).reshape(-1)
        for place in masked.nonzero().flatten()[:_MAX_MASKED].tolist():
            if _is_flat(model, values, site.name, place, masked.numel(), args, kwargs):
                raise ValueError(
                    f"The prior of latent site {site.name!r} is masked out in {int(masked.sum())} of {len(masked)} "
                    "places, and nothing else depends on what it is there: any value is as good as any other, so that "
                    "there is no posterior. Draw it outside of poutine.mask, or draw only what is not masked."
                )


def _is_flat(
    model: Model, values: dict[str, Tensor], name: str, place: int, places: int, args: tuple, kwargs: dict
) -> bool:
    """Whether the density stays what it is, beside what is masked, when one event of a site is moved."""
    totals = []
    for factor in (1.0, 2.0, 7.0):
        moved = values[name].reshape(places, -1).clone()
        moved[place] = moved[place] * factor + (factor - 1.0)
        changed = {**values, name: moved.reshape(values[name].shape)}
        totals.append(float(trace_aside(model, changed, args, kwargs, seed=0).log_prob_sum()))
    return all(abs(total - totals[0]) <= 1e-6 * (1 + abs(totals[0])) for total in totals)


def _is_endless(site: Site) -> bool:
    """Whether a flat density on its support has no integral."""
    support = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return not isinstance(support, _WITH_ENDS)


def refuse_minibatches(trace: Trace, what: str) -> None:
    """Raises a ValueError where a plate draws a minibatch, for `what` needs the same likelihood at every call."""
    for frame in minibatches(trace):
        raise ValueError(
            f"Plate {frame.name!r} draws a minibatch of {frame.size} out of {frame.full_size}, so that the "
            f"likelihood is another at every call: {what} needs all data at once. Leave subsample_size out here; "
            "where all data are too many, train by fit and judge by predictions of data held out."
        )


def refuse_random_density(log_joint: LogJoint, w: Tensor, what: str, args: tuple, kwargs: dict | None = None) -> None:
    """Raises a ValueError where the density at weights `(S, D)` is another at every call; `what` needs one."""
    changed = log_joint.random_sites(w, *args, **(kwargs or {}))
    if changed:
        sites = ", ".join(map(repr, changed))
        raise ValueError(
            f"The log density of site {sites} is another at every call with the same weights: {what} needs one "
            "density. Leave subsample_size out, put dropout into eval mode, and pass as arguments what the model draws "
            "at random or changes by itself."
        )


def check_start(log_joint: LogJoint, loc: Tensor, arguments: dict[str, Any], args: tuple, kwargs: dict) -> None:
    """Raises where the density at the start is not a finite number, and says why."""
    with torch.no_grad(), outside_of_pyro():
        terms = log_joint.site_log_probs(loc, *args, **kwargs)
    bad = {name: float(value) for name, value in terms.items() if not math.isfinite(value)}
    if bad:
        raise_for_nan(arguments)
        listed = ", ".join(f"{name!r} ({value})" for name, value in bad.items())
        raise ValueError(
            f"The density at the start is not finite at site {listed}: check the data against the site's support, or "
            "start elsewhere with init_loc_fn=."
        )


def refuse_dependent_supports(model: Model, layout: Layout, loc: Tensor, args: tuple, kwargs: dict) -> None:
    """Runs the model at another point: sites, shapes and supports must be the same there."""
    elsewhere = init_to_value(values=layout.constrain(loc + 0.5)[0], fallback=None)
    started = InitMessenger(partial(_latent_or_sample, elsewhere))(model)
    with torch.no_grad(), pyro.validation_enabled(False):
        layout.check(Layout.from_trace(trace_outside(started, args, kwargs)), "a run at other weights")


def _latent_or_sample(init: Callable[..., Any], site: dict[str, Any]) -> Tensor:
    """The initial value of a latent site; a draw for one that belongs to another guide."""
    if site["name"] in init.keywords["values"]:
        return init(site)
    value = site["fn"].sample()
    value._pyro_custom_init = False  # a reparametrisation may put another in its place without Pyro's warning
    return value


def refuse_what_cannot_fit(make: Callable[[Tensor], torch.nn.Module], loc: Tensor) -> None:
    """Builds the map without memory, counts its bytes, and raises where they exceed what is free."""
    try:
        with torch.device("meta"):
            parameters = list(make(loc.detach().to("meta")).parameters())
    except (NotImplementedError, RuntimeError):  # a foreign map that cannot be built without memory
        return
    count = sum(parameter.numel() for parameter in parameters)
    needed, free = 4 * count * loc.element_size(), _free_bytes(loc.device)
    if needed > free:
        raise ValueError(
            f"The guide is too large for memory: {count} parameters need {needed} bytes ({spell_bytes(needed)}) with "
            f'gradient and Adam\'s two moments, and {spell_bytes(free)} are free. Use structure="low_rank", '
            f'"weight_norm" or "last_layer", or a smaller hypernet, for these {len(loc)} weights.'
        )


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf

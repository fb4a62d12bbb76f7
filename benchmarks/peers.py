"""Every guide and sampler that the benchmark compares, behind one call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
from peers_numpyro import NUMPYRO_PEERS
from peers_pyro import NUM_DRAWS, PYRO_PEERS, Outcome, judge, measure

from models.references import Reference
from pyro_hypernet import AutoHypernet, Plan, VectorizedELBO, fit, move, refine
from pyro_hypernet.maps.hypernets import coupling, iaf

# A peer is called as peer(reference, num_steps, num_particles, learning_rate, seed).
Peer = Callable[..., Outcome]

# What differs from AutoHypernet(model) and fit(model, guide, args): options of the guide, options of fit.
OURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "no rejection": ({}, {"plan": Plan(rejection=None)}),
    "8 couplings": ({"hypernet": partial(coupling, num_layers=8)}, {}),
    "4 IAF": ({"hypernet": iaf}, {}),
    "linear": ({"hypernet": "linear"}, {}),
}

# The default, whose draws are moved so many times: no density, so no bound.
MOVES = {"4 moves": 4, "16 moves": 16}


def run_hypernet(
    variant: str,
    reference: Reference,
    num_steps: int | None,
    num_particles: int | None,
    learning_rate: float | None,
    seed: int,
) -> Outcome:
    """Fits an AutoHypernet, and moves its draws; None stands for the default of `fit`."""
    of_guide, of_fit = OURS["default" if variant in MOVES else variant]
    elbo = None if num_particles is None else VectorizedELBO(num_particles)
    budget = {"num_steps": num_steps, "elbo": elbo, "optim": learning_rate}
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoHypernet(reference.model, **of_guide)
    options = {**of_fit, **{name: value for name, value in budget.items() if value is not None}}
    result = fit(reference.model, guide, reference.args, progress=False, **options)
    notes = {"skipped": float(result.num_skipped)}
    if variant not in MOVES:
        return measure(reference, guide, result.seconds, notes)
    sizes = {"num_samples": NUM_DRAWS, "num_moves": MOVES[variant]}
    moved = move(reference.model, guide, *reference.args, **sizes, progress=False)
    notes |= {"seconds_of_moves": moved.seconds, "leapfrogs": float(moved.num_leapfrogs), "shift": moved.shift}
    return judge(reference, moved.samples, result.seconds + moved.seconds, notes=notes)


def run_refine(
    reference: Reference, num_steps: Any = None, num_particles: Any = None, learning_rate: Any = None, seed: int = 0
) -> Outcome:
    """Tempered sequential Monte Carlo from the prior; its bound is the log evidence.

    The middle three arguments are those of every peer and have no meaning here.
    """
    pyro.set_rng_seed(seed)
    refined = refine(reference.model, *reference.args, num_samples=NUM_DRAWS, progress=False)
    notes = {"acceptance": sum(refined.acceptance) / len(refined.acceptance), "max_rhat": refined.max_rhat}
    bound = (refined.log_evidence, refined.log_evidence_error)
    return judge(reference, refined.samples, refined.seconds, bound=bound, notes=notes)


OUR_NAMES: dict[str, str] = {
    "AutoHypernet" if variant == "default" else f"AutoHypernet, {variant}": variant for variant in (*OURS, *MOVES)
}
# Neither steps nor step size: once per seed, and NUTS once per task.
SAMPLERS = ("refine", "numpyro NUTS")

PEERS: dict[str, Peer] = {
    **{name: partial(run_hypernet, variant) for name, variant in OUR_NAMES.items()},
    "refine": run_refine,
    **PYRO_PEERS,
    **NUMPYRO_PEERS,
}

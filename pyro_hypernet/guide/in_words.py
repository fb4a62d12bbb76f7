"""What a guide is, for a reader who knows Bayesian statistics and not this package."""

from typing import Any

from pyro_hypernet.guide.plan import Plan, spelt
from pyro_hypernet.informed.detect import Knowledge
from pyro_hypernet.maps.hypernets import MAX_TRIANGULAR_DIM

# What the network moves, and what kind of network it is, by nickname.
STRUCTURES_IN_WORDS = {
    "informed": "a network moves all weights together; what was found out about the model is built in",
    "full": "a network moves all weights together, so that any may depend on any other",
    "layerwise": "every site has a network of its own; sites are independent of each other",
    "last_layer": "a network moves some sites; all others are independent normals",
    "low_rank": "a network moves the weights along a few directions that are learnt; across these they are independent",
    "weight_norm": "a network moves the biases, and the norm of the weights into every output unit",
    "multiplicative": "a network moves the biases, and the norm of the weights out of every input unit",
    "patterns": "a network moves the biases, and factors by which whole patterns of weights are multiplied",
}
HYPERNETS_IN_WORDS = {
    "identity": "no network; independent normals, but for what the structure builds in",
    "linear": "normal distributions with correlations",
    "nice": "layers that shift one half of the coordinates by functions of the other half",
    "coupling": "layers that shift and scale one half of the coordinates by functions of the other half",
    "spline": "layers that bend every coordinate of one half by splines that depend on the other half",
    "iaf": "layers that shift and scale every coordinate by functions of those before it",
    "sets": "layers that shift and scale the weights of interchangeable hidden units alike, and all others",
    "by_size": "layers that shift and scale one half of the coordinates by functions of the other, a spline for one",
}

_UNDERFITS = (
    "so many weights: unless data are many they stay near their prior and predictions underfit; hold some data out and "
    'compare, by choose_model, with bayesianize(net, parametrization="weight_norm") and with wider priors, '
    "fan_in(gain=4); choose_temperature is another way."
)


def in_words(plan: Plan, asked: Plan, knowledge: Knowledge | None, rate: float | None, num_weights: int) -> str:
    """Lines on what was chosen, what was found out about the model, and how `fit` will train.

    Args:
        plan: What the guide is.
        asked: What was asked for.
        knowledge: What was found out.
        rate: The share of proposals that draws keep; None where all are kept.
        num_weights: Random weights of a large network; 0 where the model is none.
    """
    lines = [
        _choice("structure", plan.structure, asked.structure, STRUCTURES_IN_WORDS),
        _choice("hypernet", plan.hypernet, asked.hypernet, HYPERNETS_IN_WORDS),
        *([str(knowledge)] if knowledge else []),
        f"{plan}.",
        *([f"One in {1 / rate:.0f} proposals is kept."] if rate is not None else []),
        *([_UNDERFITS] if num_weights > MAX_TRIANGULAR_DIM and plan.temperature == 1 else []),
    ]
    return "\n".join(f"  {line}" for line in "\n".join(lines).splitlines())


def _choice(what: str, chosen: Any, asked: Any, words: dict[str, str]) -> str:
    name = spelt(chosen)
    plainly = words.get(name.split("(")[0])
    return f"{what} {name}{' (chosen by auto)' if asked == 'auto' else ''}{f': {plainly}' if plainly else ''}."

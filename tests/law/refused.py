"""What is refused, with the reason and the message that is due: the one table of the law's exceptions.

A pair of a style and an idiom that is listed here must raise what stands here; one that is not must work.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.traces import observed_nodes
from tests.law.bench import GUIDES
from tests.law.idioms import IDIOMS, NotApplicable
from tests.law.style import Style
from tests.law.styles import STYLES


@dataclass(frozen=True)
class Refusal:
    """Triples of a style, an idiom and a guide that raise.

    Attributes:
        styles: Patterns of names, joined by "|"; or a function that tells by the style.
        idioms: Patterns of names, joined by "|".
        guides: Likewise.
        reason: Why, for the table in the documentation.
        error: What is raised.
        message: A regular expression that its message holds.
        by: "us"; "Pyro", whose own guide raises at the same place; or "nobody", where the idiom has no meaning.
    """

    styles: str | Callable[[Style], bool]
    idioms: str
    guides: str
    reason: str
    error: type[Exception] | tuple[type[Exception], ...]
    message: str
    by: str = "us"

    def covers(self, style: str, idiom: str, guide: str) -> bool:
        """Whether a triple is refused by this."""
        return matches(self.idioms, idiom) and matches(self.guides, guide) and style in self.named

    @cached_property
    def named(self) -> list[str]:
        """The names of the styles."""
        if isinstance(self.styles, str):
            return [name for name in STYLES if matches(self.styles, name)]
        return [name for name, make in STYLES.items() if self.styles(make())]


def matches(patterns: str, name: str) -> bool:
    """Whether a name fits one of some patterns joined by "|"."""
    return any(fnmatchcase(name, pattern) for pattern in patterns.split("|"))


def latents(style: Style) -> Layout:
    """The latent sites of a style whose sites are all continuous."""
    return Layout.from_trace(poutine.trace(style.guided).get_trace(*style.args, **style.kwargs))


def has_one_weight(style: Style) -> bool:
    return _count(style, weights=True) == 1


def has_one_site(style: Style) -> bool:
    return _count(style, weights=False) == 1


def _count(style: Style, *, weights: bool) -> int:
    try:
        layout = latents(style)
    except (ValueError, NotImplementedError):  # no guide can serve it
        return 0
    return layout.dim if weights else len(layout.sites)


def observes_several_sites(style: Style) -> bool:
    return len(_observed(style)) > 1


def observes_nothing(style: Style) -> bool:
    return not _observed(style)


def _observed(style: Style) -> list[str]:
    try:
        trace = poutine.trace(style.guided).get_trace(*style.args, **style.kwargs)
    except (ValueError, NotImplementedError):  # no guide can serve it
        return ["unknown"]
    return list(observed_nodes(trace, {}))


def has_fixed_rows(style: Style) -> bool:
    return style.at is None


def takes_other_things_than_tensors(style: Style) -> bool:
    return bool(style.kwargs) or not style.args or not all(isinstance(value, Tensor) for value in style.args)


def latents_in_plates(style: Style) -> bool:
    try:
        return any(plate for site in latents(style).sites for plate in site.plates)
    except (ValueError, NotImplementedError):
        return False


def starts_in_a_plate(style: Style) -> bool:
    try:
        first = latents(style).sites[0]
    except (ValueError, NotImplementedError):
        return False
    return math.prod(first.shape[: len(first.shape) - first.event_dim]) > 1


def is_made_of_modules(style: Style) -> bool:
    return isinstance(getattr(style.model, "__self__", style.model), PyroModule)


def does_not_broadcast(style: Style) -> bool:
    return not style.broadcasts


OTHER_ROWS = "*, shorter|*, longer|*, one row|call, many sizes"
PYRO_VECTORISED = (
    "Predictive, parallel, *|WeighedPredictive, parallel|vectorized_importance_weights|*, vectorised|"
    "Trace_ELBO, many vectorised particles|TraceTailAdaptive_ELBO|EnergyDistance"
)
JIT = "JitTrace*"
WHOLE_DATA = "khat|reject|fit, rejection|resample|metropolis|move|loo|diagnose"

REFUSED: list[Refusal] = [
    # No guide of Pyro's can serve these models.
    Refusal(
        "sequential plate",
        "*",
        "*",
        "latents in a sequential plate",
        NotImplementedError,
        "sequential pyro.plate",
        "Pyro",
    ),
    Refusal(
        "obs_mask",
        "EnergyDistance",
        "*",
        "Pyro's energy distance reshapes the masked half of a site",
        RuntimeError,
        "is invalid for input of size",
        "Pyro",
    ),
    Refusal("sphere", "*", "*", "a latent on a sphere has no map from the real line", ValueError, "spherical", "Pyro"),
    Refusal("discrete", "*", "*", "a discrete latent", ValueError, "discrete", "Pyro"),
    Refusal(
        "improper",
        "AutoGuideList*|Predictive, parallel, same|Predictive, sequential, same|WeighedPredictive, *",
        "*",
        "Pyro's own code draws from a prior that cannot be sampled",
        NotImplementedError,
        "does not support sampling",
        "Pyro",
    ),
    Refusal(
        "subsampled latent",
        "*",
        "*",
        "a latent in a subsampled plate changes with the minibatch; Pyro's guides get it wrong in silence",
        ValueError,
        "lies inside the subsampled plate",
    ),
    Refusal(
        "masked latent",
        "*",
        "*",
        "a latent without prior and likelihood has no posterior; Pyro's guides give it one in silence",
        ValueError,
        "is masked out in 1 of 2 places, and nothing else depends on",
    ),
    # Ours cannot.
    Refusal(
        has_one_weight,
        "*",
        "two components",
        "a mixture's network needs two coordinates",
        ValueError,
        "needs at least two unconstrained weights",
    ),
    Refusal(
        "*",
        "lift|substitute",
        "*",
        "a handler that puts other values in the place of the guide's parameters",
        ValueError,
        "puts another value in the place",
    ),
    Refusal(
        "subsampled|enumerated beside",
        WHOLE_DATA,
        "*",
        "no density of the latents alone: a minibatch or a discrete site is drawn anew at every call",
        ValueError,
        "draws|is not among the guide's sites",
    ),
    Refusal(
        "enumerated beside",
        "VectorizedELBO*",
        "*",
        "a discrete site beside has to be summed out by TraceEnum_ELBO",
        ValueError,
        "sum it out with TraceEnum_ELBO",
    ),
    Refusal(
        observes_several_sites,
        "loo",
        "*",
        "which site is left out is to be said: loo(..., site=)",
        ValueError,
        "name one by site=",
    ),
    Refusal(
        observes_nothing,
        "loo",
        "*",
        "there is nothing to leave out",
        ValueError,
        "observes nothing",
    ),
    Refusal(
        "closure",
        "pickle|torch.save",
        "default|fitted",
        "draws need the model, and a function inside a function cannot be pickled",
        TypeError,
        "pyro_hypernet.save",
    ),
    Refusal(
        "function",
        "save and load",
        "fitted",
        "a file cannot hold a function, and draws are chosen by the density at the arguments: load takes them",
        ValueError,
        "pass them, load",
    ),
    Refusal(
        "net *",
        JIT,
        "*",
        "torch.jit cannot trace a network whose parameters are drawn; VectorizedELBO and fit capture the step",
        NotImplementedError,
        "use VectorizedELBO, or fit",
    ),
    Refusal(
        "pyro.module|param",
        "module_local_params",
        "*",
        "Pyro has no pyro.param statements of a model's own in this mode",
        NotImplementedError,
        "not yet implemented",
    ),
    Refusal(
        takes_other_things_than_tensors,
        JIT,
        "*",
        "Pyro's Jit ELBOs trace tensors only",
        Exception,
        ".",
        "Pyro",
    ),
    # There is nothing to do.
    Refusal(has_fixed_rows, OTHER_ROWS, "*", "the model's rows are fixed", NotApplicable, "rows", "nobody"),
    Refusal(
        takes_other_things_than_tensors,
        "torch.jit.trace",
        "*",
        "torch.jit.trace takes tensors as arguments",
        NotApplicable,
        "tensors",
        "nobody",
    ),
    Refusal(
        is_made_of_modules,
        "module_local_params",
        "*",
        "a PyroModule keeps the setting that it was made under",
        NotApplicable,
        "made before",
        "nobody",
    ),
    Refusal(has_one_site, "AutoGuideList, shared", "*", "there is one site", NotApplicable, "one site", "nobody"),
    # What Pyro's idiom asks of the model.
    Refusal(
        "simplex*",
        "Predictive, parallel, same|WeighedPredictive, parallel",
        "*",
        "Pyro unpacks a latent whose shape and unconstrained shape differ without room for the model's plates",
        ValueError,
        "Shape mismatch inside plate",
        "Pyro",
    ),
    Refusal(
        starts_in_a_plate,
        "NeuTra",
        "*",
        "NeuTraReparam counts a guide's log determinant once for every place of the first site's plates",
        AssertionError,
        "not close",
        "Pyro",
    ),
    Refusal(
        does_not_broadcast,
        PYRO_VECTORISED,
        "*",
        "the model is written for one draw; VectorizedELBO and predict vmap it",
        Exception,
        ".",
        "Pyro",
    ),
    Refusal(
        latents_in_plates,
        "plate*",
        "*",
        "a plate without room: the guide's latents stand in plates of their own, and Pyro's reshaping fails",
        Exception,
        ".",
        "Pyro",
    ),
    Refusal(
        "enumerated beside",
        "*ELBO*|Importance|Weighed*|replay of the model|vectorized*|AutoGuideList*|EnergyDistance|ReweightedWakeSleep",
        "*",
        "the guide lacks the discrete site, which only TraceEnum_ELBO sums out",
        Exception,
        ".",
        "Pyro",
    ),
]


def refusal_of(style: str, idiom: str, guide: str) -> Refusal | None:
    """The first entry that covers a triple; None where it must work."""
    return next((refusal for refusal in REFUSED if refusal.covers(style, idiom, guide)), None)


BY = {
    "us": "refused by us",
    "Pyro": "Pyro's own guide cannot either",
    "nobody": "has no meaning",
}


def table() -> str:
    """The page `docs/idioms.md`."""
    rows = [
        f"| {_spell(refusal.styles, refusal.named)} | {_listed(refusal.idioms)} | {_listed(refusal.guides)} "
        f"| {refusal.reason} | {BY[refusal.by]} |"
        for refusal in REFUSED
    ]
    return "\n".join(
        [
            "# Models, idioms, guides: what works and what is refused",
            "",
            f"`tests/law` tries {len(STYLES)} styles of models with {len(IDIOMS)} idioms and {len(GUIDES)} guides: a "
            "walk through them in `make test`, all",
            "with `pytest -m slow tests/law`, where the guides take turns. Draws are finite, of the right shapes and "
            "distributed like",
            "`sample_posterior`, densities equal `log_prob`; or the pair stands in this table, which is made from "
            "`tests/law/refused.py` by",
            "`python -m tests.law.refused > docs/idioms.md`. An entry that is refused no longer fails a test.",
            "",
            "| models | idioms | guides | why | |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## The models",
            "",
            _listed("|".join(STYLES)),
            "",
            "## The idioms",
            "",
            _listed("|".join(IDIOMS)),
            "",
            "## The guides",
            "",
            _listed("|".join(GUIDES)),
            "",
        ]
    )


def _listed(patterns: str) -> str:
    return "all" if patterns == "*" else "; ".join(patterns.split("|"))


def _spell(styles: str | Callable[[Style], bool], named: list[str]) -> str:
    return _listed(styles) if isinstance(styles, str) else "; ".join(named)


if __name__ == "__main__":
    print(table(), end="")

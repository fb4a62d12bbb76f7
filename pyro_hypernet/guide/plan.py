"""What "auto" stands for in one guide, worked out once."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyro_hypernet.informed.detect import Knowledge
from pyro_hypernet.informed.structures import STRUCTURES, Structure, choose_structure, informed, resolve_structure
from pyro_hypernet.maps.hypernets import (
    HYPERNETS,
    MAX_TRIANGULAR_DIM,
    Hypernet,
    choose_hypernet,
    identity,
    linear,
    resolve_hypernet,
)

# How often the data of a network count at first.
ANNEAL = 5.0
# Shares of proposals to keep, of which `reject` chooses.
REJECTION_RATES = (0.5, 0.2, 0.1, 0.05)
_NUM_PARTICLES = 32


@dataclass(frozen=True)
class Plan:
    """How a guide is built, and how `fit` trains it where it is not told otherwise.

    `AutoHypernet(model, plan=Plan(...))` takes one in which anything may be "auto"; in `guide.plan`, after `setup`,
    nothing is. A guide with another guide's plan, or that names what "auto" chose there, is the same guide.

    Args:
        structure: The coordinates that the network moves, see `AutoHypernet`.
        hypernet: The network, see `AutoHypernet`.
        init_scale: Standard deviations at the start, positive; None for what the structure starts with.
        num_components: Number of Gaussians in the base.
        num_particles: Draws in one estimate of the bound. "auto": 32, or 1 where the guide starts at the values of a
            large network.
        anneal: How often the data count at first, positive. "auto": 5 where hidden units are moved as sets, else 1.
        rejection: Shares of proposals to keep, in (0, 1), of which the greatest that suffices is taken once the guide
            is trained, see `AutoHypernet.reject`; one share; or None, where every draw is kept. "auto": a half to a
            twentieth for the networks and structures that "auto" stands for, up to 2 000 weights, else None.
        temperature: T, of prior and entropy: the guide is fitted to prior × likelihood^(1/T), so that the data count
            1/T times. Below 1 this is a "cold" posterior, no posterior in Bayes' sense, which often predicts better
            where a network has many more weights than data; above 1 a broader one. `choose_temperature` picks it on
            held-out data. It is `fit` that counts so, not SVI by itself. "auto": 1.
            Source: Wenzel et al. 2020, arXiv 2002.02405.

    Raises:
        TypeError: If structure or hypernet is neither a nickname nor a function.
        ValueError: If a nickname is unknown or a number out of its range.
    """

    structure: str | Structure = "auto"
    hypernet: str | Hypernet = "auto"
    init_scale: float | None = None
    num_components: int = 1
    num_particles: str | int = "auto"
    anneal: str | float = "auto"
    rejection: str | float | tuple[float, ...] | None = "auto"
    temperature: str | float = "auto"

    def __post_init__(self) -> None:
        resolve_hypernet(self.hypernet), resolve_structure(self.structure)
        if self.init_scale is not None and not _is_positive(self.init_scale):
            raise ValueError(f"init_scale must be a positive number or None; got {self.init_scale!r}.")
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(f"num_components must be a positive integer; got {self.num_components!r}.")
        particles = self.num_particles
        if particles != "auto" and (not isinstance(particles, int) or particles < 1):
            raise ValueError(f'num_particles must be "auto" or a positive integer; got {particles!r}.')
        if self.anneal != "auto" and not _is_positive(self.anneal):
            raise ValueError(
                f'anneal must be "auto" or a positive number, how often the data count; got {self.anneal!r}.'
            )
        if self.rejection is not None and self.rejection != "auto":
            object.__setattr__(self, "rejection", as_shares(self.rejection, 'rejection must be "auto", None or'))
        if self.temperature != "auto" and not _is_positive(self.temperature):
            raise ValueError(f'temperature must be "auto" or a positive number; got {self.temperature!r}.')
        if self.is_tempered and _is_informed(self.structure):
            raise ValueError(
                'The structure "informed" has the posterior at temperature 1 built in: make a guide by '
                f'AutoHypernet(model, plan=Plan("full", temperature={self.temperature})).'
            )

    @property
    def is_tempered(self) -> bool:
        """Whether the data are to count otherwise than once in the end."""
        return self.temperature not in ("auto", 1)

    @property
    def weight(self) -> float:
        """How often the data count in the end."""
        return 1.0 if self.temperature == "auto" else 1 / self.temperature

    def may_be_informed(self, dim: int, *, has_default_start: bool) -> bool:
        """Whether what is found out about a model of D weights may be built in.

        Where that is left to "auto", the Gaussians promise to be Gaussian, a mixture has its own modes, and a start
        that was asked for is kept.
        """
        if self.structure != "auto":
            return _is_informed(self.structure)
        is_gaussian = _function_of(resolve_hypernet(self.hypernet)) in (identity, linear)
        is_plain = self.num_components == 1 and not self.is_tempered
        return has_default_start and not is_gaussian and dim <= MAX_TRIANGULAR_DIM and is_plain

    def worked_out(self, dim: int, knowledge: Knowledge | None, *, is_at_network: bool = False) -> "Plan":
        """The same with nothing left to "auto".

        Args:
            dim: Number of weights D.
            knowledge: What is known of the model, if the structure may build it in.
            is_at_network: Whether it starts at the values of a large network, where steps are worth more than draws.
        """
        structure, hypernet = _nickname(self.structure, STRUCTURES), _nickname(self.hypernet, HYPERNETS)
        if structure == "auto":
            structure = choose_structure(dim, is_informed=bool(knowledge))
        if structure == "informed" and not knowledge:
            structure = "full"
        if hypernet == "auto":
            hypernet = _network(structure, dim, knowledge)
        is_default = structure in ("informed", "full") and hypernet in ("sets", "coupling", "spline")
        keeps_all = not is_default or dim > MAX_TRIANGULAR_DIM or self.num_components > 1
        usual = {
            "num_particles": 1 if is_at_network else _NUM_PARTICLES,
            "anneal": ANNEAL if hypernet == "sets" and self.num_components == 1 else 1.0,
            "rejection": None if keeps_all else REJECTION_RATES,
            "temperature": 1.0,
        }
        chosen = {name: value for name, value in usual.items() if getattr(self, name) == "auto"}
        return replace(self, structure=structure, hypernet=hypernet, **chosen)

    def beside(self, built: "Plan") -> "Plan":
        """A guide's plan, with what is asked for here in its place.

        Raises:
            ValueError: If the guide is built of anything else than this asks for.
        """
        usual = Plan()
        for name in ("structure", "hypernet", "init_scale", "num_components"):
            if getattr(self, name) not in (getattr(usual, name), getattr(built, name)):
                raise ValueError(
                    f"The guide was built with {name} {spelt(getattr(built, name))}; the plan asks for "
                    f"{spelt(getattr(self, name))}: make a guide by AutoHypernet(model, plan=...)."
                )
        asked = {name: getattr(self, name) for name in ("num_particles", "anneal", "rejection", "temperature")}
        return replace(built, **{name: value for name, value in asked.items() if value != "auto"})

    def __str__(self) -> str:
        rates = self.rejection
        number = self.num_particles
        parts = [f"{number} {'draw' if number == 1 else 'draws'} of the weights in every step"]
        if self.is_tempered:
            parts.append(
                f"temperature {self.temperature:g}, no Bayesian posterior: the data count {self.weight:g} times"
            )
        if self.anneal != 1:
            parts.append(f"the data count {self.anneal:g} times at first, and less and less as it goes on")
        if isinstance(rates, tuple):
            shares = f"{min(rates):.0%}" if len(rates) == 1 else f"{min(rates):.0%} to {max(rates):.0%}"
            parts.append(f"then the posterior may reject draws, until {shares} are kept")
        return f"fit: {', '.join(parts)}"


def as_shares(rates: Any, what: str) -> tuple[float, ...]:
    """Shares of draws to keep, in (0, 1), from one or several; `what` begins a message, such as "rates must be".

    Raises:
        ValueError: If there is none, or one is no such share.
    """
    shares = tuple(rates) if isinstance(rates, Iterable) and not isinstance(rates, str) else (rates,)
    if not shares or not all(isinstance(share, float) and 0 < share < 1 for share in shares):
        raise ValueError(f"{what} a share of draws to keep, in (0, 1), or several of them; got {rates!r}.")
    return shares


def spelt(choice: Any) -> str:
    """A nickname, or a function with its options, in words."""
    if isinstance(choice, partial):
        options = ", ".join(f"{key}={value!r}" for key, value in choice.keywords.items())
        return f"{choice.func.__name__}({options})"
    return choice if isinstance(choice, str) else getattr(choice, "__name__", repr(choice))


def _network(structure: str | Structure, dim: int, knowledge: Knowledge | None) -> str:
    """The nickname of the network that "auto" stands for."""
    is_informed = _is_informed(structure)
    if is_informed and knowledge and knowledge.is_whole:  # nothing is left for it to learn
        return "identity"
    if is_informed and knowledge and any(len(units.index) > 1 for units in knowledge.symmetries.groups):
        return "sets"
    return choose_hypernet(dim) if structure in ("informed", "full") else "by_size"


def _is_informed(structure: str | Structure) -> bool:
    return _function_of(resolve_structure(structure)) is informed


def _function_of(choice: Any) -> Any:
    """A function without the options that were given with it."""
    return choice.func if isinstance(choice, partial) else choice


def _nickname(choice: Any, nicknames: Mapping[str, Any]) -> Any:
    """The name of a function that has one, for both are the same choice."""
    return next((name for name, known in nicknames.items() if known is choice and name != "auto"), choice)


def _is_positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf

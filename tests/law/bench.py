"""A guide on a style of model, the draws it is held against, and the law itself."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from pyro_hypernet import AutoHypernet
from pyro_hypernet.evaluation.importance import weighted_draws
from pyro_hypernet.model.layout import Layout
from tests.fits import fit
from tests.law.style import Style
from tests.seeds import seed

# False alarms of one two-sample test. The whole table makes below 20 000 of them, so 2e-6 in all.
ALPHA = 1e-10
PROJECTIONS = 3
NUM_REFERENCE, NUM_FRAME = 2000, 500


def fitted(style: Style) -> AutoHypernet:
    """After a short `fit` that ends with rejection."""
    guide = AutoHypernet(style.guided)
    options = {"num_particles": 4, "num_steps": 40, "compile": "off", "progress": False}
    rejection = 0.4 if style.is_function else None
    fit(style.guided, guide, style.args, kwargs=dict(style.kwargs), rejection=rejection, **options)
    return guide


def after_setup(**options: Any) -> Callable[[Style], AutoHypernet]:
    return lambda style: AutoHypernet(style.guided, **options).setup(*style.args, **style.kwargs)


GUIDES: dict[str, Callable[[Style], Any]] = {
    "default": after_setup(),
    "fitted": fitted,
    "two components": after_setup(num_components=2),
    "full": after_setup(structure="full"),
}


class Stock(AutoMultivariateNormal):
    """Pyro's own guide with what the law asks of ours: what it cannot do either is Pyro's business."""

    layout = property(lambda self: Layout.from_trace(self.prototype_trace))

    @torch.no_grad()
    def sample_posterior(self, num_samples: int) -> dict[str, Tensor]:
        return self.layout.constrain(self.get_posterior().sample((num_samples,)))[0]

    def log_prob(self, samples: Mapping[str, Tensor]) -> Tensor:
        w, log_det = self.layout.unconstrain(samples)
        return self.get_posterior().log_prob(w) - log_det

    def reject(self, *_: Any, **__: Any) -> None:
        """Keeps every draw."""


def stock(style: Style) -> Stock:
    guide = Stock(style.guided)
    guide(*style.args, **style.kwargs)
    return guide


class Bench:
    """One guide on one style; idioms take it from here.

    Args:
        style: The style of model.
        make: From the style to a guide ready to draw.
    """

    def __init__(self, style: Style, make: Callable[[Style], Any]) -> None:
        self.style = style
        self._params: dict[str, Any] = {"params": {}, "constraints": {}}
        self._values: dict[str, Tensor] = {}
        with self.store():
            self._guide = make(style)

    @contextmanager
    def store(self) -> Iterator[None]:
        """The parameter store as it was after the guide was made; what an idiom does to it is forgotten."""
        store = pyro.get_param_store()
        with store.scope({key: dict(value) for key, value in self._params.items()}):
            yield
            if not self._params["params"]:
                self._params = store.get_state()
                self._values = {name: leaf.detach().clone() for name, leaf in self._params["params"].items()}
            with torch.no_grad():  # steps change the leaves themselves, which graphs hold
                for name, value in self._values.items():
                    leaf = self._params["params"][name]
                    if not torch.equal(leaf, value):  # a guide keeps its rejection as long as nothing is written
                        leaf.copy_(value)

    @property
    def guide(self) -> Any:
        """The guide itself, for idioms that change nothing."""
        return self._guide

    def twin(self) -> Any:
        """A copy to train, append or spoil."""
        if isinstance(self._guide, Stock):  # a copy of it has no model, nor has the original from then on
            return stock(self.style)
        return copy.deepcopy(self._guide)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The latent sites."""
        return self._guide.layout.names

    @cached_property
    def draws(self) -> dict[str, Tensor]:
        """The guide's own draws, `(NUM_FRAME + NUM_REFERENCE, *shape)`."""
        with self.store():
            return self._guide.sample_posterior(NUM_FRAME + NUM_REFERENCE)

    @cached_property
    def log_weights(self) -> Tensor:
        """log p − log q of 400 draws."""
        with self.store():
            style = self.style
            return weighted_draws(style.guided, self._guide, *style.args, num_samples=400, **style.kwargs).log_weights

    @cached_property
    def _frame(self) -> tuple[Tensor, Tensor]:
        flat = self._flatten({name: value[:NUM_FRAME] for name, value in self.draws.items()}, NUM_FRAME)
        quartiles = flat.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=flat.dtype), dim=0)
        return quartiles[1], (quartiles[2] - quartiles[0]).clamp(min=1e-12)

    @cached_property
    def _reference(self) -> Tensor:
        rest = {name: value[NUM_FRAME:] for name, value in self.draws.items()}
        return self._project(self._flatten(rest, NUM_REFERENCE))

    def _flatten(self, draws: Mapping[str, Tensor], number: int) -> Tensor:
        return torch.cat([draws[name].detach().reshape(number, -1).double() for name in self.names], -1)

    def _project(self, flat: Tensor) -> Tensor:
        """Bounded coordinates on a few directions: the first coordinate alone, then random ones; `(PROJECTIONS, S)`."""
        middle, width = self._frame
        standard = (flat - middle) / width
        squashed = standard / (1 + standard.abs())
        directions = torch.randn(
            PROJECTIONS, flat.shape[-1], generator=torch.Generator().manual_seed(seed()), dtype=torch.float64
        )
        directions[0] = 0.0
        directions[0, 0] = 1.0
        return directions @ squashed.mT

    def expect_draws(self, draws: Mapping[str, Tensor], number: int, what: str = "draws") -> None:
        """Finite, of the right size, inside the supports, and distributed like `sample_posterior`.

        Args:
            draws: From every latent site to `number` draws; singleton axes of plates may stand among a site's own.
            number: How many independent draws these are.
            what: For the message.
        """
        for site in self._guide.layout.sites:
            value, named = draws[site.name], f"{what}: {site.name}"
            assert value.numel() == number * math.prod(site.shape), (
                f"{named} has shape {tuple(value.shape)} where {number} times {tuple(site.shape)} is due"
            )
            assert bool(value.isfinite().all()), f"{named} is not finite"
            assert bool(site.support.check(value.reshape((number, *site.shape))).all()), (
                f"{what}: support of {site.name}"
            )
        found = self._project(self._flatten(draws, number))
        for index, (ours, theirs) in enumerate(zip(found, self._reference, strict=True)):
            expect_equal_in_distribution(ours, theirs, f"{what}, projection {index}")

    def expect_density(self, draws: Mapping[str, Tensor], log_q: Tensor, what: str = "density") -> None:
        """Equal to the guide's own `log_prob`, whose inverse rounds in float32."""
        with torch.no_grad():
            number = log_q.numel()
            shaped = {s.name: draws[s.name].reshape((number, *s.shape)) for s in self._guide.layout.sites}
            expected = self._guide.log_prob(shaped)
        assert bool(expected.isfinite().all()), f"{what}: log_prob is not finite: {expected[:5]}"
        torch.testing.assert_close(log_q.detach().reshape(-1).to(expected), expected, rtol=2e-3, atol=2e-2)

    def expect_loss(self, losses: Tensor, what: str = "loss") -> None:
        """Of one particle each: distributed like minus the log weights."""
        assert bool(losses.isfinite().all()), f"{what}: {losses}"
        if not self.style.has_known_loss:
            return
        slack = 2e-3 * (1 + float(self.log_weights.abs().median()))  # an exact guide's weights differ by rounding only
        expect_equal_in_distribution(losses.detach().double(), -self.log_weights, what, slack=slack)


def expect_equal_in_distribution(ours: Tensor, theirs: Tensor, what: str, *, slack: float = 0.0) -> None:
    """Kolmogorov and Smirnov's two-sample test at level ALPHA, by the bound e exp(−2 d² nm / (n + m)).

    Source: Wei and Dudley 2012, Dvoretzky–Kiefer–Wolfowitz inequalities for the two-sample case.

    Args:
        ours: A sample, shape `(n,)`.
        theirs: Another, shape `(m,)`.
        what: For the message.
        slack: Either may be shifted by so much.
    """
    n, m = len(ours), len(theirs)
    ours, theirs = ours.sort().values, theirs.sort().values
    above = (_share_below(ours, theirs - slack) - _share_below(theirs, theirs)).max()
    below = (_share_below(theirs, ours - slack) - _share_below(ours, ours)).max()
    gap = float(torch.maximum(above, below))
    limit = math.sqrt(math.log(math.e / ALPHA) * (n + m) / (2 * n * m))
    assert gap <= limit, (
        f"{what}: distance {gap:.3f} above {limit:.3f}; medians {float(ours.median()):.4g}, "
        f"{float(theirs.median()):.4g} of {n} and {m}"
    )


def _share_below(values: Tensor, points: Tensor) -> Tensor:
    return torch.searchsorted(values, points, right=True) / len(values)


def trace_of(function: Callable[..., Any], style: Style) -> Any:
    """One trace, with densities."""
    trace = poutine.trace(function).get_trace(*style.args, **style.kwargs)
    trace.compute_log_prob()
    return trace

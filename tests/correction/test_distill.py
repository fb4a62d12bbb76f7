"""A guide learns the draws it is given, and held-out draws are never worse off for it."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value

from pyro_hypernet import AutoHypernet, GuideMixture, Plan, SghmcKernel, distill, move_by_minibatch
from pyro_hypernet.maps.hypernets import HYPERNETS
from pyro_hypernet.train.optimiser import Optimiser
from tests.seeds import seed
from tests.train.conjugate import exact_posterior, make_data, regression

X, Y = make_data()
POSTERIOR = exact_posterior(X, Y)


def exact_draws(size=2000):
    return {"weight": POSTERIOR.sample((size,))}


def guide_of(structure="full", hypernet="linear", **options):
    return AutoHypernet(regression, plan=Plan(structure, hypernet, init_scale=0.3, **options)).setup(X, Y)


def kl_from_posterior(guide):
    """Of the posterior to the guide, in nats, by 20 000 draws of the posterior."""
    w = POSTERIOR.sample((20_000,))
    with torch.no_grad():
        return float((POSTERIOR.log_prob(w) - guide.log_prob({"weight": w})).mean())


def quick(guide, draws, **options):
    return distill(guide, draws, **{"num_steps": 60, "progress": False, **options})


@pytest.mark.parametrize("num_components", [1, 2])
def test_a_guide_becomes_the_posterior_of_its_draws(num_components):
    pyro.set_rng_seed(seed(0))
    guide = guide_of(num_components=num_components)
    assert kl_from_posterior(guide) > 3
    quick(guide, exact_draws(), num_steps=800, learning_rate=0.1, batch_size=128)
    assert kl_from_posterior(guide) < (0.05 if num_components == 1 else 0.6)  # over 20 seeds at most .019 and .32


STRUCTURES = ["full", "layerwise", "last_layer", "low_rank", "weight_norm", "multiplicative", "patterns", "informed"]
GUIDES = {name: (name, "linear") for name in STRUCTURES} | {f"full, {h}": ("full", h) for h in HYPERNETS if h != "auto"}


@pytest.mark.parametrize("name", GUIDES)
def test_held_out_draws_are_never_worse_off(name):
    """From untrained, where there is much to gain; with steps far too long, where there is all to lose."""
    pyro.set_rng_seed(seed(0))
    guide, draws = guide_of(*GUIDES[name]), exact_draws(400)
    learnt = quick(guide, draws, num_steps=300, learning_rate=0.02)
    assert learnt.nll < learnt.nll_before or name == "informed"  # which starts at this posterior
    assert learnt.nll <= learnt.nll_before
    before = copy.deepcopy(guide.state_dict())
    spoilt = quick(guide, draws, learning_rate=100.0)
    assert spoilt.nll <= spoilt.nll_before
    if spoilt.nll == spoilt.nll_before:
        assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())
    assert len(spoilt.losses) <= 60


def test_the_negative_log_density_is_that_of_values():
    """On a support with a Jacobian: of the constrained values, as `guide.log_prob` gives it."""

    def positive():
        pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))

    pyro.set_rng_seed(seed(0))
    guide, draws = AutoHypernet(positive).setup(), {"scale": torch.randn(5000, 2).exp()}
    result = quick(guide, draws, num_steps=400, learning_rate=0.02)
    exact = 2 * 0.5 * (1 + math.log(2 * math.pi))  # entropy of a log normal of mean 0
    assert result.nll == pytest.approx(exact, abs=0.3)
    assert -float(guide.log_prob(draws).detach().mean()) == pytest.approx(result.nll, abs=0.3)


def test_a_mixture_learns_two_modes():
    pyro.set_rng_seed(seed(0))
    at = [init_to_value(values={"weight": torch.full((3,), sign).double()}) for sign in (1.0, -1.0)]
    plan = Plan("full", "identity", init_scale=0.3)
    mixture = GuideMixture([AutoHypernet(regression, init_loc_fn=loc, plan=plan).setup(X, Y) for loc in at])
    draws = {"weight": torch.cat([POSTERIOR.sample((200,)) + 3, POSTERIOR.sample((200,)) - 3])}
    assert quick(mixture, draws, num_steps=1500, learning_rate=0.1).nll < 1  # one wide component: 3.4
    w = mixture.sample_posterior(400)["weight"][:, 0]
    assert 0.4 < (w > 1).double().mean() < 0.6


def test_moved_draws_hand_their_temperature_on():
    guide = guide_of()
    options = {"num_steps": 60, "warmup_steps": 20, "num_samples": 40, "progress": False}
    moved = move_by_minibatch(regression, guide, (X, Y), kernel=SghmcKernel(temperature=0.5), **options)
    quick(guide, moved)
    assert guide.plan.temperature == 0.5
    quick(guide, moved.samples)
    assert guide.plan.temperature == 0.5


def test_an_interrupted_guide_keeps_the_best(monkeypatch):
    step, seen = Optimiser.step, []

    def interrupted(self, *args):
        seen.append(1)
        if len(seen) == 40:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Optimiser, "step", interrupted)
    result = quick(guide_of(), exact_draws(200), learning_rate=0.02)
    assert result.stopped_because == "interrupted"
    assert result.nll < result.nll_before


WRONG = {
    "guide": (lambda: {"guide": exact_draws()}, TypeError, "distill teaches an AutoHypernet"),
    "draws": (lambda: {"draws": guide_of()}, TypeError, "distill takes stored draws"),
    "few": (lambda: {"draws": exact_draws(9)}, ValueError, "needs 10 draws at least; got 9"),
    "sites": (lambda: {"draws": {"v": torch.zeros(20, 3)}}, ValueError, "exactly the latent sites"),
    "NaN": (lambda: {"draws": {"weight": torch.full((20, 3), math.nan)}}, ValueError, "NaN among them"),
    "share": (lambda: {"held_out": 1.0}, ValueError, r"held_out a share in \(0, 1\)"),
    "no setup": (lambda: {"guide": AutoHypernet(regression)}, RuntimeError, "call guide.setup"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case):
    make, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        quick(**{"guide": guide_of(), "draws": exact_draws(20), **make()})

"""The library runs a model by itself: whatever its caller has under way, plates and handlers, changes nothing."""

import copy
import math
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceTailAdaptive_ELBO,
    WeighedPredictive,
)
from pyro.infer.autoguide import AutoGuideList
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch import nn

from pyro_hypernet import AutoHypernet
from pyro_hypernet.model.vectorize import outside_of_pyro
from tests.seeds import seed

# Draws at once; an eighth of them where every draw is a call of its own.
S = 400


def line(x, y=None):
    """A linear regression whose plate has no `dim`, as people write it."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 3.0))
    offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x + offset, 0.5), obs=y)


def ages(x, y=None):
    """A logistic regression with an unknown scale."""
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("data", len(x)):
        answer = None if y is None else (y > 0).float()
        return pyro.sample("y", dist.Bernoulli(logits=slope * x / scale), obs=answer)


class Line(PyroModule):
    """The regression as a module, which keeps drawn values during a call."""

    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(torch.zeros(()), 3.0))
        self.body = PyroModule[nn.Module]()
        self.body.offset = PyroSample(dist.Normal(torch.zeros(()), 3.0))

    def forward(self, x, y=None):
        mean = self.slope * x + self.body.offset
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


X = torch.linspace(-1.0, 1.0, 7)
Y = 2 * X + 1
MODELS = {"line": line, "ages": ages, "module": Line()}


def fitted(model):
    return copy.deepcopy(_fitted(model))


@cache
def _fitted(model):
    guide = AutoHypernet(model).setup(X, Y)
    guide.reject((X, Y), rates=(0.5,))
    return guide


GUIDES = {
    "new": AutoHypernet,
    "rejecting": fitted,
    "two components": lambda model: AutoHypernet(model, num_components=2),
    "full": lambda model: AutoHypernet(model, structure="full"),
}


def latents(model):
    return [name for name in poutine.trace(model).get_trace(X).stochastic_nodes if name not in ("data", "y")]


def predictive(parallel):
    num_samples = S if parallel else S // 8
    return lambda model, guide: Predictive(model, guide=guide, num_samples=num_samples, parallel=parallel)(X, Y)


def weighed(parallel):
    def draw(model, guide):
        num_samples = S if parallel else S // 8
        result = WeighedPredictive(model, guide=guide, num_samples=num_samples, parallel=parallel)(X, Y)
        samples = {name: result.samples[name].reshape(num_samples) for name in latents(model)}
        torch.testing.assert_close(result.guide_log_prob, guide.log_prob(samples), atol=1e-3, rtol=1e-4)
        return result.samples

    return draw


def importance_weights(model, guide):
    _, model_trace, _ = vectorized_importance_weights(model, guide, X, Y, num_samples=S, max_plate_nesting=1)
    return {name: model_trace.nodes[name]["value"] for name in latents(model)}


def in_plate(name, dim):
    def draw(model, guide):
        with pyro.plate(name, S, dim=dim):
            return guide(X, Y)

    return draw


def neutra(model, guide):
    guide.setup(X, Y)
    reparam = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(reparam.reparam(model)), 3, 2, disable_progbar=True)
    mcmc.run(X, Y)
    latent = next(value for name, value in mcmc.get_samples().items() if name.endswith("shared_latent"))
    return {name: value.expand(3) for name, value in reparam.transform_sample(latent).items()}


def in_a_list(model, _):
    first, *rest = latents(model)
    guides = AutoGuideList(model)
    guides.append(AutoHypernet(poutine.block(model, expose=[first])))
    guides.append(AutoHypernet(poutine.block(model, expose=rest)))
    draws = Predictive(model, guide=guides, num_samples=S, parallel=True)(X, Y)
    return {name: value[:3] for name, value in draws.items()}  # of two independent guides: finite is all


def under(handler):
    """Calls of the guide under a handler that leaves its draws alone."""
    return lambda model, guide: _stacked([handler(guide)(X, Y) for _ in range(S // 8)])


def _stacked(draws):
    return {name: torch.stack([draw[name] for draw in draws]).detach() for name in draws[0]}


IDIOMS = {
    "Predictive": predictive(False),
    "Predictive in parallel": predictive(True),
    "WeighedPredictive": weighed(False),
    "WeighedPredictive in parallel": weighed(True),
    "vectorized_importance_weights": importance_weights,
    "a plate of the model's name": in_plate("data", -2),
    "a plate where the model's is": in_plate("other", -1),
    "a plate on the left": in_plate("other", -2),
    "a plate anywhere": in_plate("other", None),
    "NeuTra": neutra,
    "AutoGuideList": in_a_list,
    "block": under(poutine.block),
    "mask": under(lambda guide: poutine.mask(guide, mask=torch.tensor(True))),
    "mask out": under(lambda guide: poutine.mask(guide, mask=False)),
    "scale": under(lambda guide: poutine.scale(guide, scale=0.5)),
    "uncondition": under(poutine.uncondition),
}
# By default every idiom draws from one guide that rejects; the rest is slow.
_FAST = ("Predictive in parallel", "NeuTra")
CASES = [
    pytest.param(
        idiom,
        model,
        make,
        id=f"{idiom_name}-{model_name}-{guide_name}",
        marks=[] if guide_name == "rejecting" and (model_name == "line" or idiom_name in _FAST) else [pytest.mark.slow],
    )
    for idiom_name, idiom in IDIOMS.items()
    for model_name, model in MODELS.items()
    for guide_name, make in GUIDES.items()
]


def assert_same_distribution(one, two):
    """Kolmogorov and Smirnov's test, at a false-alarm rate of 1e-7 for whatever distribution."""
    n, m = len(one), len(two)
    both = torch.cat([one, two]).sort().values
    below = [torch.searchsorted(part.sort().values, both, right=True) / len(part) for part in (one, two)]
    distance = float((below[0] - below[1]).abs().max())
    assert distance < math.sqrt(-math.log(1e-7 / 2) / 2 * (n + m) / (n * m))


@pytest.mark.parametrize(("idiom", "model", "make"), CASES)
def test_a_guide_draws_the_same_within(idiom, model, make):
    """Finite, and of the distribution of `sample_posterior`: a false alarm in 1e-7 per latent and case."""
    guide = make(model)
    draws = idiom(model, guide)
    own = guide.setup(X, Y).sample_posterior(2000)
    for name in latents(model):
        assert draws[name].isfinite().all()
        if draws[name].numel() > 3:
            assert_same_distribution(draws[name].reshape(-1), own[name].reshape(-1))


@pytest.mark.parametrize("make_elbo", [Trace_ELBO, TraceTailAdaptive_ELBO, ReweightedWakeSleep])
def test_vectorised_particles_see_an_unfitted_guide(make_elbo):
    guide = AutoHypernet(ages)
    make_elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(ages, guide, X, Y)
    assert all(parameter.grad.isfinite().all() for parameter in guide.parameters())


def test_conditioned_and_replayed():
    guide = fitted(line)
    half = {"slope": torch.tensor(0.5)}
    for handler in (poutine.condition, poutine.do):
        assert handler(guide, data=half)(X, Y)["slope"] == 0.5
    trace = poutine.trace(guide).get_trace(X, Y)
    again = poutine.replay(guide, trace=trace)(X, Y)
    assert all(bool(again[name] == trace.nodes[name]["value"]) for name in ("slope", "offset"))


def test_lifted_parameters_are_refused():
    with pytest.raises(ValueError, match=r"poutine\.lift"):
        poutine.trace(poutine.lift(AutoHypernet(line), prior=dist.Normal(0.0, 1.0))).get_trace(X, Y)


def test_everything_is_put_aside_and_given_back():
    """Handlers, plates and random numbers; also where the run fails."""
    with pyro.plate("outer", 2), pyro.plate("inner", 3), poutine.block():
        stack, dims, state = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack), torch.get_rng_state()
        with pytest.raises(KeyError):
            _fail_outside()
        assert (stack, dims) == (_PYRO_STACK, _DIM_ALLOCATOR._stack)
        assert torch.equal(state, torch.get_rng_state())


def _fail_outside():
    with outside_of_pyro(seed=seed(1)):
        assert (_PYRO_STACK, _DIM_ALLOCATOR._stack) == ([], [])
        with pyro.plate("inner", 5):
            assert pyro.sample("z", dist.Normal(0.0, 1.0)).shape == (5,)
        raise KeyError


def test_a_module_within_its_own_call_keeps_its_draws():
    class Twice(PyroModule):
        def __init__(self):
            super().__init__()
            self.draw = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, depth):
            mine = self.draw
            if depth:
                with outside_of_pyro():
                    other = self(depth - 1)
                assert other != mine
            assert self.draw is mine
            return mine

    Twice()(3)


def test_the_same_numbers_are_drawn_with_a_seed_and_without_one_the_callers_go_on():
    with outside_of_pyro(seed=seed(5)):
        first = torch.randn(3)
    with outside_of_pyro(seed=seed(5)):
        assert torch.equal(first, torch.randn(3))
    pyro.set_rng_seed(seed(7))
    expected = torch.randn(3)
    pyro.set_rng_seed(seed(7))
    with outside_of_pyro():
        assert torch.equal(expected, torch.randn(3))
    assert not torch.equal(expected, torch.randn(3))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_jit_elbos_with_vectorised_particles():
    guide = fitted(line)
    elbo = JitTrace_ELBO(3, vectorize_particles=True, max_plate_nesting=1, ignore_jit_warnings=True)
    assert math.isfinite(SVI(line, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step(X, Y))

"""Laws of mixtures whose components learn parameters of the model, such as the directions of weight norm."""

import copy
import math

import pyro
import pytest
import torch
from torch import nn

import pyro_hypernet as ph
from pyro_hypernet import AutoHypernet, GuideMixture, Plan, VectorizedELBO, bayesianize, fit, load, save
from pyro_hypernet.evaluation.importance import elbo
from pyro_hypernet.evaluation.ppc import replicate
from pyro_hypernet.evaluation.predict import log_likelihood
from tests.seeds import seed

PLAN = Plan("full", "linear", rejection=None)
X = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)
IMAGES = torch.randn(12, 1, 5, 5, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)
Y, LABELS = torch.arange(30) % 3, torch.arange(12) % 3


def net():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def images_net():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)).double()


NORMS, MODELS = {"parametrization": "weight_norm"}, {}
MODELS["weight norm"] = lambda: (bayesianize(net(), "categorical", **NORMS), (X, Y), 3)
MODELS["weight norm, given starts"] = lambda: (bayesianize(net(), "categorical", **NORMS), (X, Y), [net(), net()])
MODELS["weight norm of a convolution"] = lambda: (
    bayesianize(images_net(), "categorical", **NORMS),
    (IMAGES, LABELS),
    2,
)
MODELS["last layer"] = lambda: (bayesianize(net(), "categorical", sites="last_layer"), (X, Y), 2)


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def case(request):
    """A model, its arguments, and a mixture of parameters moved apart from where they start."""
    pyro.set_rng_seed(seed(0))
    model, args, starts = request.param()
    mixture = GuideMixture.from_starts(model, starts, plan=PLAN).setup(*args)
    mixture.set_log_weights(torch.arange(len(mixture.components)).double())
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model, args, mixture


def of_component(samples, number):
    rows = samples["component"] == number
    return {name: value[rows] for name, value in samples.items() if name != "component"}, rows


def test_every_draw_is_run_by_its_own_component(case):
    model, (x, _), mixture = case
    samples, models = mixture.sample_posterior(20), mixture.models_for(model)
    together = ph.predict(mixture.model_of_draws(model), samples, x, return_sites=["f"])["f"]
    for number, own in enumerate(models):
        values, rows = of_component(samples, number)
        torch.testing.assert_close(together[rows], ph.predict(own, values, x, return_sites=["f"])["f"])
    other = ph.predict(models[0], of_component(samples, 1)[0], x, return_sites=["f"])["f"]
    assert float((other - together[samples["component"] == 1]).abs().mean()) > 0.01  # they are other networks


def test_the_density_of_a_draw_is_that_of_its_component_and_values(case):
    _, _, mixture = case
    samples = mixture.sample_posterior(20)
    found = mixture.log_prob(samples)
    for number, part in enumerate(mixture.components):
        values, rows = of_component(samples, number)
        torch.testing.assert_close(found[rows], mixture.log_weights[number] + part.log_prob(values))


def test_draws_are_of_every_component_in_proportion(case):
    _, _, mixture = case
    shares = mixture.sample_posterior(1000)["component"].bincount(minlength=len(mixture.components)) / 1000
    torch.testing.assert_close(shares.double(), mixture.log_weights.exp(), rtol=0, atol=1.1e-3)  # up to one draw


def test_copies_and_files_predict_the_same(case, tmp_path):
    model, (x, _), mixture = case
    save(mixture, tmp_path / "mixture.safetensors")
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    pyro.clear_param_store()
    loaded = load(tmp_path / "mixture.safetensors", fresh)
    results = []
    for own, other in ((model, mixture), (model, copy.deepcopy(mixture)), (fresh, loaded)):
        pyro.set_rng_seed(seed(1))
        results.append(ph.predict(own, other, x, num_samples=8, return_sites=["f"])["f"])
    torch.testing.assert_close(results[1:], results[:1] * 2, rtol=0, atol=0)


def test_fit_trains_every_model_as_by_itself():
    """Bit by bit, what is learnt included; and the components' own values have come apart from each other's."""
    model, args, _ = MODELS["weight norm"]()
    mixture = GuideMixture.from_starts(model, 2, plan=PLAN)
    alone = [copy.deepcopy(own) for own in mixture.setup(*args).models_for(model)]
    guides = [
        AutoHypernet(own, plan=PLAN, init_loc_fn=part._init_loc_fn)
        for own, part in zip(alone, mixture.components, strict=True)
    ]
    options = {"num_steps": 15, "optim": 0.02, "progress": False}
    for guide, part in zip(guides, mixture.components, strict=True):
        guide.setup(*args).load_state_dict(part.state_dict())
    pyro.set_rng_seed(seed(0))
    mixture.setup(*args)
    fit(model, mixture, args, **options)
    pyro.set_rng_seed(seed(0))
    for guide in guides:
        guide.setup(*args)
    for own, guide in zip(alone, guides, strict=True):
        fit(own, guide, args, **options)
    for own, other in zip(mixture.models_for(model), alone, strict=True):
        torch.testing.assert_close(own.state_dict(), other.state_dict(), rtol=0, atol=0)
    for guide, part in zip(guides, mixture.components, strict=True):
        torch.testing.assert_close(part.state_dict(), guide.state_dict(), rtol=0, atol=0)
    first, second = mixture.models_for(model)
    assert first is model
    assert float((first.net[0].weight - second.net[0].weight).detach().abs().mean()) > 0.1


VERBS = {
    "predict": lambda model, guide, args: ph.predict(model, guide, *args, num_samples=10),
    "log_likelihood": lambda model, guide, args: log_likelihood(model, guide, *args, num_samples=10),
    "score": lambda model, guide, args: ph.score(model, guide, args, num_samples=10),
    "replicate": lambda model, guide, args: replicate(model, guide, *args, num_samples=20),
    "stack": lambda model, guide, args: ph.stack(model, guide, *args, num_samples=10),
    "measure_disagreement": lambda model, guide, args: guide.measure_disagreement(*args),
    "compare": lambda model, guide, args: ph.compare({"m": guide}, guide.components[0], model, *args, num_samples=20),
    "fits_agree": lambda model, guide, args: ph.fits_agree(
        model, [guide, guide.components[0]], args[0], num_samples=10
    ),
    "describe": lambda model, guide, args: guide.describe(),
    "median": lambda model, guide, args: guide.median(),
    "k-hat of a component": lambda model, guide, args: [
        math.isfinite(ph.khat(own, part, *args, num_samples=200))
        for own, part in zip(guide.models_for(model), guide.components, strict=True)
    ],
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_what_runs_draws_takes_it(verb):
    pyro.set_rng_seed(seed(0))
    model, args, _ = MODELS["weight norm"]()
    assert verb(model, GuideMixture.from_starts(model, 2, plan=PLAN).setup(*args), args) is not None


REFUSED = {
    "elbo": lambda model, guide, args: elbo(model, guide, *args),
    "khat": lambda model, guide, args: ph.khat(model, guide, *args),
    "diagnose": lambda model, guide, args: ph.diagnose(model, guide, *args),
    "loo": lambda model, guide, args: ph.loo(model, guide, *args),
    "resample": lambda model, guide, args: ph.resample(model, guide, *args),
    "metropolis": lambda model, guide, args: ph.metropolis(model, guide, *args),
    "move": lambda model, guide, args: ph.move(model, guide, *args),
    "to_arviz": lambda model, guide, args: ph.to_arviz(model, guide, *args),
    "as a Pyro guide": lambda model, guide, args: guide(*args),
    "an ELBO": lambda model, guide, args: VectorizedELBO(2).loss(model, guide, *args),
    "log_prob of norms": lambda model, guide, args: guide.log_prob(guide.components[0].sample_posterior(2)),
}


@pytest.mark.parametrize("verb", REFUSED.values(), ids=REFUSED.keys())
def test_what_weighs_draws_says_why_not(verb):
    model, args, _ = MODELS["weight norm"]()
    mixture = GuideMixture.from_starts(model, 2, plan=PLAN).setup(*args)
    with pytest.raises(ValueError, match="learnt parameters of its own"):
        verb(model, mixture, args)


def test_another_model_is_refused():
    model, args, _ = MODELS["weight norm"]()
    mixture = GuideMixture.from_starts(model, 2, plan=PLAN).setup(*args)
    with pytest.raises(ValueError, match="made for"):
        ph.predict(bayesianize(net(), "categorical"), mixture, args[0])

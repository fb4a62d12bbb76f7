"""Every verb takes a model's arguments by position or by name, with the same result."""

import inspect
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.util import get_rng_state, set_rng_state

import pyro_hypernet as ph
from tests.seeds import seed

X, Y = torch.linspace(-1.0, 1.0, 12), torch.linspace(-0.5, 2.0, 12)
QUIET = {"progress": False}


def model(x, y, scale=0.3):
    """Its scale is learnt, so that there is something to train."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    f = pyro.deterministic("f", slope * x, event_dim=1)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise * scale / 0.3), obs=y)


@cache
def guide_of():
    """Trained once; verbs leave a guide as it is."""
    state = get_rng_state()
    pyro.set_rng_seed(seed(1))
    guide = ph.AutoHypernet(model, "linear", "full").setup(X, Y)
    ph.fit(model, guide, (X, Y), num_steps=30, elbo=ph.VectorizedELBO(8), **QUIET)
    set_rng_state(state)
    return guide


def trained(args, kwargs):
    guide = ph.AutoHypernet(model)
    return ph.fit(model, guide, args, kwargs=kwargs, num_steps=20, elbo=ph.VectorizedELBO(4), **QUIET).losses


def started(args, kwargs):
    guide = ph.AutoHypernet(model, "linear", "full")
    bound = ph.VectorizedELBO(4)
    ph.best_start(model, guide, args, kwargs=kwargs, num_restarts=2, num_steps=10, elbo=bound)
    return guide.sample_posterior(5)["slope"]


def prior_instead(model, *args):
    return {"slope": torch.randn(20), "noise": torch.randn(20).exp()}


def mixture_of():
    return ph.GuideMixture.from_starts(model, 2, plan=ph.Plan("full", "linear"))


# From arguments and keyword arguments to a tensor.
VERBS = {
    "fit": trained,
    "fit of a mixture": lambda a, k: (
        ph.fit(
            model,
            mixture_of(),
            a,
            kwargs=k,
            num_steps=5,
            elbo=ph.VectorizedELBO(4),
            plan=ph.Plan(rejection=None),
            **QUIET,
        ).losses
    ),
    "stack": lambda a, k: ph.stack(model, mixture_of().setup(X, Y), *a, num_samples=20, **k).scores,
    "best_start": started,
    "infer": lambda a, k: (
        ph.infer(
            model,
            *a,
            budget=600,
            engine="guide",
            num_steps=20,
            guide=ph.AutoHypernet(model, "linear", "full"),
            **QUIET,
            **k,
        ).fit.losses
    ),
    "infer by refine": lambda a, k: ph.infer(model, *a, budget=600, engine="refine", **QUIET, **k).samples["slope"],
    "refine": lambda a, k: ph.refine(model, *a, num_samples=200, **QUIET, **k).samples["slope"],
    "refine, held against a guide": lambda a, k: torch.tensor(
        ph.refine(model, *a, guide=guide_of(), num_samples=200, **QUIET, **k).coverage.lower
    ),
    "nuts": lambda a, k: ph.nuts(
        model, *a, num_samples=20, warmup_steps=20, num_chains=2, kernel=ph.NutsKernel(num_processes=1), **k
    ).samples["slope"],
    "nuts through a guide": lambda a, k: ph.nuts(
        model,
        *a,
        num_samples=20,
        warmup_steps=20,
        num_chains=2,
        kernel=ph.NutsKernel(num_processes=1),
        guide=guide_of(),
        **k,
    ).samples["slope"],
    "move": lambda a, k: ph.move(model, guide_of(), *a, num_samples=50, num_moves=2, **QUIET, **k).samples["slope"],
    "move_by_minibatch": lambda a, k: ph.move_by_minibatch(
        model, guide_of(), a, kwargs=k, num_steps=30, warmup_steps=10, num_samples=16, **QUIET
    ).samples["slope"],
    "microcanonical": lambda a, k: ph.microcanonical(
        model, guide_of(), *a, num_steps=20, num_samples=16, num_chains=4, **QUIET, **k
    ).samples["slope"],
    "resample": lambda a, k: ph.resample(model, guide_of(), *a, num_samples=50, **k).samples["slope"],
    "metropolis": lambda a, k: ph.metropolis(
        model, guide_of(), *a, num_samples=40, warmup_steps=5, num_chains=2, **k
    ).samples["slope"],
    "score": lambda a, k: torch.tensor(ph.score(model, prior_instead(model), a, kwargs=k).log_predictive),
    "choose_model": lambda a, k: torch.tensor(
        ph.choose_model({"one": model}, a, a, kwargs=k, num_steps=10).scores["one"]
    ),
    "choose_temperature": lambda a, k: torch.tensor(
        list(ph.choose_temperature(model, a, a, temperatures=(1.0, 0.5), kwargs=k, num_steps=10).scores.values())
    ),
    "diagnose": lambda a, k: torch.tensor(ph.diagnose(model, guide_of(), *a, num_samples=500, max_seconds=0, **k).elbo),
    "khat": lambda a, k: torch.tensor(ph.khat(model, guide_of(), *a, num_samples=500, **k)),
    "loo": lambda a, k: torch.tensor(ph.loo(model, guide_of(), *a, num_samples=500, **k).elpd),
    "predict": lambda a, k: ph.predict(model, guide_of(), *a, num_samples=20, **k)["f"],
    "compare": lambda a, k: torch.tensor(
        ph.compare({"g": guide_of()}, guide_of(), model, *a, num_samples=50, num_bootstrap=0, **k).rows[0]["w1_over_sd"]
    ),
    "fits_agree": lambda a, k: torch.tensor(
        ph.fits_agree(model, [guide_of(), guide_of()], *a, num_samples=50, **k).max_rhat
    ),
    "to_arviz": lambda a, k: torch.tensor(
        ph.to_arviz(model, guide_of(), *a, num_samples=20, num_prior_samples=0, **k).posterior["slope"].values
    ),
    "sbc": lambda a, k: ph.sbc(
        model, *a, train=prior_instead, num_simulations=4, num_draws=20, num_processes=1, **k
    ).ranks["slope"],
}
WAYS = {"by position": ((X, Y), {}), "by name": ((), {"x": X, "y": Y}), "some by name": ((X,), {"y": Y})}


@cache
def found(name, way):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(2))
    return VERBS[name](*WAYS[way])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["by name", "some by name"])
@pytest.mark.parametrize("name", VERBS)
def test_arguments_by_name_mean_the_same(name, way):
    """The same random numbers are drawn in both, so that equal means equal."""
    torch.testing.assert_close(found(name, "by position"), found(name, way), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_argument_that_is_given_by_name_counts():
    near, far = (ph.refine(model, X, Y, scale=scale, num_samples=400, **QUIET).log_evidence for scale in (0.3, 30.0))
    assert near > far + 5


def test_every_verb_of_a_model_is_here():
    """Those that take a model and its arguments; `load` runs nothing, `sparsify` takes data as a tuple or as a dict."""
    verbs = {
        name
        for name in ph.__all__
        if inspect.isfunction(verb := getattr(ph, name))
        and {"model", "args"} <= set(inspect.signature(verb).parameters)
    }
    assert verbs - {name.split(" ")[0].rstrip(",") for name in VERBS} == {
        *("init_to_map", "load", "report", "sparsify")
    }

"""What a verb returns can be printed: its figures are rounded, and it does not fill the screen."""

import copy
import inspect
import re
from dataclasses import is_dataclass
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_hypernet as ph
from pyro_hypernet.evaluation.evidence import evidence_bracket
from pyro_hypernet.evaluation.ppc import replicate
from pyro_hypernet.shown import _spell
from tests.seeds import seed

X = torch.linspace(-1.0, 1.0, 12)[:, None]
Y = X[:, 0] + 0.1
QUIET = {"progress": False}
NET = ph.bayesianize(nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)), "gaussian")


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    f = pyro.deterministic("f", slope * x[:, 0])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


@cache
def trained(model):
    pyro.set_rng_seed(seed(1))
    guide = ph.AutoHypernet(model, "linear", "full")
    return guide, ph.fit(model, guide, (X, Y), num_steps=20, elbo=ph.VectorizedELBO(4), **QUIET)


@cache
def refined():
    return ph.refine(line, X, Y, num_samples=100, guide=trained(line)[0], **QUIET)


PRIOR = {"slope": torch.linspace(-1, 1, 20), "noise": torch.linspace(0.1, 1, 20)}
CHAINS = {"num_samples": 20, "warmup_steps": 10, "num_chains": 2}
RESULTS = {
    "fit": lambda g: trained(line)[1],
    "infer": lambda g: ph.Posterior(
        refined().samples, "refined", log_evidence=-1 / 3, seconds=100 / 3, refined=refined()
    ),
    "refine": lambda g: refined(),
    "coverage": lambda g: refined().coverage,
    "nuts": lambda g: ph.nuts(line, X, Y, **CHAINS, kernel=ph.NutsKernel(num_processes=1)),
    "move": lambda g: ph.move(line, g, X, Y, num_samples=20, num_moves=2, **QUIET),
    "microcanonical": lambda g: ph.microcanonical(line, g, X, Y, num_steps=20, num_samples=8, num_chains=4, **QUIET),
    "move_by_minibatch": lambda g: ph.move_by_minibatch(
        line, g, (X, Y), num_steps=12, warmup_steps=4, num_samples=8, **QUIET
    ),
    "resample": lambda g: ph.resample(line, g, X, Y, num_samples=50),
    "metropolis": lambda g: ph.metropolis(line, g, X, Y, **CHAINS),
    "distill": lambda g: ph.distill(g, refined().samples, num_steps=10, **QUIET),
    "diagnose": lambda g: ph.diagnose(line, g, X, Y, num_samples=200, max_seconds=0),
    "diagnose's check": lambda g: ph.diagnose(line, g, X, Y, num_samples=200, max_seconds=0).checks[0],
    "loo": lambda g: ph.loo(line, g, X, Y, num_samples=100),
    "compare": lambda g: ph.compare({"g": g}, g, line, X, Y, num_samples=50, num_bootstrap=0),
    "fits_agree": lambda g: ph.fits_agree(line, [g, g], X, Y, num_samples=50),
    "score": lambda g: ph.score(line, g, (X, Y), num_samples=20),
    "stack": lambda g: ph.stack(line, ph.GuideMixture([g, copy.deepcopy(g)]), X, Y, num_samples=20),
    "choose_model": lambda g: ph.choose_model({"a": line, 2: line}, (X, Y), (X, Y), num_steps=4),
    "choose_temperature": lambda g: ph.choose_temperature(line, (X, Y), (X, Y), temperatures=(1.0, 0.7), num_steps=4),
    "sbc": lambda g: ph.sbc(
        line,
        X,
        Y,
        train=lambda *_: {"slope": torch.randn(20), "noise": torch.rand(20)},
        num_simulations=4,
        num_draws=20,
        num_processes=1,
    ),
    "sparsify": lambda g: ph.sparsify(NET, trained(NET)[0], (X, Y), parts="units", shares=[0.5], max_loss=100.0),
    "evidence_bracket": lambda g: evidence_bracket(PRIOR["slope"], PRIOR["noise"]),
    "replicate": lambda g: replicate(line, g, X, Y, num_samples=20)[0],
    "Plan": lambda g: g.plan,
    "measure_disagreement": lambda g: ph.GuideMixture([g, copy.deepcopy(g)]).measure_disagreement(X, Y, num_samples=20),
}


@cache
def result_of(name):
    pyro.set_rng_seed(seed(2))
    return RESULTS[name](trained(line)[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", RESULTS)
def test_what_is_printed_is_rounded_and_short(name):
    result = result_of(name)
    for text in (repr(result), str(result)):
        figures = re.findall(r"\d*\.\d+", text)
        assert not [figure for figure in figures if len(figure.replace(".", "").lstrip("0")) > 5], text
        assert "tensor(" not in text
        assert len(text) < 3000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_verb_that_returns_a_result_is_here():
    """By what the verbs of the package say that they return."""
    returned = {
        inspect.signature(verb).return_annotation
        for name in ph.__all__
        if inspect.isfunction(verb := getattr(ph, name)) and is_dataclass(inspect.signature(verb).return_annotation)
    }
    assert {cls.__name__ for cls in returned} <= {type(result_of(name)).__name__ for name in RESULTS}


def test_rounding():
    assert _spell(0.04999999999999994) == "0.05"
    assert _spell((1234567.8, 1e-20, float("nan"))) == "(1234568, 1e-20, nan)"
    assert _spell({"a": torch.zeros(3, 2), "b": torch.tensor(1 / 3)}) == "{'a': tensor of shape (3, 2), 'b': 0.3333}"

"""Copies, pickles and traces of a guide draw what it draws, in this process and in another; or say what to do."""

import copy
import io
import os
import pickle
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.infer.reparam import NeuTraReparam

from pyro_hypernet import AutoHypernet
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed

X, Y = m.linear_data()
ROOT = Path(__file__).parents[2]


def rejecting(model):
    guide = AutoHypernet(model, structure="full").setup(X, Y)
    guide.reject((X, Y), rates=(0.5,))
    return guide


# From a model of (x, y) to a guide after `setup`.
GUIDES = {
    "default": lambda model: AutoHypernet(model).setup(X, Y),
    "informed": lambda model: AutoHypernet(model, structure="informed").setup(X, Y),
    "rejecting": rejecting,
    "two components": lambda model: AutoHypernet(model, num_components=2).setup(X, Y),
    "full": lambda model: AutoHypernet(model, structure="full").setup(X, Y),
    "spline": lambda model: AutoHypernet(model, "spline", "layerwise").setup(X, Y),
    "low rank": lambda model: AutoHypernet(model, structure="low_rank").setup(X, Y),
}
MODELS = {"function": m.linear, "module": m.Network(2)}
CASES = [
    pytest.param(
        model, guide, id=f"{name}-{kind}", marks=[] if name == "function" or kind == "default" else [pytest.mark.slow]
    )
    for name, model in MODELS.items()
    for kind, guide in GUIDES.items()
]


@cache
def made(make, model):
    pyro.set_rng_seed(seed(0))
    return make(model)


def by_torch(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def seeded(function):
    pyro.set_rng_seed(seed(1))
    return function()


COPIERS = {"deepcopy": copy.deepcopy, "pickle": lambda g: pickle.loads(pickle.dumps(g)), "torch.save": by_torch}


@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS.keys())
@pytest.mark.parametrize(("model", "make"), CASES)
def test_a_copy_draws_the_same(model, make, copier):
    """To the bit: called, sampled, its quantiles, its density, and in Predictive."""
    guide = made(make, model)
    twin = copier(guide)
    pyro.clear_param_store()
    for draw in (
        lambda g: g(X, Y),
        lambda g: g.sample_posterior(5),
        lambda g: g.median(X, Y),
        lambda g: Predictive(model, guide=g, num_samples=3, parallel=False)(X),
    ):
        mine, other = seeded(partial(draw, guide)), seeded(partial(draw, twin))
        assert all(bool((mine[name] == other[name]).all()) for name in guide.layout.names)
    draws = guide.sample_posterior(4)
    torch.testing.assert_close(guide.log_prob(draws), twin.log_prob(draws))
    NeuTraReparam(twin).reparam(model)
    assert twin.describe() == guide.describe()
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in twin.parameters()}


@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS.keys())
@pytest.mark.parametrize("make", [GUIDES["informed"], GUIDES["full"], rejecting], ids=["informed", "full", "rejecting"])
def test_a_copy_trains_on(make, copier):
    twin = copier(made(make, m.linear))
    SVI(m.linear, twin, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(X, Y)
    fit(m.linear, twin, (X, Y), num_steps=3, num_particles=2, rejection=None, progress=False)
    assert twin.rejection is None


def test_a_copy_before_setup():
    for copier in COPIERS.values():
        assert copier(AutoHypernet(m.linear)).setup(X, Y).latent_dim == 3


_OTHER_PROCESS = """
import sys, torch, pyro
import pyro_hypernet
from tests.seeds import seed
guide, expected = torch.load(sys.argv[1], weights_only=False)
pyro.set_rng_seed(seed(1))
assert all(bool((value == expected[name]).all()) for name, value in guide.sample_posterior(3).items())
"""


def test_in_another_process(tmp_path):
    """It knows nothing of the model but where it is defined."""
    guide = copy.deepcopy(made(GUIDES["informed"], m.linear))
    guide.reject((X, Y), rates=(0.5,))
    torch.save((guide, seeded(lambda: guide.sample_posterior(3))), tmp_path / "guide.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path / "guide.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_needs_no_model_is_pickled_without_it():
    """So that a model that cannot be pickled does not matter, as with Pyro's own guides."""
    guide = GUIDES["full"](lambda x, y: m.linear(x, y))
    twin = pickle.loads(pickle.dumps(guide))
    assert twin(X, Y)["slope"].shape == (2,)
    fit(m.linear, twin, (X, Y), num_steps=3, num_particles=2, progress=False)
    for use in (lambda: twin.restart(X, Y), lambda: twin.reject((X, Y))):
        with pytest.raises(RuntimeError, match="unpickled without its model"):
            use()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (GUIDES["informed"], "informed"),
        (rejecting, "rejects"),
        (AutoHypernet, "before setup"),
    ],
    ids=["informed", "rejecting", "new"],
)
@pytest.mark.parametrize("dump", [pickle.dumps, by_torch], ids=["pickle", "torch.save"])
def test_what_cannot_be_pickled_says_so_at_the_dump(make, why, dump):
    guide = make(lambda x, y: m.linear(x, y))
    with pytest.raises(TypeError, match=rf"{why}.*pyro_hypernet\.load"):
        dump(guide)


def test_a_list_of_guides_comes_back():
    guides = AutoGuideList(m.linear)
    guides.append(AutoHypernet(poutine.block(m.linear, expose=["slope"])))
    guides.append(AutoHypernet(poutine.block(m.linear, expose=["noise"]), structure="full"))
    guides(X, Y)
    twin = pickle.loads(pickle.dumps(guides))
    mine, other = seeded(lambda: guides(X, Y)), seeded(lambda: twin(X, Y))
    assert all(bool((mine[name] == other[name]).all()) for name in mine)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["default", "informed", "full", "spline", "low rank"])
def test_a_trace_draws_the_same(kind):
    guide = made(GUIDES[kind], m.linear)
    pyro.clear_param_store()
    traced = torch.jit.trace_module(guide, {"call": (X, Y)}, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    mine, other = seeded(lambda: guide.call(X, Y)), seeded(lambda: loaded.call(X, Y))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_says_what_it_cannot_follow():
    """And it keeps the rejection for its other draws; a training step, traced or not, ends it without a word."""
    guide = copy.deepcopy(made(rejecting, m.linear))
    with pytest.warns(UserWarning, match=r"guide\.reject\(None\)"):
        torch.jit.trace_module(guide, {"call": (X, Y)}, check_trace=False)
    with pytest.warns(UserWarning, match=r"guide\.reject\(None\)"), torch.no_grad():
        JitTrace_ELBO(ignore_jit_warnings=True).differentiable_loss(m.linear, guide, X, Y)
    assert guide.rejection is not None
    JitTrace_ELBO(ignore_jit_warnings=True).loss_and_grads(m.linear, guide, X, Y)
    assert guide.rejection is None


def test_a_map_does_not_know_the_sign_of_its_determinant():
    assert not hasattr(made(GUIDES["full"], m.linear).bijection, "sign")
    assert dist.transforms.AffineTransform(0.0, 1.0).sign == 1

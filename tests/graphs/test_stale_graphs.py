"""A captured density follows whatever the model reads, or is not used."""

import functools
import random
import time
import types
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample

from pyro_hypernet.graphs import cache
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from pyro_hypernet.model.vectorize import Vectorized
from tests.seeds import seed

Y = torch.linspace(-1.0, 2.0, 5)
LOC = 0.5
SETTINGS = {"scale": 1.0}
TABLE = torch.zeros(5)
ARRAY = np.zeros(5, dtype=np.float32)


def observe(y, loc, scale=1.0):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean + loc, scale), obs=y)


def reads_a_global():
    def model(y):
        observe(y, LOC)

    def change(value):
        global LOC
        LOC = value

    return model, change


def reads_a_global_in_a_function_of_its_own():
    def likelihood(y):
        observe(y, LOC)

    def model(y):
        likelihood(y)

    return model, reads_a_global()[1]


def reads_a_dict():
    def model(y):
        observe(y, 0.0, SETTINGS["scale"])

    return model, lambda value: SETTINGS.update(scale=value + 1.0)


def reads_a_closure():
    loc = 0.5

    def model(y):
        observe(y, loc)

    def change(value):
        nonlocal loc
        loc = value

    return model, change


def reads_an_attribute():
    class Model:
        loc = 0.0

        def __init__(self):
            self.loc = 0.5

        def __call__(self, y):
            observe(y, self.loc)

    model = Model()
    return model, functools.partial(setattr, model, "loc")


def reads_a_namespace():
    config = types.SimpleNamespace(loc=0.5)
    return lambda y: observe(y, config.loc), functools.partial(setattr, config, "loc")


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.mean = PyroSample(dist.Normal(0.0, 1.0))
        self.loc = 0.5

    def forward(self, y):
        mean = self.mean
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + self.loc, 1.0 + self.training), obs=y)


def reads_a_modules_attribute():
    model = Module()
    return model, functools.partial(setattr, model, "loc")


def reads_whether_it_trains():
    model = Module()
    return model, lambda value: model.train(value > 1)


def reads_a_tensor_changed_in_place():
    def model(y):
        observe(y, TABLE)

    return model, TABLE.fill_


def reads_another_tensor():
    def model(y):
        observe(y, TABLE)

    def change(value):
        global TABLE
        TABLE = torch.full((5,), value)

    return model, change


def is_a_partial_model():
    table = torch.zeros(5)
    return functools.partial(observe, loc=table), table.fill_


def is_within_a_handler():
    model, change = reads_a_closure()
    return pyro.poutine.scale(model, 3.0), change


def writes_to_its_argument():
    def change(value):
        Y.add_(0.1 * value)

    return lambda y: observe(y, 0.0), change


# What is changed is known by looking, so that the very next call is right.
SEEN = {
    make.__name__: make
    for make in (
        reads_a_global,
        reads_a_global_in_a_function_of_its_own,
        reads_a_dict,
        reads_a_closure,
        reads_an_attribute,
        reads_a_namespace,
        reads_a_modules_attribute,
        reads_whether_it_trains,
        reads_a_tensor_changed_in_place,
        reads_another_tensor,
        is_a_partial_model,
        is_within_a_handler,
        writes_to_its_argument,
    )
}


def log_joint_of(model):
    return LogJoint(model, Layout.from_trace(pyro.poutine.trace(model).get_trace(Y)))


def evaluations(log_joint, w):
    """By the plain graph, by TorchScript with the gradient, and by prior and likelihood."""
    return log_joint(w, Y), *log_joint.value_and_grad(w, Y), log_joint.parts(w, Y)


@pytest.mark.parametrize("name", SEEN)
def test_the_next_call_sees_what_was_changed(name):
    model, change = SEEN[name]()
    log_joint, w = log_joint_of(model), torch.randn(4, 1)
    eager = LogJoint(model, log_joint.layout, mode="eager")
    for value in (0.5, 2.0, 0.5, 3.0):
        change(value)
        for _ in range(2):
            for found, expected in zip(evaluations(log_joint, w), evaluations(eager, w), strict=True):
                torch.testing.assert_close(found, expected)
    assert log_joint.mode == "graph"


def counts_its_runs():
    runs = [0]

    def model(y):
        runs[0] += 1
        observe(y, 0.1 * runs[0])

    return model


def asks_the_clock():
    return lambda y: observe(y, 1e3 * (time.perf_counter() % 1))


def draws_pythons_random_numbers():
    return lambda y: observe(y, 1e3 * random.random())


def draws_numpys_random_numbers():
    return lambda y: observe(y, 1e3 * float(np.random.default_rng().normal()))


UNSEEN = {
    make.__name__: make
    for make in (counts_its_runs, asks_the_clock, draws_pythons_random_numbers, draws_numpys_random_numbers)
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_changes_by_itself_is_never_captured(name):
    """Two values of a thousand that are near enough to pass for rounding: one in 1e5."""
    log_joint, w = log_joint_of(UNSEEN[name]()), torch.randn(4, 1)
    reason = "changes 'runs\\[0\\]' by itself" if name == "counts_its_runs" else "such as a clock"
    with pytest.warns(UserWarning, match=f"the model differs in its results .*{reason}"):
        log_joint(w, Y)
    assert log_joint.mode == "eager"
    assert not torch.equal(log_joint(w, Y), log_joint(w, Y))


def test_a_count_that_does_not_matter_does_not_keep_a_model_from_being_captured():
    runs = []

    def model(y):
        runs.append(1)
        observe(y, 0.0)

    log_joint, w = log_joint_of(model), torch.randn(4, 1)
    log_joint(w, Y)
    count = len(runs)
    log_joint(w, Y)
    assert log_joint.mode == "graph"
    assert len(runs) == count


@pytest.mark.parametrize("is_bound", [False, True], ids=["", "bound"])
def test_what_changes_behind_torchs_back_is_found_before_long(is_bound):
    """An array that a tensor shares its memory with: no version tells, so that a later check must."""
    log_joint, w = log_joint_of(lambda y: observe(y, torch.from_numpy(ARRAY))), torch.randn(4, 1)
    ARRAY.fill(0.0)
    run = log_joint.bind_value_and_grad(Y) if is_bound else lambda w: log_joint.value_and_grad(w, Y)
    run(w)
    ARRAY.fill(2.0)
    with pytest.warns(UserWarning, match="behind torch's back"):
        values = [run(w)[0] for _ in range(20)]
    torch.testing.assert_close(values[-1], LogJoint(log_joint.model, log_joint.layout, mode="eager")(w, Y))


def test_stopped_gradients_stay_stopped():
    """The density's own gradient is captured with the stop; autograd through the graph would go on."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean.detach(), 1.0).expand([5]).to_event(1), obs=y)

    log_joint, w = log_joint_of(model), torch.randn(4, 1)
    log_joint(w, Y)
    leaf = w.clone().requires_grad_()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            (gradient,) = torch.autograd.grad(log_joint(leaf, Y).sum(), leaf)
            torch.testing.assert_close(gradient, -w)
    assert all("differs in its gradients" in str(warning.message) for warning in said)


def test_random_minibatches_agree_with_themselves():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    log_joint, w = log_joint_of(model), torch.randn(4, 1)
    for _ in range(10):
        log_joint.value_and_grad(w, Y)
    assert log_joint.mode == "graph"


def count_captures(run, monkeypatch):
    captures = []
    capture = run._capture
    monkeypatch.setattr(run, "_capture", lambda *args: captures.append(1) or capture(*args))
    return captures


def scaled(w, args, kwargs):
    x, beta = args
    return (x * w.sum() * beta).sum()


def test_what_never_comes_again_is_captured_a_few_times_and_said_once(monkeypatch):
    run, w = Vectorized(scaled), torch.randn(3, 2)
    captures = count_captures(run, monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(100):
            torch.testing.assert_close(run(w, (Y, 0.01 * step)), w.sum(-1) * Y.sum() * 0.01 * step)
    assert len(captures) == 2
    assert [str(warning.message)[:58] for warning in said] == [
        "The model runs uncaptured where argument number 2 has a ne"
    ]
    for _ in range(20):  # what comes often after that is captured all the same
        run(w, (Y, 7.0))
    assert len(captures) == 3


def captures_of(num_sizes, num_calls, monkeypatch):
    """Captures over calls of so many sizes in random order."""
    run, w = Vectorized(scaled), torch.randn(3, 2)
    captures = count_captures(run, monkeypatch)
    sizes = torch.randint(1, num_sizes + 1, (num_calls,), generator=torch.Generator().manual_seed(seed(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in sizes.tolist():
            run(w, (torch.ones(size), 1.0))
    return len(captures)


@pytest.mark.parametrize("num_sizes", [1, 2, 3, 4])
def test_few_shapes_are_captured(num_sizes, monkeypatch):
    """Every one of four comes 5 times in 16 sooner or later: none of 20 seeds needed 60 calls."""
    assert captures_of(num_sizes, 200, monkeypatch) == num_sizes


def test_of_many_shapes_few_are_captured(monkeypatch):
    """A capture takes some 25 uncaptured runs. Five of 16 are the same once in 4 000 windows of 16."""
    assert captures_of(40, 400, monkeypatch) <= 6


def test_many_shapes_in_turn_are_captured_once_they_have_paid_for_it(monkeypatch):
    run, w = Vectorized(scaled), torch.randn(3, 2)
    captures = count_captures(run, monkeypatch)
    monkeypatch.setattr(cache, "_VERY_OFTEN", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(12):
            for size in range(1, 51):
                run(w, (torch.ones(size), 1.0))
            assert len(captures) == (50 if number >= 8 else 2)  # of which 32 are kept

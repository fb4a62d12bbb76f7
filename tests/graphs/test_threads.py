"""Graphs run by several threads give what they give one after the other."""

import os
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet import HmcKernel, refine
from pyro_hypernet.graphs.threads import in_threads, one_thread_each
from pyro_hypernet.model.vectorize import Vectorized
from pyro_hypernet.sample.collapsed import collapse
from pyro_hypernet.sample.processes import count_threads
from pyro_hypernet.target import bind
from tests.seeds import seed

# From a draw of shape (3,) to whatever a density may do.
FUNCTIONS = {
    "elementwise": lambda draw, args, kwargs: (draw.tanh() + args[0]).sum(),
    "several results": lambda draw, args, kwargs: {"a": draw + args[0], "b": (draw * kwargs["scale"]).exp()},
    "a factor": lambda draw, args, kwargs: torch.linalg.cholesky(torch.eye(3) + draw[:, None] * draw).diagonal(),
    "random": lambda draw, args, kwargs: draw + torch.rand(()),
    "reads a parameter": lambda draw, args, kwargs: draw * pyro.param("p", torch.ones(())),
    "cannot be vmapped": lambda draw, args, kwargs: draw * float(args[0].sum()) if float(draw.sum()) > 0 else draw,
}


@pytest.mark.filterwarnings("ignore:")  # of the loop
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_batches_in_threads_are_batches_in_turn(function, double):
    run = Vectorized(function, differentiable=False)
    args, kwargs = (torch.arange(3.0),), {"scale": 0.5}
    for round_ in range(12):  # captured after the first, held against an uncaptured run at the 8th call and the 64th
        batches = list(torch.randn(4, 5, 3))
        with torch.no_grad():
            torch.manual_seed(seed(round_))
            found = run.map(batches, args, kwargs, num_threads=3)
            torch.manual_seed(seed(round_))
            expected = [run(batch, args, kwargs) for batch in batches]
        for one, other in zip(found, expected, strict=True):
            if function is FUNCTIONS["random"]:
                assert one.shape == other.shape  # threads share the generator, in no order
            else:
                torch.testing.assert_close(one, other)


def test_batches_of_other_shapes_run_in_turn():
    run = Vectorized(FUNCTIONS["elementwise"], differentiable=False)
    with torch.no_grad():
        for _ in range(3):
            found = run.map([torch.ones(4, 3), torch.ones(2, 3)], (torch.ones(3),), {}, num_threads=2)
    assert [len(values) for values in found] == [4, 2]


def test_threads_keep_the_order_and_record_nothing():
    leaf = torch.ones(2, requires_grad=True)
    barrier = threading.Barrier(2, timeout=20)

    def run(number):
        barrier.wait()  # both are under way at once
        return number, (leaf * number).requires_grad

    assert in_threads(run, [0, 1], 2) == [(0, False), (1, False)]


def test_an_error_comes_out_once_all_have_ended():
    ended = []

    def run(number):
        if number == 0:
            raise RuntimeError("first")
        ended.append(number)

    with pytest.raises(RuntimeError, match="first"):
        in_threads(run, [0, 1, 2], 2)
    assert sorted(ended) == [1, 2]


def test_the_number_of_torchs_threads_comes_back():
    before = torch.get_num_threads()

    def fail():
        with one_thread_each(4):
            raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match="1"):
        fail()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_has_threads_of_its_own():
    assert in_threads(abs, [-1, -2], 2) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if in_threads(abs, [-3, -4], 2) == [3, 4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def regression(x, y):
    hidden = torch.tanh(x * pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1)))
    mean = hidden @ pyro.sample("v", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


@pytest.mark.parametrize("integrate", [False, True], ids=["whole", "collapsed"])
def test_a_target_is_the_same_by_any_number_of_threads(integrate, double):
    x = torch.linspace(-1.0, 1.0, 20)[:, None]
    target = bind(regression, (x, x[:, 0].sin()), {}, "a test")
    target = collapse(target) if integrate else target
    for number in (64, 50, 33, 7, 1):
        w = target.sample_prior(number)
        states = []
        for target.num_threads in (1, 2, 3, 1, 2, 3):  # captured, and replayed
            states.append(target(w, 0.5))
        for state in states[1:]:
            for one, other in zip(state, states[0], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_refine_counts_its_threads():
    x = torch.linspace(-1.0, 1.0, 20)[:, None]
    for num_threads in (None, 1, 3):
        kernel = HmcKernel(num_threads=num_threads)
        found = refine(regression, x, x[:, 0].sin(), num_samples=256, num_moves=2, kernel=kernel, progress=False)
        assert found.samples["w"].shape == (256, 4)
        assert found.betas[-1] == 1
    with pytest.raises(ValueError, match="num_threads must be positive"):
        HmcKernel(num_threads=0)
    assert count_threads(3, torch.device("cpu")) == 3
    assert count_threads(3, torch.device("cuda")) == 1

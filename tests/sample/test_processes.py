"""Work shared among forked processes, where these can do it."""

import os

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet import NutsKernel, nuts
from pyro_hypernet.sample import processes
from pyro_hypernet.sample.processes import _forks_can_differentiate, count_processes, share_out


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    _forks_can_differentiate.cache_clear()
    yield
    _forks_can_differentiate.cache_clear()


def gradient_of(number):
    x = torch.tensor(float(number), requires_grad=True)
    x.square().backward()
    return float(x.grad), os.getpid()


def refuse():
    raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing.")


def test_what_is_said_of_forks_is_so(two_cores):
    """With this build of torch, whichever it is: where forks are offered, gradients come back from them."""
    gradient_of(1)
    found = list(share_out(gradient_of, [1, 2], count_processes(2, None)))
    assert sorted(gradient for gradient, _ in found) == [2.0, 4.0]
    assert ({process for _, process in found} == {os.getpid()}) != _forks_can_differentiate()


@pytest.mark.filterwarnings("ignore:NUTS has not mixed")  # in eight steps
def test_where_forks_cannot_differentiate_there_are_none(two_cores, monkeypatch):
    parent = os.getpid()
    do = processes._differentiate
    monkeypatch.setattr(processes, "_differentiate", lambda: do() if os.getpid() == parent else refuse())
    assert not _forks_can_differentiate()
    assert count_processes(8, None) == count_processes(8, 4) == 1

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    found = nuts(
        model, torch.tensor(1.0), num_samples=8, warmup_steps=8, num_chains=2, kernel=NutsKernel(num_processes=2)
    )
    assert found.samples["mean"].shape == (16,)


def test_one_part_asks_nothing(two_cores, monkeypatch):
    monkeypatch.setattr(processes, "_differentiate", refuse)
    assert count_processes(1, None) == count_processes(5, 1) == 1

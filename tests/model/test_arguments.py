"""What a guide keeps of its model's arguments: the same after a copy, a file, a move to another dtype."""

import copy
import json
import pickle
from collections import OrderedDict, namedtuple
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load as read_tensors

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.checkpoint import load, save
from pyro_hypernet.informed.conditional import GaussianConditional
from pyro_hypernet.model.arguments import Arguments, recall
from tests.seeds import seed

GENERATOR = torch.Generator().manual_seed(seed(5))
X, Y = torch.randn(20, 2, generator=GENERATOR), torch.randn(20, generator=GENERATOR)
Data = namedtuple("Data", ["x", "y"])


def read(data):
    """x, y and what is done to x of whatever the model was given."""
    if isinstance(data, dict):
        return data["x"], data["y"], data.get("link", torch.tanh)
    return *data[:2], data[2] if len(data) > 2 else torch.tanh


def model(*args, **kwargs):
    x, y, link = read(kwargs or (args[0] if len(args) == 1 else args))
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(link(x @ w), 0.5), obs=y)


# Positional and keyword arguments; whether a file can hold them.
ARGUMENTS = {
    "tensors": ((X, Y), {}, True),
    "keywords": ((), {"x": X, "y": Y}, True),
    "a dict": (({"x": X, "y": Y},), {}, True),
    "an ordered dict": ((OrderedDict(y=Y, x=X),), {}, True),
    "a tuple": (((X, Y),), {}, True),
    "a list and None": (([X, Y],), {}, True),
    "arrays": ((X.numpy(), Y.numpy()), {}, True),
    "a function": ((X, Y, torch.sin), {}, False),
    "a function in a dict": (({"x": X, "y": Y, "link": torch.sin},), {}, False),
    "a namedtuple": ((Data(X, Y),), {}, False),
}
every = pytest.mark.parametrize(("args", "kwargs", "is_written"), ARGUMENTS.values(), ids=ARGUMENTS.keys())


def rejecting(args, kwargs):
    guide = AutoHypernet(model, "linear").setup(*args, **kwargs)
    guide.reject(args, kwargs, rates=(0.5,))
    return guide


def same_draws(one, other):
    draws = []
    for guide in (one, other):
        pyro.set_rng_seed(seed(1))
        draws.append(guide.sample_posterior(20))
        draws[-1]["log q"] = guide.log_prob(draws[-1])
    return all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])


@every
def test_they_come_out_as_they_went_in(args, kwargs, is_written):
    kept = Arguments(args, kwargs)
    assert kept.are(*kept.values())
    assert kept.are(args, kwargs)
    assert not kept.are((*args, 1), kwargs)
    described = kept.describe()
    assert (described is not None) == is_written
    assert kept.can_be_kept() == (is_written and not isinstance((*args, None)[0], np.ndarray))
    if is_written:
        found = recall(json.loads(json.dumps(described)), dict(kept.named_buffers()))
        assert Arguments(*found).are(args, kwargs)


def test_tensors_move_with_it():
    x, y = Arguments(({"x": X, "y": (Y, 3)},), {}).double().values()[0][0].values()
    assert (x.dtype, y[0].dtype, y[1]) == (torch.float64, torch.float64, 3)


@every
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_a_rejecting_guide_is_copied(args, kwargs, is_written, copier):
    guide = rejecting(args, kwargs)
    other = copier(guide)
    assert other.rejection is not None
    assert same_draws(guide, other)


@every
def test_a_rejecting_guide_is_kept_in_a_file(args, kwargs, is_written, tmp_path):
    guide, path = rejecting(args, kwargs), tmp_path / "guide.safetensors"
    save(guide, path)
    assert same_draws(guide, load(path, model, *args, **kwargs))
    if is_written:
        assert same_draws(guide, load(path, model))
    else:
        with pytest.raises(ValueError, match=r"pass them, load\(path, model, \*args"):
            load(path, model)


def test_a_lambda_cannot_be_pickled_and_says_so():
    guide = rejecting((X, Y, lambda x: x), {})
    with pytest.raises(TypeError, match=r"keep the guide with pyro_hypernet.save"):
        pickle.dumps(guide)


@pytest.mark.parametrize("pack", [lambda x, y: (x, y), lambda x, y: ({"x": x, "y": y},)], ids=["tensors", "dict"])
def test_data_are_held_once(pack, tmp_path):
    """The map of linear weights and the rejection judge by the same tensors, in memory and in the file."""
    args = pack(X, Y)
    linear = partial(affine, lambda x: x)
    guide = AutoHypernet(linear).setup(*args)
    assert any(isinstance(part, GaussianConditional) for part in guide.modules())
    guide.reject(args, rates=(0.5,))
    assert guide.rejection.is_shared
    twin = copy.deepcopy(guide)
    assert twin.rejection.arguments in list(twin.bijection.modules())
    path = tmp_path / "guide.safetensors"
    save(guide, path)
    written = read_tensors(path.read_bytes()).values()
    assert [tensor.shape for tensor in written].count(X.shape) == 1
    loaded = load(path, linear)
    assert loaded.rejection.is_shared
    assert same_draws(guide, loaded)
    guide.reject(pack(X + 1, Y), rates=(0.5,))
    assert not guide.rejection.is_shared


def affine(link, *args):
    data = args[0] if len(args) == 1 else dict(zip("xy", args, strict=True))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("data", len(data["x"])):
        pyro.sample("y", dist.Normal(link(data["x"] @ w), noise), obs=data["y"])

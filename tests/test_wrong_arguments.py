"""Verbs that are given what a model does not take: each says what it takes, what it got, and what to do."""

import dataclasses
import typing
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_hypernet as ph
from pyro_hypernet.model.called import blaming_arguments, name_arguments
from tests.seeds import seed
from tests.test_keywords import VERBS, X, Y, guide_of, model

NAN = torch.where(Y > 1.5, torch.nan, Y)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=4)
FRAMES = (pd.DataFrame({"a": X.numpy()}), pd.Series(Y.numpy()))
# Arguments, and what an error says of them.
GIVEN = {
    "a loader": ((LOADER,), {}, ("The model takes (x, y, scale=0.3)", "given (DataLoader)", "Of loaders fit, score")),
    "an unknown keyword": ((X, Y), {"total": 40}, ("takes (x, y, scale=0.3)", "total=int", "total is neither")),
    "a tuple": (((X, Y),), {}, ("takes (x, y, scale=0.3)", "given (tuple)", "Pass the model's arguments one by one")),
    "too little": ((X,), {}, ("takes (x, y, scale=0.3)", "given (Tensor of shape (12,))", "'y'", "Pass")),
    "nothing": ((), {}, ("takes (x, y, scale=0.3)", "given ()", "'x'", "Pass")),
    "other lengths": ((X, Y[:7]), {}, ("of different lengths: 'x' has 12, 'y' has 7", "Give")),
    "DataFrames": (FRAMES, {}, ("takes tensors", "'x' is a DataFrame, 'y' is a Series", "as_tensor(x.to_numpy(), ")),
    "lists": (
        (X.tolist(), Y.tolist()),
        {},
        ("takes tensors", "'x' is a list, 'y' is a list", "Pass torch"),
    ),
    "arrays": ((X.numpy(), Y.numpy()), {}, ("takes tensors", "'x' is a ndarray", "Pass torch.as_tensor(x, ")),
    "NaN": ((X, NAN), {}, ("NaN",)),
}
# Verbs that have a result all the same: no run of theirs needs y, or minds an array; diagnose takes loaders.
WORK = {
    "a loader": {"diagnose"},
    "other lengths": {"predict", "compare", "fits_agree", "sbc"},
    "arrays": {"compare", "fits_agree", "sbc"},
    "NaN": {"predict", "compare", "fits_agree", "sbc"},
}
CASES = [(verb, given) for given in GIVEN for verb in VERBS if verb not in WORK.get(given, ())]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("verb", "given"), CASES)
def test_every_verb_says_what_is_wrong(verb, given):
    args, kwargs, told = GIVEN[given]
    guide_of()
    pyro.set_rng_seed(seed(3))
    with pytest.raises((TypeError, ValueError)) as caught:
        VERBS[verb](args, kwargs)
    assert "pyro_hypernet" in str(caught.traceback[-1].path)  # an error of ours
    message = str(caught.value)
    for part in told:
        assert part in message
        message = message[message.index(part) :]


NET = ph.bayesianize(nn.Linear(1, 1), "gaussian")
X1 = X[:, None]
# Of a network.
GIVEN_TO_NET = {
    "a loader": ((LOADER,), {}, "x must be a tensor; got DataLoader. Of loaders fit, score"),
    "an unknown keyword": ((X1, Y), {"total": 40}, "unexpected keyword argument 'total'. Pass these, and no others"),
    "a tuple": (((X1, Y),), {}, "it was given one tuple. Pass the model's arguments one by one"),
    "nothing": ((), {}, "x must be a tensor; got NoneType. Pass torch.as_tensor"),
    "other lengths": ((X1, Y[:7]), {}, "must hold the same number of data; their shapes are (12, 1) and (7,)"),
    "DataFrames": (FRAMES, {}, "y must be a tensor; got Series. Pass torch.as_tensor(y.to_numpy(), "),
    "arrays": ((X1.numpy(), Y), {}, "x must be a tensor; got ndarray. Pass torch.as_tensor(x, "),
    "NaN": ((X1, NAN), {}, "y holds 3 values that are NaN or infinite: drop those rows or fill them in"),
}


@pytest.mark.parametrize("given", GIVEN_TO_NET)
def test_a_network_says_what_is_wrong(given):
    args, kwargs, told = GIVEN_TO_NET[given]
    samples = {site: value[None] for site, value in NET.initial_values.items()} | {"sigma": torch.ones(1)}
    with pytest.raises((TypeError, ValueError)) as caught:
        ph.predict(NET, samples, *args, **kwargs)
    assert told in str(caught.value)
    assert "The model fails (The" not in str(caught.value)


def breaks(x, y, error):
    raise error


@pytest.mark.parametrize(
    "error", [ValueError("mine"), RuntimeError("mine"), KeyError("mine"), torch.linalg.LinAlgError("size 3")]
)
def test_errors_of_the_model_itself_stay(error):
    """Tensors of equal lengths are not to blame; nor are others where the error is about numbers or something else."""
    with pytest.raises(type(error)) as caught, blaming_arguments(breaks, (X, Y, error), {}):
        breaks(X, Y, error)
    assert caught.value is error
    with pytest.raises(type(error)) as caught, blaming_arguments(breaks, (X, Y[:3], error), {}):
        breaks(X, Y[:3], error)
    assert caught.value is error


WRAPPED = {
    "itself": (model, (X, Y)),
    "a partial": (partial(model, y=Y), (X,)),
    "under handlers": (poutine.scale(poutine.uncondition(model), 2.0), (X, Y)),
    "under handlers, a partial": (poutine.mask(partial(model, X), mask=True), (Y,)),
}


@pytest.mark.parametrize("case", WRAPPED.values(), ids=WRAPPED.keys())
def test_arguments_have_the_names_of_the_users_model(case):
    named = name_arguments(*case, {})
    assert named["x"] is X
    assert named["y"] is Y


# Objects of options, and every field of theirs that is declared as a number.
OPTIONS = [
    *(ph.HmcKernel, ph.MicrocanonicalKernel, ph.NutsKernel, ph.Optim, ph.SghmcKernel),
    *(ph.fan_in, ph.ard, ph.horseshoe, partial(ph.Checkpoint, "run")),
]


@pytest.mark.parametrize("bad", ["0.1", [1.0], True], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda one: type(one()).__name__)
def test_options_that_should_be_numbers_say_so(options, bad):
    numbers = {float, int, type(None)}
    fields = [f for f in dataclasses.fields(options()) if {*(typing.get_args(f.type) or (f.type,))} <= numbers]
    assert fields
    for one in fields:
        with pytest.raises(TypeError, match=f"{one.name} must be an? (number|integer)"):
            options(**{one.name: bad})


def test_options_take_numbers_of_numpy_and_none_where_it_stands():
    assert ph.fan_in(gain=np.float32(2.0)).gain == 2
    assert ph.Optim(patience=np.int64(3), max_seconds=5).patience == 3
    assert ph.SghmcKernel(step_size=None).step_size is None

"""Predictions made in parts of the data are those of all data at once, where rows are independent."""

import pytest
import torch
from torch import nn

import pyro_hypernet.model.chunks as chunks
from pyro_hypernet import bayesianize, predict
from pyro_hypernet.evaluation.predict import log_likelihood
from tests.seeds import seed

pytestmark = pytest.mark.filterwarnings("ignore:Batch normalisation")

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed(0)), dtype=torch.float64)


class Centred(nn.Linear):
    """Every output depends on all rows."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), nn.Flatten(), nn.Linear(6, 3)
    ),
    "rows that depend on each other": lambda: nn.Sequential(Centred(6, 5), nn.Tanh(), nn.Linear(5, 3)),
}


@pytest.fixture
def lengths(monkeypatch):
    """Chunks of a few hundred bytes; the numbers of rows that the network sees."""
    seen = []
    original = chunks.trace_one

    def trace_one(model, values, args, kwargs):
        seen.append(len(args[0]))
        return original(model, values, args, kwargs)

    monkeypatch.setattr(chunks, "_CACHED_ROWS", 2_000)
    monkeypatch.setattr(chunks, "trace_one", trace_one)
    return seen


def network(name):
    torch.manual_seed(seed(1))
    model = bayesianize(NETS[name]().double(), "categorical")
    noise = torch.Generator().manual_seed(seed(2))
    samples = {
        site: value + 0.3 * torch.randn((7, *value.shape), generator=noise, dtype=torch.float64)
        for site, value in model.initial_values.items()
    }
    return model, samples


@pytest.mark.parametrize("batch_size", [None, 1, 3, 7])
@pytest.mark.parametrize("name", NETS)
def test_parts_of_the_data_predict_what_all_do(name, batch_size, lengths, monkeypatch):
    model, samples = network(name)
    y = torch.arange(50) % 3
    f = predict(model, samples, X, return_sites=["f"], batch_size=batch_size)["f"]
    log_p = log_likelihood(model, samples, X, y, batch_size=batch_size)["y"]
    # Each of the two tries one part by itself.
    assert (sum(length < 50 for length in lengths) > 2) == (name != "rows that depend on each other")
    monkeypatch.setattr(chunks, "_CACHED_ROWS", 2**40)
    torch.testing.assert_close(f, predict(model, samples, X, return_sites=["f"])["f"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_p, log_likelihood(model, samples, X, y)["y"], rtol=1e-9, atol=1e-9)


def test_what_is_drawn_in_parts_has_a_value_for_every_row(lengths):
    model, samples = network("mlp")
    predicted = predict(model, samples, X)
    assert {name: tuple(value.shape) for name, value in predicted.items()} == {
        "f": (7, 50, 3),
        "y": (7, 50),
        "_RETURN": (7, 50, 3),
    }
    assert sum(length < 50 for length in lengths) > 1
    # Of 350 draws of three classes, none of which is rare; all alike would mean noise that repeats.
    assert len(predicted["y"].unique()) == 3

"""Predictions: shapes, distributions, chunks, and models that Pyro's own vectorisation cannot run."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_hypernet.evaluation.predict import log_likelihood, predict, predict_at
from pyro_hypernet.model.chunks import count_bytes
from pyro_hypernet.target import Bound
from tests.evaluation.conjugate import line
from tests.seeds import seed
from tests.small_models import Network, linear, linear_data, subsampled, with_switch

X = torch.linspace(-1, 1, 6)

OBSERVATIONS = {
    "normal": lambda w: dist.Normal(w, 1.0),
    "student": lambda w: dist.StudentT(5.0, w, 1.0),
    "log normal": lambda w: dist.LogNormal(w, 0.3),
    "exponential": lambda w: dist.Exponential(w.exp()),
    "laplace": lambda w: dist.Laplace(w, 1.0),
    "cauchy": lambda w: dist.Cauchy(w, 1.0),
    "gamma": lambda w: dist.Gamma(w.exp(), 1.0),
    "uniform": lambda w: dist.Uniform(w, w + 1),
    "bernoulli": lambda w: dist.Bernoulli(logits=w),
    "categorical": lambda w: dist.Categorical(logits=torch.stack([w, 0 * w, -w], -1)),
    "one hot": lambda w: dist.OneHotCategorical(logits=torch.stack([w, 0 * w, -w], -1)),
    "poisson": lambda w: dist.Poisson(w.exp()),
    "negative binomial": lambda w: dist.NegativeBinomial(5.0, logits=w),
    "binomial": lambda w: dist.Binomial(10, logits=w),
    "multivariate": lambda w: dist.MultivariateNormal(torch.stack([w, w], -1), torch.eye(2)),
    "noise alone": lambda w: dist.Normal(torch.zeros_like(w.detach()), 1.0),
}


def observing(make):
    def model(num=3):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num):
            return pyro.sample("y", make(w.expand(num)))

    return model


@pytest.mark.parametrize("make", OBSERVATIONS.values(), ids=OBSERVATIONS.keys())
def test_observations_are_independent_draws_of_the_right_distribution(make):
    predicted = predict(observing(make), {"w": torch.full((3000,), 0.4)}, num_samples=3000)["y"]
    direct = make(torch.full((3,), 0.4)).sample((3000,))
    assert predicted.shape == direct.shape
    # Means of arctan over 9 000 values or more, sd below 1.6: 0.12 is five standard errors of the difference.
    assert abs(float(predicted.float().atan().mean() - direct.float().atan().mean())) < 0.12
    assert abs(float(predicted.float().atan().std() - direct.float().atan().std())) < 0.12
    # Draws of different rows and of different data do not repeat each other: correlations of 3 000 pairs.
    flat = predicted.float().atan().reshape(3000, 3, -1)[:, :, 0]
    assert float(torch.corrcoef(flat.T).fill_diagonal_(0).abs().max()) < 5 / math.sqrt(3000)
    assert abs(float(torch.corrcoef(torch.stack([flat[1:, 0], flat[:-1, 0]]))[0, 1])) < 5 / math.sqrt(3000)


def test_all_that_is_not_latent_comes_back():
    predicted = predict(line, {"slope": torch.randn(10)}, X)
    assert {name: tuple(value.shape) for name, value in predicted.items()} == {
        "f": (10, 6),
        "y": (10, 6),
        "_RETURN": (10, 6),
    }
    torch.testing.assert_close(predicted["_RETURN"], predicted["y"])


def test_values_are_those_of_one_run_per_draw():
    slopes = torch.randn(10)
    torch.testing.assert_close(predict(line, {"slope": slopes}, X)["f"], slopes[:, None] * X)


def test_observed_sites_stay_observed():
    y = torch.randn(6)
    torch.testing.assert_close(predict(line, {"slope": torch.randn(4)}, X, y)["y"], y.expand(4, 6))
    torch.testing.assert_close(predict(line, {"slope": torch.randn(4)}, X, y=y)["y"], y.expand(4, 6))


def test_return_sites_choose_latent_ones_too():
    slopes = torch.randn(4)
    predicted = predict(line, {"slope": slopes}, X, return_sites=["slope", "f"])
    assert set(predicted) == {"slope", "f"}
    assert predict(line, {"slope": slopes}, X, return_sites=["slope"])["slope"] is not None
    with pytest.raises(ValueError, match=r"return_sites names \['g'\]"):
        predict(line, {"slope": slopes}, X, return_sites=["g"])


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 1}, {"max_bytes": 1}, {"max_bytes": 2000}])
def test_chunks_change_nothing(options):
    slopes = torch.randn(10)
    assert predict(line, {"slope": slopes}, X, **options)["y"].shape == (10, 6)
    torch.testing.assert_close(predict(line, {"slope": slopes}, X, **options)["f"], slopes[:, None] * X)


def test_chunks_bound_the_memory():
    sizes = []

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        sizes.append(1)
        return w * x

    x = torch.zeros(1000)
    one = count_bytes(lambda: model(x))
    predict(model, {"w": torch.zeros(100)}, x, max_bytes=10 * one)
    assert len(sizes) - 1 >= 10


def test_a_plain_network_needs_no_rewriting():
    x, y = linear_data()
    network = Network()
    guide = AutoNormal(network)
    guide(x, y)
    predicted = predict(network, guide, x[:5], num_samples=20)
    assert predicted["y"].shape == predicted["f"].shape == (20, 5)
    with pytest.raises((ValueError, RuntimeError)):
        pyro.infer.Predictive(network, guide=guide, num_samples=20, parallel=True)(x[:5])


def test_models_may_return_anything():
    def model(kind):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        return {"nothing": None, "text": "a", "pair": (w, {"twice": 2 * w}), "mixed": (w, 3)}[kind]

    samples = {"w": torch.arange(3.0)}
    assert "_RETURN" not in {k for kind in ("nothing", "text", "mixed") for k in predict(model, samples, kind)}
    first, second = predict(model, samples, "pair", batch_size=2)["_RETURN"]
    torch.testing.assert_close(second["twice"], 2 * first)


def test_discrete_latents_are_drawn_when_the_samples_lack_them():
    predicted = predict(pyro.poutine.uncondition(with_switch), {"means": torch.tensor([[-9.0, 9.0]] * 50)}, X)
    assert set(predicted["switch"].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(predicted["y"].sign(), 2 * predicted["switch"] - 1)


def test_model_without_vmap_falls_back_to_a_loop_with_one_warning():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        return w * x if w.item() > 0 else -w * x

    with pytest.warns(UserWarning, match="The model cannot be vmapped"):
        predicted = predict(model, {"w": torch.tensor([-1.0, 2.0])}, X)
    torch.testing.assert_close(predicted["_RETURN"], torch.tensor([1.0, 2.0])[:, None] * X)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"slop": torch.zeros(3)}, "Samples hold site 'slop', which the model does not sample"),
        ({"f": torch.zeros(3, 6)}, "Samples hold site 'f', which the model does not sample"),
        ({"slope": torch.zeros(3, 1)}, r"Samples of site 'slope' must have shape \(S, \*\(\)\)"),
    ],
)
def test_samples_must_fit_the_model(samples, message):
    with pytest.raises(ValueError, match=message):
        predict(line, samples, X)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predict(line, {"slope": torch.zeros(3)}, X, batch_size=0)


def test_the_seed_decides():
    found = []
    for _ in range(2):
        pyro.set_rng_seed(seed(5))
        found.append(predict(line, {"slope": torch.zeros(3)}, X)["y"])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_log_likelihood_is_that_of_the_observations(batch_size):
    slopes, y = torch.randn(10), torch.randn(6)
    found = log_likelihood(line, {"slope": slopes}, X, y, batch_size=batch_size)
    assert set(found) == {"y"}
    torch.testing.assert_close(found["y"], dist.Normal(slopes[:, None] * X, 0.5).log_prob(y))


def test_log_likelihood_of_events_and_masks():
    def model(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), pyro.poutine.mask(mask=torch.tensor([True, False, True, True])):
            pyro.sample("y", dist.Normal(w.expand(4, 2), 1.0).to_event(1), obs=y)

    found = log_likelihood(model, {"w": torch.zeros(3)}, torch.zeros(4, 2))["y"]
    assert found.shape == (3, 4)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0, 1.0, 1.0]) * -math.log(2 * math.pi))


def test_log_likelihood_has_no_plate_scale():
    found = log_likelihood(subsampled, {"mean": torch.zeros(3)}, torch.zeros(20))["y"]
    torch.testing.assert_close(found, torch.full((3, 5), -0.5 * math.log(2 * math.pi)))


def test_log_likelihood_without_data_is_refused():
    with pytest.raises(ValueError, match="The model observes nothing"):
        log_likelihood(line, {"slope": torch.zeros(3)}, X)


def test_sampling_under_vmap_does_not_warn():
    x, _ = linear_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict(linear, {"slope": torch.randn(1000, 2), "noise": torch.ones(1000)}, x)["y"].shape == (1000, 30)


def test_a_bound_model_samples_anew_what_it_observes():
    bound, samples = Bound(line, (X,), {"y": torch.zeros(6)}), {"slope": torch.randn(50)}
    given, anew = (predict_at(one, samples) for one in (bound, bound.anew()))
    torch.testing.assert_close(given["f"], samples["slope"][:, None] * X)
    torch.testing.assert_close(anew["f"], given["f"])
    assert (given["y"] == 0).all()
    assert (anew["y"] != 0).all()
    assert list(bound.arguments) == ["x", "y"]
    assert bound.trace_first(samples).nodes["slope"]["value"] == samples["slope"][0]


def test_many_chunks_run_as_a_graph_with_fresh_noise(monkeypatch):
    """Twenty chunks of 50 draws and a rest of 7: the same functions as in one piece, and no noise comes twice."""
    from pyro_hypernet.model import chunks as module

    calls = []
    run_one = module.trace_one

    def counted(*args):
        calls.append(1)
        return run_one(*args)

    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        f = pyro.deterministic("f", slope * x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(f, 1.0))
        return f

    samples = {"slope": torch.randn(1007)}
    whole = predict(model, samples, X, num_samples=1007, batch_size=1007)
    monkeypatch.setattr(module, "trace_one", counted)
    found = predict(model, samples, X, num_samples=1007, batch_size=50)
    assert len(calls) < 8  # counted, run, captured, and the rest; not once for every chunk
    torch.testing.assert_close(found["f"], whole["f"])
    torch.testing.assert_close(found["_RETURN"], whole["f"])
    noise = (found["y"] - found["f"]).flatten()
    assert len(noise.round(decimals=5).unique()) > 0.98 * len(noise)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)  # five standard errors

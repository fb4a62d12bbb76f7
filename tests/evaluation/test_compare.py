"""The comparison with a reference: known distances, the noise floor, and the table."""

import math
import sys
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.evaluation.compare import NOISE_FLOOR, compare
from pyro_hypernet.evaluation.psis import import_module_quietly
from pyro_hypernet.sample.nuts import NutsKernel, nuts
from tests.evaluation.conjugate import LOG_EVIDENCE, Y, guide_of_width, line
from tests.small_models import one_weight

X = torch.tensor([0.5, 1.0, -2.0])


def classifier(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    f = pyro.deterministic("f", x[:, None] * weight, event_dim=2)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=f), obs=y)


def binary(x, y=None):
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x * weight), obs=y)


def test_a_shift_by_one_sd_is_one_sd_away_in_every_output_and_site():
    reference = torch.randn(1000)
    sd = reference.std()
    table = compare({"shifted": {"slope": reference + sd}}, {"slope": reference}, line, X)
    for where in ("function", "slope"):
        assert table.row("shifted", where)["w1_over_sd"] == pytest.approx(1, abs=1e-4)
        assert table.row("shifted", where)["sd_ratio"] == pytest.approx(1, abs=1e-4)
    assert table.row("shifted")["mmd_squared"] > 0.1


def test_a_narrow_posterior_has_a_low_sd_ratio():
    reference = torch.randn(1000)
    table = compare({"narrow": {"slope": reference / 4}}, {"slope": reference}, line, X)
    assert table.row("narrow")["sd_ratio"] == pytest.approx(0.25, abs=1e-4)


def test_another_sample_of_the_same_distribution_is_at_the_noise_floor():
    # The floor compares 500 draws with 500, the row 1 000 with 1 000. Over 300 seeds the row's W1/sd had mean 0.057, sd
    # 0.020 and maximum 0.14; the floor, an average of 40 splits, mean 0.079, sd 0.005 and range 0.067 to 0.094.
    table = compare({"same": {"slope": torch.randn(1000)}}, {"slope": torch.randn(1000)}, line, X)
    assert table.row("same")["w1_over_sd"] < 0.17
    assert 0.055 < table.row(NOISE_FLOOR)["w1_over_sd"] < 0.105
    assert abs(table.row(NOISE_FLOOR)["mmd_squared"]) < 0.01
    assert table.row(NOISE_FLOOR)["sd_ratio"] == pytest.approx(1, abs=0.1)


def test_the_function_is_the_named_site():
    reference = {"slope": torch.randn(200)}
    found = compare({"a": {"slope": torch.randn(200) + 1}}, reference, line, X, function_site="f").row("a")
    by_mean = compare({"a": {"slope": torch.randn(200) + 1}}, reference, line, X, function_site="other").row("a")
    assert found["w1_over_sd"] == pytest.approx(by_mean["w1_over_sd"], abs=0.4)
    assert "agreement" not in found


@pytest.mark.parametrize("model", [classifier, binary])
def test_classifiers_are_compared_by_their_mean_probabilities(model):
    shape = (400, 3) if model is classifier else (400,)
    draws = torch.randn(shape) + 1
    table = compare({"same": {"weight": draws}, "other": {"weight": -2 * draws}}, {"weight": draws}, model, X)
    assert table.row("same")["agreement"] == 1
    assert table.row("same")["total_variation"] == pytest.approx(0, abs=1e-6)
    p, q = (_probabilities(model, weight).mean(0) for weight in (draws, -2 * draws))
    assert table.row("other")["total_variation"] == pytest.approx(float((p - q).abs().sum(-1).mean() / 2), abs=1e-5)
    same = (p.argmax(-1) == q.argmax(-1)).float().mean()
    assert table.row("other")["agreement"] == pytest.approx(float(same), abs=1e-6)


def _probabilities(model, weight):
    if model is classifier:
        return (X[:, None] * weight[:, None]).softmax(-1)
    positive = torch.sigmoid(X * weight[:, None])
    return torch.stack([1 - positive, positive], -1)


def test_guides_get_their_elbo_and_anybody_their_seconds():
    reference = SimpleNamespace(samples={"mean": torch.randn(100)})

    def prediction():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        pyro.deterministic("f", mean.expand(2), event_dim=1)

    def both(y=None):
        return prediction() if y is None else one_weight(y)

    exact = guide_of_width(1.0)
    table = compare({"exact": exact, "nuts": reference}, reference, both, train_args=(Y,)).with_seconds({"exact": 2})
    assert table.row("exact")["elbo"] == pytest.approx(LOG_EVIDENCE, abs=1e-4)
    assert table.row("exact")["elbo_error"] < 1e-4
    assert table.row("exact")["seconds"] == 2
    assert "elbo" not in table.row("nuts")


def test_the_reference_may_be_a_result_with_samples_and_the_posterior_a_guide():
    guide = AutoNormal(line)
    guide(X, torch.zeros(3))
    table = compare({"guide": guide}, SimpleNamespace(samples={"slope": torch.randn(300)}), line, X, num_samples=50)
    assert {row["name"] for row in table.rows} == {"guide", NOISE_FLOOR}


def test_the_table_reads_well():
    reference = {"slope": torch.randn(200)}
    table = compare({"one": reference, "another": reference}, reference, line, X).with_seconds({"one": 12.345})
    lines = str(table).splitlines()
    assert lines[0].split() == ["W1/sd", "sd", "ratio", "MMD²", "seconds"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["one", "another", NOISE_FLOOR]
    assert lines[1].split()[-1] == "12.3"
    assert lines[5].split() == ["W1/sd", "by", "site", "slope"]
    assert len(lines) == 9
    assert max(map(len, lines)) < 120


def test_every_distance_has_an_interval_about_it():
    table = compare({"wide": {"weight": 2 * torch.randn(300)}}, {"weight": torch.randn(300)}, binary, X)
    for row in table.rows:
        for key in ("w1_over_sd", "sd_ratio", "mmd_squared", "agreement", "total_variation"):
            if key in row:
                assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"]
    assert table.level == 0.95
    assert "[" in table.to_string(intervals=True)
    assert "[" not in str(table)


def test_what_is_far_off_is_not_within_the_floor():
    reference = torch.randn(400)
    posteriors = {"same": {"slope": torch.randn(400)}, "off": {"slope": torch.randn(400) + 1}}
    table = compare(posteriors, {"slope": reference}, line, X)
    # In 200 seeds "same" was within the floor in all, "off" in none.
    assert table.row("same")["within_floor"]
    assert not table.row("off")["within_floor"]


def test_without_replicates_there_are_no_intervals():
    reference = {"slope": torch.randn(50)}
    table = compare({"one": reference}, reference, line, X, num_bootstrap=0)
    assert table.level == 0
    assert not any("low" in key or key == "within_floor" for row in table.rows for key in row)


def test_chains_are_resampled_in_blocks():
    # An autoregression of coefficient .9 has one effective draw in 19: its intervals are wider, over 30 seeds by 1.7 to
    # 2.9 times, and the noise floor of two halves by 2.0 to 3.3; independent draws would give 1.
    draws = torch.empty(1000)
    draws[0] = torch.randn(())
    for i in range(1, 1000):
        draws[i] = 0.9 * draws[i - 1] + 0.19**0.5 * torch.randn(())
    samples = {"slope": draws + 1}
    chain = SimpleNamespace(samples=samples, function_ess={"f": torch.full((3,), 1000 / 19)})
    reference = {"slope": torch.randn(1000)}
    table = compare({"chain": chain, "independent": samples}, reference, line, X)
    width = {name: table.row(name)["w1_over_sd_high"] - table.row(name)["w1_over_sd_low"] for name in table.names}
    assert 1.2 < width["chain"] / width["independent"] < 6
    floor = {
        name: compare({"a": samples}, r, line, X, num_bootstrap=0).row(NOISE_FLOOR)["w1_over_sd"]
        for name, r in {"chain": chain, "independent": samples}.items()
    }
    assert floor["chain"] > 1.4 * floor["independent"]


def test_a_reference_that_never_moved_is_no_error():
    stuck = {"slope": torch.full((40,), 0.3)}
    table = compare({"moving": {"slope": torch.randn(40)}}, stuck, line, X)
    assert math.isnan(table.row("moving")["w1_over_sd"])
    assert math.isnan(table.row(NOISE_FLOOR)["w1_over_sd"])
    assert "nan" in table.to_string(intervals=True)
    half = {"slope": torch.cat([torch.full((20,), 0.3), torch.randn(20)])}
    chain = SimpleNamespace(samples=half, ess={"slope": torch.tensor(4.0)})
    assert compare({"moving": {"slope": torch.randn(40)}}, chain, line, X).row(NOISE_FLOOR)["w1_over_sd"] > 0


def test_weights_up_to_symmetry_are_told_from_weights():
    network = bayesianize(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), "gaussian")
    x, y = torch.randn(20, 1), torch.randn(20)
    trace = pyro.poutine.trace(network).get_trace(x)
    base = {name: trace.nodes[name]["value"] for name in network.site_names}
    reference = {name: value + 0.01 * torch.randn(200, *value.shape) for name, value in base.items()}
    reference["sigma"] = 0.3 + 0.01 * torch.rand(200)
    swapped = {name: value.clone() for name, value in reference.items()}
    swapped["0.weight"], swapped["0.bias"] = -reference["0.weight"].flip(1), -reference["0.bias"].flip(1)
    swapped["2.weight"] = -reference["2.weight"].flip(2)
    table = compare({"swapped": swapped}, reference, network, x, train_args=(x, y), canonical=True, num_bootstrap=20)
    assert table.row("swapped")["w1_over_sd"] == pytest.approx(0, abs=1e-3)
    assert table.row("swapped", "2.weight")["w1_over_sd"] > 5
    assert table.row("swapped", "2.weight", canonical=True)["w1_over_sd"] == pytest.approx(0, abs=1e-3)
    assert "W1/sd up to symmetry" in str(table)
    with pytest.raises(KeyError, match="up to symmetry"):
        table.row("swapped", "sigma", canonical=True)


def test_draws_of_other_libraries_are_compared():
    slope = torch.randn(200)
    chains = slope.double().numpy().reshape(2, 100)
    others = {
        "numpy": {"slope": slope.double().numpy()},
        "sampler": SimpleNamespace(get_samples=lambda: {"slope": slope.numpy()}),
        "arviz": import_module_quietly("arviz").from_dict(posterior={"slope": chains}),
        "refined": SimpleNamespace(samples={"slope": slope}),
    }
    table = compare(others, {"slope": slope}, line, X)
    assert [table.row(name)["w1_over_sd"] for name in others] == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_to_dataframe(monkeypatch):
    reference = {"slope": torch.randn(50)}
    table = compare({"one": reference}, reference, line, X)
    frame = table.to_dataframe()
    assert list(frame["where"]) == ["function", "slope"] * 2
    assert list(frame["name"]) == ["one", "one", NOISE_FLOOR, NOISE_FLOOR]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas"):
        table.to_dataframe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posteriors": {}}, "posteriors must name at least one"),
        ({"posteriors": {NOISE_FLOOR: {"slope": torch.zeros(5)}}}, "posteriors must name at least one"),
        ({"canonical": True}, "canonical=True needs the model's arguments with data"),
        ({"num_bootstrap": -1}, "num_bootstrap must be 0 or more; got -1"),
        ({"reference": {"slope": torch.zeros(3)}}, "The reference must have at least four draws"),
        ({"reference": {"other": torch.zeros(30)}}, "Samples hold site 'other'"),
    ],
)
def test_errors(options, message):
    reference = {"slope": torch.randn(50)}
    defaults = {"posteriors": {"a": reference}, "reference": reference}
    arguments = {**defaults, **options}
    with pytest.raises(ValueError, match=message):
        compare(arguments.pop("posteriors"), arguments.pop("reference"), line, X, **arguments)


def test_seconds_are_those_of_posteriors():
    reference = {"slope": torch.randn(50)}
    table = compare({"a": reference}, reference, line, X, num_bootstrap=0).with_seconds({"a": 2})
    assert (table.row("a")["seconds"], "seconds" in table.row("a", "slope")) == (2, False)
    with pytest.raises(ValueError, match=r"seconds names \['b'\]; the posteriors are \['a'\]"):
        table.with_seconds({"b": 1.0})


def test_a_model_without_function_and_observation_is_refused():
    def prior():
        pyro.sample("slope", dist.Normal(0.0, 1.0))

    reference = {"slope": torch.randn(50)}
    with pytest.raises(ValueError, match="The model has neither a deterministic site 'f'"):
        compare({"a": reference}, reference, prior)


def test_an_unknown_row_is_named():
    reference = {"slope": torch.randn(50)}
    with pytest.raises(KeyError, match="No row for 'b' in 'function'"):
        compare({"a": reference}, reference, line, X).row("b")


@pytest.mark.filterwarnings("ignore:NUTS has not mixed")  # 100 draws; what is asked of them is below
def test_markov_chains_serve_as_reference_and_as_posterior():
    x, y = X.repeat(4), 0.5 * X.repeat(4)
    chains = nuts(line, x, y, num_samples=100, warmup_steps=50, num_chains=2, kernel=NutsKernel(num_processes=1))
    variance = 1 / (1 + x.square().sum() / 0.25)
    exact = {"slope": variance * (x * y).sum() / 0.25 + variance.sqrt() * torch.randn(1000)}
    table = compare({"exact": exact, "chains": chains}, chains, line, X)
    # With 50 effective draws a mean off by 5 / sqrt(50) = 0.7 sds comes up once in two million runs.
    assert float(chains.ess["slope"]) > 50
    assert table.row("exact")["w1_over_sd"] < 0.7
    assert table.row("chains")["w1_over_sd"] == pytest.approx(0, abs=1e-6)

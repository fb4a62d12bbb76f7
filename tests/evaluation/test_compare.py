"""The comparison with a reference: known distances, the noise floor, and the table."""

import sys
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_hypernet.evaluation.compare import NOISE_FLOOR, compare
from pyro_hypernet.inference.nuts import nuts
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
    # 0.020 and maximum 0.14; the floor, an average of ten splits, mean 0.080, sd 0.009 and range 0.059 to 0.109.
    table = compare({"same": {"slope": torch.randn(1000)}}, {"slope": torch.randn(1000)}, line, X)
    assert table.row("same")["w1_over_sd"] < 0.17
    assert 0.045 < table.row(NOISE_FLOOR)["w1_over_sd"] < 0.125
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
    table = compare({"exact": exact, "nuts": reference}, reference, both, train_args=(Y,), seconds={"exact": 2})
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
    table = compare({"one": reference, "another": reference}, reference, line, X, seconds={"one": 12.345})
    lines = str(table).splitlines()
    assert lines[0].split() == ["W1/sd", "sd", "ratio", "MMD²", "seconds"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["one", "another", NOISE_FLOOR]
    assert lines[1].split()[-1] == "12.3"
    assert lines[5].split() == ["W1/sd", "by", "site", "slope"]
    assert len(lines) == 9
    assert max(map(len, lines)) < 120


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
        ({"seconds": {"b": 1.0}}, r"seconds names \['b'\]"),
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


def test_markov_chains_serve_as_reference_and_as_posterior():
    x, y = X.repeat(4), 0.5 * X.repeat(4)
    chains = nuts(line, x, y, num_samples=100, warmup_steps=50, num_chains=2, num_processes=1)
    variance = 1 / (1 + x.square().sum() / 0.25)
    exact = {"slope": variance * (x * y).sum() / 0.25 + variance.sqrt() * torch.randn(1000)}
    table = compare({"exact": exact, "chains": chains}, chains, line, X)
    # With 50 effective draws a mean off by 5 / sqrt(50) = 0.7 sds comes up once in two million runs.
    assert float(chains.ess["slope"]) > 50
    assert table.row("exact")["w1_over_sd"] < 0.7
    assert table.row("chains")["w1_over_sd"] == pytest.approx(0, abs=1e-6)

"""Networks as Pyro models: priors, likelihoods, what stays unchanged, and what is refused."""

import copy
import gc
import io
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import nn

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    Heteroscedastic,
    Poisson,
    resolve_likelihood,
)
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.density import LogJoint, map_model
from pyro_hypernet.model.layout import Layout
from tests.fits import fit
from tests.seeds import seed

N = 12
X = torch.linspace(-1, 1, 3 * N).reshape(N, 3)
CLASSES = torch.arange(N) % 3
# Likelihood, outputs, targets, and the log likelihood of outputs f written by hand with torch's own distributions.
CASES = {
    "gaussian": (Gaussian(sigma=0.5), 1, X[:, 0], lambda f, y: torch.distributions.Normal(f[:, 0], 0.5).log_prob(y)),
    "gaussian, two outputs": (
        Gaussian(sigma=0.5),
        2,
        X[:, :2],
        lambda f, y: torch.distributions.Normal(f, 0.5).log_prob(y),
    ),
    "heteroscedastic": (
        "heteroscedastic",
        2,
        X[:, 0],
        lambda f, y: torch.distributions.Normal(f[:, 0], nn.functional.softplus(f[:, 1])).log_prob(y),
    ),
    "bernoulli": (
        "bernoulli",
        1,
        CLASSES % 2,
        lambda f, y: torch.distributions.Bernoulli(logits=f[:, 0]).log_prob(y.float()),
    ),
    "categorical": ("categorical", 3, CLASSES, lambda f, y: f.log_softmax(-1)[torch.arange(N), y]),
    "poisson": ("poisson", 1, CLASSES, lambda f, y: torch.distributions.Poisson(f[:, 0].exp()).log_prob(y.float())),
}


def network(outputs=1, inputs=3):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def sites(trace):
    return [name for name, node in trace.iter_stochastic_nodes() if node["type"] == "sample" and name != "data"]


def layout_of(model, *args):
    return Layout.from_trace(poutine.trace(model).get_trace(*args))


def batch_norm(size):
    """A batch norm that has seen data."""
    norm = nn.BatchNorm1d(size)
    norm.running_var.fill_(2.0)
    return norm


class Tied(nn.Module):
    """One weight matrix, used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


NETS = {
    "linear": lambda: nn.Linear(3, 1),
    "one axis out": lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 4), batch_norm(4), nn.ReLU(), nn.Linear(4, 1)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 1)),
    "transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.ConvTranspose1d(3, 2, 2), nn.Flatten(), nn.Linear(4, 1)
    ),
    "tied": Tied,
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_likelihood_is_what_its_name_says(name):
    likelihood, outputs, y, by_hand = CASES[name]
    trace = poutine.trace(bayesianize(network(outputs), likelihood)).get_trace(X, y)
    trace.compute_log_prob()
    f = trace.nodes["f"]["value"]
    assert f.shape == (N, outputs)
    torch.testing.assert_close(trace.nodes["y"]["log_prob_sum"], by_hand(f, y).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_targets_are_drawn_in_their_own_shape(name):
    likelihood, outputs, y, _ = CASES[name]
    model = bayesianize(network(outputs), likelihood)
    samples = Predictive(model, num_samples=3)(X)
    assert samples["y"].shape == (3, *y.shape)
    model(X, samples["y"][0].long() if name == "categorical" else samples["y"][0])  # draws are valid targets


def test_learnt_noise_is_a_site_with_the_prior_of_the_references():
    trace = poutine.trace(bayesianize(network())).get_trace(X, X[:, 0])
    assert sites(trace) == ["0.weight", "0.bias", "2.weight", "2.bias", "sigma"]
    sigma = trace.nodes["sigma"]["fn"]
    assert (float(sigma.loc), float(sigma.scale)) == (-1.5, 0.75)


def test_noise_with_a_prior_of_ones_own():
    trace = poutine.trace(bayesianize(network(), Gaussian(sigma=dist.HalfNormal(0.2)))).get_trace(X, X[:, 0])
    assert isinstance(trace.nodes["sigma"]["fn"], dist.HalfNormal)


def test_fan_in_prior():
    model = bayesianize(nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(3, 1)), prior=fan_in(gain=1.5))
    scales = {name: float(prior.base_dist.scale.max()) for name, prior in model.priors.items()}
    expected = {"0.weight": 1.5 / math.sqrt(10), "0.bias": 1.0, "2.weight": 1.5 / math.sqrt(3), "2.bias": 1.0}
    assert scales == pytest.approx(expected)


def test_fan_in_of_transposed_convolutions_counts_inputs():
    model = bayesianize(nn.Sequential(nn.ConvTranspose1d(2, 7, 5)))
    assert float(model.priors["0.weight"].base_dist.scale.max()) == pytest.approx(1 / math.sqrt(10))


@pytest.mark.parametrize("prior", ["fan_in", 0.3])
@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.LayerNorm((2, 4)), batch_norm(4), nn.GroupNorm(2, 4)])
def test_weights_of_normalisation_layers_are_centred_at_one(norm, prior):
    model = bayesianize(nn.Sequential(norm, nn.Linear(4, 1)), prior=prior)
    assert bool((model.priors["0.weight"].base_dist.loc == 1).all())
    assert bool((model.priors["0.bias"].base_dist.loc == 0).all())


def test_priors_by_name_number_and_function():
    prior = {
        "0.weight": dist.Laplace(0.0, 2.0),
        "*.weight": lambda name, value: 0.1 * value.numel(),
        "*": fan_in(bias_scale=0.5),
    }
    model = bayesianize(network(), prior=prior)
    assert isinstance(model.priors["0.weight"].base_dist, dist.Laplace)
    assert float(model.priors["2.weight"].base_dist.scale[0, 0]) == pytest.approx(0.4)
    assert float(model.priors["2.bias"].base_dist.scale[0]) == 0.5
    assert all(prior.event_shape == model.net.get_parameter(name).shape for name, prior in model.priors.items())


def test_prior_with_an_event_of_its_own():
    rows = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    model = bayesianize(nn.Linear(3, 2), prior={"weight": rows, "bias": 1.0})
    assert model.priors["weight"].event_shape == (2, 3)


@pytest.mark.parametrize(
    "chosen, expected",
    [
        ("all", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("last_layer", ["2.weight", "2.bias"]),
        (["*.weight"], ["0.weight", "2.weight"]),
        (("0.bias", "2.*"), ["0.bias", "2.weight", "2.bias"]),
    ],
)
def test_choice_of_sites_and_the_rest_is_learnt(chosen, expected):
    net = network()
    model = bayesianize(net, sites=chosen)
    trace = poutine.trace(model).get_trace(X, X[:, 0])
    assert list(model.site_names) == expected == sites(trace)[:-1]
    for name, value in net.named_parameters():
        if name not in expected:
            assert trace.nodes[f"BayesianNet.{name}"]["type"] == "param"
            torch.testing.assert_close(pyro.param(f"BayesianNet.{name}"), value, rtol=0, atol=0)


def test_frozen_parameters_stay_fixed_unless_named():
    net = network()
    net[0].requires_grad_(False)
    model = bayesianize(net)
    trace = poutine.trace(model).get_trace(X, X[:, 0])
    assert list(model.site_names) == ["2.weight", "2.bias"]
    assert not trace.param_nodes
    assert bayesianize(net, sites=["0.weight"]).site_names == ("0.weight",)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_the_network_is_not_changed(make):
    net = make()
    before, flags = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    model = bayesianize(net, sites=["*bias"])
    y = poutine.trace(model).get_trace(X).nodes["y"]["value"].detach()
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(2):
        svi.step(X, y)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    learnt = [name for name, _ in net.named_parameters() if name not in model.site_names]
    if learnt:  # but the point estimates moved
        assert any(not torch.equal(model.net.get_parameter(name), before[name]) for name in learnt)


@pytest.mark.parametrize("parametrization", ["weights", "weight_norm"])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_at_its_own_values_the_model_computes_what_the_network_does(make, parametrization):
    net = make()
    model = bayesianize(net, parametrization=parametrization)
    trace = poutine.trace(poutine.condition(model, model.initial_values)).get_trace(X)
    expected = net.eval()(X)
    torch.testing.assert_close(trace.nodes["f"]["value"], expected.reshape(N, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parametrization", ["weights", "weight_norm"])
def test_vmapped_equals_one_by_one(name, parametrization):
    likelihood, outputs, y, _ = CASES[name]
    model = bayesianize(network(outputs), likelihood, parametrization=parametrization, num_data=100)
    layout = layout_of(model, X, y)
    w = 0.5 * torch.randn(4, layout.dim)
    conditioned = [poutine.condition(model, layout.constrain(row)[0]) for row in w]
    expected = torch.stack([poutine.trace(one).get_trace(X, y).log_prob_sum() for one in conditioned])
    log_joint = LogJoint(model, layout)
    for _ in range(2):  # the second replays the captured graph
        torch.testing.assert_close(log_joint(w, X, y), expected, rtol=1e-4, atol=1e-3)
    assert log_joint.mode == "graph"


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_every_network_is_vmapped(make):
    model = bayesianize(make(), Gaussian(sigma=0.5))
    y = poutine.trace(model).get_trace(X).nodes["y"]["value"]
    layout = layout_of(model, X, y)
    w = 0.5 * torch.randn(3, layout.dim)
    one = poutine.trace(poutine.condition(model, layout.constrain(w[1])[0])).get_trace(X)
    f = map_model(model, layout.constrain(w)[0], (X,), collect=lambda trace: trace.nodes["f"]["value"])
    torch.testing.assert_close(f[1], one.nodes["f"]["value"], rtol=1e-4, atol=1e-4)


def test_weight_norm_is_a_scale_times_a_unit_vector():
    net = network()
    model = bayesianize(net, parametrization="weight_norm")
    trace = poutine.trace(model).get_trace(X, X[:, 0])
    assert sites(trace) == ["0.weight.g", "0.bias", "2.weight.g", "2.bias", "sigma"]
    assert sorted(trace.param_nodes) == ["BayesianNet.0.weight.v", "BayesianNet.2.weight.v"]
    g = trace.nodes["0.weight.g"]["value"]
    with poutine.condition(data={"0.weight.g": g}):
        torch.testing.assert_close(model._values()["0.weight"].weight.norm(dim=1), g.abs())


def test_weight_norm_as_in_the_paper():
    model = bayesianize(network(), sites=["*.weight"], parametrization="weight_norm")
    trace = poutine.trace(model).get_trace(X, X[:, 0])
    assert list(model.site_names) == ["0.weight.g", "2.weight.g"]
    learnt = ["0.bias", "0.weight.v", "2.bias", "2.weight.v"]
    assert sorted(trace.param_nodes) == [f"BayesianNet.{name}" for name in learnt]
    for prior in model.priors.values():
        assert bool((prior.base_dist.loc == 0).all())
        assert bool((prior.base_dist.scale == 1).all())


def test_weight_norm_trains_its_directions():
    model = bayesianize(network(), parametrization="weight_norm")
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=model.initial_values))
    svi, before = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO()), model.net[0].weight.detach().clone()
    losses = [svi.step(X, X.sum(-1)) for _ in range(150)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not torch.equal(model.net[0].weight, before)


def test_num_data_scales_the_likelihood_alone():
    model, scaled = bayesianize(network()), bayesianize(network(), num_data=5 * N)
    values = {name: prior.sample() for name, prior in model.priors.items()} | {"sigma": torch.tensor(0.5)}
    traces = [poutine.trace(poutine.condition(m, values)).get_trace(X, X[:, 0]) for m in (model, scaled)]
    for trace in traces:
        trace.compute_log_prob()
    for name in ("0.weight", "sigma"):
        assert float(traces[0].nodes[name]["log_prob_sum"]) == float(traces[1].nodes[name]["log_prob_sum"])
    likelihoods = [trace.nodes["y"]["log_prob_sum"] for trace in traces]
    torch.testing.assert_close(likelihoods[1], 5 * likelihoods[0])


@pytest.mark.parametrize("name", CASES)
def test_weights_are_repeated_rows(name, double):
    """The density at the same draws, captured, in double precision; and half the weights are half of the likelihood."""
    likelihood, outputs, y, _ = CASES[name]
    y, x = y.double() if y.is_floating_point() else y, X.double()
    model, times = bayesianize(network(outputs), likelihood), torch.arange(N) % 3 + 1
    layout, log_joint = layout_of(model, x, y), LogJoint(model, layout_of(model, x, y))
    w = 0.5 * torch.randn(4, layout.dim)
    repeated = log_joint(w, x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    torch.testing.assert_close(log_joint(w, x, y, y_weight=times.double()), repeated, rtol=1e-12, atol=1e-12)
    once, half = log_joint(w, x, y), log_joint(w, x, y, y_weight=torch.full((N,), 0.5))
    prior = torch.stack(
        [
            poutine.trace(poutine.condition(model, layout.constrain(row)[0]))
            .get_trace(x)
            .log_prob_sum(lambda name, site: name in layout.names)
            for row in w
        ]
    )
    torch.testing.assert_close(2 * (half - prior), once - prior)


def test_minibatches_average_to_all_data():
    model = bayesianize(network(), Gaussian(sigma=0.5), num_data=N)
    y, layout = X[:, 0], layout_of(model, X, X[:, 0])
    w = torch.randn(2, layout.dim)
    log_joint = LogJoint(model, layout)
    parts = [log_joint(w, X[i : i + 4], y[i : i + 4]) for i in range(0, N, 4)]
    torch.testing.assert_close(sum(parts) / 3, log_joint(w, X, y), rtol=1e-4, atol=1e-4)


def test_float64(double):
    model = bayesianize(network().double())
    trace = poutine.trace(model).get_trace(X.double(), X[:, 0])  # targets in another dtype are converted
    assert {trace.nodes[name]["value"].dtype for name in sites(trace)} == {torch.float64}
    assert trace.nodes["y"]["value"].dtype == torch.float64


def test_float64_network_under_the_default_dtype_float32():
    trace = poutine.trace(bayesianize(network().double())).get_trace(X.double(), X[:, 0].double())
    assert {trace.nodes[name]["value"].dtype for name in sites(trace)} == {torch.float64}


@pytest.mark.parametrize("kind", ["weights", "weight_norm"])
def test_float64_with_point_estimates_by_keyword(kind):
    model = bayesianize(network().double(), parametrization=kind, sites=["2.*"])
    y = X[:, 0].double()
    guide = AutoHypernet(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert all(math.isfinite(svi.step(x=X.double(), y=y)) for _ in range(2))
    assert predict(model, guide, x=X.double(), num_samples=2)["y"].dtype == torch.float64


def test_lazy_layers_once_they_have_been_run():
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))
    net(X)
    for sites in ("all", "last_layer"):
        poutine.trace(bayesianize(net, sites=sites)).get_trace(X, X[:, 0])


def test_integer_inputs():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    poutine.trace(bayesianize(net)).get_trace(torch.randint(5, (N, 2)), X[:, 0])


def test_making_a_model_draws_no_random_numbers():
    net = network()
    state = torch.random.get_rng_state()
    bayesianize(net, prior=dist.Normal(0.0, 1.0))
    assert torch.equal(state, torch.random.get_rng_state())


# -- the last layer is the one that acts last --


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

    def forward(self, x):
        return self.head(self.body(x))


class Unused(HeadFirst):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(4, 7)

    def forward(self, x):
        h = self.body(x)
        if self.training:
            return self.auxiliary(h)
        self.auxiliary(h)
        return self.head(h).reshape(x.shape[0], -1)


class TwoHeads(HeadFirst):
    def __init__(self):
        super().__init__()
        self.skip = nn.Linear(3, 1)

    def forward(self, x):
        return super().forward(x) + self.skip(x)


class InPlace(TwoHeads):
    def forward(self, x):
        f = HeadFirst.forward(self, x)
        f.add_(self.skip(x))
        return f


class Branching(HeadFirst):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Threshold(HeadFirst):
    """Its outputs depend on a parameter that has no gradient."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return super().forward(x) * (x[:, :1] > self.threshold)


LAST = {
    "head first": (HeadFirst, ["head.weight", "head.bias"]),
    "unused": (Unused, ["head.weight", "head.bias"]),
    "tied": (Tied, ["first.weight", "second.bias"]),
    "one layer": (lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ["0.weight", "0.bias"]),
    "norm": (lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), ["1.weight", "1.bias"]),
}


@pytest.mark.parametrize("make, expected", LAST.values(), ids=LAST.keys())
def test_the_last_layer_is_the_one_that_acts_last(make, expected):
    net = make()
    model = bayesianize(net, sites="last_layer")
    assert list(model.site_names) == expected
    assert net.training
    poutine.trace(model).get_trace(X)


UNCLEAR = {
    "two heads": (TwoHeads, "'head', 'skip' may be the last"),
    "in place": (InPlace, r"it changes values in place \(add_\)"),
    "branching": (Branching, r"it cannot be traced \(symbolically traced"),
    "attention": (NETS["attention"], "'2.linear1', '2.linear2'.*may be the last"),
}


@pytest.mark.parametrize("make, reason", UNCLEAR.values(), ids=UNCLEAR.keys())
def test_where_no_layer_is_clearly_the_last_it_is_asked_for(make, reason):
    with pytest.raises(
        ValueError, match=f"^sites='last_layer': which layer .* for {reason}.*Name its parameters, as in"
    ):
        bayesianize(make(), sites="last_layer")


def test_random_parameters_that_do_nothing_are_said_once():
    model = bayesianize(Unused())
    with pytest.warns(
        UserWarning, match=r"do not depend on its random parameters \['auxiliary.weight', 'auxiliary.bias'\]"
    ):
        poutine.trace(model).get_trace(X)
    poutine.trace(model).get_trace(X)


@pytest.mark.parametrize("make", [*NETS.values(), Threshold], ids=[*NETS.keys(), "threshold"])
def test_of_parameters_that_do_something_nothing_is_said(make):
    model = bayesianize(make())
    poutine.trace(model).get_trace(X)


# -- point estimates are their model's own --


def body_frozen():
    net = network()
    net[0].weight.requires_grad_(False)
    return net


# From a name to a model with point estimates.
LEARNT = {
    "last layer": lambda: bayesianize(network(), sites="last_layer"),
    "patterns": lambda: bayesianize(network(), sites=["*.bias"]),
    "weight norm": lambda: bayesianize(network(), parametrization="weight_norm"),
    "weight norm as in the paper": lambda: bayesianize(network(), sites=["*.weight"], parametrization="weight_norm"),
    "frozen weights": lambda: bayesianize(body_frozen(), sites=["2.*"]),
    "tied": lambda: bayesianize(Tied(), sites=["*.bias"]),
    "channels last": lambda: bayesianize(
        nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 1)).to(
            memory_format=torch.channels_last
        ),
        sites=["3.*"],
    ),
    "strided": lambda: bayesianize(strided(), sites=["2.*"]),
}


def strided():
    """A network with a parameter that is not contiguous, of which Pyro's store would keep a copy."""
    net = network()
    net[0].weight = nn.Parameter(torch.randn(3, 4).mT)
    return net


def through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_file,
    "state_dict": lambda model: _with_state(model),
}


def _with_state(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1.0
    other.load_state_dict(model.state_dict())
    return other


def estimates(model):
    return {name: p.detach().clone() for name, p in model.net.named_parameters() if p.requires_grad}


def targets(model):
    return poutine.trace(model).get_trace(X).nodes["y"]["value"].detach()


def train(model, steps=3):
    y = targets(model)
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(steps):
        assert math.isfinite(svi.step(x=X, y=y))


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def assert_all_differ(found, expected):
    assert expected
    for name, value in expected.items():
        assert not torch.equal(found[name], value), name


def another_after(what, first, make):
    if what == "deleted":
        del first
        gc.collect()
    elif what == "cleared":
        pyro.clear_param_store()
    return make()


@pytest.mark.parametrize("what", ["alive", "deleted", "cleared"])
@pytest.mark.parametrize("make", LEARNT.values(), ids=LEARNT.keys())
def test_two_models_share_nothing(make, what):
    """Exact: the second starts at its own network's values, and neither is moved by the other's training."""
    models = [make()]
    train(models[0])
    after_first = estimates(models[0])
    second = another_after(what, models.pop() if what == "deleted" else models[0], make)
    start = estimates(second)
    with torch.no_grad():
        trace = poutine.trace(second).get_trace(X)
    seen = {id(node["value"].unconstrained()) for node in trace.nodes.values() if node["type"] == "param"}
    assert seen == {id(p) for p in second.net.parameters() if p.requires_grad}
    assert_equal(estimates(second), start)
    train(second)
    assert_all_differ(estimates(second), start)
    for first in models:
        assert_equal(estimates(first), after_first)
        train(first)  # goes on from where it was, after the store was cleared too
        assert_all_differ(estimates(first), after_first)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("make", LEARNT.values(), ids=LEARNT.keys())
def test_a_copy_starts_at_the_present_values_and_is_its_own(make, copied):
    model = make()
    train(model)
    at_the_copy = estimates(model)
    other = copied(model)
    assert_equal(estimates(other), at_the_copy)
    train(model)
    assert_equal(estimates(other), at_the_copy)
    trained = estimates(model)
    train(other)
    assert_equal(estimates(model), trained)
    assert_all_differ(estimates(other), at_the_copy)


@pytest.mark.parametrize("make", LEARNT.values(), ids=LEARNT.keys())
def test_pyros_own_file_of_parameters(make, tmp_path):
    """`ParamStoreDict.save` and `load`, before the model is used again; a second model stays as it is."""
    model = make()
    train(model)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    fresh, second = make(), make()
    start = estimates(second)
    pyro.get_param_store().load(tmp_path / "params")
    for one in (fresh, second):
        poutine.trace(one).get_trace(X)
    assert_equal(estimates(fresh), estimates(model))
    assert_equal(estimates(second), start)


def test_an_ensemble_is_the_same_as_its_members_alone():
    """Exact: three fits in turn, each with a network of its own, and each again in an empty store."""

    def member(number):
        pyro.set_rng_seed(seed(number))
        model = bayesianize(network(), Gaussian(sigma=0.5), sites="last_layer")
        guide = AutoHypernet(model)
        fit(model, guide, (X, X[:, 0]), num_steps=20, num_particles=2, progress=False)
        return model, predict(model, guide, X, num_samples=5, return_sites=["f"])["f"]

    together = [member(number) for number in range(3)]
    for number, (_, expected) in enumerate(together):
        pyro.clear_param_store()
        torch.testing.assert_close(member(number)[1], expected, rtol=0, atol=0)


@pytest.mark.parametrize("local", [False, True])
def test_point_estimates_train_by_torchs_own_optimisers(local):
    model = bayesianize(network(), sites="last_layer")
    start, y = estimates(model), targets(model)
    with pyro.settings.context(module_local_params=local):
        loss = Trace_ELBO()(model, AutoNormal(model))
        loss(X, y)
        optimiser = torch.optim.Adam(loss.parameters(), lr=0.1)
        loss(X, y).backward()
        optimiser.step()
    assert_all_differ(estimates(model), start)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
def test_copies_of_every_network(make, copied):
    model = bayesianize(make())
    other = copied(model)
    assert other.site_names == model.site_names
    values = [
        poutine.trace(poutine.condition(m, m.initial_values)).get_trace(X).nodes["f"]["value"] for m in (model, other)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=0)


def test_it_stays_in_eval_mode_and_in_the_type_of_its_priors():
    model = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))).train()
    assert not any(module.training for module in model.modules())
    assert model.to("cpu") is model
    with pytest.raises(TypeError, match="convert the network to torch.float64 on cpu before bayesianize"):
        model.double()
    assert repr(bayesianize(network())).startswith("BayesianNet(Sequential, Gaussian(sigma=None), sites=['0.weight'")


def test_nicknames():
    expected = [Gaussian(), Heteroscedastic(), Bernoulli(), Categorical(), Poisson()]
    assert [resolve_likelihood(name) for name in LIKELIHOODS] == expected


FROZEN = nn.Linear(3, 1).requires_grad_(False)
ZERO = nn.Linear(3, 2)
nn.init.zeros_(ZERO.weight)
WRONG_CHOICES = {
    "net": (lambda: bayesianize(lambda x: x), TypeError, "net must be a torch.nn.Module; got function"),
    "likelihood": (
        lambda: bayesianize(network(), "normal"),
        ValueError,
        "likelihood must be one of gaussian, heteroscedastic, bernoulli, categorical, poisson, or",
    ),
    "no parameters": (lambda: bayesianize(nn.Tanh()), ValueError, "The network, Tanh, has no parameters"),
    "lazy": (lambda: bayesianize(nn.LazyLinear(2)), ValueError, r"Parameters \['weight', 'bias'\] have no shape yet"),
    "all frozen": (lambda: bayesianize(FROZEN), ValueError, "All parameters have requires_grad=False"),
    "sites": (lambda: bayesianize(network(), sites="first"), ValueError, "sites must be 'all', 'last_layer' or a list"),
    "no sites": (
        lambda: bayesianize(network(), sites=[]),
        ValueError,
        "sites holds no pattern; the names are 0.weight",
    ),
    "pattern": (
        lambda: bayesianize(network(), sites=["1.*"]),
        ValueError,
        r"Pattern '1.\*' in sites matches no parameter; the names are 0.weight, 0.bias, 2.weight, 2.bias",
    ),
    "parametrization": (
        lambda: bayesianize(network(), parametrization="spectral"),
        ValueError,
        "parametrization must be one of weights, weight_norm; got 'spectral'",
    ),
    "zero direction": (
        lambda: bayesianize(ZERO, parametrization="weight_norm"),
        ValueError,
        "Output unit 0 of parameter 'weight' has only zero weights",
    ),
    "y_weight": (
        lambda: bayesianize(network())(X, X[:, 0], y_weight=torch.arange(N)),
        ValueError,
        "y_weight must hold a positive number for each of 12 data; its shape is \\(12,\\), its least value 0",
    ),
    "num_data": (lambda: bayesianize(network(), num_data=0), ValueError, "num_data must be a positive integer or None"),
    "prior name": (lambda: bayesianize(network(), prior="spike"), ValueError, "prior must be one of fan_in, ard"),
    "prior scale": (
        lambda: bayesianize(network(), prior=-1.0),
        ValueError,
        "A prior's scale must be positive; got -1.0",
    ),
    "prior type": (lambda: bayesianize(network(), prior=[1.0]), ValueError, "The prior of '0.weight' must be a dist"),
    "prior pattern": (
        lambda: bayesianize(network(), prior={"*.weights": 1.0}),
        ValueError,
        r"Pattern '\*.weights' in prior matches no parameter",
    ),
    "prior missing": (
        lambda: bayesianize(network(), prior={"*.weight": 1.0}),
        ValueError,
        r"Parameter '0.bias' matches none of the patterns in prior, \*.weight",
    ),
    "prior shape": (
        lambda: bayesianize(network(), prior={"0.bias": dist.Normal(torch.zeros(3), 1.0), "*": 1.0}),
        ValueError,
        r"The prior of '0.bias' has shape \(3,\), which does not expand to the parameter's, \(4,\)",
    ),
    "prior event": (
        lambda: bayesianize(network(), prior=dist.Normal(torch.zeros(9, 9, 9), 1.0).to_event(3)),
        ValueError,
        r"The prior of '0.weight' has shape \(9, 9, 9\), which does not expand",
    ),
    "prior dtype": (
        lambda: bayesianize(network().double(), prior=dist.Normal(0.0, 1.0)),
        ValueError,
        "The prior of '0.weight' draws torch.float32 on cpu; the parameter is torch.float64",
    ),
    "gain": (lambda: fan_in(gain=0.0), ValueError, "gain must be positive; got 0.0"),
    "sigma": (lambda: Gaussian(sigma=-0.1), ValueError, "sigma must be positive; got -0.1"),
    "sigma's type": (lambda: Gaussian(sigma="learnt"), ValueError, "sigma must be a number, a distribution or None"),
}


@pytest.mark.parametrize("make, error, message", WRONG_CHOICES.values(), ids=WRONG_CHOICES.keys())
def test_wrong_choices(make, error, message):
    with pytest.raises(error, match="^" + message):
        make()


WRONG_DATA = {
    "no tensor": ("gaussian", 1, X.numpy(), None, "x must be a tensor; got ndarray"),
    "x nan": ("gaussian", 1, X / X[0, 0].new_zeros(()) * 0, None, "x holds 36 values that are NaN or infinite"),
    "x number": ("gaussian", 1, X[0, 0], None, r"x must have shape \(N, ...\)"),
    "x dtype": ("gaussian", 1, X.double(), None, "x must be torch.float32 on cpu, like the network; got torch.float64"),
    "y nan": ("gaussian", 1, X, X[:, 0].log(), "y holds 6 values that are NaN or infinite"),
    "y length": ("gaussian", 1, X, X[:5, 0], r"x and y must hold the same number of data; their shapes are \(12, 3\)"),
    "y column": (
        "gaussian",
        1,
        X,
        X[:, :1],
        r"y must have shape \(12,\) for Gaussian.*; got \(12, 1\): pass y.squeeze",
    ),
    "y width": (
        "gaussian",
        2,
        X,
        X[:, 0],
        r"y must have shape \(12, 2\) for Gaussian.*; got \(12,\): the network has 2",
    ),
    "heteroscedastic": ("heteroscedastic", 1, X, None, "The heteroscedastic likelihood needs a network with 2 outputs"),
    "bernoulli": ("bernoulli", 2, X, None, "The bernoulli likelihood needs a network with 1 output"),
    "categorical": ("categorical", 1, X, None, "The categorical likelihood needs a network with one output per class"),
    "poisson": ("poisson", 2, X, None, "The poisson likelihood needs a network with 1 output"),
    "not 0 and 1": ("bernoulli", 1, X, CLASSES, r"y must hold only 0 and 1 for the bernoulli.*; its range is \[0, 2\]"),
    "float labels": ("categorical", 3, X, CLASSES.float(), "y must hold integer class labels for the categorical"),
    "labels": ("categorical", 3, X, CLASSES + 1, r"y must hold class labels from 0 to 2, .*; its range is \[1, 3\]"),
    "negative": ("poisson", 1, X, CLASSES - 1, r"y must hold counts 0, 1, 2, .*; its range is \[-1, 1\]"),
    "fractions": ("poisson", 1, X, CLASSES / 2, r"y must hold counts 0, 1, 2, .*; its range is \[0, 1\]"),
}


@pytest.mark.parametrize("likelihood, outputs, x, y, message", WRONG_DATA.values(), ids=WRONG_DATA.keys())
def test_wrong_data(likelihood, outputs, x, y, message):
    model = bayesianize(network(outputs), likelihood)
    with pytest.raises((ValueError, TypeError), match="^" + message):
        model(x, y)


def test_data_are_checked_under_the_vmapped_density_too():
    model = bayesianize(network(), "bernoulli")
    log_joint = LogJoint(model, layout_of(model, X, CLASSES % 2))
    with pytest.raises(ValueError, match=r"^y must hold only 0 and 1"):
        log_joint(torch.zeros(2, log_joint.layout.dim), X, CLASSES)


def test_particles_vectorised_by_pyro_are_refused():
    model = bayesianize(network())
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({}), Trace_ELBO(num_particles=4, vectorize_particles=True))
    with pytest.raises(ValueError, match=r"^A value of site '0.weight' must have shape \(4, 3\); got \(4, 1, 4, 3\)"):
        svi.step(X, X[:, 0])


def test_the_network_holds_the_only_copy_of_its_random_values():
    net = nn.Linear(3, 2)
    model = bayesianize(net)
    own = model.own_values()["weight"]
    assert own.data_ptr() == model.net.weight.data_ptr()
    model.initial_values["weight"].zero_()
    torch.testing.assert_close(own, net.weight.detach())

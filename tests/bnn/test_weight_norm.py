"""Weight norm: gains on outputs equal gains on weights, draws share weights, what a norm undoes is left out."""

import copy
import pickle
import warnings

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from pyro_hypernet import AutoHypernet, bayesianize, predict
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.bnn.weight_norm import Normed, call
from pyro_hypernet.graphs.run import as_script
from pyro_hypernet.model.batched import slow_attention
from pyro_hypernet.model.density import LogJoint, map_model
from pyro_hypernet.model.layout import Layout
from tests.fits import fit
from tests.seeds import seed

pytestmark = pytest.mark.filterwarnings("ignore:Batch normalisation")

N = 6


def scaling(kind):
    """A filter response normalisation, or what else makes every channel's scale one; with a weight and a bias."""

    class Norm(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

        def forward(self, x):
            shape = (-1, *[1] * (x.dim() - 2))
            axes = tuple(range(2, x.dim()))
            x = x - x.mean(axes, keepdim=True) if kind == "instance" else x
            return x * (x.square().mean(axes, keepdim=True) + 1e-6).rsqrt() * self.weight.view(shape) + self.bias.view(
                shape
            )

    return Norm


FRN = scaling("filter response")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


class TiedToEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x).mean(1).tanh())


class Functional(nn.Module):
    """Its weight is used by its module, by a function, and turned."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        h = functional.linear(self.layer(x).tanh(), self.layer.weight)
        return h @ self.layer.weight.t() + self.layer.weight.square().sum()


class Unseen(Functional):
    """Its weight is taken where no attribute is looked up."""

    def forward(self, x):
        return self.layer(x) + torch.stack([p.sum() for p in self.parameters()]).sum()


class OwnLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight.abs(), self.bias)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.RNN(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.form = nn.Bilinear(4, 4, 2)

    def forward(self, x):
        return self.form(x, x.tanh())


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2))


def hooked():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net[0].register_forward_hook(lambda module, args, y: y.tanh() * module.weight.sum())
    return net


def flat(*layers):
    return nn.Sequential(*layers, nn.Flatten())


IMAGES, SERIES = (2, 6, 6), (2, 6)
# Network, shape of a datum, or None for integers.
NETS = {
    "linear": (lambda: nn.Linear(4, 2), (4,)),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)), (4,)),
    "linear over an axis": (lambda: flat(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (3, 4)),
    "conv1d": (lambda: flat(nn.Conv1d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv1d(4, 2, 2, bias=False)), SERIES),
    "conv2d": (lambda: flat(nn.Conv2d(2, 4, 3, 2, padding=1, padding_mode="circular"), nn.Conv2d(4, 2, 2)), IMAGES),
    "conv3d": (lambda: flat(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Conv3d(3, 1, 2)), (2, 3, 3, 3)),
    "transposed 1d": (lambda: flat(nn.ConvTranspose1d(2, 4, 3, groups=2), nn.ConvTranspose1d(4, 2, 2)), SERIES),
    "transposed 2d": (lambda: flat(nn.ConvTranspose2d(2, 3, 3, 2, output_padding=1)), IMAGES),
    "transposed 3d": (lambda: flat(nn.ConvTranspose3d(2, 3, 2, bias=False)), (2, 2, 2, 2)),
    "embedding": (lambda: flat(nn.Embedding(5, 4), nn.Linear(4, 2)), None),
    "bilinear": (Pair, (4,)),
    "tied": (Tied, (4,)),
    "tied to an embedding": (TiedToEmbedding, None),
    "shared": (shared, (4,)),
    "functional": (Functional, (4,)),
    "unseen": (Unseen, (4,)),
    "own forward": (lambda: nn.Sequential(OwnLinear(4, 3), nn.Linear(3, 2)), (4,)),
    "hooked": (hooked, (4,)),
    "recurrent": (Recurrent, (3, 4)),
    "attention": (Attention, (3, 4)),
    "transformer": (lambda: flat(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), (3, 4)),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))), (4,)),
    "filter response norm": (lambda: flat(nn.Conv2d(2, 3, 3), FRN(3), nn.ReLU(), nn.Conv2d(3, 1, 2)), IMAGES),
}
CASES = pytest.mark.parametrize("make, shape", NETS.values(), ids=NETS.keys())


@pytest.fixture(autouse=True)
def _double(double):
    pyro.set_rng_seed(seed())
    pyro.clear_param_store()


def made(make, shape, **options):
    """A model, and data for it."""
    net = make()
    x = torch.randint(5, (N, 3)) if shape is None else torch.randn(N, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = bayesianize(net, Gaussian(sigma=0.5), parametrization="weight_norm", **options)
        model(x)
    return model, x


def values_of(model, *batch):
    """Everything that a draw is made of: gains and biases at random."""
    values = {}
    for site in model._random:
        value = site.value.expand(*batch, *site.value.shape)
        value = value + 0.3 * torch.randn_like(value)
        values[site.name] = value
    return values


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@CASES
def test_gains_on_outputs_equal_gains_on_weights(make, shape):
    model, x = made(make, shape)
    values = values_of(model, 3)
    found = [_with_gradients(model, values, x, on_outputs) for on_outputs in (model._on_outputs, False)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def _with_gradients(model, values, x, on_outputs):
    """Outputs of all draws, and the gradients of a sum by draws and by point estimates."""
    model._on_outputs = on_outputs
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}

    def one(draw):
        with poutine.trace() as trace, poutine.condition(data=draw):
            model(x)
        return trace.trace.nodes["f"]["value"]

    try:
        with slow_attention():
            f = torch.func.vmap(one, randomness="same")(leaves)
    except RuntimeError:  # what cannot be vmapped, as a recurrent network
        f = torch.stack([one({name: value[s] for name, value in leaves.items()}) for s in range(3)])
    by = [*leaves.values(), *(p for p in model.net.parameters() if p.requires_grad)]
    return [f, *torch.autograd.grad(f.square().sum(), by, allow_unused=True, materialize_grads=True)]


@CASES
def test_a_call_leaves_the_network_as_it_was(make, shape):
    model, x = made(make, shape)
    before = _state(model.net)
    model(x)
    with pytest.raises((RuntimeError, TypeError, AttributeError, IndexError, ValueError)):
        call(model.net, model._values(), (None,))
    assert _state(model.net) == before


def _state(net):
    """All but the lists in which a recurrent layer notes what torch's functional_call put in."""
    return [
        (type(m), {k: repr(v) for k, v in vars(m).items() if not k.startswith("_flat_weight")}) for m in net.modules()
    ]


def test_what_reads_a_weight_in_a_way_that_cannot_be_seen_gets_gains_on_weights():
    assert not made(*NETS["unseen"])[0]._on_outputs
    assert all(made(*NETS[name])[0]._on_outputs for name in NETS if name != "unseen")


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "tied", "shared"])
def test_copies_and_pickles_compute_the_same(name):
    model, x = made(*NETS[name])
    values = values_of(model)
    copies = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    f = [poutine.trace(poutine.condition(m, values)).get_trace(x).nodes["f"]["value"] for m in copies]
    assert torch.equal(f[0], f[1])
    assert torch.equal(f[0], f[2])


def graph_of(model, values, x):
    """The operations of a model at draws of shape `(S, *shape)`."""

    def one(draw, x):
        with poutine.trace() as trace, poutine.condition(data=draw):
            model(x)
        return trace.trace.nodes["f"]["value"]

    with pyro.validation_enabled(False):
        return make_fx(torch.func.vmap(one, in_dims=(0, None), randomness="same"))(values, x).graph


CONVOLUTIONS = {"1d": (nn.Conv1d, (2, 9)), "2d": (nn.Conv2d, (2, 9, 9)), "3d": (nn.Conv3d, (2, 5, 5, 5))}


@pytest.mark.parametrize("kind, shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_all_draws_share_one_convolution_and_the_first_layer_is_computed_once(kind, shape):
    model, x = made(lambda: flat(kind(2, 4, 3), nn.ReLU(), kind(4, 4, 2), nn.ReLU(), kind(4, 1, 1)), shape)
    values = values_of(model, 7)

    graph = graph_of(model, values, x)
    nodes = [node for node in graph.nodes if node.target is torch.ops.aten.convolution.default]
    assert [node.args[8] for node in nodes] == [1, 1, 1]  # groups
    assert [node.args[0].meta["val"].shape[0] for node in nodes] == [N, 7 * N, 7 * N]


def test_no_draw_has_weights_of_its_own():
    model, x = made(lambda: nn.Sequential(nn.Linear(4, 300), nn.Tanh(), nn.Linear(300, 300), nn.Linear(300, 1)), (4,))
    values = values_of(model, 5)

    graph = graph_of(model, values, x)
    assert max(n.meta["val"].numel() for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)) <= 300**2


# -- gains that a normalising layer undoes --


def with_norm(norm, channels=3, bias=False):
    return lambda: flat(nn.Conv2d(2, channels, 3, bias=bias), norm(), nn.ReLU(), nn.Conv2d(channels, 2, 2))


UNDOING = {
    "filter response": with_norm(lambda: FRN(3)),
    "instance": with_norm(lambda: scaling("instance")(3)),
    "torch's instance norm": with_norm(lambda: nn.InstanceNorm2d(3, affine=True)),
    "group norm of single channels": with_norm(lambda: nn.GroupNorm(3, 3)),
    "zero at the start": with_norm(lambda: zeroed(FRN(3))),
}
KEEPING = {
    "group norm": with_norm(lambda: nn.GroupNorm(2, 4), 4),
    "batch norm": with_norm(lambda: nn.BatchNorm2d(3)),
    "none": with_norm(nn.Identity),
    "filter response behind a bias": with_norm(lambda: FRN(3), bias=True),
}


def zeroed(norm):
    nn.init.zeros_(norm.weight)
    return norm


@pytest.mark.parametrize("make", UNDOING.values(), ids=UNDOING.keys())
def test_gains_that_a_norm_undoes_are_found_and_left_out(make):
    x = torch.randn(N, *IMAGES)
    model = bayesianize(make(), Gaussian(sigma=0.5), parametrization="weight_norm")
    assert "0.weight.g" in model.site_names
    start = poutine.trace(poutine.condition(copy.deepcopy(model), model.initial_values))
    with pytest.warns(UserWarning, match=r"undoes the gains \['0.weight.g'\].*no sites of the model"):
        model(x)
    expected = tuple(name for name in ("1.weight", "1.bias") if hasattr(model.net[1], name[2:]))
    assert model.site_names == (*expected, "3.weight.g", "3.bias")
    assert set(model.priors) == set(model.site_names) == set(model.initial_values)
    trace = poutine.trace(poutine.condition(model, model.initial_values)).get_trace(x)
    assert {name.split(".", 1)[1] for name in trace.param_nodes} == {"0.weight", "3.weight.v"}
    torch.testing.assert_close(trace.nodes["f"]["value"], model.net(x))
    with pytest.warns(UserWarning, match="undoes"):
        torch.testing.assert_close(start.get_trace(x).nodes["f"]["value"], model.net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        model(x)


@pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING.keys())
def test_gains_that_count_stay(make):
    model = bayesianize(make(), Gaussian(sigma=0.5), parametrization="weight_norm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(N, *IMAGES))
    assert "0.weight.g" in model.site_names


@pytest.mark.parametrize("make", [UNDOING["filter response"], UNDOING["instance"]])
def test_gains_that_are_named_stay_with_a_warning(make):
    names = ["0.weight", "3.*"]
    model = bayesianize(make(), Gaussian(sigma=0.5), parametrization="weight_norm", sites=names)
    with pytest.warns(UserWarning, match=r"undoes the gains \['0.weight.g'\].*leave them out of sites"):
        model(torch.randn(N, *IMAGES))
    assert model.site_names == ("0.weight.g", "3.weight.g", "3.bias")


def test_gains_are_tried_also_where_the_first_call_is_vmapped():
    x = torch.randn(N, *IMAGES)
    models = [bayesianize(UNDOING["filter response"](), Gaussian(0.5), parametrization="weight_norm") for _ in "ab"]
    with pytest.warns(UserWarning, match="undoes"):
        models[0](x)
    draws = values_of(models[0], 3)
    collect = lambda trace: trace.nodes["f"]["value"]  # noqa: E731
    models[1].load_state_dict(models[0].state_dict())
    with pytest.warns(UserWarning, match="undoes"):
        f = map_model(models[1], draws, (x,), collect=collect)
    torch.testing.assert_close(f, map_model(models[0], draws, (x,), collect=collect))
    assert models[1].site_names == models[0].site_names


@pytest.mark.filterwarnings("ignore:A normalising layer undoes")
@pytest.mark.parametrize("name", ["filter response", "instance"])
def test_a_guide_is_fitted_predicts_and_its_predictions_vary(name):
    """Of 40 draws of weights outputs have a standard deviation above .01: no chance to speak of that they have not."""
    x = torch.randn(N, *IMAGES)
    y = x.flatten(1)[:, :2].tanh().repeat(1, 9)
    model = bayesianize(UNDOING[name](), Gaussian(sigma=0.5), parametrization="weight_norm")
    guide = AutoHypernet(model)
    result = fit(model, guide, (x, y), num_steps=40, num_particles=2, progress=False)
    assert result.losses[-1] == result.losses[-1]
    assert set(guide.layout.names) == set(model.site_names)
    f = predict(model, guide, x, num_samples=40)["f"]
    assert float(f.std(0).mean()) > 0.01


# -- captured --


def test_a_step_with_convolutions_runs_as_a_script():
    """And gives the gradients that torch gives."""
    net = NETS["conv2d"][0]()
    x = torch.randn(N, *IMAGES)

    def gradients(x, *weights):
        f = torch.func.functional_call(net, dict(zip(dict(net.named_parameters()), weights, strict=True)), (x,))
        return torch.autograd.grad(f.square().sum(), weights)

    weights = list(net.parameters())
    module = make_fx(gradients)(x, *weights)
    script = as_script(module, [x, *weights])
    assert script is not module
    torch.testing.assert_close(tuple(script(x, *weights)), gradients(x, *weights))


@pytest.mark.parametrize("name", ["linear", "conv2d", "tied", "functional"])
def test_the_density_is_captured(name):
    model, x = made(*NETS[name])
    y = poutine.trace(model).get_trace(x).nodes["y"]["value"].detach()
    layout = Layout.from_trace(poutine.trace(model).get_trace(x, y))
    log_joint, w = LogJoint(model, layout), torch.randn(3, layout.dim)
    expected = torch.stack(
        [poutine.trace(poutine.condition(model, layout.constrain(r)[0])).get_trace(x, y).log_prob_sum() for r in w]
    )
    for _ in range(3):
        torch.testing.assert_close(log_joint(w, x, y), expected)
    assert log_joint.mode == "graph"


def test_the_weight_itself_is_its_gain_times_a_unit_vector():
    v, g = torch.randn(4, 3, 2), torch.randn(3)
    weight = Normed(v, g, 1).weight
    torch.testing.assert_close(weight.movedim(1, 0).flatten(1).norm(dim=1), g.abs())
    torch.testing.assert_close(
        weight / weight.norm(dim=(0, 2), keepdim=True), v / v.norm(dim=(0, 2), keepdim=True) * g.sign()[:, None]
    )

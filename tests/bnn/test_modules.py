"""Every kind of module: a row of docs/modules.md, whose cells are tried here."""

import copy
import math
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyro_hypernet import AutoHypernet, VectorizedELBO, bayesianize, fit, predict
from pyro_hypernet.bnn.likelihoods import Gaussian
from pyro_hypernet.evaluation.predict import log_likelihood
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout
from tests.seeds import seed

# What torch itself says as layers are made, and where a layer's lengths are read as values.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]
N, T, F = 6, 4, 4
GENERATOR = torch.Generator().manual_seed(seed())
draw = partial(torch.randn, generator=GENERATOR, dtype=torch.float64)
X, Y = draw(N, T, F), draw(N)
ROWS = draw(N, F)
IMAGES = draw(N, 1, 6, 6)
TOKENS = torch.randint(5, (N, T), generator=GENERATOR)
LENGTHS = torch.tensor([4, 3, 3, 2, 2, 1])
PADDING = torch.arange(T) >= LENGTHS[:, None]
LABELS = torch.randint(3, (N, T), generator=GENERATOR)


class Recurrent(nn.Module):
    """The last state of a recurrent layer, and a linear one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(1)
        self(X.float())

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Packed(Recurrent):
    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, LENGTHS[: len(x)], batch_first=True)
        states = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]
        return self.head(states[:, 0])


class Encoder(nn.Module):
    def __init__(self, out=1, mean=True, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(F, 2, 6, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head, self.mean = nn.Linear(F, out), mean

    def forward(self, x, padding=None, causal=False):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype) if causal else None
        padding = padding if padding is None or mask is None else torch.zeros_like(mask[0]).masked_fill(padding, -1e9)
        h = self.encoder(x, mask=mask, src_key_padding_mask=padding)
        return self.head(h.mean(1) if self.mean else h)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(F, 2, batch_first=True)
        self.head = nn.Linear(F, 1)

    def forward(self, x):
        h, self.seen = self.attention(x, x, x)  # attributes are kept by many networks
        return self.head(h[:, 0])


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, F, 3, 3)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, F))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, F))
        self.encoder = Encoder()

    def forward(self, x):
        h = self.patches(x).flatten(2).mT
        return self.encoder(torch.cat([self.cls_token.expand(len(x), -1, -1), h], 1) + self.positions)


class FilterResponseNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))
        self.tau = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-6)
        return torch.maximum(self.gamma * x + self.beta, self.tau)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(F, 2), nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, first, second):
        return self.head(torch.tanh(self.a(first) + self.b(second)))


class OfDict(Two):
    def forward(self, batch):
        return super().forward(batch["a"], batch["b"])


@dataclass
class Outputs:
    logits: torch.Tensor
    hidden: torch.Tensor


class Several(nn.Module):
    """Returns its outputs in what `kind` makes of them and the hidden units."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head, self.kind = nn.Linear(F, 3), nn.Linear(3, 1), kind

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.kind(self.head(h), h)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.head, self.reentrant = nn.Linear(F, 3), nn.Linear(3, 1), reentrant

    def forward(self, x):
        return self.head(checkpoint(lambda v: torch.tanh(self.body(v)), x, use_reentrant=self.reentrant))


class Writing(nn.Module):
    """Counts its calls, and keeps a running mean that it never reads."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(F, 3), nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        h = torch.tanh(self.body(x))
        self.mean.mul_(0.9).add_(0.1 * h.mean(0))
        self.calls = self.calls + 1
        return self.head(h)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.decode = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(torch.tanh(self.embed(tokens)))


def seen_batch_norm():
    net = nn.Sequential(nn.Linear(F, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
    net.train()(ROWS.float())
    return net


def hooked():
    net = nn.Sequential(nn.Linear(F, 3), nn.Tanh(), nn.Linear(3, 1))
    net[0].register_forward_hook(lambda module, inputs, out: 0.5 * out)
    net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1.0,))
    return net


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(F, 3)), nn.Tanh(), nn.Linear(3, 1))


def parametrised(how):
    return lambda: nn.Sequential(how(nn.Linear(F, 3)), nn.Tanh(), nn.Linear(3, 1))


def lazy():
    net = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1))
    net(ROWS.float())
    return net


def case(make, *args, likelihood=None, kwargs=None, **options):
    def model():
        chosen = Gaussian(sigma=0.5) if likelihood is None else likelihood
        return bayesianize(make().double(), chosen, **options), args, kwargs or {}

    return model


BATCH = {"a": ROWS, "b": X[:, 0, :3]}
CATEGORICAL = {"likelihood": "categorical"}
# From a row of docs/modules.md to a model, its arguments and keyword arguments.
RUNS = {
    "LSTM": case(lambda: Recurrent(nn.LSTM(F, 3, batch_first=True)), X, Y),
    "LSTM, two layers, both directions": case(
        lambda: Recurrent(nn.LSTM(F, 2, 2, batch_first=True, bidirectional=True)), X, Y
    ),
    "LSTM, projected": case(lambda: Recurrent(nn.LSTM(F, 3, proj_size=2, batch_first=True)), X, Y),
    "GRU": case(lambda: Recurrent(nn.GRU(F, 3, batch_first=True)), X, Y),
    "RNN, tanh": case(lambda: Recurrent(nn.RNN(F, 3, batch_first=True)), X, Y),
    "RNN, relu": case(lambda: Recurrent(nn.RNN(F, 3, nonlinearity="relu", batch_first=True)), X, Y),
    "LSTM, packed": case(lambda: Packed(nn.LSTM(F, 3, batch_first=True)), X, Y),
    "MultiheadAttention": case(Attention, X, Y),
    "TransformerEncoder": case(Encoder, X, Y),
    "TransformerEncoder, padding mask": case(Encoder, X, Y, kwargs={"padding": PADDING}),
    "TransformerEncoder, padding mask by position": case(Encoder, X, PADDING, Y, inputs=["x", "padding"]),
    "TransformerEncoder, causal mask": case(Encoder, X, Y, kwargs={"causal": True}),
    "TransformerEncoder, norm first": case(lambda: Encoder(norm_first=True), X, Y),
    "ViT": case(ViT, IMAGES, Y),
    "(N, T, C) outputs": case(lambda: Encoder(3, mean=False), X, LABELS, **CATEGORICAL),
    "(N, T, C) outputs, y_mask": case(
        lambda: Encoder(3, mean=False), X, LABELS, kwargs={"padding": PADDING, "y_mask": ~PADDING}, **CATEGORICAL
    ),
    "(N, T, C) outputs, ignore_value": case(
        lambda: Encoder(3, mean=False), X, LABELS.masked_fill(PADDING, -100), ignore_value=-100, **CATEGORICAL
    ),
    "(N, C, H, W) outputs": case(
        lambda: nn.Conv2d(1, 3, 3, padding=1),
        IMAGES,
        (IMAGES[:, 0] > 0).long(),
        class_axis=1,
        **CATEGORICAL,
    ),
    "(N, C, H, W) outputs, normal": case(lambda: nn.Conv2d(1, 1, 3, padding=1), IMAGES, IMAGES),
    "(N, T, 2) outputs, heteroscedastic": case(
        lambda: Encoder(2, mean=False), X, X[..., 0], likelihood="heteroscedastic"
    ),
    "two inputs": case(Two, ROWS, X[:, 0, :3], Y),
    "inputs by name": case(Two, kwargs={"first": ROWS, "second": X[:, 0, :3], "y": Y}),
    "dict input": case(OfDict, BATCH, Y),
    "tuple output": case(lambda: Several(lambda f, h: (h, f)), ROWS, Y, output=1),
    "dict output": case(lambda: Several(lambda f, h: {"f": f, "h": h}), ROWS, Y, output="f"),
    "dataclass output": case(lambda: Several(Outputs), ROWS, Y, output="logits"),
    "output by function": case(lambda: Several(lambda f, h: (f, h)), ROWS, Y, output=lambda out: out[0][:, 0]),
    "embedding, tied weights": case(Tied, TOKENS, TOKENS, **CATEGORICAL),
    "batch norm that has seen data": case(seen_batch_norm, ROWS, Y),
    "norm of (C, 1, 1)": case(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), FilterResponseNorm(2), nn.Flatten(), nn.Linear(32, 1)), IMAGES, Y
    ),
    "forward hooks": case(hooked, ROWS, Y),
    "checkpoint": case(lambda: Checkpointed(False), ROWS, Y),
    "checkpoint, reentrant": case(lambda: Checkpointed(True), ROWS, Y),
    "a buffer that forward writes": case(Writing, ROWS, Y),
    "weight_norm, old": case(old_weight_norm, ROWS, Y),
    "weight_norm, parametrised": case(parametrised(nn.utils.parametrizations.weight_norm), ROWS, Y),
    "spectral_norm": case(parametrised(nn.utils.parametrizations.spectral_norm), ROWS, Y),
    "lazy layers, run once": case(lazy, ROWS, Y),
}


def without_targets(model, args, kwargs):
    has_y = "y" not in kwargs
    kwargs = {name: value for name, value in kwargs.items() if name not in ("y", "y_mask")}
    return (args[:-1] if has_y else args), kwargs


@pytest.mark.parametrize("kind", RUNS)
def test_its_density_is_that_of_a_plain_loop(kind):
    """Exact, value and gradient: vmapped, captured, and one draw at a time by torch's own code; in float64."""
    model, args, kwargs = RUNS[kind]()
    before = copy.deepcopy(model.net.state_dict())
    layout = Layout.from_trace(poutine.trace(model).get_trace(*args, **kwargs))
    w = (0.5 * draw(3, layout.dim)).requires_grad_()
    one = [poutine.condition(model, layout.constrain(row)[0]) for row in w]
    expected = torch.stack([poutine.trace(each).get_trace(*args, **kwargs).log_prob_sum() for each in one])
    for mode in ("eager", "graph") if kind != "LSTM, packed" else ("eager",):
        log_joint = LogJoint(model, layout, mode=mode)
        for _ in range(2):
            value = log_joint(w, *args, **kwargs)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        gradients = [torch.autograd.grad(each.sum(), w, retain_graph=True)[0] for each in (value, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
        assert log_joint.mode == mode
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())


@pytest.mark.parametrize("kind", RUNS)
def test_it_is_fitted_and_predicts_without_a_loop(kind):
    """Warnings, of loops and of runs that are not captured, are errors here."""
    model, args, kwargs = RUNS[kind]()
    guide = AutoHypernet(model, "identity", "full")
    with warnings.catch_warnings():
        if kind == "LSTM, packed":
            warnings.filterwarnings("ignore", "The model could not be captured", UserWarning)
        result = fit(
            model, guide, args, kwargs=kwargs, num_steps=2, elbo=VectorizedELBO(2, mode="eager"), progress=False
        )
        assert all(math.isfinite(loss) for loss in result.losses)
        new, named = without_targets(model, args, kwargs)
        predicted = predict(model, guide, *new, **named, num_samples=3)
        densities = log_likelihood(model, guide, *args, **kwargs, num_samples=3)["y"]
    y = kwargs.get("y", args[-1] if args else None)
    assert predicted["y"].shape == (3, *y.shape)
    assert predicted["f"].shape[:2] == densities.shape == (3, N)
    if kind in ("LSTM", "MultiheadAttention", "weight_norm, old", "a buffer that forward writes", "dict output"):
        copied = copy.deepcopy(model)
        pyro.set_rng_seed(seed())
        f = predict(model, guide, *new, **named, num_samples=2)["f"]
        pyro.set_rng_seed(seed())
        torch.testing.assert_close(predict(copied, guide, *new, **named, num_samples=2)["f"], f)


def test_masked_targets_count_nothing():
    """Exact: the log likelihood of a datum is the sum over the positions that count, whatever the others hold."""
    net = Encoder(3, mean=False).double()
    model = bayesianize(net, "categorical")
    f = net.eval()(X).log_softmax(-1)
    expected = (f.gather(-1, LABELS[..., None])[..., 0] * ~PADDING).sum(1)
    ignoring = bayesianize(net, "categorical", ignore_value=-1)
    calls = [(model, LABELS, {"y_mask": ~PADDING}), (ignoring, LABELS.masked_fill(PADDING, -1), {})]
    for each, y, kwargs in calls:
        at = {name: value[None] for name, value in each.initial_values.items()}
        torch.testing.assert_close(log_likelihood(each, at, X, y, **kwargs)["y"][0], expected.detach())
    both = bayesianize(nn.Linear(F, 2).double(), Gaussian(sigma=0.5), ignore_value=math.nan)
    y = ROWS[:, :2].clone()
    y[0, 1] = math.nan
    at = {name: value[None] for name, value in both.initial_values.items()}
    f = nn.functional.linear(ROWS, both.net.weight, both.net.bias).detach()
    expected = torch.distributions.Normal(f, 0.5).log_prob(y.nan_to_num()).where(~y.isnan(), 0.0).sum(1)
    torch.testing.assert_close(log_likelihood(both, at, ROWS, y)["y"][0], expected)


def test_the_last_layer_of_a_network_with_several_outputs():
    for output, expected in [(1, "head"), (0, "body")]:
        model = bayesianize(Several(lambda f, h: (h, f)), sites="last_layer", output=output)
        assert model.site_names == (f"{expected}.weight", f"{expected}.bias")


def test_parameters_that_act_on_each_number_by_itself_are_no_weights():
    model = bayesianize(nn.Sequential(nn.Conv2d(1, 2, 3), FilterResponseNorm(2), nn.Conv2d(2, 1, 1)))
    centres = {name: float(prior.base_dist.loc.flatten()[0]) for name, prior in model.priors.items()}
    assert (centres["1.gamma"], centres["1.beta"], centres["1.tau"]) == (1, 0, 0)
    scales = {name: float(prior.base_dist.scale.flatten()[0]) for name, prior in bayesianize(ViT()).priors.items()}
    assert scales["cls_token"] == scales["positions"] == 1.0
    assert scales["patches.weight"] == pytest.approx(1 / 3)
    norm = bayesianize(nn.Sequential(FilterResponseNorm(2), nn.Conv2d(2, 1, 1)), parametrization="weight_norm")
    assert norm.site_names == ("0.gamma", "0.beta", "0.tau", "1.weight.g", "1.bias")


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(F, 1))


def backward_hooked():
    net = nn.Linear(F, 1)
    net.register_full_backward_hook(lambda *args: None)
    return net


def by_batch():
    return nn.Sequential(nn.Linear(F, 2), nn.BatchNorm1d(2, track_running_stats=False))


# From a row of docs/modules.md to what raises, the error and its message.
REFUSED = {
    "TorchScript": (lambda: bayesianize(scripted()), ValueError, "The network, .*use the Python module that it"),
    "DataParallel": (lambda: bayesianize(nn.DataParallel(nn.Linear(F, 1))), ValueError, ".*: use net.module"),
    "torch.compile": (lambda: bayesianize(torch.compile(nn.Linear(F, 1))), ValueError, ".*: use net._orig_mod"),
    "backward hooks": (lambda: bayesianize(backward_hooked()), ValueError, r".*has backward hooks.*remove\(\) them"),
    "lazy layers, not run": (lambda: bayesianize(nn.LazyLinear(2)), ValueError, ".*run the network once, net"),
    "batch norm by the batch": (
        lambda: bayesianize(by_batch()),
        ValueError,
        "Module '1'.*use track_running_stats=True",
    ),
    "batch norm that has seen nothing": (
        lambda: bayesianize(nn.Sequential(nn.Linear(F, 2), nn.BatchNorm1d(2))),
        UserWarning,
        r"Batch normalisation \['1'\] has seen no data.*update_bn\(loader, net\); or use GroupNorm",
    ),
    "uint8 images": (
        lambda: bayesianize(nn.Conv2d(1, 1, 3))(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)),
        TypeError,
        r"The network cannot take inputs of torch.uint8: .*x.float\(\) / 255",
    ),
    "tuple output without output=": (
        lambda: bayesianize(Several(lambda f, h: (f, h)))(ROWS.float()),
        ValueError,
        r"The network returns a tuple of 0: shape \(6, 1\), 1: shape \(6, 3\): say which .*output=0\)",
    ),
    "no such output": (
        lambda: bayesianize(Several(Outputs), output="f")(ROWS.float()),
        ValueError,
        "output='f' finds no tensor in .*a Outputs of 'logits': shape",
    ),
    "no kind of output": (lambda: bayesianize(nn.Linear(F, 1), output=1.5), TypeError, "output must be a name, an ind"),
    "too few inputs": (lambda: bayesianize(Two())(ROWS.float()), TypeError, r"The network takes \(first, second\).*"),
    "too many inputs": (
        lambda: bayesianize(nn.Linear(F, 1))(ROWS, ROWS, Y),
        TypeError,
        "The model takes input and y by position; got 3 positional .*inputs=",
    ),
    "no such input": (lambda: bayesianize(Two(), inputs=["third"]), ValueError, "inputs must name arguments of the"),
    "dtype of a part of an input": (
        lambda: bayesianize(OfDict())({"a": ROWS, "b": ROWS[:, :3].float()}),
        ValueError,
        r"x\['a'\] must be torch.float32 on cpu",
    ),
    "outputs of other data": (
        lambda: bayesianize(nn.Sequential(nn.Linear(F, 2), nn.Flatten(0)))(ROWS.float()),
        ValueError,
        r"The network must map x, shape \(6, 4\), to outputs of shape \(6, out\), or .*; got \(12, 1\)",
    ),
    "y at other positions": (
        lambda: bayesianize(nn.Conv2d(1, 3, 1), "categorical")(IMAGES.float(), LABELS[:, :1, None].expand(-1, 6, 6)),
        ValueError,
        r"y must have shape \(6, 3, 6\) .*a target at every position; got \(6, 6, 6\); .*class_axis=1",
    ),
    "y_mask": (
        lambda: bayesianize(nn.Linear(F, 1))(ROWS.float(), Y.float(), y_mask=torch.ones(2)),
        ValueError,
        r"y_mask must be torch.bool of shape \(6,\).*got torch.float32 of shape \(2,\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_what_to_do(kind):
    run, error, message = REFUSED[kind]
    with pytest.raises(error, match="^" + message):
        run()


def test_the_table_of_modules_is_what_is_tested_here():
    table = (Path(__file__).parents[2] / "docs" / "modules.md").read_text()
    rows = re.findall(r"^\| (.+?) \|", table, flags=re.M)
    assert {row for row in rows if row not in ("module", "---", "given")} == {*RUNS, *REFUSED}

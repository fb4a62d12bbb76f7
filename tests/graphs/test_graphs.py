"""Graphs made smaller give the same results, from Python, from C++ and under autograd."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet import AutoHypernet
from pyro_hypernet.graphs.blocks import in_blocks
from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import as_inductor, as_script, is_compiled, why_no_script
from pyro_hypernet.graphs.simplify import simplify
from pyro_hypernet.graphs.workspace import Workspace
from pyro_hypernet.model.density import LogJoint
from tests.fits import fit
from tests.seeds import seed

TABLE = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed(3)))


def last_layers(w):
    """Hidden units of 7 draws under 5 changes of a last layer: what a Jacobian by vmap computes."""
    hidden = torch.tanh(w @ TABLE)  # (7, 4, 5)
    changes = torch.eye(10, dtype=w.dtype).view(10, 5, 2)
    return torch.func.vmap(lambda h: torch.func.vmap(lambda change: h @ change)(changes))(hidden)


def centred_logits(w):
    logits = torch.distributions.Categorical(logits=w, validate_args=False).logits
    return logits - logits.mean(-1, keepdim=True)


def computed_twice(w):
    return torch.exp(w).sum(-1) * torch.exp(w).sum(-1)


def constants(w):
    return w * (TABLE.exp().sum() + torch.arange(6, dtype=w.dtype))


def written_in_place(w):
    place = torch.zeros(6, dtype=w.dtype)
    other = torch.zeros(6, dtype=w.dtype)
    place.add_(w[0, 0])
    return place + other


def sums_of_products(w):
    return w[0] @ TABLE + w[1] @ TABLE


def sums_with_zeros(w):
    return w.new_zeros(7) + w[:, 0, 0] + w.new_zeros(7) + (w.new_zeros(7, dtype=torch.float32) + w[0, 0, 0])


def filled(w):
    """Every way to a tensor of one number, filled by a number or by what is computed."""
    ones = torch.ones(6, dtype=w.dtype) + w.new_ones(6) + torch.ones_like(w[0])
    zeros = torch.zeros(6, dtype=w.dtype) + w.new_zeros(6) + torch.zeros_like(w[0])
    full = torch.full((6,), 2.5, dtype=w.dtype) * w.new_full((6,), 1.5) * torch.full_like(w[0], fill_value=3)
    whole = w.new_full((6,), 2, dtype=torch.int64) + torch.ones(
        6, dtype=torch.bool
    )  # TorchScript has no full of booleans
    return w * ones + zeros, w / full, w + whole, w.new_tensor(4.0) * w, w * w.new_empty(6).fill_(2.0)


def many_sums_of_products(w):
    """The third product's sum, but not the first one, which is returned too, can be made in place."""
    first = w[0] @ TABLE
    second = w[1] @ TABLE
    turned = (TABLE.mT @ w[2].mT).mT
    return first, first + second, turned + second + w[3] @ TABLE


def normal_log_density(w):
    """With its gradient's factors: powers, negatives, quotients by constants and shifts."""
    scale = torch.linspace(0.5, 2.0, 6, dtype=w.dtype)
    log_density = -((w - 1.0) ** 2) / (2 * scale**2) - scale.log() - 0.9189385
    return log_density.unsqueeze(-1).sum(-1), -(-((w - 1.0) ** 1) * 2.0) / scale**2, 3.0 * (0.5 * w), -w / 2


def turned_twice(w):
    return (w.transpose(1, 2).transpose(-1, -2) + 1).sum(0).t().t()


def gradients_of_slices_and_permutations(w):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.enable_grad():
        leaf = w.detach().requires_grad_()
        parts = leaf[..., :2].sin().sum() + leaf[..., 2:5].cos().sum() + leaf[..., 5:].exp().sum()
        shuffled = (leaf[..., order] * torch.arange(6, dtype=w.dtype)).sin().sum()
        twice = (leaf[..., torch.tensor([0, 0, 1, 2, 3, 4])] ** 3).sum()
        overlapping = leaf[..., :4].tanh().sum() + leaf[..., 2:].tanh().sum()
        return tuple(torch.autograd.grad(f, leaf, retain_graph=True)[0] for f in (parts, shuffled, twice, overlapping))


def divided_by_zero(w):
    return w / 0.0 - (-w) / torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], dtype=w.dtype)


def functions_in_turn(w):
    """Some results are needed again, some are returned, some are shared between two sums."""
    hidden = torch.tanh(w @ TABLE + w[0, 0, :5])
    activation = torch.nn.functional.silu(torch.exp(0.1 * w) * 2.0 + 1.0)
    again = activation.sigmoid()
    shared = w.sum(0, keepdim=True) * 3.0
    both = shared + shared, shared * w, w.relu() - w
    doubled = again + again
    return hidden, hidden.mT.exp(), again, activation * again, *both, doubled * doubled


def shape_changes(w):
    return w.view(7, 4, 6).expand(7, 4, 6).reshape(28, 6).view(7, 24).detach() + w.reshape(7, 24)


FUNCTIONS = [
    last_layers,
    centred_logits,
    computed_twice,
    constants,
    written_in_place,
    sums_of_products,
    sums_with_zeros,
    filled,
    many_sums_of_products,
    normal_log_density,
    turned_twice,
    gradients_of_slices_and_permutations,
    divided_by_zero,
    functions_in_turn,
    shape_changes,
]
# Operations that must be gone, or at most so many.
AT_MOST = {
    last_layers: {"bmm.default": 1},  # w @ TABLE may stay one
    centred_logits: {"logsumexp.default": 0},
    computed_twice: {"exp.default": 1},
    constants: {"arange.default": 0, "exp.default": 0},
    sums_of_products: {"add.Tensor": 0, "addmm.default": 1},
    sums_with_zeros: {"add.Tensor": 2},
    normal_log_density: {"div.Tensor": 0, "neg.default": 0, "sub.Tensor": 2, "mul.Tensor": 4, "sum.dim_IntList": 0},
    turned_twice: {"transpose.int": 0, "t.default": 0},
    gradients_of_slices_and_permutations: {"index_put.default": 1, "slice_backward.default": 2},
    shape_changes: {"expand.default": 0},
}


def points():
    return torch.randn(7, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed(0)))


@pytest.mark.parametrize("constant", [False, True], ids=["", "constants folded"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_same_results(function, constant):
    module = simplify(record(function, points()), constants=constant)
    w = points() + 0.5
    torch.testing.assert_close(module(w), function(w), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(as_script(module, [w])(w), function(w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [last_layers, centred_logits, computed_twice, sums_of_products])
def test_the_same_gradients(function):
    module = simplify(record(function, points()))
    gradients = []
    for run in (module, function):
        w = points().requires_grad_()
        gradients.append(torch.autograd.grad((run(w) ** 2).sum(), w)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", AT_MOST, ids=lambda function: function.__name__)
def test_what_is_gone(function):
    module = simplify(record(function, points()), constants=True)
    names = [str(node.target).removeprefix("aten.") for node in module.graph.nodes]
    for name, most in AT_MOST[function].items():
        assert names.count(name) <= most, (name, names)


def test_random_numbers_are_neither_merged_nor_folded():
    def noisy(w):
        return torch.randn(3, dtype=w.dtype) - torch.randn(3, dtype=w.dtype)

    module = simplify(record(noisy, points()), constants=True)
    torch.manual_seed(seed(5))
    expected = noisy(points())
    torch.manual_seed(seed(5))
    found = module(points())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert bool((found != module(points())).all())


IN_BLOCKS = {
    "memory of their own": lambda module, *_, **__: in_blocks(module),
    "a workspace": lambda module, *_, **__: in_blocks(module, Workspace()),
}


@pytest.mark.parametrize(
    "run_by, are_kept",
    [
        (as_script, [True, True, False, True, True]),
        (IN_BLOCKS["memory of their own"], [True] * 5),
        (IN_BLOCKS["a workspace"], [True, False, False, True, False]),  # the others are short
    ],
)
def test_only_results_that_may_be_overwritten_are(run_by, are_kept):
    rows = 2**20 // 5 + 1

    def outer(w, x):
        first, second, third = w[0, :, :1].mT, x[:, None] @ w[1, :1, :5], w[2, 0, 0] * x
        return x @ (second + 1), second, x[:, None] @ w[3, :1, :5] + x[:, None] @ w[4, :1, :5], first, third

    w, x = points(), torch.ones(rows, dtype=torch.float64)
    module = simplify(record(outer, w, x), constants=True)
    run = run_by(module, [w, x], overwritten=(2,))
    before = run(w, x)
    kept = [result.clone() for result in before]
    for result, expected in zip(before, outer(w, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    after = run(w + 1, x)
    for result, expected in zip(after, outer(w + 1, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert [torch.equal(now, then) for now, then in zip(before, kept, strict=True)] == are_kept
    assert (after[2].data_ptr() == before[2].data_ptr()) == (not are_kept[2])


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_results():
    from pyro_hypernet.graphs.run import as_cuda_graph

    w, other = points().cuda(), points().cuda() + 1
    run = as_cuda_graph(lambda a, b: computed_twice(a) + b.sum(-1), [w, other], 1)
    torch.testing.assert_close(run(w, other * 2), computed_twice(w) + (other * 2).sum(-1))


@pytest.fixture
def without_script(monkeypatch):
    """A torch whose TorchScript is gone, as it is on Python 3.14."""

    def gone(*_, **__):
        raise RuntimeError("TorchScript is not supported on this Python.\nUse torch.export.")

    monkeypatch.setattr(torch.jit, "trace", gone)
    why_no_script.cache_clear()
    yield
    why_no_script.cache_clear()


def test_without_torchscript_graphs_run_from_python(without_script):
    assert why_no_script().startswith("TorchScript does not run here (RuntimeError: TorchScript is not supported")
    module = simplify(record(normal_log_density, points()), constants=True)
    assert as_script(module, [points()]) is module


def test_without_torchscript_a_fit_is_the_same_and_says_so(without_script):
    (model, args), losses = hidden_units(), []
    for compile in ("off", "graph"):
        pyro.set_rng_seed(seed(1))
        options = {"num_steps": 10, "num_particles": 4, "compile": compile, "rejection": None, "progress": False}
        result = fit(model, AutoHypernet(model), args, **options)
        losses.append(result.losses)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)
    assert (result.compile, result.mode) == ("graph", "graph")
    assert result.compile_reason.startswith("captured, run from Python: TorchScript does not run here")


def hidden_units():
    x, y = torch.randn(10, 2, generator=torch.Generator().manual_seed(seed(2))), torch.linspace(-1, 1, 10)

    def model(x, y):
        hidden = pyro.sample("hidden", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
        last = pyro.sample("last", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ hidden) @ last, 0.5), obs=y)

    return model, (x, y)


def test_an_operation_that_torchscript_lacks_is_run_from_python():
    """`full` of booleans: the model is captured all the same, without a word."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        seen = torch.full((len(y),), True)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(torch.where(seen, mean, 0.0), 1.0), obs=y)

    layout = AutoHypernet(model).setup(torch.ones(3)).layout
    w = torch.linspace(-1, 1, 5)[:, None]
    density, plain = LogJoint(model, layout), LogJoint(model, layout, mode="eager")
    with torch.no_grad():
        torch.testing.assert_close(density(w, torch.ones(3)), plain(w, torch.ones(3)))
    assert density.mode == "graph"


@pytest.mark.slow
def test_what_was_compiled_once_is_taken_from_the_cache(monkeypatch, tmp_path):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    w = torch.randn(4, 6)
    module = simplify(record(constants_of_w, w), constants=True)
    assert not is_compiled(module, [w])
    for number in range(2):
        counters.clear()
        torch.testing.assert_close(as_inductor(module, [w])(w), constants_of_w(w))
        assert counters["inductor"]["fxgraph_cache_hit"] == number
    assert is_compiled(module, [w])
    assert not is_compiled(module, [w[:2]])


def constants_of_w(w):
    return torch.tanh(w @ TABLE.to(w.dtype)).exp().sum(-1)

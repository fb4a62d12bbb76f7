"""Steps of large guides: captured by shapes alone, run in blocks, written over what nothing else needs."""

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from torch import nn

from pyro_hypernet import AutoHypernet, Checkpoint, Optim, Plan, VectorizedELBO, bayesianize, fit
from pyro_hypernet.graphs import blocks, blockwise
from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import same_random_numbers
from pyro_hypernet.graphs.workspace import Workspace
from pyro_hypernet.train import optimiser, step
from pyro_hypernet.train.capture import Captured
from pyro_hypernet.train.optimiser import Optimiser, step_shares
from pyro_hypernet.train.step import FlatParameters, Step, Stepper
from tests.seeds import seed
from tests.train.processes import run

GUIDES = {
    "mean field": ({}, "identity", "full"),
    "low_rank": ({}, "auto", "low_rank"),
    "weight_norm": ({}, "auto", "weight_norm"),
    "multiplicative": ({}, "auto", "multiplicative"),
    "layerwise": ({}, "linear", "layerwise"),
    "last_layer": ({}, "auto", "last_layer"),
    "weight_norm model": ({"parametrization": "weight_norm"}, "auto", "auto"),
    "paper": ({"parametrization": "weight_norm", "sites": ["*.weight"]}, "auto", "auto"),
}
QUICK = (("mean field", 3), ("weight_norm model", 1))
X, Y = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3), torch.linspace(0, 1, 20, dtype=torch.float64)

ZERO = {"weight": torch.zeros(60, dtype=torch.float64)}


def _with_a_param(x, y):
    noise = pyro.param("noise", x.new_ones(()), constraint=dist.constraints.positive)
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(60), 1.0).to_event(1))
    with pyro.poutine.scale(scale=20 / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight[:3], noise), obs=y)


def _breaks_down_at_times(x, y):
    """At one draw in sixteen, wherever the guide is, but not at zero; in one run of 2 000 at none of 30 steps."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(60), 1.0).to_event(1))
    pyro.factor("wall", torch.where((1e4 * weight[0]).sin() > 0.98, torch.inf, 0.0))
    with pyro.poutine.scale(scale=20 / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight[:3], 0.5), obs=y)


RUNS = {
    "a parameter of the model's, a short last batch": (_with_a_param, [(X[:14], Y[:14]), (X[14:], Y[14:])], {}),
    "steps that are skipped": (_breaks_down_at_times, (X, Y), {"init_loc_fn": init_to_value(values=ZERO)}),
    "linear": (_with_a_param, (X, Y), {"hypernet": "linear"}),
}


@pytest.fixture
def short(monkeypatch):
    """All guides are large, and blocks short."""
    _make_short(monkeypatch)


def _make_short(patch):
    patch.setattr(step, "_LONG", 1)
    patch.setattr(blocks, "_LONG", 50)
    patch.setattr(blockwise, "_BLOCK", 64)


def _made(name):
    options, hypernet, structure = GUIDES[name]
    pyro.set_rng_seed(seed())
    x = torch.randn(16, 3, dtype=torch.float64)
    y = x.sum(-1)
    net = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    model = bayesianize(net, "gaussian", num_data=100, **options)
    guide = AutoHypernet(model, hypernet, structure).setup(x, y)
    for parameter in guide.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    return model, guide, (x, y)


@pytest.mark.parametrize(
    "name, particles",
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in product(GUIDES, (1, 3))],
)
def test_blocks_give_the_loss_and_gradient_of_the_step_as_it_stands(name, particles, short):
    model, guide, batch = _made(name)
    elbo = VectorizedELBO(particles)
    elbo.prepare(model, guide, batch, {})
    parameters = FlatParameters([*guide.parameters(), *elbo.params.values()], step_shares(guide.bijection))
    stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10, is_fixed=False)
    stepper(batch)
    assert stepper.reason.startswith("captured in blocks")
    captured = next(iter(stepper._graphs.values()))
    assert any(isinstance(part, blockwise.Blockwise) for part in captured.run.children())
    for _ in range(2):  # the second run finds what the first has written over
        with same_random_numbers(parameters.leaves):
            numbers, *gradients, _, log_p, log_q = stepper._run(*batch)
        with same_random_numbers(parameters.leaves):
            numbers2, *gradients2, w2, log_p2, log_q2 = captured(batch)
        torch.testing.assert_close(numbers2[[0, 2]], numbers[[0, 2]])
        torch.testing.assert_close([log_p2, log_q2, *gradients2], [log_p, log_q, *gradients])
        assert w2.numel() == 0


@pytest.mark.parametrize("name", ["mean field", pytest.param("weight_norm model", marks=pytest.mark.slow)])
def test_a_fit_in_blocks_takes_the_path_of_a_fit_by_graphs(name, monkeypatch):
    losses = []
    for long in (1, 10**9):
        monkeypatch.setattr(step, "_LONG", long)
        monkeypatch.setattr(blocks, "_LONG", 50)
        monkeypatch.setattr(optimiser, "_LEAST_WINDOW", 1)  # both keep the parameters of the same step
        pyro.clear_param_store()
        model, guide, batch = _made(name)
        pyro.set_rng_seed(seed(1))
        result = fit(model, guide, [batch], num_steps=40, elbo=VectorizedELBO(2, compile="graph"), progress=False)
        assert result.compile == "graph"
        losses.append(torch.cat([result.losses, torch.tensor([result.elbo])]))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


def _run(case, *, checkpoint=None, steps=30):
    model, args, options = RUNS[case]
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(3))
    guide = AutoHypernet(model, **{"hypernet": "identity", **options}, structure="full")
    elbo = VectorizedELBO(4, compile="graph")
    how = {"elbo": elbo, "plan": Plan(rejection=None), "checkpoint": checkpoint, "progress": False}
    result = fit(model, guide, args, num_steps=steps, **how)
    assert result.compile_reason.startswith("captured in blocks")
    values = {**guide.state_dict(), **pyro.get_param_store()}
    values = {name: value.detach().clone() for name, value in values.items()}
    return values | {"losses": result.losses.nan_to_num(1e9), "elbo": torch.tensor(result.elbo)}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "linear")) for case in RUNS])
@pytest.mark.filterwarnings("ignore:.*steps were skipped")
def test_a_run_in_blocks_goes_on_bit_for_bit(case, short, tmp_path, monkeypatch):
    step, whole = Optimiser.step, _run(case, checkpoint=Checkpoint(tmp_path / "whole", every_seconds=0))
    assert bool((whole["losses"] == 1e9).any()) == (case == "steps that are skipped")

    def killed(run, *args):
        if len(run.losses) == 13:
            raise KeyError("killed")
        step(run, *args)

    broken = Checkpoint(tmp_path / "broken", every_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(Optimiser, "step", killed)
        with pytest.raises(KeyError):
            _run(case, checkpoint=broken)
    found = _run(case, checkpoint=broken)
    assert found.keys() == whole.keys()
    for name in whole:
        assert torch.equal(found[name], whole[name]), name


def _rank(rank):
    with pytest.MonkeyPatch.context() as patch:
        _make_short(patch)
        return {case: _run(case, steps=12) for case in RUNS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*steps were skipped")
def test_two_processes_in_blocks_fit_as_one(tmp_path):
    alone, results = _rank(0), run(_rank, tmp_path / "two")
    for result in results:
        assert not isinstance(result, str), result
        torch.testing.assert_close(result, alone, rtol=1e-9, atol=1e-9)


def test_a_model_that_draws_by_itself_is_not_taken_for_what_its_graph_was(short):
    def model(y, count=[0]):  # noqa: B006
        count[0] += 1
        w = pyro.sample("w", pyro.distributions.Normal(torch.zeros(60), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", pyro.distributions.Normal(w[0] + count[0], 1.0), obs=y)

    y = torch.zeros(5)
    guide = AutoHypernet(model, "identity", "full").setup(y)
    elbo = VectorizedELBO(1)
    elbo.prepare(model, guide, (y,), {})
    parameters = FlatParameters(list(guide.parameters()))
    stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10, is_fixed=False)
    assert stepper._captured((y,)) is None
    assert not stepper._is_in_blocks


def test_recording_shapes_alone_works_nothing_out():
    leaf = torch.randn(5, requires_grad=True)
    seen = []

    def function(x):
        seen.append(type(leaf * x).__name__)
        (gradient,) = torch.autograd.grad((leaf**2 * x).sum(), leaf)
        return torch.stack([gradient.sum()] * 3), gradient

    def loss(x):
        return float((2 * leaf.detach() * x).sum())

    captured = Captured(function, [leaf], (torch.ones(5),), is_fixed=False, num_gradients=1, loss=loss)
    assert seen == ["FakeTensor"]
    with torch.no_grad():
        leaf.mul_(3)
    torch.testing.assert_close(captured((torch.full((5,), 2.0),))[1], 4 * leaf.detach())


@pytest.mark.parametrize("start, is_beaten", [(100.0, True), (1.05, False)])
def test_of_many_parameters_one_copy_is_kept(start, is_beaten, monkeypatch):
    monkeypatch.setattr(step, "_LONG", 1)
    vector = torch.zeros(4)
    run = Optimiser([vector], 500, Optim(0.1))
    values, means = [], []
    for number in range(40):
        loss = start - number if number < 20 and is_beaten else 1.0 + 0.1 * (number % 2) - 0.001 * number
        run.step(Step(loss, 0.0, 1.0, [torch.ones(4)], None))
        if run.window_is_full():
            means.append(run.close_window())
            values.append(vector.clone())
            assert (run.first is None) != (run.kept is None)
    assert (run.first is None) == is_beaten
    best = min(range(len(means)), key=means.__getitem__) if is_beaten else -1
    assert run.finish() == means[best]
    torch.testing.assert_close(vector, values[best])


def test_what_an_operation_writes_over_is_used_by_nothing_else():
    def function(x, y):
        a = x * 2 + y
        b = a.index_fill(-1, torch.tensor([0]), 0.0)
        return a.exp().sum(-1), b, (a + b).tanh()

    x, y = torch.randn(2, 300, dtype=torch.float64), torch.randn(300, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_LONG", 50)
        made = blocks.in_blocks(record(function, x, y))
    before = x.clone(), y.clone()
    torch.testing.assert_close(made(x, y), function(x, y))
    torch.testing.assert_close((x, y), before)


def _groups_and_tables(x, index, table):
    """Sums by group of what is worked out number by number, and that times numbers of a table."""
    values = x.exp() * 2
    sums = x.new_zeros(len(x), 5).index_add(-1, index, values)
    return sums, values * table.index_select(-1, index), (values * sums.index_select(-1, index)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32])
@pytest.mark.parametrize("rows", [1, 3])
def test_sums_by_group_and_lookups_are_worked_out_in_blocks(rows, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "_LONG", 50)
    monkeypatch.setattr(blockwise, "_BLOCK", 64)
    x, table = torch.randn(rows, 300, dtype=torch.float64), torch.randn(rows, 5, dtype=torch.float64)
    index = torch.randint(5, (300,)).to(dtype)
    made = blocks.in_blocks(record(_groups_and_tables, x, index, table), Workspace())
    torch.testing.assert_close(made(x, index, table), _groups_and_tables(x, index, table))
    left = [node.target for node in made.graph.nodes]
    assert torch.ops.aten.index_add.default not in left
    assert torch.ops.aten.index_select.default not in left


def test_long_results_that_are_not_needed_at_once_lie_in_one_place(monkeypatch):
    """In the order that is written all four would be there at once."""

    def function(x, places):
        chosen = [x[place] for place in places]
        return [part.dot(part) for part in chosen]

    monkeypatch.setattr(blocks, "_LONG", 50)
    x, places = torch.randn(300, dtype=torch.float64), torch.randint(300, (4, 100))
    workspace = Workspace()
    made = blocks.in_blocks(record(function, x, places), workspace)
    assert [len(piece) for piece in workspace.pieces] == [800]
    for _ in range(2):
        torch.testing.assert_close(made(x, places), function(x, places))


def test_parts_are_made_where_they_are_put_together(monkeypatch):
    def function(x, y):
        return torch.cat([x[:2].flatten(), (x @ y).flatten(), y[:, :2].flatten()])

    monkeypatch.setattr(blocks, "_LONG", 50)
    x, y = torch.randn(2, 10, 10, dtype=torch.float64)
    workspace = Workspace()
    made = blocks.in_blocks(record(function, x, y), workspace)
    assert [len(piece) for piece in workspace.pieces] == [8 * 140]
    for _ in range(2):
        torch.testing.assert_close(made(x, y), function(x, y))


def test_a_transposed_product_is_not_taken_for_one_in_its_place(monkeypatch):
    def function(x, y):
        return torch.cat([x[:2].flatten(), (x @ y).mT.reshape(-1)])

    monkeypatch.setattr(blocks, "_LONG", 50)
    x, y = torch.randn(2, 10, 10, dtype=torch.float64)
    made = blocks.in_blocks(record(function, x, y), Workspace())
    torch.testing.assert_close(made(x, y), function(x, y))


def test_parts_of_a_split_vector_are_not_written_over():
    def function(x):
        whole = x.exp()
        one, other = (whole + 1).split([100, 200])
        moved = one.index_fill(0, torch.tensor([0]), 0.0)
        return moved.sin(), one.cos(), other.tanh()

    x = torch.randn(300, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_LONG", 50)
        made = blocks.in_blocks(record(function, x), Workspace())
    torch.testing.assert_close(made(x), function(x))


def test_what_capturing_took_is_let_go_of(short):
    model, guide, batch = _made("mean field")
    assert guide.prototype_trace.nodes["_RETURN"]["value"] is None
    elbo = VectorizedELBO(1)
    elbo.prepare(model, guide, batch, {})
    parameters = FlatParameters(list(guide.parameters()))
    stepper = Stepper(model, guide, elbo, parameters, compile="graph", num_steps=10, is_fixed=False)
    run = Optimiser(parameters.vectors, 10, Optim(0.1))
    first = [vector.clone() for vector in parameters.vectors]
    step_of_it = stepper(batch)
    assert run.moments is None
    assert run.first is None
    run.step(step_of_it)
    torch.testing.assert_close(run.first, first)
    captured = next(iter(stepper._graphs.values()))
    assert not hasattr(captured, "module")
    assert not hasattr(captured.run, "graph")

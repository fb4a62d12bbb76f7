"""A fit by several processes is that of one."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_hypernet import AutoHypernet, Checkpoint, GuideMixture, Optim, Plan, VectorizedELBO, bayesianize, fit
from pyro_hypernet.train.local import LocalBound
from pyro_hypernet.train.optimiser import Optimiser
from tests.seeds import seed
from tests.train.conjugate import make_data, regression
from tests.train.processes import SIZE, run

X, Y = make_data()
STEPS = 12


def scaled(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.poutine.scale(scale=len(X) / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def heavy(x, y):
    """No guide is exact here: at an exact one gradients are rounding errors, of which Adam makes steps."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.poutine.scale(scale=len(X) / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.StudentT(4.0, x @ weight, 0.5), obs=y)


def with_a_param(x, y):
    noise = pyro.param("noise", x.new_ones(()), constraint=dist.constraints.positive)
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.poutine.scale(scale=len(X) / len(x)), pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def rows_of_a_plate(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ weight, 0.5), obs=y[rows])


def network():
    torch.manual_seed(seed(1))
    return bayesianize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), "gaussian")


def part(rank, size):
    """Of all data, in shards of 13 and 7 rows: those of one process are the whole."""
    rows = slice(None) if size == 1 else (slice(0, 13), slice(13, None))[rank]
    return X[rows], Y[rows]


def shards_in_batches(rank, size):
    """Two batches a pass, the second shorter, of halves of unequal lengths; those of one process are both halves."""
    cuts = ((0, 7), (7, 10)), ((10, 16), (16, 20))
    pairs = zip(*cuts, strict=True) if size == 1 else [(pair,) for pair in cuts[rank]]
    return [tuple(torch.cat([data[a:b] for a, b in pair]) for data in (X, Y)) for pair in pairs]


def shuffled(rank, size):
    return DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True)


# From rank and size: the model, and what the process is given; and options of fit.
CASES = {
    "particles": (heavy, lambda rank, size: (X, Y), {"guide": {}, "plan": {"rejection": (0.3,)}}),
    "an odd number of particles": (scaled, lambda rank, size: (X, Y), {"elbo": {"num_particles": 5}}),
    "parts of the data": (scaled, lambda rank, size: (X, Y), {"elbo": {"num_particles": 6, "draws": "split"}}),
    "total gradients": (scaled, lambda rank, size: (X, Y), {"elbo": {"gradient": "total"}}),
    "a captured step": (scaled, lambda rank, size: (X, Y), {"elbo": {"compile": "graph"}}),
    "a mixed base": (scaled, lambda rank, size: (X, Y), {"guide": {"num_components": 2}}),
    "parameters of the model": (with_a_param, lambda rank, size: (X, Y), {}),
    "a plate that draws": (rows_of_a_plate, lambda rank, size: (X, Y), {}),
    "the same loader": (scaled, shuffled, {}),
    "average, annealed": (scaled, lambda rank, size: (X, Y), {"optim": {"keep": "average"}, "plan": {"anneal": 0.1}}),
    "shards": (scaled, part, {}),
    "shards, captured": (scaled, part, {"elbo": {"compile": "graph"}}),
    "shards, parameters of the model": (with_a_param, part, {}),
    "shards in batches": (scaled, shards_in_batches, {}),
}


def fit_one(rank, name, size, folder=None):
    model, data, options = CASES[name]
    pyro.set_rng_seed(seed(rank))  # that of process 0 decides
    elbo = VectorizedELBO(**{"num_particles": 4, "compile": "off", **options.get("elbo", {})})
    guide = AutoHypernet(model, **options.get("guide", {"hypernet": "linear", "structure": "full"}))
    if data in (part, shards_in_batches):  # one process would look at all data for it
        guide.setup(X[:13], Y[:13])
    how = {"optim": Optim(**options.get("optim", {})), "plan": Plan(**{"rejection": None, **options.get("plan", {})})}
    result = fit(model, guide, data(rank, size), num_steps=STEPS, elbo=elbo, progress=False, checkpoint=folder, **how)
    return told(guide, result)


def told(guide, result):
    return {
        "losses": result.losses,
        "elbo": result.elbo,
        "acceptance": result.acceptance,
        "stopped": result.stopped_because,
        "skipped": result.num_skipped,
        "state": {name: value.clone() for name, value in guide.state_dict().items()},
        "params": {name: value.detach().clone() for name, value in pyro.get_param_store().items()},
        "draws": guide.sample_posterior(5),
    }


def skips(rank):
    """Process 1 has NaN among its data."""
    x, y = part(rank, SIZE)
    guide = AutoHypernet(scaled, "linear").setup(X[:13], Y[:13])
    y = torch.where(torch.arange(len(y)) == 2, torch.nan, y) if rank else y
    try:
        fit(scaled, guide, (x, y), num_steps=STEPS, optim=Optim(max_skipped=5), progress=False)
    except FloatingPointError as error:
        return str(error)


def breaks(rank):
    """Process 1's second batch cannot be read."""
    x, y = part(rank, SIZE)
    batches = [(x, y), (x, y[:3] if rank else y)]
    guide = AutoHypernet(scaled, "linear")
    try:
        fit(scaled, guide, batches, num_steps=STEPS, progress=False)
    except (RuntimeError, ValueError) as error:
        return type(error).__name__, str(error), guide.is_trained


def refused(rank):
    """What each asks for that cannot be."""
    asked = {
        "bound": (scaled, (X, Y), VectorizedELBO(2, bound="importance_weighted")),
        "few": (scaled, (X, Y), VectorizedELBO(1)),
        "unscaled": (regression, part(rank, SIZE), None),
    }
    messages = {}
    for name, (model, data, elbo) in asked.items():
        with pytest.raises(ValueError) as caught:
            fit(model, AutoHypernet(model, "linear"), data, elbo=elbo, num_steps=STEPS, progress=False)
        messages[name] = str(caught.value)
    return messages


def samples(rank):
    """A network by DistributedSampler, which tells it how many data there are; progress and warnings of process 0."""
    model, data = network(), TensorDataset(X, Y)
    sampler = DistributedSampler(data, SIZE, rank)
    guide = AutoHypernet(model, "linear")
    fit(model, guide, DataLoader(data, batch_size=5, sampler=sampler), num_steps=STEPS, progress=False)
    return guide.state_dict(), sampler.epoch


def mixes(rank):
    mixture = GuideMixture([AutoHypernet(scaled, "linear"), AutoHypernet(scaled, "linear")])
    result = fit(scaled, mixture, part(rank, SIZE), num_steps=STEPS, progress=False)
    return result.losses, mixture.state_dict()


def draws_anew(rank):
    """A network whose layers draw for every datum, in processes with the same batch."""
    model, seen, estimate = network(), [], LocalBound.estimate
    guide = AutoHypernet(model, "identity", "full")

    def noted(self, *args, **options):
        seen.append((options["share"], options["skip"]))
        return estimate(self, *args, **options)

    LocalBound.estimate = noted
    try:
        elbo = VectorizedELBO(2, draws="local")
        result = fit(model, guide, (X, Y), num_steps=STEPS, elbo=elbo, progress=False)
    finally:
        LocalBound.estimate = estimate
    return result.losses, guide.state_dict(), set(map(str, seen))


def fit_all(rank, folder):
    """All in the same processes, for starting them takes the most time."""
    results = {}
    for name in CASES:
        pyro.clear_param_store()
        results[name] = fit_one(rank, name, SIZE)
    for function in (skips, breaks, refused, samples, mixes, draws_anew):
        pyro.clear_param_store()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[function.__name__] = function(rank)
    for name in GONE_ON:
        results[f"resume {name}"] = goes_on(rank, name, folder)
    return results


GONE_ON = ("parameters of the model", "shards")


def goes_on(rank, name, folder):
    """A run that all processes break off half way, and the one that goes on; and one without a break."""
    step, results = Optimiser.step, []

    def breaks_off(run, *args):
        if len(run.losses) == STEPS // 2:
            raise KeyError("off")
        step(run, *args)

    for number, (where, is_broken) in enumerate((("broken", True), ("broken", False), ("whole", False))):
        pyro.clear_param_store()
        Optimiser.step = breaks_off if is_broken else step
        try:
            asked = Checkpoint(Path(folder) / f"{name} {where}", every_seconds=0)
            results.append(fit_one(rank, name, SIZE, asked))
        except KeyError:
            results.append(number)
        finally:
            Optimiser.step = step
    return results


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    results = run(fit_all, tmp_path_factory.mktemp("group"), str(tmp_path_factory.mktemp("runs")))
    assert not any(isinstance(result, str) for result in results), results
    return results


def same_bits(one, other):
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (one, other)), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=not isinstance(a, str)) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_fit_as_one(by_two, name):
    """Rounding alone differs, in single precision where batches weigh: the noise is the same."""
    first, second = (results[name] for results in by_two)
    assert same_bits(first, second)
    pyro.clear_param_store()
    alone = fit_one(0, name, 1)
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-6 if "batches" in name else 1e-9, atol=1e-9)
    assert first["elbo"] == pytest.approx(alone["elbo"], rel=1e-6)
    assert first["acceptance"] == pytest.approx(alone["acceptance"], abs=1e-6)
    torch.testing.assert_close(first["state"], alone["state"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first["params"], alone["params"], rtol=1e-5, atol=1e-7)


def test_what_one_cannot_evaluate_is_skipped_by_all(by_two):
    first, second = (results["skips"] for results in by_two)
    assert first == second
    assert "5 steps in a row" in first
    assert "NaN in 1 of 7 places" in first
    assert "(process 1)" in first


def test_an_error_of_one_is_one_of_all(by_two):
    (kind, text, is_trained), (own_kind, own, _) = (results["breaks"] for results in by_two)
    assert kind == "RuntimeError"
    assert "process 1 of 2 with" in text
    assert is_trained
    assert "Step 1 of fit failed" in own
    assert "Step 1 of fit failed" in text
    assert own_kind in text


def test_what_cannot_be_shared_is_refused(by_two):
    first, second = (results["refused"] for results in by_two)
    assert first == second
    assert "no sum over particles" in first["bound"]
    assert "num_particles=2" in first["few"]
    assert "every process other minibatches" in first["unscaled"]


def test_a_distributed_sampler_gives_a_network_its_shards(by_two):
    (first, epoch), (second, _) = (results["samples"] for results in by_two)
    assert same_bits(first, second)
    assert epoch > 0  # else every pass would have the same order


def test_layers_draw_otherwise_in_every_process(by_two):
    """Else two draws of the noise within layers would be one; the fit is one all the same."""
    first, second = (results["draws_anew"] for results in by_two)
    assert same_bits(first[:2], second[:2])
    assert bool(first[0].isfinite().all())
    assert first[2] == {"(slice(0, None, 2), 0)"}
    assert second[2] == {"(slice(1, None, 2), 1)"}


def test_a_mixture_is_trained_by_all(by_two):
    first, second = (results["mixes"] for results in by_two)
    assert same_bits(first, second)
    assert bool(first[0].isfinite().all())


@pytest.mark.parametrize("name", GONE_ON)
def test_a_broken_run_goes_on_bit_for_bit(by_two, name):
    for results in by_two:
        broken, ours, whole = results[f"resume {name}"]
        assert broken == 0
        assert same_bits(ours, whole)


def dies(rank, folder):
    """Process 1 is killed half way."""
    guide, step = AutoHypernet(scaled, "linear"), Optimiser.step

    def kills(run, *args):
        step(run, *args)
        if rank and len(run.losses) == STEPS // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Optimiser.step = kills
    with pytest.raises(RuntimeError) as caught:
        fit(scaled, guide, (X, Y), num_steps=STEPS, progress=False)
    return str(caught.value), guide.is_trained


def test_a_killed_process_ends_the_others(tmp_path):
    (text, is_trained), killed = run(dies, tmp_path / "group", str(tmp_path))
    assert killed is None
    assert is_trained
    assert "Process 0 of 2 has lost another one (process 1)" in text
    assert "checkpoint=" in text


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The recipe of docs/processes.md."""
    page = (Path(__file__).parents[2] / "docs" / "processes.md").read_text()
    script = tmp_path / "train.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("elbo") == 1
    assert (tmp_path / "guide.safetensors").exists()

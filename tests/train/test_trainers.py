"""Fits in processes that Lightning Fabric or Accelerate has set up, by loaders that these have wrapped."""

import os
import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from pyro_hypernet import AutoHypernet, Checkpoint, VectorizedELBO, bayesianize, diagnose, fit
from pyro_hypernet.train.batches import Batches
from pyro_hypernet.train.optimiser import Optimiser
from tests.seeds import seed
from tests.train.processes import SIZE, run

PACKAGES = {"fabric": "lightning_fabric", "accelerate": "accelerate"}
FOUND = [kind for kind, name in PACKAGES.items() if find_spec(name) is not None]
STEPS = 12
X = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
Y = (3 * X[:, 0]).sin()
DATA = TensorDataset(X, Y)
JOINT = [(X[:10], Y[:10]), (X[10:], Y[10:])]
ROOT = Path(__file__).parents[2]


def by_fabric(devices=SIZE, **options):
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=devices, **options)
    fabric.launch()
    return fabric.setup_dataloaders, fabric.setup_module


def by_accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    return accelerator.prepare, accelerator.prepare


MAKE = {"fabric": partial(by_fabric, strategy="ddp"), "accelerate": by_accelerate}
MAKE_ALONE = {"fabric": partial(by_fabric, 1), "accelerate": by_accelerate}


def network():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def fit_one(args, number=0, folder=None, num_data=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(number))
    model = bayesianize(network(), "gaussian")
    guide = AutoHypernet(model, "linear", "full").setup(X[:5], Y[:5])  # one process would look at all data for it
    model.num_data = num_data
    elbo = VectorizedELBO(num_particles=4, compile="off")
    result = fit(model, guide, args, num_steps=STEPS, elbo=elbo, progress=False, checkpoint=folder)
    return result.losses, result.elbo


def goes_on(make_loader, folder):
    """A run broken off in its fourth pass and gone on with, by a loader of another seed; and one without a break."""
    step, found = Optimiser.step, []

    def breaks_off(run, *args):
        if len(run.losses) == STEPS // 2 + 1:
            raise KeyError("off")
        step(run, *args)

    for where, number, is_broken in (("broken", 5, True), ("broken", 6, False), ("whole", 5, False)):
        Optimiser.step = breaks_off if is_broken else step
        torch.manual_seed(seed(number))
        try:
            found.append(fit_one(make_loader(), folder=Checkpoint(Path(folder) / where, every_seconds=0))[0])
        except KeyError:
            found.append(None)
        finally:
            Optimiser.step = step
    return found


def message(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def fixed_features(rank, args):
    """A network whose first layer is fixed, at other values in every process."""
    torch.manual_seed(seed(rank))
    model = bayesianize(network().requires_grad_(False), "gaussian", sites=["2.*"])
    fit(model, AutoHypernet(model, "linear"), args, num_steps=2, progress=False)


def in_group(rank, folder):
    """All in the same processes, for starting them takes the most time."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "test"}
    warnings.simplefilter("ignore")
    return {kind: by_loaders_of(kind, rank, Path(folder) / kind) for kind in FOUND}


def by_loaders_of(kind, rank, folder):
    wrap, wrap_module = MAKE[kind]()

    def a_part():
        torch.manual_seed(seed(2))
        return wrap(DataLoader(DATA, batch_size=3, sampler=SubsetRandomSampler(range(12))))

    def shuffled():
        return wrap(DataLoader(DATA, batch_size=5, shuffle=True))

    in_turn = wrap(DataLoader(DATA, batch_size=5))
    learnt = bayesianize(network(), "gaussian", parametrization="weight_norm")
    ready = AutoHypernet(learnt).setup(X, Y)
    return {
        "in turn": fit_one(in_turn, number=rank),
        "a part": fit_one(a_part()),
        "a part, said": fit_one(a_part(), num_data=12),
        "goes on": goes_on(shuffled, folder),
        "a wrapped network": message(bayesianize, wrap_module(network())),
        "a wrapped model": message(fit, wrap_module(learnt), AutoHypernet(learnt), JOINT),
        "a wrapped guide": message(fit, learnt, wrap_module(ready), JOINT),
        "other features": message(fixed_features, rank, in_turn),
        "unequal": message(fit_one, JOINT if rank else JOINT[1:]),
        "a shard": message(diagnose, learnt, ready, in_turn),
    }


@pytest.fixture(scope="module")
def all_by_two(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("group", "runs")]
    results = run(in_group, folders[0], str(folders[1]))
    assert all(isinstance(result, dict) for result in results), results
    return results


@pytest.fixture(params=PACKAGES)
def by_two(request, all_by_two):
    if request.param not in FOUND:
        pytest.skip(f"needs {PACKAGES[request.param]}")
    return [results[request.param] for results in all_by_two]


def test_two_processes_fit_as_one(by_two):
    """Whatever the seed of the second: that of the first decides."""
    (first, bound), (second, _) = (results["in turn"] for results in by_two)
    assert torch.equal(first, second)
    alone, own_bound = fit_one(DataLoader(DATA, batch_size=10), num_data=20)
    torch.testing.assert_close(first, alone, rtol=1e-6, atol=1e-9)
    assert bound == pytest.approx(own_bound, rel=1e-6)


def test_a_part_of_the_data_counts_as_one(by_two):
    for results in by_two:
        assert torch.equal(results["a part"][0], results["a part, said"][0])


def test_a_shuffled_run_goes_on_bit_for_bit(by_two):
    for results in by_two:
        broken, ours, whole = results["goes on"]
        assert broken is None
        assert torch.equal(ours, whole)
        assert torch.equal(ours, by_two[0]["goes on"][1])
        assert len(set(whole[::2].tolist())) == STEPS // 2


def test_what_cannot_be_is_said(by_two):
    for results in by_two:
        assert "cannot be run at drawn weights: use net.module" in results["a wrapped network"]
        assert "takes the model itself" in results["a wrapped model"]
        assert "takes the guide itself" in results["a wrapped guide"]
        assert "The model differs between the processes" in results["other features"]
        assert "1, 2 batches in a pass" in results["unequal"]
        assert "shard" in results["a shard"]


def alone(kind):
    """What a loader that one process has wrapped says."""
    warnings.simplefilter("ignore")
    wrap, wrap_module = MAKE_ALONE[kind]()
    loader = wrap(DataLoader(DATA, batch_size=5))
    model = bayesianize(network(), "gaussian")
    found = diagnose(model, AutoHypernet(model, "linear").setup(X, Y), loader, num_samples=20)
    net = wrap_module(network())
    said = "net.module" if net.__class__ is nn.Sequential else message(bayesianize, net)
    print(kind, Batches(loader).num_data, found.num_draws > 0, "net.module" in said)


@pytest.mark.skipif(not FOUND, reason="needs lightning_fabric or accelerate")
def test_one_process_goes_by_a_wrapped_loader():
    """In one of its own: what these packages set up stays in a process."""
    program = "from tests.train.test_trainers import alone, FOUND\nfor kind in FOUND: alone(kind)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([sys.executable, "-c", program], **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{kind} 20 True True" for kind in FOUND]

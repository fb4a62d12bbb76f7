"""Runs that survive: gone on with bit for bit after whatever ended them, and nothing else taken for them."""

import errno
import itertools
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from pyro_hypernet import AutoHypernet, Checkpoint, GuideMixture, Optim, Plan, VectorizedELBO, fit, load
from pyro_hypernet.guide import checkpoint as checkpoint_module
from pyro_hypernet.train import resume as resume_module
from pyro_hypernet.train.optimiser import Optimiser
from tests.seeds import seed
from tests.train.conjugate import make_data, regression
from tests.train.kills import survives

X, Y = make_data()
DATA = TensorDataset(X, Y)
STEPS = 60


class _Killed(BaseException):
    """What ends a run without a word."""


def scaled(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def with_a_param(x, y):
    noise = pyro.param("noise", x.new_ones(()), constraint=dist.constraints.positive)
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def rows_of_a_plate(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ weight, 0.5), obs=y[rows])


def breaks_down_at_times(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    pyro.factor("wall", torch.where(weight[0] > 1.2, torch.inf, 0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


class Shuffled:
    """An iterable that is no DataLoader, by numpy's own generator."""

    def __init__(self):
        self.rng = np.random.default_rng(seed(4))

    def __iter__(self):
        for rows in self.rng.permutation(20).reshape(4, 5):
            yield X[rows], Y[rows]


class Augmented(TensorDataset):
    """Draws at random as its items are read."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.01 * torch.randn_like(x) * np.random.rand(), y  # noqa: NPY002


def loader(**options):
    return DataLoader(DATA, **{"batch_size": 6, "shuffle": True, **options})


def own_generator():
    generator = torch.Generator().manual_seed(seed(8))
    return DataLoader(DATA, batch_size=5, sampler=RandomSampler(DATA, replacement=True, generator=generator))


LOADERS = {
    "shuffled by torch's generator, a short last batch": loader,
    "shuffled by the loader's generator": lambda: loader(generator=torch.Generator().manual_seed(seed(7))),
    "a sampler with a generator of its own": own_generator,
    "a weighted sampler": lambda: DataLoader(DATA, batch_size=5, sampler=WeightedRandomSampler(torch.ones(20), 20)),
    "an iterable by numpy's generator": Shuffled,
    "a list": lambda: [(X[:10], Y[:10]), (X[10:], Y[10:])],
    "random numbers in the data set": lambda: DataLoader(Augmented(X, Y), batch_size=5, shuffle=True),
}
FIXED = {"args": lambda: (X, Y)}
CASES = {
    **{name: {"model": scaled, "args": make} for name, make in LOADERS.items()},
    "all data": {},
    "another step after step": {"optim": Optim(keep="last", decay=False, clip=0.5)},
    "the average": {"optim": Optim(keep="average")},
    "AdamW": {"optim": Optim(method=partial(torch.optim.AdamW, lr=0.01))},
    "ClippedAdam of Pyro": {"optim": pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.99})},
    "patience": {"optim": Optim(0.5, patience=20)},
    "a deadline far away": {"optim": Optim(max_seconds=1000.0)},
    "annealed": {"plan": Plan(anneal=0.1)},
    "draws chosen": {"plan": Plan(rejection=(0.5,)), "guide": {"hypernet": "identity"}},
    "a mixture": {"guide": {"num_components": 2}, "elbo": VectorizedELBO(2)},
    "IAF": {"guide": {"hypernet": "iaf"}},
    "never captured": {"elbo": VectorizedELBO(compile="off", gradient="total")},
    "captured at once": {"elbo": VectorizedELBO(compile="graph", bound="importance_weighted")},
    "in a loop": {"elbo": VectorizedELBO(2, mode="loop")},
    "a parameter of the model's": {"model": with_a_param},
    "rows drawn by the model": {"model": rows_of_a_plate},
    "steps that are skipped": {"model": breaks_down_at_times, "guide": {"hypernet": "identity"}},
}

# The others take a minute and a half.
QUICK = (
    "shuffled by torch's generator, a short last batch",
    "random numbers in the data set",
    "a parameter of the model's",
)


def run(case, folder, *, number=0):
    """One process: its seed does not matter where it goes on."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(11 + number))
    options = {"model": regression, "guide": {}, **FIXED, "elbo": VectorizedELBO(2, compile="off"), **CASES[case]}
    model, of_guide, args = (options.pop(name) for name in ("model", "guide", "args"))
    guide = AutoHypernet(model, **{"hypernet": "linear", **of_guide})
    result = fit(model, guide, args(), num_steps=STEPS, progress=False, checkpoint=folder, **options)
    return result, outcome(guide)


def outcome(guide):
    params = {f"param {name}": value for name, value in pyro.get_param_store().items()}
    values = {**dict(guide.state_dict()), **params, "next random number": torch.rand(3)}
    return {name: value.detach().clone() for name, value in values.items()}


@contextmanager
def killed_after(monkeypatch, count):
    """The process in here ends as the step after so many of its own is about to be taken."""
    step, left = Optimiser.step, [count]

    def killed(self, *args):
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        step(self, *args)

    with monkeypatch.context() as context:
        context.setattr(Optimiser, "step", killed)
        with pytest.raises(_Killed):
            yield


@pytest.fixture
def by_number(monkeypatch):
    """Written at some steps, not by the clock."""

    def is_due(self, num_steps, *, is_last=False):
        return num_steps != self._last_step and (is_last or num_steps % 7 == 0)

    monkeypatch.setattr(resume_module.RunFolder, "is_due", is_due)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
@pytest.mark.filterwarnings(
    "ignore:.*steps were skipped", "ignore:Every draw of the guide is kept", "ignore:The loss rose above"
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(case, tmp_path, monkeypatch, by_number):
    """Twice killed, with other seeds in the later processes: the same losses, parameters and random numbers."""
    whole, expected = run(case, tmp_path / "whole")
    for number, count in enumerate((9, 12)):
        with killed_after(monkeypatch, count):
            run(case, tmp_path / "killed", number=number)
    result, found = run(case, tmp_path / "killed", number=2)
    assert torch.equal(result.losses.nan_to_num(1e9), whole.losses.nan_to_num(1e9))
    assert (result.elbo, result.stopped_because, result.acceptance) == (
        whole.elbo,
        whole.stopped_because,
        whole.acceptance,
    )
    assert (result.num_skipped, result.compile) == (whole.num_skipped, whole.compile)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    logs = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == 1 + whole.num_steps


def small(folder, *, model=regression, args=(X, Y), steps=12, guide="linear", **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed(3))
    made = AutoHypernet(model, guide)
    return made, fit(
        model,
        made,
        args,
        num_steps=steps,
        elbo=VectorizedELBO(2, compile="off"),
        progress=False,
        checkpoint=folder,
        **options,
    )


@pytest.fixture
def finished(tmp_path, by_number):
    """A folder with the checkpoints of steps 7 and 12."""
    guide, result = small(tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "losses.csv",
        "step-000000007.safetensors",
        "step-000000012.safetensors",
    ]
    return tmp_path / "run", guide, result


def test_a_checkpoint_is_a_guide(finished):
    """Of the parameters at that step; a finished run gives its result again."""
    folder, guide, result = finished
    loaded = load(folder / "step-000000007.safetensors", regression)
    assert loaded.sample_posterior(3)["weight"].shape == (3, 3)
    again, second = small(folder)
    assert torch.equal(second.losses, result.losses)
    assert second.elbo == result.elbo
    assert torch.equal(again.median()["weight"], guide.median()["weight"])


def cut(data):
    return data[: len(data) // 2]


def flipped(place):
    def flip(data):
        index = int(place * len(data))
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return flip


DAMAGES = {
    "cut": cut,
    "empty": lambda data: b"",
    **{f"a bit at {place}": flipped(place) for place in (0.001, 0.3, 0.6, 0.999)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_gives_way_to_the_one_before(damage, finished):
    folder, _, result = finished
    last = folder / "step-000000012.safetensors"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load(last, regression)
    with pytest.warns(UserWarning, match="no readable checkpoint.*goes on from the checkpoint before, step-000000007"):
        _, second = small(folder)
    assert torch.equal(second.losses, result.losses)
    assert last.exists()
    assert last.with_suffix(".damaged").exists()
    for path in folder.glob("*.safetensors"):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(ValueError, match="No other checkpoint is in"):
        small(folder)


def wider(x, y):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def renamed(x, y):
    weight = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


OTHERS = {
    "the prior": ({"model": wider}, "another model: at the same weights and data the log density of site 'weight'"),
    "the sites": ({"model": renamed}, "holds another run: layout was .*weight.* and is .*w"),
    "the hypernet": ({"guide": "coupling"}, "holds another run: .*hypernet was .*linear.* and is .*coupling"),
    "the data": ({"args": (X, Y + 1)}, "a run on other data"),
    "num_steps": ({"steps": 13}, "num_steps was 12 and is 13. Ask for what was asked before"),
    "optim": ({"optim": 0.1}, "learning_rate was 0.005 and is 0.1"),
    "the optimiser": ({"optim": torch.optim.SGD}, "method was null and is .*SGD"),
    "temperature": ({"plan": Plan(temperature=0.5)}, "temperature was 1.0 and is 0.5"),
}


@pytest.mark.parametrize("options, message", OTHERS.values(), ids=OTHERS.keys())
def test_another_run_is_refused(options, message, finished):
    """And nothing in the folder changes."""
    folder = finished[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        small(folder, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_later_format_and_a_run_that_is_not_to_be_gone_on_with(finished, monkeypatch):
    folder = finished[0]
    with pytest.raises(ValueError, match="holds a run already"):
        small(Checkpoint(folder, resume=False))
    monkeypatch.setattr(checkpoint_module, "_MIXTURE_VERSION", 2)
    with pytest.raises(ValueError, match="reads up to 2: upgrade it"):
        small(folder)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.99")
    with pytest.warns(UserWarning, match="other versions .*perhaps not to the last bit"):
        small(folder)


def test_an_order_that_cannot_be_known_is_said(tmp_path, by_number, monkeypatch):
    passes = itertools.count()

    class OfItsOwn:
        def __iter__(self):
            rows = np.random.default_rng(seed(next(passes))).permutation(20).reshape(4, 5)
            return ((X[part], Y[part]) for part in rows)

    with killed_after(monkeypatch, 9):
        small(tmp_path, model=scaled, args=OfItsOwn())
    with pytest.warns(UserWarning, match="an order by random numbers of its own"):
        assert small(tmp_path, model=scaled, args=OfItsOwn())[1].num_steps == 12


def test_a_full_disk_stops_no_fit(tmp_path, by_number, monkeypatch):
    """The last that could be written stays, and what is gone on from."""
    written, fsync = [], os.fsync

    def full(handle):
        written.append(handle)
        if 2 < len(written) < 5:  # every file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    said = "step 7 could not be.*No space left.*step-000000000.safetensors is the last"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=said), killed_after(monkeypatch, 12):
        small(tmp_path, steps=20)
    monkeypatch.setattr(os, "fsync", fsync)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.csv", "step-000000000.safetensors"]
    result = small(tmp_path, steps=20)[1]
    assert torch.equal(result.losses, small(tmp_path / "other", steps=20)[1].losses)


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    """Before any work."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        guide = AutoHypernet(regression)
        with pytest.raises(OSError, match="The folder of checkpoint= cannot be written to"):
            fit(regression, guide, (X, Y), checkpoint=folder)
        assert guide._layout is None


def test_options_are_checked():
    with pytest.raises(TypeError, match="takes the path of a folder or a Checkpoint; got 3"):
        fit(regression, AutoHypernet(regression), (X, Y), checkpoint=3)
    with pytest.raises(ValueError, match="every_seconds must not be negative"):
        Checkpoint("run", -1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_run_goes_on(number, tmp_path, by_number, monkeypatch, request):
    step = Optimiser.step
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL

    def struck(self, *args):
        if len(self.losses) == 5:
            os.kill(os.getpid(), number)
        step(self, *args)

    outside = signal.signal(number, before)  # a shell's background job, and all that it starts, ignores SIGINT
    request.addfinalizer(lambda: signal.signal(number, outside))
    with monkeypatch.context() as context:
        context.setattr(Optimiser, "step", struck)
        result = small(tmp_path / "run")[1]
    assert (result.stopped_because, result.num_steps) == ("interrupted", 6)
    assert signal.getsignal(number) is before
    result = small(tmp_path / "run")[1]
    assert result.stopped_because == "all steps done"
    assert torch.equal(result.losses, small(tmp_path / "whole")[1].losses)


def test_sigterm_is_what_an_interrupt_is(monkeypatch):
    """Without a folder too, in the main thread only, and not where the user handles it."""
    step = Optimiser.step

    def struck(self, *args):
        step(self, *args)
        if len(self.losses) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Optimiser, "step", struck)
    result = small(None)[1]
    assert (result.stopped_because, result.num_steps) == ("interrupted", 5)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        assert small(None)[1].num_steps == 12
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert came == [True]
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Optimiser, "step", step)
        assert pool.submit(small, None).result()[1].num_steps == 12


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9(count, tmp_path):
    """Whatever the moment; a run that ends before is one more that goes on from its end."""
    assert survives(tmp_path, count, seed(1)) == count


def test_a_mixture_goes_on_where_it_was(tmp_path, monkeypatch):
    """The second component is interrupted: the first gives its result again, the second goes on."""
    y, step, steps = torch.tensor([0.3, 0.9]), Optimiser.step, []

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def run(folder):
        pyro.set_rng_seed(seed(0))
        mixture = GuideMixture.from_starts(model, 2, plan=Plan("full", "linear", rejection=None))
        options = {"elbo": VectorizedELBO(4), "checkpoint": folder, "progress": False}
        return fit(model, mixture, (y,), num_steps=40, **options), mixture

    def struck(self, *args):
        step(self, *args)
        steps.append(1)
        if len(steps) == 60:
            raise KeyboardInterrupt

    whole, _ = run(tmp_path / "whole")
    with monkeypatch.context() as context:
        context.setattr(Optimiser, "step", struck)
        assert run(tmp_path / "cut")[0].stopped_because == "interrupted"
    again, mixture = run(tmp_path / "cut")
    assert again.stopped_because == "all steps done"
    assert torch.equal(again.losses, whole.losses)
    torch.testing.assert_close(mixture.log_weights, torch.full((2,), 0.5).double().log())

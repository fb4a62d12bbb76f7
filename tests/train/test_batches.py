"""Minibatches: what counts how often, what is refused, and what is said of a bad one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model import vectorize
from pyro_hypernet.train import step as step_module
from pyro_hypernet.train.batches import Batches, Shares
from pyro_hypernet.train.capture import Captured
from pyro_hypernet.train.traits import Traits, find_traits
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed

X, Y = m.linear_data(40)
HALVES = [(X[:20], Y[:20]), (X[20:], Y[20:])]
QUICK = {"num_steps": 6, "num_particles": 2, "progress": False}


class Stream(IterableDataset):
    """Rows of the data, without a length."""

    def __iter__(self):
        return zip(X, Y, strict=True)


class Again:
    """Batches again and again, without a length."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def of_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 136, subsample=y):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


# -- kinds of batches --


class Named(dict):
    """As a tokenizer returns: a mapping of a class of its own."""


ROWS = [{"x": row, "y": value} for row, value in zip(X, Y, strict=True)]
AS = {
    "list of lists": lambda: [list(batch) for batch in HALVES],
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=20, generator=torch.Generator()),
    "DataLoader of dicts": lambda: DataLoader(ROWS, batch_size=20, generator=torch.Generator()),
    "dicts": lambda: [Named(y=y, x=x) for x, y in HALVES],
    "no length": lambda: Again(*HALVES),
}


def losses(args, kwargs=None):
    pyro.set_rng_seed(seed(1))
    net = bayesianize(nn.Linear(2, 1), num_data=40)
    return fit(net, AutoHypernet(net, "identity", "full"), args, kwargs=kwargs, **QUICK).losses


@pytest.mark.parametrize("kind", AS)
def test_batches_of_every_kind_are_the_same(kind):
    torch.testing.assert_close(losses(AS[kind]()), losses(HALVES), rtol=0, atol=0)


def test_all_data_by_name_are_all_data():
    torch.testing.assert_close(losses({"y": Y, "x": X}), losses((X, Y)), rtol=0, atol=0)
    torch.testing.assert_close(losses([{"x": X}], {"y": Y}), losses([(X,)], {"y": Y}), rtol=0, atol=0)


def test_batches_may_be_single_tensors():
    y = torch.linspace(-1, 1, 136)
    found = []
    for args in (DataLoader(y, batch_size=68, generator=torch.Generator()), [(y[:68],), (y[68:],)]):
        pyro.set_rng_seed(seed(1))
        found.append(fit(of_mean, AutoHypernet(of_mean), args, **QUICK).losses)
    assert torch.equal(*found)


WRONG = {
    "mixed": ([HALVES[0], {"x": X, "y": Y}], None, "Batch 1 is a dict, unlike those before it"),
    "list of tensors": ([X, Y], None, r"got list of Tensor.*\[\(x,\), \(y,\)\] for minibatches"),
    "given twice": ([{"x": X, "y": Y}], {"y": Y}, "both give the model's argument 'y'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_batches_that_cannot_be_read(case):
    args, kwargs, text = WRONG[case]
    with pytest.raises((TypeError, RuntimeError), match=text):
        losses(args, kwargs)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_short_last_batch_is_captured_once(as_dict, monkeypatch):
    """Not anew in every pass: after the second pass, at whose start shares are known, nothing is captured."""
    captured, of_density, steps = [], [], []
    monkeypatch.setattr(step_module, "Captured", lambda *a, **k: captured.append(len(steps)) or Captured(*a, **k))
    capture = vectorize.capture
    monkeypatch.setattr(vectorize, "capture", lambda *a: of_density.append(len(steps)) or capture(*a))
    parts = [16, 16, 8]
    batches = [{"x": x, "y": y} if as_dict else (x, y) for x, y in zip(X.split(parts), Y.split(parts), strict=True)]

    class Counting:
        def __iter__(self):
            for batch in batches:
                steps.append(1)
                yield batch

    net = bayesianize(nn.Linear(2, 1), num_data=40)
    guide = AutoHypernet(net, "identity", "full")
    result = fit(net, guide, Counting(), num_steps=36, num_particles=2, compile="graph", progress=False)
    assert result.compile == "graph"
    assert max(captured) <= 9
    assert len(captured) <= 4
    assert max(of_density) <= 18  # what is not captured with its step waits for five of its kind
    assert len(of_density) <= 6


# -- shares --

RAGGED = {
    "a short last batch": [128, 8],
    "several": [50, 50, 30, 6],
    "a short first batch": [8, 128],
    "even": [68, 68],
    "one": [136],
}


@pytest.mark.parametrize("sizes", RAGGED.values(), ids=RAGGED.keys())
@pytest.mark.parametrize("scale", ["N / B", "fixed"])
def test_every_datum_counts_equally_often_in_a_pass(sizes, scale):
    """Exact: share times scale is the same for all batches, and the shares have a mean of one."""

    def of(size):
        return Traits({"y": 136 / size if scale == "N / B" else 7.0, "other": 1.0}, "", False)

    shares = Shares(of(sizes[0]), (torch.empty(sizes[0]),), lambda batch: of(len(batch[0])))
    for number in [*range(len(sizes)), *range(len(sizes))]:
        batch = (torch.empty(sizes[number]),)
        last = shares(batch, number)
        if number == 0:
            found = []
        found.append(last)
    assert sum(found) / len(found) == pytest.approx(1.0)
    products = [share * of(size).scales["y"] for share, size in zip(found, sizes, strict=True)]
    assert products == pytest.approx([products[0]] * len(sizes))
    if len(set(sizes)) == 1 or scale == "fixed":
        assert found == [1.0] * len(sizes)


@pytest.mark.usefixtures("double")
def test_a_ragged_last_batch_does_not_count_too_much():
    """The last eight data lie elsewhere; the posterior of all, from a start at zero, is found.

    What is left of Adam's steps at the end is below .02, a quarter of a standard deviation; unweighted the mean is off
    by five. The draws of the bound alone are random: no seed of twenty was off by more than .1 sd.
    """
    y = torch.randn(136) + torch.where(torch.arange(136) < 128, 0.0, 5.0)
    start = pyro.infer.autoguide.init_to_value(values={"mean": torch.zeros(())})
    guide = AutoHypernet(of_mean, "identity", "full", init_loc_fn=start)
    loader = DataLoader(TensorDataset(y), batch_size=128)
    fit(of_mean, guide, loader, num_steps=800, num_particles=4, learning_rate=0.03, keep="last", progress=False)
    assert float(guide.median()["mean"]) == pytest.approx(float(y.sum()) / 136.01, abs=0.3 / 136**0.5)


# -- scale --

UNSCALED = {
    "list": lambda: HALVES,
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=10),
    "IterableDataset": lambda: DataLoader(Stream(), batch_size=10),
    "no length": lambda: Again(*HALVES),
}


@pytest.mark.parametrize("make", UNSCALED.values(), ids=UNSCALED.keys())
def test_minibatches_that_are_not_scaled(make):
    """Refused before any step where it is certain, else when the second batch comes."""
    guide = AutoHypernet(m.linear).setup(X, Y)
    before = [parameter.clone() for parameter in guide.parameters()]
    text = "minibatches, but the likelihood of 'y' counts every minibatch once.*num_data="
    if make in (UNSCALED["list"], UNSCALED["DataLoader"]):
        with pytest.raises(ValueError, match=text):
            fit(m.linear, guide, make(), **QUICK)
        assert all(torch.equal(*pair) for pair in zip(before, guide.parameters(), strict=True))
    else:
        with pytest.raises(ValueError, match=text):
            fit(m.linear, guide, make(), **QUICK)


def test_the_remedy_names_the_size_of_the_data_set():
    with pytest.raises(ValueError, match=r"num_data=40\), or pyro.plate\(..., size=40, "):
        fit(m.linear, AutoHypernet(m.linear), UNSCALED["DataLoader"](), **QUICK)


SCALED = {
    "num_data": (lambda: bayesianize(nn.Linear(2, 1), num_data=40), HALVES),
    "an IterableDataset": (lambda: bayesianize(nn.Linear(2, 1), num_data=40), DataLoader(Stream(), batch_size=16)),
    "a plate": (lambda: of_mean, [(torch.ones(68),), (torch.zeros(68),)]),
    "all data as one batch": (lambda: m.linear, [(X, Y)]),
    "all data as one batch, no length": (lambda: m.linear, Again((X, Y))),
    "all data": (lambda: m.linear, (X, Y)),
}


@pytest.mark.parametrize("case", SCALED)
def test_minibatches_that_are_scaled(case):
    """Warnings are errors."""
    make, args = SCALED[case]
    model = make()
    result = fit(model, AutoHypernet(model), args, **QUICK)
    assert result.num_steps == 6
    assert math.isfinite(result.elbo)


DATA = TensorDataset(X, Y)
# A loader of forty data, and how many data its batches are of, or None.
OF_SIZE = {
    "in turn": (lambda: DataLoader(DATA, batch_size=16), 40),
    "shuffled, the last dropped": (lambda: DataLoader(DATA, batch_size=16, shuffle=True, drop_last=True), 40),
    "in turn, the last dropped": (lambda: DataLoader(DATA, batch_size=16, drop_last=True), 32),
    "a part": (lambda: DataLoader(DATA, batch_size=10, sampler=SubsetRandomSampler(range(24))), 24),
    "few of all": (lambda: DataLoader(DATA, batch_size=10, sampler=RandomSampler(DATA, num_samples=20)), 40),
    "a share of ranks": (
        lambda: DataLoader(DATA, batch_size=10, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)),
        40,
    ),
    "dicts": (lambda: DataLoader(ROWS, batch_size=16), 40),
    "weighted": (lambda: DataLoader(DATA, batch_size=10, sampler=WeightedRandomSampler([1.0] * 40, 40)), None),
    "batches of its own": (
        lambda: DataLoader(DATA, batch_sampler=[[0, 1, 2], [3, 4, 5]]),
        None,
    ),
    "a usual sampler of batches": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 16, False)),
        40,
    ),
    "items that are batches": (lambda: DataLoader(HALVES, batch_size=None), None),
    "several rows an item": (
        lambda: DataLoader(DATA, batch_size=10, collate_fn=lambda rows: (X[:20], Y[:20])),
        None,
    ),
    "no length": (lambda: DataLoader(Stream(), batch_size=10), None),
    "list": (lambda: HALVES, None),
}


@pytest.mark.parametrize("case", OF_SIZE)
def test_a_network_without_num_data_goes_by_the_loader(case):
    """As if it had been given; where the loader does not say, it is an error."""
    make, size = OF_SIZE[case]
    assert Batches(make()).num_data == size
    if size is not None and case not in ("in turn", "a part"):
        return
    found = []
    for num_data in (size, None):
        pyro.set_rng_seed(seed(1))
        net = bayesianize(nn.Linear(2, 1), num_data=num_data)
        if size is None:
            with pytest.raises(ValueError, match="counts every minibatch once.*num_data="):
                fit(net, AutoHypernet(net, "identity", "full"), make(), **QUICK)
            return
        found.append(fit(net, AutoHypernet(net, "identity", "full"), make(), **QUICK).losses)
        assert net.num_data == num_data
    assert torch.equal(*found)


# -- bad batches --


def classes(num, highest=2):
    return torch.randn(num, 2), torch.arange(num) % (highest + 1)


BAD = {
    "a label out of range": (classes(8, 5), ValueError, r"shapes \(8, 2\), \(8,\)\): "),
    "no data": (classes(0), ValueError, "it holds no data. Leave empty batches out"),
    "another width": ((torch.randn(8, 5), torch.zeros(8, dtype=torch.long)), RuntimeError, "shapes"),
}


@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_batch_is_named_and_what_was_learnt_is_kept(case, compile):
    batch, kind, text = BAD[case]
    model = bayesianize(nn.Linear(2, 3), "categorical", num_data=24)
    good = [classes(8), classes(8), classes(8), classes(8)]
    guide = AutoHypernet(model).setup(*good[0])
    before = torch.cat([parameter.detach().reshape(-1).clone() for parameter in guide.parameters()])
    with pytest.raises(kind, match=rf"^Step 4 of fit failed at batch 4 .*{text}.*The guide keeps"):
        fit(model, guide, [*good, batch], num_steps=20, compile=compile, progress=False)
    after = torch.cat([parameter.detach().reshape(-1) for parameter in guide.parameters()])
    assert not torch.equal(before, after)
    assert bool(guide.log_prob(guide.sample_posterior(3)).isfinite().all())
    assert all(parameter._base is None for parameter in guide.parameters())


def test_a_batch_with_nan_is_said():
    """A third of the steps is skipped, with the figure and the argument."""
    y = torch.ones(20)
    y[3] = math.nan
    batches = [(torch.ones(20),), (torch.zeros(20),), (y,)]
    text = (
        r"10 of 30 steps were skipped.* argument 'y', which holds NaN in 1 of 20 places of batch 2 \(shapes \(20,\)\)"
    )
    with pytest.warns(UserWarning, match=text):
        result = fit(of_mean, AutoHypernet(of_mean), batches, num_steps=30, num_particles=2, progress=False)
    assert result.num_skipped == 10
    assert math.isfinite(result.elbo)


def test_the_bound_of_minibatches_is_that_of_a_pass():
    """The second half of a pass is hard; the best window has seen the first alone, and was reported: 1 000 nats off.

    The noise left has a standard deviation of about 1 nat, so the margin is missed by chance less than once in 10^9.
    """
    y = torch.randn(400, generator=torch.Generator().manual_seed(seed(0))) * torch.where(
        torch.arange(400) < 200, 0.1, 3.0
    )

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 400, subsample=y):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    start = pyro.infer.autoguide.init_to_value(values={"mean": torch.zeros(())})
    guide, batches = AutoHypernet(model, "identity", init_loc_fn=start), [(part,) for part in y.split(8)]
    result = fit(model, guide, batches, num_steps=1000, num_particles=8, progress=False)
    with torch.no_grad():
        draws = guide.sample_posterior(20_000)
        prior = dist.Normal(0.0, 10.0).log_prob(draws["mean"])
        weights = dist.Normal(draws["mean"][:, None], 1.0).log_prob(y).sum(1) + prior - guide.log_prob(draws)
    assert result.elbo == pytest.approx(float(weights.mean()), abs=10)


# -- likelihoods that are noisy --


def rows_of_a_plate(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def rows_of_its_own(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    rows = torch.randperm(len(y))[:5]
    with pyro.poutine.scale(scale=len(y) / 5), pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def noise_on_inputs(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]).to_event(1), obs=y + 0.1 * torch.randn(len(y)))


NOISY = {"subsample_size": rows_of_a_plate, "randperm": rows_of_its_own, "noise": noise_on_inputs}


@pytest.mark.parametrize("model", NOISY.values(), ids=NOISY.keys())
def test_draws_are_not_chosen_by_a_noisy_density(model):
    y = torch.linspace(-1, 2, 40)
    result = fit(model, AutoHypernet(model), (y,), num_steps=20, progress=False)
    assert result.acceptance == 1.0
    with pytest.raises(ValueError, match="rejection=0.5 needs the same density of all data at every call, but"):
        fit(model, AutoHypernet(model), (y,), rejection=0.5, **QUICK)


def test_reject_refuses_a_plate_that_draws_minibatches():
    y = torch.linspace(-1, 2, 40)
    with pytest.raises(ValueError, match="Plate 'data' draws a minibatch of 5 out of 40.*rejection needs all data"):
        AutoHypernet(rows_of_a_plate).setup(y).reject((y,))


def test_minibatches_choose_no_draws():
    net = bayesianize(nn.Linear(2, 1), num_data=40)
    with pytest.raises(ValueError, match="needs the same density of all data at every call, but args gives minib"):
        fit(net, AutoHypernet(net), HALVES, rejection=0.5, **QUICK)


# -- traits --


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def with_factor(y):
    counts(y)
    pyro.factor("bonus", torch.tensor(100.0))


def improper(y):
    rate = pyro.sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def scaled_prior(y):
    with pyro.poutine.scale(scale=0.5):
        counts(y)


TRAITS = {counts: True, with_factor: False, improper: False, scaled_prior: False, rows_of_a_plate: False}


@pytest.mark.parametrize("model", TRAITS)
def test_which_bounds_cannot_exceed_zero(model):
    y = torch.arange(6.0)
    init = pyro.infer.autoguide.init_to_value(values={"rate": torch.ones(()), "mean": torch.ones(())})
    guide = AutoHypernet(model, init_loc_fn=init).setup(y)
    state = torch.get_rng_state()
    assert find_traits(guide.density(model), guide.places(), (y,)).is_discrete is TRAITS[model]
    assert torch.equal(torch.get_rng_state(), state)  # no random number is used up


def test_batches_know_their_numbers():
    batches = Batches([(1,), (2,), (3,)])
    seen = [(next(batches)[0], batches.number) for _ in range(5)]
    assert [value for value, _ in seen] == [1, 2, 3, 1, 2]
    assert [number for _, number in seen] == [0, 1, 2, 0, 1]
    assert (batches.length, Batches((1, 2)).is_fixed, Batches(Again((1,))).length) == (3, True, None)

"""Training: what it reaches, what it keeps, what it skips, and what it says."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.train import fit as fit_module
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.optimiser import Optim, Optimiser
from pyro_hypernet.train.step import FlatParameters, Stepper
from tests import small_models as m
from tests.fits import fit
from tests.seeds import seed
from tests.train.conjugate import affine_of, exact_evidence, exact_guide, exact_posterior, make_data, regression

X, Y = make_data()


def quick(guide=None, args=(X, Y), model=regression, **options):
    guide = AutoHypernet(model, "linear") if guide is None else guide
    options = {"num_steps": 100, "num_particles": 2, "learning_rate": 0.02, "progress": False, **options}
    return guide, fit(model, guide, args, **options)


def flat(guide):
    return torch.cat([parameter.detach().reshape(-1) for parameter in guide.parameters()])


@pytest.mark.parametrize("keep", ["best", "average", "last"])
def test_conjugate_regression_is_found(keep):
    """ELBO to .05 nat of the evidence, means to 2 % of an sd, sds to 3 %: over four seeds .3 % and .4 % at most."""
    guide, result = quick(num_steps=1000, num_particles=128, learning_rate=0.05, keep=keep)
    posterior = exact_posterior(X, Y)
    loc, matrix = (value.detach() for value in affine_of(guide))
    sd, found = posterior.stddev, (matrix @ matrix.mT).diagonal().sqrt()
    assert float(((loc - posterior.loc) / sd).abs().max()) < 0.02
    assert float((found / sd - 1).abs().max()) < 0.03
    bound = -VectorizedELBO(4000).loss(regression, guide, X, Y)
    assert bound == pytest.approx(exact_evidence(X, Y), abs=0.05)
    assert result.elbo == pytest.approx(exact_evidence(X, Y), abs=0.05)
    # And in draws: the standard errors of 20 000 are .7 % and .5 %, so five of them.
    draws = guide.sample_posterior(20_000)["weight"]
    assert float(((draws.mean(0) - posterior.loc) / sd).abs().max()) < 0.055
    assert float((draws.std(0) / sd - 1).abs().max()) < 0.055


@pytest.mark.parametrize("hypernet", ["coupling", "iaf"])
def test_the_same_seed_gives_the_same_run(hypernet):
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(seed(5))
        guide, result = quick(AutoHypernet(regression, hypernet), num_steps=30)
        runs.append((result.losses, flat(guide)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    pyro.set_rng_seed(seed(6))
    assert not torch.equal(quick(AutoHypernet(regression, hypernet), num_steps=30)[1].losses, runs[0][0])


def test_result_says_how_it_went():
    _, result = quick(num_steps=20)
    assert result.num_steps == 20
    assert result.losses.shape == (20,)
    assert result.losses.dtype == torch.float64
    assert (result.stopped_because, result.gradient, result.mode) == ("all steps done", "path", "graph")
    assert result.num_skipped == 0
    assert result.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.elbo = 0.0


def test_gradient_and_mode_are_those_asked_for():
    _, result = quick(num_steps=3, gradient="total", mode="eager", bound="importance_weighted")
    assert (result.gradient, result.mode) == ("total", "eager")


def test_a_second_fit_goes_on_from_where_the_first_ended():
    guide, first = quick(num_steps=400)
    _, second = quick(guide, num_steps=20, learning_rate=1e-4)
    assert second.losses[0] < first.losses[0] - 5


# -- data --


def in_minibatches(x, y):
    """The rows at hand stand for all 20."""
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


LOADERS = {
    "list of tuples": [(X[:10], Y[:10]), (X[10:], Y[10:])],
    "list of lists": [[X[:10], Y[:10]], [X[10:], Y[10:]]],
    "DataLoader": DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS.keys())
def test_minibatches_give_the_posterior_of_all_data(loader):
    guide, result = quick(
        args=loader, model=in_minibatches, num_steps=1200, learning_rate=0.05, num_particles=8, keep="average"
    )
    posterior = exact_posterior(X, Y)
    loc, matrix = (value.detach() for value in affine_of(guide))
    found = (matrix @ matrix.mT).diagonal().sqrt()
    # Of 10 rows alone the sds would be 1.4 times as large; minibatches jitter, so no exact agreement.
    assert float(((loc - posterior.loc) / posterior.stddev).abs().max()) < 0.35
    assert float((found / posterior.stddev - 1).abs().max()) < 0.15
    assert result.num_steps == 1200


def test_a_loader_is_gone_through_again_and_again():
    seen = []

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.poutine.scale(scale=3.0):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    class Loader:
        def __iter__(self):
            for value in (1.0, 2.0, 3.0):
                seen.append(value)
                yield (torch.tensor(value),)

    quick(AutoHypernet(model), args=Loader(), model=model, num_steps=3, keep="last")
    assert seen[:7] == [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize("empty", [lambda: [], lambda: ((X[:9], Y[:9]) for _ in range(3))], ids=["empty", "exhausted"])
def test_a_loader_that_runs_dry(empty):
    with pytest.raises(ValueError, match="^The iterable of arguments is empty or can be gone through only once"):
        quick(args=empty(), model=in_minibatches)


@pytest.mark.parametrize("args", [X, 3, None], ids=["tensor", "number", "None"])
def test_args_of_another_kind(args):
    with pytest.raises(TypeError, match=r"^args must be a tuple of the model's arguments, such as \(x, y\)"):
        quick(args=args)


@pytest.mark.parametrize("args", [[X, Y], [1, 2], "xy"], ids=["[x, y]", "numbers", "text"])
def test_args_whose_items_are_no_tuples(args):
    with pytest.raises(TypeError, match="^args must be a tuple of the model's arguments.* or an iterable of such"):
        quick(args=args)


# -- what goes wrong on the way --


def with_holes(y):
    """A density that is NaN in every fifth draw, wherever the guide goes."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("holes", torch.where((100 * mean[0]).sin() > 0.8, torch.full((), math.nan), torch.zeros(())))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def always_off(y):
    """A density that is finite at the median of the prior, where guides start, and NaN everywhere else."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("cliff", torch.where(mean.abs().sum() > 0, torch.full((), math.nan), torch.zeros(())))


@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("keep", ["best", "average", "last"])
def test_steps_that_are_not_finite_are_skipped_and_counted(gradient, keep):
    y = torch.ones(9, 2)
    start = {"mean": torch.zeros(2)}  # no hole
    guide = AutoHypernet(with_holes, "coupling", init_loc_fn=pyro.infer.autoguide.init_to_value(values=start))
    with pytest.warns(
        UserWarning, match="of 300 steps were skipped, .*; the trouble is in the density of site 'holes'"
    ):
        _, result = quick(guide, (y,), with_holes, num_steps=300, gradient=gradient, keep=keep)
    assert result.num_skipped == int(result.losses.isnan().sum())
    # Of two particles one is bad in 37 of 100 steps: 111 of 300, and five standard errors are 42.
    assert 60 < result.num_skipped < 160
    assert bool(flat(guide).isfinite().all())
    assert math.isfinite(result.elbo)
    assert result.stopped_because == "all steps done"


def test_too_many_bad_steps_name_the_site_and_leave_the_guide_finite():
    guide = AutoHypernet(always_off, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"mean": torch.zeros(2)}))
    guide.setup(torch.ones(1))
    before = flat(guide)
    with pytest.raises(FloatingPointError, match=r"^7 steps in a row were not finite; .* density of site 'cliff'"):
        quick(guide, (torch.ones(1),), always_off, max_skipped=7)
    assert torch.equal(flat(guide), before)


def test_a_bad_gradient_is_told_from_a_bad_density():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("root", torch.where(x.abs() > 50, x.abs().sqrt(), (x - x).sqrt()))  # √0 has slope ∞

    with pytest.raises(FloatingPointError, match="^5 steps in a row were not finite; the trouble is in the gradient"):
        quick(AutoHypernet(model), (), model, max_skipped=5)


@pytest.mark.parametrize("keep", ["best", "average", "last"])
@pytest.mark.parametrize("step", [0, 1, 25])
def test_ctrl_c_keeps_a_usable_guide(monkeypatch, keep, step):
    calls = []
    estimate = VectorizedELBO.estimate

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) > step:
            raise KeyboardInterrupt
        return estimate(self, *args)

    monkeypatch.setattr(fit_module.VectorizedELBO, "estimate", interrupted)
    guide, result = quick(keep=keep)
    assert result.stopped_because == "interrupted"
    assert result.num_steps == step
    assert bool(guide.log_prob(guide.sample_posterior(3)).isfinite().all())


def test_patience_stops_a_fit_that_no_longer_improves():
    """At the posterior every window's loss is the evidence up to rounding: three in a row will not fall."""
    guide, result = quick(exact_guide(X, Y), num_steps=1000, learning_rate=1e-9, patience=3)
    assert result.stopped_because == "no improvement"
    assert result.num_steps < 1000
    assert result.num_steps % 20 == 0
    assert result.elbo == pytest.approx(exact_evidence(X, Y), abs=1e-6)
    torch.testing.assert_close(affine_of(guide)[0].detach(), exact_posterior(X, Y).loc)


# -- what is kept --


def kept(monkeypatch, keep, losses):
    """Runs with one scripted loss for every window of one step; returns parameters after every step and at the end."""
    guide = AutoHypernet(regression, "identity").setup(X, Y)
    history, script = [], iter(losses)
    step = Optimiser.step
    estimate = VectorizedELBO.estimate

    def scripted(self, *args):
        return dataclasses.replace(estimate(self, *args), loss=torch.tensor(next(script)))

    def recorded(self, *args):
        step(self, *args)
        history.append(flat(guide))

    monkeypatch.setattr(fit_module.VectorizedELBO, "estimate", scripted)
    monkeypatch.setattr(Optimiser, "step", recorded)
    monkeypatch.setattr(fit_module, "verify", lambda *args, **options: -4.0)
    _, result = quick(guide, num_steps=len(losses), keep=keep)
    return torch.stack(history), flat(guide), result


LOSSES = [9.0, 8.0, 3.0, 7.0, 5.0, 6.0, 6.0, 8.0, 9.0, 7.0]


def test_keep_best(monkeypatch):
    history, end, result = kept(monkeypatch, "best", LOSSES)
    torch.testing.assert_close(end, history[2], rtol=0, atol=0)
    assert result.elbo == -4.0  # of fresh draws


def test_keep_last(monkeypatch):
    history, end, result = kept(monkeypatch, "last", LOSSES)
    torch.testing.assert_close(end, history[-1], rtol=0, atol=0)
    assert result.elbo == -4.0


def test_keep_average(monkeypatch):
    history, end, _ = kept(monkeypatch, "average", LOSSES)
    torch.testing.assert_close(end, history[-2:].mean(0))


def test_the_models_params_are_learnt_and_kept_with_the_guides():
    """By maximum marginal likelihood: y ~ N(0, noise² + 1) in both columns of one row, so noise² = y² − 1."""
    y = torch.tensor([[3.0, -3.0]])
    for keep in ("best", "average", "last"):
        pyro.clear_param_store()
        guide = AutoHypernet(m.with_param, "linear")
        quick(guide, (y,), m.with_param, num_steps=600, num_particles=16, keep=keep, learning_rate=0.05)
        # "best" takes the luckiest window, here some way from the end.
        tolerance = 0.15 if keep == "best" else 0.03
        assert float(pyro.param("noise").detach()) == pytest.approx(8**0.5, rel=tolerance)


# -- the schedule --


@pytest.mark.parametrize("num_steps, warmup", [(1000, 0.1), (50, 0.02), (1, 0.0), (7, 0.5)])
def test_schedule_rises_linearly_and_falls_along_a_cosine(num_steps, warmup):
    optim = Optim(1.0, warmup=warmup)
    shares = torch.tensor([optim.rate(step, num_steps) for step in range(num_steps)])
    rise = max(1, int(warmup * num_steps))
    torch.testing.assert_close(shares[:rise], torch.arange(1, rise + 1) / rise)
    assert bool((shares[rise:].diff() < 0).all())
    assert bool((shares > 0).all())
    assert optim.rate(num_steps, num_steps) == pytest.approx(0.0, abs=1e-12) or num_steps == rise
    flat = Optim(1.0, warmup=warmup, decay=False)
    assert all(flat.rate(step, num_steps) == 1.0 for step in range(rise, num_steps))


@pytest.mark.parametrize("is_fused", [True, False])
def test_clip_bounds_the_step_of_a_steep_start(is_fused):
    """Adam divides by the gradient's own size, so clipping shows in its first moment, a tenth of what it is given."""
    guide = AutoHypernet(regression, "identity", "full").setup(X, Y)
    elbo, parameters = VectorizedELBO(), FlatParameters(list(guide.parameters()))
    elbo.prepare(regression, guide, (X, Y), {})
    step = Stepper(regression, guide, elbo, parameters, compile="off", num_steps=1, is_fixed=True)((X, Y))
    assert step.norm > 1
    run = Optimiser(parameters.vectors, 10, Optim(0.01, warmup=0.0, clip=0.5, keep="last"))
    run.is_fused = is_fused
    run.step(step)
    assert float(torch.cat(run.moments[0]).norm()) == pytest.approx(0.05, rel=1e-4)


# -- what it prints, what it refuses --


@pytest.mark.parametrize("progress", [True, False])
def test_it_prints_nothing_where_the_output_is_no_terminal(capfd, progress):
    quick(num_steps=50, progress=progress)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(
    "options, start",
    [
        ({"num_steps": 0}, "num_steps must be a positive integer; got 0"),
        ({"num_steps": 1e3}, "num_steps must be a positive integer; got 1000.0"),
        ({"num_particles": 0}, "num_particles must be a positive integer; got 0"),
        ({"learning_rate": 0.0}, "learning_rate and clip must be positive; got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate and clip must be positive; got nan"),
        ({"clip": -1.0}, "learning_rate and clip must be positive"),
        ({"warmup": 1.0}, r"warmup must be a share of the steps in \[0, 1\); got 1.0"),
        ({"keep": "all"}, "keep must be one of best, average, last; got 'all'"),
        ({"patience": 0}, "patience must be a positive number of windows or None; got 0"),
        ({"max_skipped": 0}, "max_skipped must be at least 1; got 0"),
        ({"gradient": "score"}, "gradient must be one of auto, path, total"),
        ({"bound": "chi"}, "bound must be one of elbo, importance_weighted"),
        ({"mode": "fast"}, "mode must be one of graph, eager, loop"),
    ],
)
def test_options(options, start):
    guide = AutoHypernet(regression)
    with pytest.raises(ValueError, match=f"^{start}"):
        quick(guide, **options)
    assert guide._layout is None  # refused before any work


def test_guides_of_other_kinds():
    with pytest.raises(TypeError, match="^fit trains an AutoHypernet; got AutoNormal"):
        quick(pyro.infer.autoguide.AutoNormal(regression))

"""All idioms: what a Pyro user does with a guide, each a function of a Bench that asserts what is due."""

import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    WeighedPredictive,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule
from torch import Tensor

from pyro_hypernet import (
    AutoHypernet,
    VectorizedELBO,
    best_start,
    diagnose,
    khat,
    load,
    loo,
    metropolis,
    move,
    predict,
    resample,
    save,
    to_arviz,
)
from pyro_hypernet.model.density import LogJoint
from tests.fits import fit
from tests.law.bench import Bench, trace_of
from tests.law.style import Style

# Draws where a guide is called once per draw; where it is called once for all.
FEW, MANY = 40, 200
ROWS = {"same": None, "shorter": 3, "longer": 30, "one row": 1}
Idiom = Callable[[Bench], None]


# Warnings that are due: of Pyro's where nothing is enumerated, of ours where a guide is as bad as those of a short fit.
# A traced step cannot hold the rejection that ends with its first step anyway. A diagnosis is remembered by its guide.
DUE = (
    "TraceEnum_ELBO found no sample sites",
    "Resampling cannot correct",
    ".*k-hat",
    "torch.jit.trace cannot follow",
    "The verdict on this guide is",
)


@contextmanager
def due_warnings_ignored(style: Style) -> Iterator[None]:
    """Lets pass what may be warned of here; all else is an error."""
    with warnings.catch_warnings():
        for message in (*DUE, *style.warns):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


class NotApplicable(Exception):
    """Raised by an idiom that needs what a style does not have; the table lists such pairs with the reason."""


def arguments(bench: Bench, rows: int | None) -> tuple[tuple, dict]:
    if rows is None:
        return bench.style.args, dict(bench.style.kwargs)
    if bench.style.at is None:
        raise NotApplicable("the rows of this style are fixed")
    return bench.style.at(rows)


def expect_predictions(values: dict[str, Any], bench: Bench, number: int) -> None:
    """Finite, one for every draw."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            assert value.shape[0] == number, f"{name} has shape {tuple(value.shape)}"
            assert bool(value.isfinite().all()), f"{name} is not finite"


# Pyro's predictions ---------------------------------------------------------------------------------------------------


def predictive(bench: Bench, *, rows: int | None, parallel: bool, weighed: bool = False) -> None:
    number = MANY if parallel else FEW
    args, kwargs = arguments(bench, rows)
    kind = WeighedPredictive if weighed else Predictive
    result = kind(bench.style.model, guide=bench.guide, num_samples=number, parallel=parallel)(*args, **kwargs)
    samples = result.samples if weighed else result
    bench.expect_draws(samples, number)
    expect_predictions(samples, bench, number)
    if weighed and rows is None:
        bench.expect_loss(-result.log_weights.detach().double(), "log weights")


def importance_weights(bench: Bench) -> None:
    log_weights, model_trace, _ = vectorized_importance_weights(
        bench.style.model,
        bench.guide,
        *bench.style.args,
        num_samples=MANY,
        max_plate_nesting=3,
        normalized=False,
        **bench.style.kwargs,
    )
    bench.expect_draws({name: model_trace.nodes[name]["value"] for name in bench.names}, MANY)
    bench.expect_loss(-log_weights.detach())


def importance(bench: Bench) -> None:
    posterior = pyro.infer.Importance(bench.style.model, bench.guide, num_samples=FEW)
    posterior.run(*bench.style.args, **bench.style.kwargs)
    draws = {n: torch.stack([trace.nodes[n]["value"] for trace in posterior.exec_traces]) for n in bench.names}
    bench.expect_draws(draws, FEW)
    bench.expect_loss(-torch.stack([torch.as_tensor(w) for w in posterior.log_weights]))


# ELBOs ----------------------------------------------------------------------------------------------------------------


def one_particle_elbo(bench: Bench, *, make: Callable[[], Any], number: int = 12) -> None:
    """Losses are those of the guide's log weights, and two steps keep everything finite."""
    elbo, style = make(), bench.style
    losses = [elbo.loss(style.model, bench.guide, *style.args, **style.kwargs) for _ in range(number)]
    bench.expect_loss(torch.tensor([float(loss) for loss in losses]))
    steps(bench, make=partial(make))


def steps(bench: Bench, *, make: partial, number: int = 2) -> None:
    """A few steps of SVI: losses, parameters and draws stay finite, and some parameter moves."""
    guide, style = bench.twin(), bench.style
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    svi = SVI(style.model, guide, pyro.optim.Adam({"lr": 1e-3}), make())
    losses = [svi.step(*style.args, **style.kwargs) for _ in range(number)]
    if make.func is TraceTailAdaptive_ELBO:  # its loss is infinite by convention
        losses = []
    assert all(bool(torch.as_tensor(loss).isfinite().all()) for loss in losses), losses
    after = list(guide.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in after), "a parameter is not finite"
    moved = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert moved or make.func is EnergyDistance, "no parameter moved"
    assert all(bool(value.isfinite().all()) for value in guide.sample_posterior(100).values())


def many_particles(bench: Bench, *, make: Callable[[int], Any]) -> None:
    """The mean of many particles lies where the guide's log weights put it."""
    style = bench.style
    steps(bench, make=partial(make, 3))
    if not style.has_known_loss:
        return
    weights = bench.log_weights
    loss = float(make(100).loss(style.model, bench.guide, *style.args, **style.kwargs))
    spread = float(weights.quantile(0.9) - weights.quantile(0.1)) + 1e-3 * (1 + float(weights.abs().median()))
    assert abs(loss + float(weights.mean())) < 4 * spread + 3 * float(weights.std()), (loss, -float(weights.mean()))


def elbo_module(bench: Bench) -> None:
    """Trace_ELBO as a torch module, with a torch optimiser."""
    guide, style = bench.twin(), bench.style
    loss_fn = Trace_ELBO()(style.model, guide)
    loss_fn(*style.args, **style.kwargs)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-3)
    loss = loss_fn(*style.args, **style.kwargs)
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite())
    assert all(bool(parameter.isfinite().all()) for parameter in guide.parameters())


# Handlers around the guide --------------------------------------------------------------------------------------------


def call(bench: Bench) -> None:
    style = bench.style
    draws = [bench.guide(*style.args, **style.kwargs) for _ in range(FEW)]
    for site in bench.guide.layout.sites:
        assert draws[0][site.name].shape == site.shape
    bench.expect_draws({name: torch.stack([one[name] for one in draws]) for name in bench.names}, FEW)


def traced(bench: Bench) -> None:
    """The trace's density is the guide's; a graph-type trace too."""
    for kind in ("flat", "dense"):
        trace = poutine.trace(bench.guide, graph_type=kind).get_trace(*bench.style.args, **bench.style.kwargs)
        trace.compute_log_prob()
        log_q = sum(node["log_prob"].sum() for node in trace.nodes.values() if "log_prob" in node)
        bench.expect_density({name: trace.nodes[name]["value"] for name in bench.names}, log_q)


def in_plate(bench: Bench, *, dim: int | None) -> None:
    args, kwargs = bench.style.args, bench.style.kwargs
    with pyro.plate("many draws", MANY, dim=dim):
        trace = poutine.trace(bench.guide).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    values = {name: trace.nodes[name]["value"] for name in bench.names}
    bench.expect_draws(values, MANY)
    parts = [node["log_prob"] for node in trace.nodes.values() if "log_prob" in node]
    # A part of one number is that of a plate's own site.
    log_q = sum(part.reshape(MANY, -1).sum(-1) if part.numel() >= MANY else part.sum() for part in parts)
    bench.expect_density(values, log_q)


def replayed(bench: Bench) -> None:
    first = trace_of(bench.guide, bench.style)
    second = trace_of(poutine.replay(bench.guide, trace=first), bench.style)
    for name in bench.names:
        torch.testing.assert_close(second.nodes[name]["value"], first.nodes[name]["value"])
    torch.testing.assert_close(second.log_prob_sum(), first.log_prob_sum(), rtol=1e-3, atol=1e-2)


def replayed_model(bench: Bench) -> None:
    """The model replayed on the guide's trace: log p − log q is the guide's log weight."""
    weights = []
    for _ in range(12):
        guide_trace = trace_of(bench.guide, bench.style)
        model_trace = trace_of(poutine.replay(bench.style.model, trace=guide_trace), bench.style)
        weights.append(float((model_trace.log_prob_sum() - guide_trace.log_prob_sum()).detach()))
    bench.expect_loss(-torch.tensor(weights))


def conditioned(bench: Bench, *, handler: Callable[..., Any]) -> None:
    values = {name: value[0] for name, value in bench.draws.items()}
    draw = handler(bench.guide, data=values)(*bench.style.args, **bench.style.kwargs)
    for name in bench.names:
        torch.testing.assert_close(draw[name], values[name])


def wrapped(bench: Bench, *, handler: Callable[[Any], Any]) -> None:
    """A handler that leaves the guide's draws as they are."""
    function, style = handler(bench.guide), bench.style
    draws = [function(*style.args, **style.kwargs) for _ in range(FEW)]
    bench.expect_draws({name: torch.stack([one[name] for one in draws]) for name in bench.names}, FEW)


def blocked(bench: Bench) -> None:
    function = poutine.block(bench.guide, hide=list(bench.names))
    trace = poutine.trace(function).get_trace(*bench.style.args, **bench.style.kwargs)
    assert not set(trace.nodes) & set(bench.names)


def scaled(bench: Bench) -> None:
    trace = trace_of(poutine.scale(bench.guide, scale=3.0), bench.style)
    log_q = sum(node["log_prob"].sum() for node in trace.nodes.values() if "log_prob" in node) / 3.0
    bench.expect_density({name: trace.nodes[name]["value"] for name in bench.names}, log_q)


def lifted(bench: Bench) -> None:
    """Parameters drawn from a prior far away show in the draws."""
    moved = {}
    trace = poutine.trace(bench.guide, param_only=True).get_trace(*bench.style.args, **bench.style.kwargs)
    for name, node in trace.nodes.items():
        moved[name] = dist.Normal(node["value"].detach() + 10.0, 1e-3).to_event(node["value"].dim())
    assert moved, "the guide announces no parameter"
    names = {name for name in moved if "auto" in name.lower()}
    function = poutine.lift(bench.guide, prior={name: moved[name] for name in names or moved})
    draws = [function(*bench.style.args, **bench.style.kwargs) for _ in range(FEW)]
    expect_elsewhere(bench, draws)


def substituted(bench: Bench) -> None:
    trace = poutine.trace(bench.guide, param_only=True).get_trace(*bench.style.args, **bench.style.kwargs)
    values = {name: node["value"].detach() + 10.0 for name, node in trace.nodes.items()}
    function = poutine.substitute(bench.guide, data=values)
    expect_elsewhere(bench, [function(*bench.style.args, **bench.style.kwargs) for _ in range(FEW)])


def expect_elsewhere(bench: Bench, draws: list[dict[str, Tensor]]) -> None:
    stacked = {name: torch.stack([one[name] for one in draws]) for name in bench.names}
    try:
        bench.expect_draws(stacked, FEW)
    except AssertionError:
        return
    raise AssertionError("other parameters made no other draws")


# Reparametrisation and lists of guides --------------------------------------------------------------------------------


def neutra(bench: Bench) -> None:
    """The model's density along the flow, and draws of its noise sent back."""
    guide, style = bench.guide, bench.style
    reparam = NeuTraReparam(guide)
    eps = guide.get_base_dist().sample((FEW,))
    model = reparam.reparam(style.guided)
    shared = next(name for name in trace_of(model, style).nodes if name.endswith("_shared_latent"))
    draws = [reparam.transform_sample(one) for one in eps]
    bench.expect_draws({name: torch.stack([draw[name] for draw in draws]) for name in bench.names}, FEW)
    if not style.has_known_loss:
        return
    trace = trace_of(poutine.condition(model, data={shared: eps[0]}), style)
    log_p = sum(node["log_prob"].sum() for node in trace.nodes.values() if "log_prob" in node)
    with torch.no_grad(), pyro.validation_enabled(False):
        transform = guide.bijection if isinstance(guide, AutoHypernet) else guide.get_transform()
        w = transform(eps[:1])
        log_det = transform.log_abs_det_jacobian(eps[:1], w)
        expected = LogJoint(style.guided, guide.layout, mode="eager")(w, *style.args, **style.kwargs) + log_det
    torch.testing.assert_close(log_p.detach().reshape(1), expected, rtol=2e-3, atol=5e-2)


def in_list(bench: Bench) -> None:
    """Appended to an AutoGuideList as its only part."""
    guides, style = AutoGuideList(bench.style.guided), bench.style
    guides.append(bench.twin())
    draws = [guides(*style.args, **style.kwargs) for _ in range(FEW)]
    bench.expect_draws({name: torch.stack([one[name] for one in draws]) for name in bench.names}, FEW)
    assert set(guides.median(*style.args, **style.kwargs)) == set(bench.names)
    losses = [Trace_ELBO().loss(style.guided, guides, *style.args, **style.kwargs) for _ in range(12)]
    bench.expect_loss(torch.tensor(losses))


def shares_a_list(bench: Bench) -> None:
    """The first site by AutoHypernet, the others by AutoNormal."""
    if len(bench.names) < 2:
        raise NotApplicable("the style has one site")
    style, first = bench.style, bench.names[0]
    guides = AutoGuideList(style.guided)
    guides.append(AutoHypernet(poutine.block(style.guided, hide=list(bench.names[1:]))))
    guides.append(AutoNormal(poutine.block(style.guided, hide=[first])))
    svi = SVI(style.guided, guides, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    losses = [svi.step(*style.args, **style.kwargs) for _ in range(2)]
    assert all(torch.as_tensor(loss).isfinite() for loss in losses), losses
    draw = guides(*style.args, **style.kwargs)
    shape = bench.guide.layout[first].shape
    assert draw[first].shape == shape, (draw[first].shape, shape)
    Predictive(style.model, guide=guides, num_samples=3)(*style.args, **style.kwargs)


# Copies and files -----------------------------------------------------------------------------------------------------


def copied(bench: Bench, *, copier: Callable[[Any], Any]) -> None:
    """A copy draws, scores and can be called as the original."""
    twin, style = copier(bench.guide), bench.style
    bench.expect_draws(twin.sample_posterior(MANY), MANY)
    draws = twin(*style.args, **style.kwargs)
    assert set(draws) == set(bench.names)
    few = {name: value[:20] for name, value in bench.draws.items()}
    with torch.no_grad():
        torch.testing.assert_close(twin.log_prob(few), bench.guide.log_prob(few), rtol=1e-3, atol=1e-2)
    for name, value in twin.median(*style.args, **style.kwargs).items():
        torch.testing.assert_close(value, bench.guide.median()[name], rtol=1e-3, atol=1e-3)


def by_pickle(guide: Any) -> Any:
    return pickle.loads(pickle.dumps(guide))


def by_torch_save(guide: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_state_dict(bench: Bench) -> None:
    """Parameters into a fresh guide; whatever rejection there was stays behind."""
    guide, style = bench.twin(), bench.style
    guide.reject(None)
    fresh = AutoHypernet(style.guided, plan=guide.plan)
    fresh.setup(*style.args, **style.kwargs)
    fresh.load_state_dict(guide.state_dict())
    few = {name: value[:20] for name, value in bench.draws.items()}
    with torch.no_grad():
        torch.testing.assert_close(fresh.log_prob(few), guide.log_prob(few), rtol=1e-3, atol=1e-2)


def by_file(bench: Bench) -> None:
    """`save` and `load`, called with and without the model's arguments."""
    style = bench.style
    with tempfile.TemporaryDirectory() as folder:
        save(bench.guide, Path(folder) / "guide.safetensors")
        load(Path(folder) / "guide.safetensors", style.guided, *style.args, **style.kwargs)
        copied(bench, copier=lambda _: load(Path(folder) / "guide.safetensors", style.guided))


def jit_trace(bench: Bench) -> None:
    """`torch.jit.trace` of the guide as a module."""
    style = bench.style
    if style.kwargs or not style.args or not all(isinstance(value, Tensor) for value in style.args):
        raise NotApplicable("torch.jit.trace takes tensors as arguments only")
    with poutine.block(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        compiled = torch.jit.trace(bench.guide, style.args, strict=False, check_trace=False)
    draw = compiled(*style.args)
    assert all(bool(value.isfinite().all()) for value in draw.values())


# Our own functions ----------------------------------------------------------------------------------------------------


def predicted(bench: Bench, *, rows: int | None) -> None:
    args, kwargs = arguments(bench, rows)
    values = predict(bench.style.model, bench.guide, *args, num_samples=MANY, **kwargs)
    expect_predictions(values, bench, MANY)
    if rows is not None and "f" in values:
        assert float(values["f"].std(0).min()) > 0, "predictions without spread"


def arviz(bench: Bench) -> None:
    style = bench.style
    data = to_arviz(style.model, bench.guide, *style.args, num_samples=MANY, num_prior_samples=20, **style.kwargs)
    posterior = {name: torch.as_tensor(data["posterior"][name].values)[0] for name in bench.names}
    bench.expect_draws(posterior, MANY)
    stats = data["sample_stats"]
    assert "log_q" in stats
    bench.expect_density(posterior, torch.as_tensor(stats["log_q"].values)[0])
    if "log_weight" in stats:
        bench.expect_loss(-torch.as_tensor(stats["log_weight"].values)[0])


def pareto(bench: Bench) -> None:
    style = bench.style
    value = khat(style.guided, bench.guide, *style.args, num_samples=MANY, **style.kwargs)
    assert isinstance(value, float)
    assert value == value


def own_density(bench: Bench) -> None:
    """log_prob of own draws equals the density that came with them."""
    w, log_q = bench.guide.sample_and_log_prob(MANY)
    with torch.no_grad():
        values, log_det = bench.guide.layout.constrain(w)
    bench.expect_draws(values, MANY)
    bench.expect_density(values, log_q - log_det)


def quantiles(bench: Bench) -> None:
    args, kwargs = bench.style.args, bench.style.kwargs
    median, many = bench.guide.median(*args, **kwargs), bench.guide.quantiles([0.1, 0.5, 0.9], *args, **kwargs)
    for site in bench.guide.layout.sites:
        value = many[site.name]
        assert median[site.name].shape == site.shape
        assert value.shape == (3, *site.shape)
        assert bool(value.isfinite().all())
        assert bool(site.support.check(value).all())
        torch.testing.assert_close(value[1], median[site.name], atol=1e-5, rtol=1e-5)
        if site.is_unconstrained:
            # 2 000 draws: a share of .5 has a standard error of .011; the guide's own 4 096 fixed draws of .008.
            below = (bench.draws[site.name] <= median[site.name]).double().mean(0)
            assert bool(((below - 0.5).abs() < 0.12).all()), (site.name, below)
            assert bool((value[0] <= value[2]).all())


def called_with_many_sizes(bench: Bench) -> None:
    if bench.style.at is None:
        raise NotApplicable("the rows of this style are fixed")
    draws = []
    for rows in [*range(1, 21), *range(1, 21)]:
        args, kwargs = bench.style.at(rows)
        draws.append(bench.guide(*args, **kwargs))
    bench.expect_draws({name: torch.stack([one[name] for one in draws]) for name in bench.names}, 40)


def fit_again(bench: Bench, **options: Any) -> None:
    """`fit` in one of its modes leaves finite draws and densities."""
    guide, style = bench.twin(), bench.style
    settings = {"num_steps": 6, "num_particles": 3, "compile": "off", "rejection": None, "progress": False}
    result = fit(style.guided, guide, style.args, kwargs=dict(style.kwargs), **{**settings, **options})
    assert bool(result.losses.isfinite().all()), result.losses
    draws = guide.sample_posterior(50)
    assert all(bool(value.isfinite().all()) for value in draws.values())
    with torch.no_grad():
        assert bool(guide.log_prob(draws).isfinite().all())


def fit_batches(bench: Bench) -> None:
    """`fit` on an iterable of argument tuples: all data in one batch."""
    guide, style = bench.twin(), bench.style
    options = {"num_steps": 6, "num_particles": 3, "compile": "off", "progress": False}
    result = fit(style.guided, guide, [style.args], kwargs=dict(style.kwargs), **options)
    assert bool(result.losses.isfinite().all()), result.losses


def started_again(bench: Bench) -> None:
    """`best_start` leaves finite draws."""
    guide, style = bench.twin(), bench.style
    options = {"num_restarts": 2, "num_steps": 3, "elbo": VectorizedELBO(3, compile="off")}
    best_start(style.guided, guide, style.args, kwargs=dict(style.kwargs), **options)
    assert all(bool(value.isfinite().all()) for value in guide.sample_posterior(50).values())


def restarted(bench: Bench) -> None:
    guide, style = bench.twin(), bench.style
    guide.restart(*style.args, **style.kwargs)
    assert all(bool(value.isfinite().all()) for value in guide.sample_posterior(50).values())


def rejected_again(bench: Bench) -> None:
    """Rejection at half the draws: the density is still that of the draws."""
    guide, style = bench.twin(), bench.style
    guide.reject(style.args, dict(style.kwargs), rates=(0.5,))
    with torch.no_grad():
        w, log_q = guide.sample_and_log_prob(50)
        torch.testing.assert_close(guide.unconstrained_log_prob(w), log_q, rtol=2e-3, atol=2e-2)


def corrected(bench: Bench, *, function: Callable[..., Any], **options: Any) -> None:
    style = bench.style
    result = function(style.guided, bench.guide, *style.args, **options, **style.kwargs)
    samples = getattr(result, "samples", None)
    if samples:
        assert all(bool(value.isfinite().all()) for value in samples.values())
        assert set(samples) == set(bench.names)


def no_grad(bench: Bench) -> None:
    with torch.no_grad():
        call(bench)


def validated(bench: Bench) -> None:
    with pyro.validation_enabled(True):
        traced(bench)


def local_params(bench: Bench) -> None:
    """A guide whose parameters stay out of the store: made, trained and called so."""
    style = bench.style
    if isinstance(getattr(style.model, "__self__", style.model), PyroModule):
        raise NotApplicable("this PyroModule was made before the setting")
    with pyro.settings.context(module_local_params=True):

        class Model(pyro.nn.PyroModule):
            def forward(self, *args, **kwargs):
                return style.guided(*args, **kwargs)

        model = Model()
        guide = AutoHypernet(model, plan=bench.guide.plan)
        loss_fn = Trace_ELBO()(model, guide)
        loss_fn(*style.args, **style.kwargs).backward()
        assert any(parameter.grad is not None for parameter in guide.parameters())
        draw = guide(*style.args, **style.kwargs)
        assert all(bool(value.isfinite().all()) for value in draw.values())


ONE_PARTICLE = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": TraceGraph_ELBO,
    "Trace_ELBO, vectorised": partial(Trace_ELBO, vectorize_particles=True, max_plate_nesting=3),
    "VectorizedELBO, one particle": partial(VectorizedELBO, num_particles=1),
}
STEPS = {
    "RenyiELBO": partial(RenyiELBO, alpha=0.5, num_particles=2),
    "RenyiELBO, vectorised": partial(RenyiELBO, 0.5, 2, vectorize_particles=True, max_plate_nesting=3),
    "TraceEnum_ELBO": partial(TraceEnum_ELBO, max_plate_nesting=3),
    "ReweightedWakeSleep": partial(ReweightedWakeSleep, num_particles=2, vectorize_particles=False),
    "TraceTailAdaptive_ELBO": partial(
        TraceTailAdaptive_ELBO, num_particles=3, vectorize_particles=True, max_plate_nesting=3
    ),
    "EnergyDistance": partial(EnergyDistance, num_particles=2),
    "JitTrace_ELBO": partial(JitTrace_ELBO, ignore_jit_warnings=True),
    "JitTraceMeanField_ELBO": partial(JitTraceMeanField_ELBO, ignore_jit_warnings=True),
    "JitTraceGraph_ELBO": partial(JitTraceGraph_ELBO, ignore_jit_warnings=True),
    "JitTraceEnum_ELBO": partial(JitTraceEnum_ELBO, max_plate_nesting=3, ignore_jit_warnings=True),
    "VectorizedELBO, path": partial(VectorizedELBO, 3, gradient="path"),
    "VectorizedELBO, total": partial(VectorizedELBO, 3, gradient="total"),
    "VectorizedELBO, importance weighted": partial(VectorizedELBO, 3, bound="importance_weighted"),
    "VectorizedELBO, eager": partial(VectorizedELBO, 3, mode="eager"),
    "VectorizedELBO, loop": partial(VectorizedELBO, 3, mode="loop"),
}
MANY_PARTICLES = {
    "Trace_ELBO, many vectorised particles": lambda n: Trace_ELBO(n, vectorize_particles=True, max_plate_nesting=3),
    "VectorizedELBO, many particles": VectorizedELBO,
}

IDIOMS: dict[str, Idiom] = {
    "call": call,
    "call, no_grad": no_grad,
    "call, many sizes": called_with_many_sizes,
    **{
        f"Predictive, {mode}, {name}": partial(predictive, rows=rows, parallel=mode == "parallel")
        for mode in ("sequential", "parallel")
        for name, rows in ROWS.items()
    },
    "WeighedPredictive, sequential": partial(predictive, rows=None, parallel=False, weighed=True),
    "WeighedPredictive, parallel": partial(predictive, rows=None, parallel=True, weighed=True),
    "vectorized_importance_weights": importance_weights,
    "Importance": importance,
    **{name: partial(one_particle_elbo, make=make) for name, make in ONE_PARTICLE.items()},
    **{name: partial(many_particles, make=make) for name, make in MANY_PARTICLES.items()},
    **{name: partial(steps, make=make) for name, make in STEPS.items()},
    "ELBO module": elbo_module,
    "module_local_params": local_params,
    "validation": validated,
    "trace": traced,
    "plate": partial(in_plate, dim=None),
    "plate, dim": partial(in_plate, dim=-6),
    "replay": replayed,
    "replay of the model": replayed_model,
    "condition": partial(conditioned, handler=poutine.condition),
    "do": partial(conditioned, handler=poutine.do),
    "uncondition": partial(wrapped, handler=poutine.uncondition),
    "mask": partial(wrapped, handler=lambda guide: poutine.mask(guide, mask=True)),
    "block": blocked,
    "scale": scaled,
    "lift": lifted,
    "substitute": substituted,
    "NeuTra": neutra,
    "AutoGuideList": in_list,
    "AutoGuideList, shared": shares_a_list,
    "deepcopy": partial(copied, copier=copy.deepcopy),
    "pickle": partial(copied, copier=by_pickle),
    "torch.save": partial(copied, copier=by_torch_save),
    "state_dict": by_state_dict,
    "save and load": by_file,
    "torch.jit.trace": jit_trace,
    **{f"predict, {name}": partial(predicted, rows=rows) for name, rows in ROWS.items()},
    "to_arviz": arviz,
    "khat": pareto,
    "log_prob": own_density,
    "quantiles": quantiles,
    "fit": fit_again,
    "fit, eager": partial(fit_again, mode="eager"),
    "fit, loop": partial(fit_again, mode="loop"),
    "fit, graph": partial(fit_again, compile="graph"),
    "fit, importance weighted": partial(fit_again, bound="importance_weighted"),
    "fit, average": partial(fit_again, keep="average"),
    "best_start": started_again,
    "fit, rejection": partial(fit_again, rejection=0.5),
    "fit, batches": fit_batches,
    "restart": restarted,
    "reject": rejected_again,
    "resample": partial(corrected, function=resample, num_samples=50),
    "metropolis": partial(corrected, function=metropolis),
    "move": partial(corrected, function=move, num_samples=20),
    "loo": partial(corrected, function=loo),
    "diagnose": partial(corrected, function=diagnose),
}

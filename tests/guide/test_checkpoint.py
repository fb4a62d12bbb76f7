"""A guide on disk: what comes back, and which files are refused."""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import nn
from torch.distributions import constraints

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.guide import checkpoint
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.checkpoint import load, save
from pyro_hypernet.informed.structures import STRUCTURES, full, last_layer, low_rank
from pyro_hypernet.maps.bijection import Chain
from pyro_hypernet.maps.bounds import SLOWNESS, drop_bounds, loosen_bounds, slowness_of
from pyro_hypernet.maps.coupling import Coupling, Scaling
from pyro_hypernet.maps.hypernets import HYPERNETS, coupling
from pyro_hypernet.maps.linear import UnitTriangular
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.train.elbo import VectorizedELBO
from tests import small_models as m
from tests.seeds import seed
from tests.train import learnt_models as learnt

DATA = m.linear_data()


def trained(model, *args, hypernet="auto", structure="auto", **options):
    """A guide whose every parameter was moved from where it starts."""
    guide = AutoHypernet(model, hypernet, structure, **options).setup(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return guide


def draws(guide):
    pyro.set_rng_seed(seed(7))
    return guide.sample_posterior(5)


def assert_same(loaded, guide):
    """Equal draws and densities, bit by bit, before the loaded guide has seen any data."""
    expected, found = draws(guide), draws(loaded)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    torch.testing.assert_close(loaded.log_prob(expected), guide.log_prob(expected), rtol=0, atol=0)
    for name, value in guide.median().items():
        torch.testing.assert_close(loaded.median()[name], value, rtol=0, atol=0)


def round_trip(guide, model, path, *args, **options):
    save(guide, path)
    loaded = load(path, model, *args, **options)
    assert_same(loaded, guide)
    return loaded


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guide.safetensors"


@pytest.mark.parametrize("hypernet", HYPERNETS)
def test_round_trip_of_every_hypernet(hypernet, path):
    guide = trained(m.supports, hypernet=hypernet)
    loaded = round_trip(guide, m.supports, path)
    assert loaded.plan == guide.plan


@pytest.mark.parametrize("structure", STRUCTURES)
def test_round_trip_of_every_structure(structure, path):
    net = m.Network()
    guide = trained(net, *DATA, structure=structure)
    assert round_trip(guide, net, path).plan == guide.plan


@pytest.mark.parametrize(
    "options",
    [
        {"hypernet": partial(coupling, num_layers=2, hidden=(16,))},
        {"hypernet": coupling},
        {"structure": partial(low_rank, rank=2)},
        {"structure": partial(last_layer, sites=("slope",))},
        {"num_components": 2},
        {"init_scale": 0.3},
    ],
    ids=["coupling with options", "function", "rank", "sites", "components", "scale"],
)
def test_round_trip_of_options(options, path):
    guide = trained(m.linear, *DATA, **options)
    loaded = round_trip(guide, m.linear, path)
    assert loaded.describe() == guide.describe().replace(" (chosen by auto)", "")
    assert loaded.plan.init_scale == guide.plan.init_scale


def test_layout_comes_back_with_supports_and_plates(path):
    guide = trained(m.supports)
    loaded = round_trip(guide, m.supports, path)
    assert loaded.layout.names == guide.layout.names
    for found, expected in zip(loaded.layout.sites, guide.layout.sites, strict=True):
        assert (found.shape, found.plates, found.slice) == (expected.shape, expected.plates, expected.slice)
        assert repr(found.support) == repr(expected.support)
    loaded.setup()  # now the model is run, and held against the file
    assert_same(loaded, guide)


def test_bounds_beyond_json_come_back(path):
    def model():
        upper = torch.tensor([2.0, 5.0], dtype=torch.float64)
        pyro.sample("between", dist.Uniform(torch.tensor([0.1, -0.7], dtype=torch.float64), upper).to_event(1))

    guide = trained(model)
    loaded = round_trip(guide, model, path)
    assert loaded.setup().sample_posterior(1)["between"].dtype == torch.float64


def test_data_that_share_memory(path):
    """The targets may be a view of the inputs: what the guide keeps of both goes to the file all the same."""
    x = torch.randn(20, 2)
    guide = AutoHypernet(m.linear).setup(x, x[:, 0])
    save(guide, path)
    w = torch.randn(5, guide.latent_dim)
    again = load(path, m.linear)
    torch.testing.assert_close(again.unconstrained_log_prob(w), guide.unconstrained_log_prob(w), rtol=0, atol=0)


def test_float64(path):
    x, y = (value.double() for value in DATA)

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope, 0.3), obs=y)

    loaded = round_trip(trained(model, x, y), model, path, x, y)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}


def test_a_loaded_guide_trains_on(path):
    save(trained(m.linear, *DATA), path)
    loaded = load(path, m.linear)
    svi = pyro.infer.SVI(m.linear, loaded, pyro.optim.Adam({"lr": 3e-3}), VectorizedELBO(16))
    losses = [svi.step(*DATA) for _ in range(150)]
    assert sum(losses[-30:]) < sum(losses[:30])


def test_loading_leaves_the_random_numbers_alone(path):
    save(trained(m.linear, *DATA), path)
    pyro.set_rng_seed(seed(3))
    expected = torch.rand(3)
    pyro.set_rng_seed(seed(3))
    load(path, m.linear)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_paths_may_be_strings_in_folders_to_be_made(tmp_path):
    guide = trained(m.linear, *DATA)
    path = str(tmp_path / "new" / "folder" / "guide.safetensors")
    round_trip(guide, m.linear, path)
    save(trained(m.linear, *DATA, hypernet="iaf"), path)  # replaces the old file
    assert load(path, m.linear).plan.hypernet == "iaf"


# -- functions of the user's own --


def own_hypernet(dim):
    return Chain(Coupling(dim, Scaling(), hidden=(4,)), UnitTriangular(dim))


def own_structure(layout, hypernet, loc, scale):
    return full(layout, hypernet, loc, scale)


@pytest.mark.parametrize("what, function", [("hypernet", own_hypernet), ("structure", own_structure)])
def test_own_functions_are_passed_again(what, function, path):
    guide = trained(m.linear, *DATA, **{what: function})
    save(guide, path)
    with pytest.raises(ValueError, match=f"^The guide was made with {what}=own_{what}, your own function: pass it to"):
        load(path, m.linear)
    round_trip(guide, m.linear, path, **{what: function})


def test_another_function_than_the_guides_own(path):
    save(trained(m.linear, *DATA, hypernet=own_hypernet), path)
    with pytest.raises(ValueError, match="does not fit the guide that its header describes"):
        load(path, m.linear, hypernet=coupling)


# -- other models --


def wider(x, y):
    pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("noise", dist.LogNormal(torch.zeros(()), 0.5))


def unbounded(x, y):
    pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("noise", dist.Normal(torch.zeros(()), 0.5))


def renamed(x, y):
    pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("noise", dist.LogNormal(torch.zeros(()), 0.5))


def shorter(x, y):
    pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("other", [wider, unbounded, renamed, shorter])
def test_another_model_is_refused(other, path):
    save(trained(m.linear, *DATA), path)
    with pytest.raises(ValueError, match="^The latent sites changed: expected"):
        load(path, other, *DATA)
    for use in (
        lambda guide: guide(*DATA),
        lambda guide: guide.setup(*DATA),
        lambda guide: VectorizedELBO().loss(other, guide, *DATA),
        lambda guide: pyro.infer.Trace_ELBO().loss(other, guide, *DATA),
    ):
        guide = load(path, other)
        with pytest.raises(ValueError, match="^The latent sites changed: expected"):
            use(guide)


# -- files that are not ours --


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_file_cut_short(share, path):
    save(trained(m.linear, *DATA), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="is no readable checkpoint; it is cut short or not a safetensors file"):
        load(path, m.linear)


@pytest.mark.parametrize("data", [b"hello, world", b"\x00" * 100, b"PK\x03\x04" + b"x" * 200, b"\xff" * 64])
def test_a_file_of_another_kind(data, path):
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no readable checkpoint"):
        load(path, m.linear)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"pyro_hypernet": "{}"}])
def test_safetensors_of_another_program(metadata, path):
    path.write_bytes(write_tensors({"weight": torch.zeros(3)}, metadata=metadata))
    with pytest.raises(ValueError, match="was not written by pyro_hypernet.save"):
        load(path, m.linear)


def test_a_file_of_a_later_release(path):
    save(trained(m.linear, *DATA), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro_hypernet"])
    metadata = {"pyro_hypernet": json.dumps({**header, "version": 99})}
    path.write_bytes(write_tensors(read_tensors(data), metadata=metadata))
    with pytest.raises(ValueError, match="has format version 99; this release reads up to 4: upgrade it"):
        load(path, m.linear)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors", m.linear)


def test_the_header_says_what_the_file_is(path):
    save(trained(m.linear, *DATA, hypernet=partial(coupling, num_layers=2)), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro_hypernet"])
    assert header["hypernet"] == {"name": "coupling", "options": {"num_layers": 2}}
    assert header["torch"] == torch.__version__
    assert header["pyro"] == pyro.__version__
    assert [site["name"] for site in header["layout"]] == ["slope", "noise"]


# -- whole or not at all --


def fail(*_, **__):
    raise OSError("no space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync", "tensors"])
def test_a_failing_write_leaves_the_old_file(where, path, monkeypatch):
    old = trained(m.linear, *DATA)
    save(old, path)
    if where == "tensors":
        monkeypatch.setattr(checkpoint, "save_tensors", fail)
    else:
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match="no space left"):
        save(trained(m.linear, *DATA, hypernet="iaf"), path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert_same(load(path, m.linear), old)


def test_a_failing_first_write_leaves_nothing(path, monkeypatch):
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(trained(m.linear, *DATA), path)
    assert os.listdir(path.parent) == []


# -- what cannot be saved --


def test_guides_of_other_kinds(path):
    with pytest.raises(TypeError, match="^save writes an AutoHypernet or a GuideMixture; got AutoNormal"):
        save(AutoNormal(m.linear), path)


def test_a_guide_before_setup(path):
    with pytest.raises(RuntimeError, match="^The guide does not know its model's sites yet"):
        save(AutoHypernet(m.linear), path)
    assert not path.exists()


def test_options_that_json_cannot_hold(path):
    guide = trained(m.linear, *DATA, hypernet=partial(coupling, hidden=torch.tensor([4, 4]).numpy()))
    with pytest.raises(ValueError, match="^The options of hypernet 'coupling' must be numbers, strings or lists"):
        save(guide, path)
    assert not path.exists()


# -- the model's own learnt parameters --


def move_all(model, guide):
    """Another value for everything that training changes."""
    poutine.trace(model).get_trace(*learnt.ARGS)
    with torch.no_grad():
        for tensor in [*guide.parameters(), *pyro.get_param_store()._params.values()]:
            tensor += 0.3 * torch.randn_like(tensor)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Predictions of every model here, and those of a new process that has read the files."""
    folder, expected = tmp_path_factory.mktemp("guides"), {}
    for name, make in learnt.MODELS.items():
        with pyro.get_param_store().scope():
            model = make()
            guide = AutoHypernet(model).setup(*learnt.ARGS)
            move_all(model, guide)
            save(guide, folder / name)
            expected[name] = learnt.predictions(model, guide)
    command = [sys.executable, "-W", "error", "-m", "tests.train.learnt_models", str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return expected, torch.load(folder / "predictions")


@pytest.mark.parametrize("name", learnt.MODELS)
def test_predictions_are_the_same_in_a_new_process(name, elsewhere):
    """Exact to rounding: the same draws, from networks that started at other values."""
    expected, found = elsewhere
    torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_args", [False, True])
@pytest.mark.parametrize("make", learnt.MODELS.values(), ids=learnt.MODELS.keys())
def test_a_loaded_guide_can_be_saved_again(make, with_args, path):
    model = make()
    guide = AutoHypernet(model).setup(*learnt.ARGS)
    move_all(model, guide)
    expected = learnt.predictions(model, guide)
    save(guide, path)
    for _ in range(2):
        pyro.clear_param_store()
        model = make()
        loaded = load(path, model, *(learnt.ARGS if with_args else ()))
        torch.testing.assert_close(learnt.predictions(model, loaded), expected, rtol=1e-4, atol=1e-5)
        save(copy.deepcopy(loaded), path)


@pytest.mark.parametrize("name", ["params", "last layer", "PyroModule", "closure"])
def test_a_loaded_model_trains_on(name, path):
    model = learnt.MODELS[name]()
    save(AutoHypernet(model).setup(*learnt.ARGS), path)
    pyro.clear_param_store()
    model = learnt.MODELS[name]()
    loaded = load(path, model)
    before = {name: value.detach().clone() for name, value in state(model, loaded).items()}
    svi = pyro.infer.SVI(model, loaded, pyro.optim.Adam({"lr": 0.03}), VectorizedELBO())
    for _ in range(2):
        svi.step(*learnt.ARGS)
    assert before
    assert all(not torch.equal(value, before[name]) for name, value in state(model, loaded).items())


def state(model, guide):
    return LogJoint(model, guide.layout).params(torch.zeros(guide.latent_dim), *learnt.ARGS)


def constant(value, shape=()):
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        learnt.observe(x @ slope + pyro.param("shift", torch.full(shape, value)).sum(), y)

    return model


def test_another_models_parameter_of_the_same_name_is_not_overwritten(path):
    save(AutoHypernet(constant(1.0)).setup(*learnt.ARGS), path)
    load(path, constant(1.0))  # equal values are no matter
    pyro.clear_param_store()
    pyro.param("shift", torch.tensor(2.0))
    with pytest.raises(ValueError, match=r"^Pyro's parameter store already holds other values of \['shift'\] than"):
        load(path, constant(1.0))
    assert pyro.param("shift").item() == 2.0
    load(path, constant(1.0), overwrite=True)
    assert pyro.param("shift").item() == 1.0


def test_another_models_value_does_not_come_into_a_module(path):
    """A PyroModule would take what the store has under its parameter's name."""
    save(AutoHypernet(learnt.MODELS["PyroModule"]()).setup(*learnt.ARGS), path)
    pyro.clear_param_store()
    pyro.param("scale", torch.tensor(7.0), constraint=constraints.positive)
    with pytest.raises(ValueError, match="^Pyro's parameter store already holds other values of"):
        load(path, learnt.MODELS["PyroModule"]())


def test_parameters_of_another_shape(path):
    save(AutoHypernet(constant(1.0)).setup(*learnt.ARGS), path)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"^Parameter 'shift' has shape \(\) in .* and \(2,\) in the model"):
        load(path, constant(1.0, (2,)), *learnt.ARGS)
    save(AutoHypernet(bayesianize(nn.Linear(3, 1), sites=["bias"])).setup(*learnt.ARGS), path)
    model = bayesianize(nn.Linear(2, 1), sites=["bias"])
    start = model.net.weight.detach().clone()
    with pytest.raises(
        ValueError, match=r"^Parameter ':net.weight' has shape \(1, 3\) in .* and \(1, 2\) in the model"
    ):
        load(path, model)
    assert torch.equal(model.net.weight, start)


def test_a_lazy_module_is_to_be_run_first(path):
    def make():
        return learnt.silent(nn.LazyLinear(1))

    model = make()
    guide = AutoHypernet(model)
    poutine.trace(model).get_trace(*learnt.ARGS)
    save(guide.setup(*learnt.ARGS), path)
    with pytest.raises(ValueError, match="^Parameter 'net:.*' of the model has no shape yet: run the model once"):
        load(path, make())


def test_a_model_without_the_files_modules(path):
    save(AutoHypernet(learnt.MODELS["closure"]()).setup(*learnt.ARGS), path)
    with pytest.raises(ValueError, match=r"holds values of \['net:.*which the model does not have"):
        load(path, learnt.params)


class Nets:
    """Nothing to call, so nothing that is looked into."""

    def __init__(self, net):
        self.net = net


def out_of_sight():
    nets = Nets(learnt.network())

    def model(x, y=None):
        learnt.with_module(nets.net, x, y)

    return model


def test_a_module_out_of_sight_needs_a_run_of_the_model(path):
    model = out_of_sight()
    guide = AutoHypernet(model).setup(*learnt.ARGS)
    move_all(model, guide)
    expected = learnt.predictions(model, guide)
    save(guide, path)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match="of a module that cannot be found from the model: pass the model's arguments"):
        load(path, out_of_sight())
    model = out_of_sight()
    torch.testing.assert_close(learnt.predictions(model, load(path, model, *learnt.ARGS)), expected)


def test_a_network_out_of_sight_is_refused_at_once(path):
    nets = Nets(learnt.last_layer())
    guide = AutoHypernet(lambda x, y=None: nets.net(x, y)).setup(*learnt.ARGS)
    with pytest.raises(ValueError, match="uses a network of bayesianize that cannot be found from it"):
        save(guide, path)
    assert not path.exists()


def test_parameters_that_are_gone_are_said(path):
    guide = AutoHypernet(constant(1.0)).setup(*learnt.ARGS)
    pyro.clear_param_store()
    with pytest.warns(
        UserWarning, match=r"Parameters \['shift'\] of the model are no longer in Pyro's parameter store"
    ):
        save(guide, path)


def old(header):
    """What a header of version 1 did not hold is left out; "rejection" was what draws went through, here nothing."""
    new = ("model", "num_particles", "anneal", "rejected", "slowness")
    return {key: value for key, value in header.items() if key not in new} | {"rejection": None}


def as_version_1(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro_hypernet"])
    metadata = {"pyro_hypernet": json.dumps({**old(header), "version": 1})}
    tensors = {name: tensor for name, tensor in read_tensors(data).items() if not name.startswith("model.")}
    path.write_bytes(write_tensors(tensors, metadata=metadata))


@pytest.mark.parametrize("name", ["params", "last layer", "PyroModule", "closure"])
def test_files_of_version_1(name, path):
    model = learnt.MODELS[name]()
    guide = AutoHypernet(model).setup(*learnt.ARGS)
    save(guide, path)
    as_version_1(path)
    with pytest.warns(UserWarning, match="does not hold the model's parameters"):
        loaded = load(path, model, *learnt.ARGS)
    assert_same(loaded, guide)
    save(trained(m.linear, *DATA), path)
    as_version_1(path)
    load(path, m.linear, *DATA)  # no parameters, no word


OLD_GUIDES = {
    "informed": (m.linear, DATA, {}),
    "full": (m.supports, (), {"structure": "full"}),
    "layerwise": (m.supports, (), {"structure": "layerwise"}),
    "weight_norm": (m.linear, DATA, {"structure": "weight_norm"}),
    "two components": (m.linear, DATA, {"num_components": 2}),
}


def test_bounds_of_version_2_stay_what_they_were(path):
    """A guide that was read from such a file, and written again, too."""
    guide = trained(m.supports)
    loosen_bounds(guide.bijection)
    with torch.no_grad():
        guide.bijection.bijections[1].loc += 30.0
    loaded = round_trip(round_trip(guide, m.supports, path), m.supports, path)
    assert slowness_of(loaded.bijection) == 1.0
    assert slowness_of(round_trip(trained(m.supports), m.supports, path).bijection) == SLOWNESS


@pytest.mark.parametrize(("model", "args", "options"), OLD_GUIDES.values(), ids=OLD_GUIDES.keys())
def test_a_file_of_version_1_draws_as_it_did(model, args, options, path):
    """Its map had no bounds; and what is read from it can be written and read again."""
    guide = trained(model, *args, **options)
    drop_bounds(guide.bijection)
    save(guide, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro_hypernet"])
    header = {key: value for key, value in old(header).items() if key != "is_bounded"} | {"version": 1}
    path.write_bytes(write_tensors(read_tensors(data), metadata={"pyro_hypernet": json.dumps(header)}))
    loaded = load(path, model)
    assert_same(loaded, guide)
    round_trip(loaded, model, path)


def test_arguments_of_version_2(path):
    """They stood by number and name, those that were no tensors in the header, and a rejection had its own."""
    guide = trained(m.linear, *DATA)
    guide.reject(DATA, rates=(0.5,))
    save(guide, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro_hypernet"])
    rejected = header.pop("rejected")
    assert header["knowledge"].pop("arguments")
    kept = {"args": [None] * len(DATA), "kwargs": {}}
    header |= {"version": 2, "knowledge": {**header["knowledge"], **kept}}
    header["rejection"] = {"rate_error": rejected["rate_error"], **kept}
    tensors = {name.replace("arguments.argument_", "argument_"): t for name, t in read_tensors(data).items()}
    tensors |= {f"rejection.data_{number}": tensor.clone() for number, tensor in enumerate(DATA)}
    path.write_bytes(write_tensors(tensors, metadata={"pyro_hypernet": json.dumps(header)}))
    loaded = load(path, m.linear)
    assert loaded.rejection.rate == guide.rejection.rate
    loosen_bounds(guide.bijection)
    assert_same(loaded, guide)

"""The batched density equals Pyro's own, however it runs."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost

from pyro_hypernet.model.density import LogJoint, map_model
from pyro_hypernet.model.layout import Layout
from tests import small_models as m

Y = torch.linspace(-1.0, 2.0, 12)
CASES = {
    "linear": (m.linear, m.linear_data()),
    "network": (m.Network(), m.linear_data()),
    "supports": (m.supports, ()),
    "nested plates": (m.nested_plates, (torch.ones(3, 2),)),
    "one weight": (m.one_weight, (Y,)),
    "param": (m.with_param, (torch.ones(4, 2),)),
    "scaled": (poutine.scale(m.one_weight, 3.0), (Y,)),
    "masked": (poutine.mask(m.one_weight, torch.tensor(True)), (Y,)),
}


def make(name, mode="graph"):
    model, args = CASES[name]
    return LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(*args)), mode=mode), args


def pyro_log_joint(log_joint, w, args):
    """One draw at a time, by Pyro's own trace and its supports' Jacobians."""
    values, _ = log_joint.layout.constrain(w)
    trace = poutine.trace(poutine.condition(log_joint.model, values)).get_trace(*args)
    total = trace.log_prob_sum()
    for site in log_joint.layout.sites:
        unconstrained = site.transform.inv(values[site.name])
        log_det = site.transform.log_abs_det_jacobian(unconstrained, values[site.name])
        total = total + sum_rightmost(log_det, log_det.dim())
    return total


@pytest.mark.parametrize("mode", ["graph", "eager", "loop"])
@pytest.mark.parametrize("name", CASES)
def test_density_equals_pyros(name, mode):
    log_joint, args = make(name, mode)
    w = 0.5 * torch.randn(6, log_joint.layout.dim)
    expected = torch.stack([pyro_log_joint(log_joint, row, args) for row in w])
    for _ in range(2):  # the second call replays the graph
        torch.testing.assert_close(log_joint(w, *args), expected, rtol=1e-5, atol=1e-5)
    assert log_joint.mode == mode


@pytest.mark.parametrize("name", CASES)
def test_value_and_grad_equals_autograd(name):
    log_joint, args = make(name)
    w = (0.5 * torch.randn(3, 2, log_joint.layout.dim)).requires_grad_()
    expected = log_joint(w, *args)
    (gradient,) = torch.autograd.grad(expected.sum(), w)
    for _ in range(2):
        value, score = log_joint.value_and_grad(w, *args)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(score, gradient, rtol=1e-4, atol=1e-4)


def test_new_values_of_the_same_shapes_do_not_capture_again(monkeypatch):
    log_joint, (x, y) = make("linear")
    w = torch.randn(4, 3)
    log_joint(w, x, y)
    monkeypatch.setattr(log_joint._value, "_capture", lambda *_: pytest.fail("captured again"))
    shifted = log_joint(w, x + 1, y)
    torch.testing.assert_close(shifted[0], pyro_log_joint(log_joint, w[0], (x + 1, y)))


def test_other_shapes_capture_a_graph_of_their_own():
    log_joint, (x, y) = make("linear")
    w = torch.randn(4, 3)
    log_joint(w, x, y)
    torch.testing.assert_close(log_joint(w, x[:5], y[:5])[0], pyro_log_joint(log_joint, w[0], (x[:5], y[:5])))


def test_graph_follows_updates_of_params():
    log_joint, args = make("param")
    w = torch.randn(2, 2)
    before = log_joint(w, *args)
    log_joint(w, *args).sum().backward()
    leaf = log_joint.params(w[0], *args)["noise"]
    assert leaf.grad is not None
    with torch.no_grad():
        leaf += 1.0
    after = log_joint(w, *args)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[0], pyro_log_joint(log_joint, w[0], args))
    pyro.clear_param_store()  # the parameter is made anew, at its old value
    torch.testing.assert_close(log_joint(w, *args), before)


def test_subsampled_plate_scales_to_all_data():
    y = torch.ones(20)
    log_joint = LogJoint(m.subsampled, Layout.from_trace(poutine.trace(m.subsampled).get_trace(y)))
    prior, likelihood = dist.Normal(0.0, 1.0), dist.Normal(0.3, 1.0)
    expected = prior.log_prob(torch.tensor(0.3)) + 20 * likelihood.log_prob(torch.tensor(1.0))
    for _ in range(3):
        torch.testing.assert_close(log_joint(torch.tensor([[0.3]]), y)[0], expected)


def test_graph_draws_a_new_subsample_every_time():
    y = torch.arange(20.0)
    log_joint = LogJoint(m.subsampled, Layout.from_trace(poutine.trace(m.subsampled).get_trace(y)))
    values = [log_joint(torch.zeros(2, 1), y) for _ in range(5)]
    assert len({round(float(v[0]), 3) for v in values}) > 1
    assert all(bool(v[0] == v[1]) for v in values)  # all particles see the same rows


def test_model_with_control_flow_runs_in_a_loop_and_the_warning_names_the_line():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        if mean.item() > 0:
            mean = 2 * mean
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor(1.0)
    log_joint = LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(y)))
    w = torch.tensor([[-1.0], [1.0]])
    with pytest.warns(UserWarning, match=r"test_density.py:\d+: `if mean.item\(\) > 0:`"):
        result = log_joint(w, y)
    assert log_joint.mode == "loop"
    torch.testing.assert_close(result[1], pyro_log_joint(log_joint, w[1], (y,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_joint(w, y)


def test_the_models_own_error_comes_through():
    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        return x @ weight

    log_joint = LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(torch.ones(2, 3))))
    with pytest.raises(RuntimeError, match="size mismatch"):
        log_joint(torch.zeros(4, 3), torch.ones(2, 5))


def test_sites_that_change_between_calls():
    def model(width):
        pyro.sample("w", dist.Normal(torch.zeros(width), 1.0).to_event(1))
        if width > 2:
            pyro.sample("extra", dist.Normal(torch.zeros(()), 1.0))

    log_joint = LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(2)))
    with pytest.raises(ValueError, match="Latent site 'extra' is not among the guide's sites"):
        log_joint(torch.zeros(4, 2), 3)
    with pytest.raises(ValueError, match="Latent site 'w' had shape"):
        log_joint(torch.zeros(4, 2), 1)


def test_length_of_w():
    log_joint, args = make("linear")
    with pytest.raises(ValueError, match="w must have shape"):
        log_joint(torch.zeros(4, 5), *args)


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of graph, eager, loop; got 'fast'"):
        make("linear", "fast")


def test_map_model_samples_what_is_not_given():
    x, _ = m.linear_data()
    samples = {"slope": torch.zeros(500, 2), "noise": torch.full((500,), 0.1)}
    y = map_model(m.linear, samples, (x,), collect=lambda trace: trace.nodes["y"]["value"])
    assert y.shape == (500, len(x))
    # 15 000 draws of sd 0.1: the standard error of their sd is 0.6 %, so five of them pass in all but 6e-7 of runs.
    assert abs(float(y.std()) / 0.1 - 1) < 0.03


def test_bound_arguments_give_the_same_values():
    x, y = m.linear_data()
    layout = Layout.from_trace(pyro.poutine.trace(m.linear).get_trace(x, y))
    log_joint = LogJoint(m.linear, layout)
    bound = log_joint.bind_value_and_grad(x, y)
    for number in (3, 3, 3, 5, 5):
        w = torch.randn(number, layout.dim)
        for found, expected in zip(bound(w), log_joint.value_and_grad(w, x, y), strict=True):
            torch.testing.assert_close(found, expected)

"""Flows of other libraries: they keep the density exact, can be copied once trained, or are refused."""

import copy
import pickle
from functools import partial

import pyro.distributions.transforms as transforms
import pytest
import torch

from pyro_hypernet.maps.foreign import foreign

DIM = 5


def zuko_flow(dim, *, name):
    zuko = pytest.importorskip("zuko")
    return getattr(zuko.flows, name)(dim, transforms=2, hidden_features=[8])


FLOWS = {
    "coupling": partial(transforms.affine_coupling, hidden_dims=[8]),
    "spline coupling": partial(transforms.spline_coupling, hidden_dims=[8]),
    "autoregressive": partial(transforms.affine_autoregressive, hidden_dims=[8]),
    "spline autoregressive": partial(transforms.spline_autoregressive, hidden_dims=[8]),
    "elementwise spline": transforms.spline,
    "matrix exponential": transforms.matrix_exponential,
    "two couplings": lambda dim: transforms.iterated(2, partial(transforms.affine_coupling, hidden_dims=[8]), dim),
    "zuko MAF": partial(zuko_flow, name="MAF"),
    "zuko NICE": partial(zuko_flow, name="NICE"),
    "zuko NSF": partial(zuko_flow, name="NSF"),
}


@pytest.fixture(params=FLOWS)
def flow(request, double):
    return foreign(FLOWS[request.param])(DIM)


@pytest.mark.parametrize("batch_shape", [(), (4,), (4, 1, 3)])
def test_density_is_exact(flow, batch_shape):
    x = torch.randn(*batch_shape, DIM)
    y, log_det = flow.forward_and_log_det(x)
    back, log_det_back = flow.inverse_and_log_det(y.detach())
    assert log_det.shape == log_det_back.shape == batch_shape
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-5, rtol=0)
    point = x.reshape(-1, DIM)[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.forward_and_log_det(v)[0], point)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    # Pyro cuts the series of its matrix exponential off: 5e-8 for some seeds.
    torch.testing.assert_close(log_det.reshape(-1)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_copies_after_a_draw_with_history(flow, duplicate):
    x = torch.randn(3, DIM, requires_grad=True)
    y = flow(x)
    torch.testing.assert_close(duplicate(flow).forward_and_log_det(x)[0], y)
    torch.testing.assert_close(flow.forward_and_log_det(x)[0], y)


@pytest.mark.parametrize(
    "make, message",
    [
        (transforms.planar, "The foreign flow Planar cannot invert"),
        (transforms.radial, "The foreign flow Radial cannot invert"),
        (transforms.sylvester, "The foreign flow Sylvester cannot invert"),
        (transforms.polynomial, "The foreign flow Polynomial cannot invert"),
        (transforms.block_autoregressive, "The foreign flow BlockAutoregressive cannot invert"),
        (transforms.neural_autoregressive, "The foreign flow NeuralAutoregressive cannot invert"),
        (transforms.permute, "The foreign flow Permute has no parameters"),
        (lambda dim: 3, "The foreign flow int has no parameters"),
        (lambda dim: zuko_flow(dim, name="MAF").transform, "The foreign flow LazyComposedTransform cannot invert"),
        (lambda dim: zuko_flow(dim, name="MAF").transform(), "The foreign flow ComposedTransform has no parameters"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        foreign(make)(DIM)


def test_importing_zuko_changes_nothing_for_pyro(double):
    flow = foreign(transforms.spline)(DIM)
    x = torch.randn(4, DIM)
    before = flow.forward_and_log_det(x)
    pytest.importorskip("zuko")  # it gives every torch transform a `call_and_ladj`
    torch.testing.assert_close(flow.forward_and_log_det(x), before)
    assert before[1].shape == (4,)

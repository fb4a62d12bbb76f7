"""Maps to supports: torch's own where these are exact, and numbers where torch's are not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints as pyros
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import biject_to, constraints

from pyro_hypernet import AutoHypernet
from pyro_hypernet.model.supports import transform_to
from tests.seeds import seed

# Supports whose map is not torch's own, and how many unconstrained values make one.
SUPPORTS = {
    "Cholesky factors": (constraints.corr_cholesky, 10),
    "a batch of factors": (constraints.independent(constraints.corr_cholesky, 1), 10),
    "correlation matrices": (pyros.corr_matrix, 10),
    "simplex": (constraints.simplex, 4),
    "ordered": (pyros.ordered_vector, 4),
    "positive ordered": (pyros.positive_ordered_vector, 4),
    "above": (constraints.greater_than(1.5), 4),
    "above or on": (constraints.greater_than_eq(torch.tensor(-2.0)), 4),
    "below": (constraints.less_than(1.5), 4),
    "positive": (constraints.positive, 4),
    "interval": (constraints.interval(-1.0, 3.0), 4),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_the_stable_map_is_torchs(name, double):
    support, size = SUPPORTS[name]
    torch.manual_seed(seed(0))
    x = torch.randn(7, 4, size).clamp(-2, 2)  # exp(exp(x) + …) stays below e^40
    mine, theirs = transform_to(support), biject_to(support)
    y = theirs(x)
    torch.testing.assert_close(mine(x), y, rtol=1e-9, atol=1e-9)
    expected = theirs.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(mine.log_abs_det_jacobian(x, y), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine.inv(mine(x)), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(mine)(x), mine(x))
    assert mine.inverse_shape(mine.forward_shape(x.shape)) == x.shape


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("scale", [3.0, 18.0])
def test_everything_is_a_number_far_out(scale, name):
    """In float32: values inside their support, which the map's inverse knows, and the log determinant of float64."""
    support, size = SUPPORTS[name]
    torch.manual_seed(seed(0))
    x = (scale * torch.randn(500, 3, size)).clamp(-20, 20)
    transform = transform_to(support)
    y = transform(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    assert bool(y.isfinite().all())
    assert bool(support.check(y).all())
    assert bool(transform.inv(y).isfinite().all())
    if name == "positive ordered" and scale > 3:  # exp(exp(20)) is a number in no precision
        assert bool(log_det.isfinite().all())
        return
    expected = transform.log_abs_det_jacobian(x.double(), transform(x.double()))
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-4, atol=1e-2)


def test_every_draw_of_a_correlation_matrix_has_a_density():
    """By Pyro's prior, which takes the Cholesky factor of the matrix, as far out as tanh is one."""
    torch.manual_seed(seed(0))
    matrices = transform_to(pyros.corr_matrix)((20 * torch.randn(500, 10)).clamp(-20, 20))
    assert bool(dist.LKJ(5, torch.tensor(2.0)).log_prob(matrices).isfinite().all())


def test_a_guide_of_correlations_has_a_density_at_every_draw():
    """Under a prior that heaps draws on the boundary, by Pyro's path and by ours."""

    def model():
        pyro.sample("factor", dist.LKJCholesky(5, torch.tensor(0.5)))

    guide = AutoHypernet(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(12):
        svi.step()
    with torch.no_grad():
        w, _ = guide.sample_and_log_prob(2000)
        assert bool(guide.layout.constrain(w)[1].isfinite().all())
        with pyro.plate("draws", 2000):
            trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
    assert bool(trace.nodes["factor"]["log_prob"].isfinite().all())

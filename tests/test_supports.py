"""Maps to supports: torch's own where these are exact, and numbers where torch's are not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import biject_to, constraints

from pyro_hypernet import AutoHypernet
from pyro_hypernet.supports import transform_to
from tests.seeds import seed


@pytest.mark.parametrize("support", [constraints.corr_cholesky, constraints.independent(constraints.corr_cholesky, 1)])
def test_the_stable_map_is_torchs(support, double):
    torch.manual_seed(seed(0))
    x = torch.randn(7, 4, 10)
    mine, theirs = transform_to(support), biject_to(support)
    y = theirs(x)
    torch.testing.assert_close(mine(x), y)
    torch.testing.assert_close(mine.log_abs_det_jacobian(x, y), theirs.log_abs_det_jacobian(x, y))
    torch.testing.assert_close(mine.inv(y), theirs.inv(y))


def test_a_log_determinant_is_a_number_far_out():
    """In float32, to its rounding, beside float64; torch's is none for one in three of these."""
    torch.manual_seed(seed(0))
    x = 6 * torch.randn(500, 10)
    transform = transform_to(constraints.corr_cholesky)
    log_det = transform.log_abs_det_jacobian(x, transform(x))
    expected = transform.log_abs_det_jacobian(x.double(), transform(x.double()))
    torch.testing.assert_close(log_det.double(), expected, rtol=1e-4, atol=1e-3)
    assert not bool(biject_to(constraints.corr_cholesky).log_abs_det_jacobian(x, transform(x)).isfinite().all())


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

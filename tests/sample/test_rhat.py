"""Values in function space, and what their scatter says."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.sample.rhat import effective_draws, pooled_rhat, side_by_side
from pyro_hypernet.target import bind
from tests.seeds import seed

pytestmark = pytest.mark.usefixtures("double")


def test_function_values_are_means_probabilities_and_deterministic_sites():
    def model(x):
        slope = pyro.sample("slope", dist.Normal(torch.tensor(0.0), 1.0))
        f = pyro.deterministic("f", slope * x, event_dim=1)
        pyro.sample("y", dist.Normal(f + 1, 1.0).to_event(1), obs=x)
        pyro.sample("z", dist.Bernoulli(logits=f).to_event(1), obs=torch.ones(3))
        pyro.sample("c", dist.Categorical(logits=torch.stack([f, 0 * f], -1)).to_event(1), obs=torch.ones(3))

    slope, x = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0, 2.0])
    values = bind(model, (x,), {}, "a test").functions({"slope": slope})
    torch.testing.assert_close(values["f"], slope[:, None] * x)
    torch.testing.assert_close(values["y"], slope[:, None] * x + 1)
    torch.testing.assert_close(values["z"], (slope[:, None] * x).sigmoid())
    torch.testing.assert_close(values["c"][..., 0], values["z"])


def test_pooled_rhat_is_one_for_equal_populations_and_grows_with_their_distance():
    values = torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(seed(0))).expand(4, -1, -1)
    assert pooled_rhat(values) == pytest.approx(1)
    shift = torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None, None]
    # Variances of 1 within and 4/3 between populations, in every function.
    assert pooled_rhat(values / values.std((0, 1)) + shift) == pytest.approx((1 + 4 / 3) ** 0.5, rel=2e-3)
    assert pooled_rhat(torch.ones(4, 10, 2)) == 1


@pytest.mark.parametrize("repeats", [1, 4])
def test_repeated_draws_count_once(repeats):
    chains = torch.randn(4000, 8 // repeats, 5, generator=torch.Generator().manual_seed(seed(0)))
    # 4 000 chain means, five functions: the variance of their mean is known to one per cent.
    assert effective_draws(chains.repeat_interleave(repeats, 1)) == pytest.approx(32_000 / repeats, rel=0.05)


def test_draws_that_never_move_count_once_a_chain():
    assert effective_draws(torch.randn(100, 1, 5).expand(-1, 6, -1)) == pytest.approx(100, rel=0.02)


def test_functions_stand_side_by_side_whatever_their_shapes():
    values = {"a": torch.zeros(2, 5), "b": torch.zeros(2, 5, 3), "c": torch.zeros(2, 5, 2, 2)}
    assert side_by_side(values, 2).shape == (2, 5, 8)
    assert side_by_side({"a": torch.zeros(5), "b": torch.zeros(5, 3)}, 1).shape == (5, 4)
    assert side_by_side({}, 1) is None

"""Packing, unpacking and constraining are inverse to each other, and refuse what does not fit."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_value
from pyro.infer.autoguide.initialization import InitMessenger

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.model.layout import Layout
from tests.small_models import Network, linear, linear_data, nested_plates, supports


def layout_of(model, *args):
    return Layout.from_trace(poutine.trace(model).get_trace(*args))


@pytest.mark.parametrize("batch_shape", [(), (5,), (3, 1, 5)])
def test_unconstrain_inverts_constrain(batch_shape, double):
    layout = layout_of(supports)
    w = torch.randn(*batch_shape, layout.dim)
    values, log_det = layout.constrain(w)
    back, log_det_back = layout.unconstrain(values)
    assert log_det.shape == batch_shape
    torch.testing.assert_close(back, w, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(log_det_back, log_det, atol=1e-7, rtol=1e-7)


def test_values_lie_on_their_supports():
    layout = layout_of(supports)
    values, _ = layout.constrain(torch.randn(50, layout.dim))
    for site in layout.sites:
        assert bool(site.support.check(values[site.name]).all()), site.name


def test_log_det_is_that_of_the_positive_and_bounded_maps(double):
    def model():
        pyro.sample("a", dist.LogNormal(torch.tensor(0.0), 1.0))
        pyro.sample("b", dist.Uniform(torch.tensor(1.0), 3.0))

    layout = layout_of(model)
    w = torch.tensor([0.7, -0.4])
    sigmoid = torch.sigmoid(w[1])
    expected = w[0] + torch.log(2 * sigmoid * (1 - sigmoid))
    torch.testing.assert_close(layout.constrain(w)[1], expected)


def test_order_is_that_of_the_trace_and_observed_sites_are_left_out():
    layout = layout_of(linear, *linear_data())
    assert layout.names == ("slope", "noise")
    assert [site.start for site in layout.sites] == [0, 2]
    assert layout.dim == 3


def test_plates_name_their_axes():
    layout = layout_of(nested_plates, torch.zeros(3, 2))
    assert layout["outer_mean"].plates == ("outer", None)
    assert layout["inner_mean"].plates == ("outer", "inner")


def test_names_of_modules():
    assert layout_of(Network(), *linear_data()).names == ("first.weight", "first.bias", "last.weight", "last.bias")


@pytest.mark.parametrize(
    "samples, message",
    [
        ({"slope": torch.zeros(4, 2)}, "Samples must hold exactly the latent sites"),
        ({"slope": torch.zeros(4, 3), "noise": torch.ones(4)}, "Samples of site 'slope' must have shape"),
        ({"slope": torch.zeros(4, 2), "noise": torch.ones(5)}, "Samples of all sites must share"),
        ({"slope": torch.zeros(4, 2), "noise": torch.ones(4), "x": torch.ones(4)}, "Samples must hold exactly"),
    ],
)
def test_samples_that_do_not_fit(samples, message):
    with pytest.raises(ValueError, match=message):
        layout_of(linear, *linear_data()).unconstrain(samples)


def test_unknown_site():
    with pytest.raises(KeyError, match="No latent site is named 'x'"):
        layout_of(linear, *linear_data())["x"]


def test_discrete_site():
    def model():
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))

    with pytest.raises(ValueError, match="Continuous inference cannot handle discrete sample site 'k'"):
        layout_of(model)


def test_check_names_the_first_difference():
    with pytest.raises(ValueError, match="The latent sites changed: expected 'slope' of shape"):
        layout_of(linear, *linear_data()).check(layout_of(nested_plates), "this call")


PERIODIC = {
    "von Mises": (dist.VonMises(torch.tensor(3.0), torch.tensor(2.0)), True),
    "an event": (dist.VonMises(torch.zeros(2), torch.ones(2)).to_event(1), True),
    "normal": (dist.Normal(torch.zeros(2), 1.0).to_event(1), False),
    "wide normal": (dist.Normal(torch.tensor(0.0), 1e6), False),
    "Cauchy": (dist.Cauchy(torch.tensor(0.0), 1e3), False),
    "improper": (dist.ImproperUniform(dist.constraints.real, (), ()), False),
}


@pytest.mark.parametrize(("prior", "is_one"), PERIODIC.values(), ids=PERIODIC.keys())
def test_a_prior_that_repeats_itself_has_one_period_for_its_support(prior, is_one):
    """Its evidence is then finite; all others keep the support that they state."""

    def model():
        pyro.sample("x", prior)

    init = InitMessenger(init_to_value(values={"x": torch.full(prior.shape(), 2.5)}))
    site = Layout.from_trace(poutine.trace(init(model)).get_trace()).sites[0]
    values, _ = Layout((site,)).constrain(100 * torch.randn(50, site.size))
    assert bool((values["x"].abs() <= math.pi + 1e-5).all()) == is_one
    assert site.is_unconstrained == (not is_one)


def test_draws_of_an_angle_have_the_prior_where_nothing_is_observed():
    """By every path: Pyro's, ours, and the density of what a call of the guide gives."""

    def model():
        return pyro.sample("angle", dist.VonMises(torch.tensor(0.5), torch.tensor(1.0)))

    guide = AutoHypernet(model, init_scale=3.0).setup()
    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    angle = trace.nodes["angle"]["value"]
    assert abs(float(angle.detach())) < math.pi
    assert bool((guide.sample_posterior(200)["angle"].abs() <= math.pi).all())
    log_q = trace.log_prob_sum()
    torch.testing.assert_close(guide.log_prob({"angle": angle}), log_q)

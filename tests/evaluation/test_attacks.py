"""Adversarial inputs: inside the cube and the box, downhill for the mean prediction over draws."""

import math

import pytest
import torch
from torch import nn

from pyro_hypernet import AutoHypernet, GuideMixture, bayesianize, predict
from pyro_hypernet.evaluation.attacks import fgsm, logits_of, pgd
from tests.seeds import seed

SIZES = [0.0, 0.05, 0.2]
ATTACKS = {"fgsm": fgsm, "pgd": pgd}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@pytest.fixture
def nets(double):
    torch.manual_seed(seed(0))
    return [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(4)]


@pytest.fixture
def logits(nets):
    return lambda x: torch.stack([net(x) for net in nets])


def log_p(logits, x, labels):
    return logits(x).softmax(-1).mean(0)[torch.arange(len(x)), labels].log()


@every_attack
def test_inputs_stay_in_the_cube_and_the_box(attack, logits):
    x, labels = torch.rand(20, 6), torch.arange(20) % 3
    found = attack(logits, x, labels, SIZES, clip=(0, 1))
    assert found.shape == (3, 20, 6)
    assert found.min() >= 0
    assert found.max() <= 1
    for size, at in zip(SIZES, found, strict=True):
        assert (at - x).abs().max() <= size + 1e-12
    torch.testing.assert_close(found[0], x)


@every_attack
def test_the_mean_probability_of_the_label_falls(attack, logits):
    x, labels = torch.randn(50, 6), torch.arange(50) % 3
    before = log_p(logits, x, labels).mean()
    small, large = (log_p(logits, at, labels).mean() for at in attack(logits, x, labels, SIZES)[1:])
    assert large < small < before


def test_a_small_step_falls_as_the_gradient_says(logits):
    """In float64 a step of 1e-6 against the derivative along it, of the mean over draws of the probability."""
    x, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    at = x.clone().requires_grad_()
    slope = torch.autograd.grad(log_p(logits, at, labels).sum(), at)[0].abs().sum(1)
    fell = log_p(logits, x, labels) - log_p(logits, fgsm(logits, x, labels, [1e-6])[0], labels)
    torch.testing.assert_close(fell / 1e-6, slope, rtol=1e-4, atol=1e-6)


def test_the_gradient_does_not_vanish_where_probabilities_do():
    """float32: the probability of the label is zero to rounding, its logarithm is not."""
    x = torch.ones(1, 2)
    found = fgsm(
        lambda x: 200 * torch.stack([x, x * 1.5])[..., [0, 1]] * torch.tensor([1.0, -1.0]), x, torch.tensor([1]), [0.1]
    )
    torch.testing.assert_close(found[0], x + torch.tensor([[0.1, 0.1]]))


def test_many_steps_reach_further_than_one(logits):
    x, labels = torch.randn(50, 6), torch.arange(50) % 3
    one, many = (log_p(logits, attack(logits, x, labels, [1.0])[0], labels).mean() for attack in (fgsm, pgd))
    assert many < one + 1e-3


GUIDES = {"one guide": AutoHypernet, "mixture": lambda model: GuideMixture.from_starts(model, 2)}
WAYS = ["weights", "weight_norm"]


@pytest.mark.parametrize("parametrization", WAYS)
@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES.keys())
def test_logits_are_those_of_predict_and_have_a_gradient(make, parametrization, nets):
    x = torch.randn(7, 6)
    model = bayesianize(nets[0], "categorical", parametrization=parametrization)
    guide = make(model).setup(x, torch.zeros(7).long())
    samples = guide.sample_posterior(5)
    run = logits_of(model, guide, num_samples=5)
    at = x.clone().requires_grad_()
    torch.testing.assert_close(run(at), run(x))
    assert torch.autograd.grad(run(at).sum(), at)[0].abs().min() > 0
    if make is AutoHypernet:
        torch.testing.assert_close(logits_of(model, samples)(x), predict(model, samples, x, return_sites=["f"])["f"])
    other = logits_of(model, guide, num_samples=5, fresh=True)
    assert (other(x) - other(x)).abs().max() > 0


def test_log_odds_are_logits_of_two_classes(double):
    model = bayesianize(nn.Linear(3, 1), "bernoulli")
    samples = {name: value[None] for name, value in model.initial_values.items()}
    x = torch.randn(4, 3)
    p = logits_of(model, samples)(x).softmax(-1)
    torch.testing.assert_close(p[0, :, 1], predict(model, samples, x, return_sites=["f"])["f"][0, :, 0].sigmoid())


def test_what_does_not_fit_is_said(logits):
    with pytest.raises(ValueError, match="Inputs must lie within clip"):
        fgsm(logits, torch.full((2, 6), 3.0), torch.zeros(2).long(), [0.1], clip=(0, 1))
    for sizes in ([], [math.nan]):
        with pytest.raises(ValueError, match="sizes must not be negative, and there must be one"):
            fgsm(lambda x: x[None], torch.zeros(2, 3), torch.zeros(2).long(), sizes)
    with pytest.raises(ValueError, match="Inputs must lie within clip"):
        fgsm(lambda x: x[None], torch.full((2, 3), math.nan), torch.zeros(2).long(), [0.1])
    with pytest.raises(ValueError, match="sizes must not be negative"):
        pgd(logits, torch.rand(2, 6), torch.zeros(2).long(), [-0.1])
    model = bayesianize(nn.Linear(3, 2), "categorical")
    with pytest.raises(ValueError, match="no deterministic site 'g'"):
        logits_of(model, {k: v[None] for k, v in model.initial_values.items()}, site="g")(torch.zeros(1, 3))

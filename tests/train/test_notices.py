"""Wrong answers are not given in silence, and nothing is said twice."""

import gc
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.train.notices import after_fit, keep_going, rise_at_the_end, warn_once
from tests import small_models as m
from tests.seeds import seed


class Subject:
    """Something to warn of."""


def test_once_for_every_subject_and_trouble():
    first, second = Subject(), Subject()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for subject, kind in ((first, "a"), (first, "a"), (second, "a"), (first, "b")):
            warn_once(subject, kind, "trouble")
    assert len(caught) == 3


def test_a_new_subject_in_an_old_place_is_warned_of():
    for _ in range(3):
        subject = Subject()
        with pytest.warns(UserWarning, match="trouble"):
            warn_once(subject, "a", "trouble")
        del subject
        gc.collect()


def test_an_output_that_fails_is_said_and_nothing_else():
    with pytest.warns(UserWarning, match=r"^Drawing failed: math domain error.* What was reached before is kept"):
        assert keep_going(lambda: math.log(-1), 3.0, "Drawing") == 3.0
    assert keep_going(lambda: 4.0, 3.0, "Drawing") == 4.0


def test_skipped_steps():
    """More than one in a hundred is said, with the figure and what is known of the cause."""
    losses = torch.zeros(300)
    losses[:3] = math.nan
    after_fit(Subject(), losses.tolist(), "site 'y'")  # warnings are errors
    losses[3] = math.nan
    with pytest.warns(UserWarning, match="4 of 300 steps were skipped, .* the trouble is in site 'y'"):
        after_fit(Subject(), losses.tolist(), "site 'y'")
    with pytest.warns(UserWarning, match="The loss rose above where it had started, 2 times in 300 steps"):
        after_fit(Subject(), [1.0] * 300, "", 2)


def test_an_elbo_that_still_rises():
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(seed(0)))
    guide = AutoHypernet(m.linear)
    with pytest.warns(
        UserWarning,
        match=r"still rising when training ended: by (19\.[3-9]|20\.\d) nats .* 4000 steps.*num_steps=16000",
    ):
        after_fit(guide, (noise + torch.linspace(100, 0, 4000)).tolist(), "")
    for losses in (noise, noise[:400] + torch.linspace(100, 0, 400)):  # flat; too short to have arrived
        after_fit(guide, losses.tolist(), "")


def test_the_rise_and_its_error():
    losses = torch.cat([torch.full((600,), 9.0), torch.full((200,), 5.0), torch.full((200,), 3.0)])
    losses[[650, 900]] = torch.nan
    rise, error = rise_at_the_end(losses + torch.tensor([0.1, -0.1]).repeat(500))
    assert rise == pytest.approx(2.0, abs=1e-3)
    assert error == pytest.approx((2 * 0.01 / 200) ** 0.5, rel=0.05)


def test_predictions_that_are_no_numbers():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        pyro.deterministic("f", torch.log(w) * x)

    samples = {"w": torch.tensor([1.0, 2.0, -1.0, 0.0])}
    with pytest.warns(UserWarning, match="2 of 4 draws predict values of 'f' that are NaN or infinite"):
        predict(model, samples, torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(model, {"w": torch.ones(4)}, torch.ones(3))

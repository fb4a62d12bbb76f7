"""Noise is no density: whatever weighs draws by it refuses a model that draws minibatches, before any work."""

import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_hypernet import AutoHypernet, diagnose, infer, khat, loo, metropolis, report, resample
from pyro_hypernet.evaluation.compare import compare
from pyro_hypernet.evaluation.importance import elbo, weighted_draws
from tests.small_models import subsampled

Y = torch.arange(20.0)
DRAWS = {"mean": torch.zeros(8)}

WEIGH = {
    "elbo": elbo,
    "khat": khat,
    "weighted_draws": weighted_draws,
    "diagnose": diagnose,
    "loo": loo,
    "resample": resample,
    "metropolis": metropolis,
    "infer": lambda model, guide, y: infer(model, y, guide=guide, budget=5, progress=False),
    "infer with a guide of its own": lambda model, guide, y: infer(model, y, budget=5, progress=False),
    "compare": lambda model, guide, y: compare({"guide": guide}, DRAWS, model, y, train_args=(y,), num_bootstrap=0),
}


@pytest.mark.parametrize("make", [AutoHypernet, AutoNormal])
@pytest.mark.parametrize("name", WEIGH)
def test_minibatches_are_refused_before_any_work(make, name):
    if name.startswith("infer") and make is not AutoHypernet:
        make = AutoHypernet  # infer trains no other guide
    guide = make(subsampled)
    guide(Y)
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="Plate 'data' draws a minibatch of 5 out of 20") as caught:
        WEIGH[name](subsampled, guide, Y)
    assert "Leave subsample_size out here" in str(caught.value)
    if name != "compare":  # distances from the reference come first there, and are not noise
        assert bool((torch.random.get_rng_state() == state).all())


@pytest.mark.parametrize("name", [name for name in WEIGH if not name.startswith(("infer", "compare"))])
def test_all_data_at_once_are_not(name):
    guide = AutoHypernet(subsampled).setup(Y, 20)
    WEIGH[name](subsampled, guide, Y, 20)


def test_a_report_on_a_guide_refuses_before_it_writes(tmp_path):
    guide = AutoHypernet(subsampled).setup(Y)
    with pytest.raises(ValueError, match="Plate 'data' draws a minibatch of 5 out of 20"):
        report(subsampled, guide, Y, out=tmp_path)
    assert list(tmp_path.iterdir()) == []

"""What is removed, and what that costs, where both are known."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pyro_hypernet import bayesianize, score, sparsify, weights_of
from pyro_hypernet.bnn.likelihoods import Gaussian
from tests.seeds import seed


def mlp():
    torch.manual_seed(seed(1))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()


class Text(nn.Module):
    """A sum over words of what an embedding says of each."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.rnn = nn.LSTM(4, 3, batch_first=True)
        self.out = nn.Linear(3, 1)

    def forward(self, words):
        return self.out(self.rnn(self.words(words))[0][:, -1])


def text():
    torch.manual_seed(seed(2))
    return Text().double()


def numbers():
    return torch.randn(40, 4).double()


def sentences():
    return torch.randint(9, (40, 5))


# A network with its inputs, what counts of it, and the axes of a unit's outgoing weights that are next to zero.
CASES = {
    "weights": (mlp, numbers, "weights", {"0.weight": (0, None), "2.weight": (0, None)}),
    "units": (mlp, numbers, "units", {"2.weight": (1, 2), "4.weight": (1, 1)}),
    "inputs": (mlp, numbers, "inputs", {"0.weight": (1, 2)}),
    "rows": (text, sentences, "rows", {"words.weight": (0, 3)}),
    "weights of an LSTM": (text, sentences, "weights", {"rnn.weight_ih_l0": (0, None)}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_measure = pytest.mark.parametrize("by", ["signal", "scale"])


def problem(case):
    """A model whose draws are its network's values and a little noise, next to zero where `needless` is True."""
    make, inputs, parts, places = case
    net, x, needless = make(), inputs(), {}
    with torch.no_grad():
        for value in net.parameters():  # none is next to zero by chance
            value.copy_(torch.where(value.abs() < 0.1, 0.3, value))
    for name, (axis, number) in places.items():
        value = net.get_parameter(name)
        mask = torch.zeros_like(value, dtype=torch.bool)
        if number is None:
            mask[0] = True
        else:
            mask.movedim(axis, 0)[:number] = True
        with torch.no_grad():
            value.mul_(~mask)
        needless[name] = mask
    model = bayesianize(net, Gaussian(sigma=0.1))
    samples = {n: v + 1e-4 * torch.randn(50, *v.shape).double() for n, v in model.initial_values.items()}
    return model, samples, (x, net(x).detach()[:, 0]), parts, needless


@every_case
@every_measure
def test_what_is_not_needed_goes_first(case, by):
    model, samples, data, parts, needless = problem(case)
    found = sparsify(model, samples, data, parts=parts, by=by, shares=[share_of(model, parts, needless)])
    for name, mask in needless.items():
        axis = None if parts == "weights" else case[3][name][0]
        gone = mask if axis is None else mask.movedim(axis, 0).flatten(1).all(1)
        assert torch.equal(found.kept[name], ~gone)
    assert found.share > 0
    assert abs(found.loss) < 1e-3


def share_of(model, parts, needless):
    if parts == "weights":
        total = sum(p.numel() for _, p in model.net.named_parameters() if p.dim() > 1)
        return sum(int(mask.sum()) for mask in needless.values()) / total
    sizes = {"units": 11, "inputs": 4, "rows": 9}
    return {"units": 3, "inputs": 2, "rows": 3}[parts] / sizes[parts]


@every_case
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_the_smaller_network_computes_what_the_masked_one_does(case, share):
    """Whatever was removed, needed or not."""
    model, samples, (x, y), parts, _ = problem(case)
    found = sparsify(model, samples, (x, y), parts=parts, shares=[share], max_loss=1e9)
    masked = copy.deepcopy(model.net)
    with torch.no_grad():
        for name, p in masked.named_parameters():
            p.copy_(found.samples[name].mean(0))
    torch.testing.assert_close(found.net(x), masked(x))
    if parts != "weights" and share:
        count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
        assert count(found.net) < count(model.net)


@every_case
def test_losses_are_those_of_score(case):
    model, samples, data, parts, _ = problem(case)
    found = sparsify(model, samples, data, parts=parts, shares=[0.2, 0.6], max_loss=1e9)
    whole, less = score(model, samples, data), score(model, found.samples, data)
    assert found.curve[0] == (0.0, pytest.approx(whole.log_predictive, abs=1e-9))
    assert found.loss == pytest.approx(whole.log_predictive - less.log_predictive, abs=1e-9)
    assert found.share == 0.6


def test_no_more_is_lost_than_may_be():
    model, samples, data, *_ = problem(CASES["weights"])
    for most in (0.0, 0.01, 1.0, 100.0):
        found = sparsify(model, samples, data, max_loss=most)
        assert found.loss <= most
        assert all(density < found.curve[0][1] - most for share, density in found.curve if share > found.share)


def test_units_that_change_places_and_signs_are_put_in_order():
    """Draws with random permutations, and flips under tanh, lose no signal and give the same network."""
    model, samples, data, _, _ = problem(CASES["units"])
    moved = {name: value.clone() for name, value in samples.items()}
    for s in range(50):
        for before, after, flips in (("0", "2", True), ("2", "4", False)):
            order = torch.randperm(moved[f"{before}.bias"].shape[1])
            signs = torch.randint(2, (len(order),)).double() * 2 - 1 if flips else torch.ones(len(order)).double()
            moved[f"{before}.bias"][s] = moved[f"{before}.bias"][s, order] * signs
            moved[f"{before}.weight"][s] = moved[f"{before}.weight"][s, order] * signs[:, None]
            moved[f"{after}.weight"][s] = moved[f"{after}.weight"][s][:, order] * signs
    one, other = (sparsify(model, s, data, parts="units", shares=[0.4], max_loss=1e9) for s in (samples, moved))
    assert one.loss == pytest.approx(other.loss, abs=1e-6)
    torch.testing.assert_close(one.net(data[0]), other.net(data[0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{"prior": "ard"}, {"prior": "horseshoe"}, {"parametrization": "weight_norm"}])
def test_weights_of_draws_are_those_the_model_runs_at(options):
    net, x = mlp(), numbers()
    model = bayesianize(net, Gaussian(sigma=0.1), **options)
    samples = {n: v.expand(3, *v.shape) for n, v in model.initial_values.items()}
    for name, value in weights_of(model, samples).items():
        torch.testing.assert_close(value[1], net.get_parameter(name).detach())
    y = net(x).detach()[:, 0]
    assert score(model, samples, (x, y)).log_predictive == pytest.approx(1.3836466, abs=1e-6)  # -log(0.1 sqrt(2 pi))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "rows"}, "Sequential has no rows to remove, which needs an Embedding"),
        ({"parts": "layers"}, "parts must be one of weights, units, inputs, rows"),
        ({"by": "luck"}, "by one of signal, scale"),
        ({"shares": [1.0]}, r"shares must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    model, samples, data, _, _ = problem(CASES["weights"])
    with pytest.raises(ValueError, match=message):
        sparsify(model, samples, data, **options)


def test_a_model_by_hand_has_no_network():
    with pytest.raises(TypeError, match="what bayesianize returned"):
        sparsify(partial(print), {"w": torch.zeros(3)}, ())

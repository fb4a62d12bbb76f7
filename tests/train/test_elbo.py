"""The vectorised bound: its value, both its gradients, and what it refuses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoMultivariateNormal, AutoNormal

from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.train import elbo as elbo_module
from pyro_hypernet.train.elbo import VectorizedELBO
from tests import small_models as m
from tests.seeds import seed
from tests.train.conjugate import (
    affine_of,
    exact_evidence,
    exact_guide,
    exact_posterior,
    make_data,
    regression,
    set_exactly,
)

X, Y = make_data()
POSTERIOR, EVIDENCE = exact_posterior(X, Y), exact_evidence(X, Y)
PYRO_GUIDES = [AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal]


def off_optimum():
    """A Gaussian guide near the posterior, but not at it."""
    guide = AutoHypernet(regression, "linear").setup(X, Y)
    shifted = POSTERIOR.loc + 0.5 * POSTERIOR.variance.sqrt()
    set_exactly(guide, dist.MultivariateNormal(shifted, scale_tril=0.8 * POSTERIOR.scale_tril))
    return guide


def gradients(elbo, guide, repeats):
    """Draws of the gradient estimate over all parameters, shape `(repeats, number)`."""
    rows = []
    for _ in range(repeats):
        surrogate = elbo.estimate(regression, guide, X, Y).surrogate
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, list(guide.parameters()))]))
    return torch.stack(rows)


def assert_means_agree(rows, expected, expected_variance=0.0):
    """Each within five standard errors, which fails by chance once in 10^5 runs over a dozen numbers."""
    error = (rows.var(0) / len(rows) + expected_variance).sqrt()
    assert bool(((rows.mean(0) - expected).abs() <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("bound", ["elbo", "importance_weighted"])
def test_estimate_is_log_p_minus_log_q_by_hand(gradient, bound):
    guide = off_optimum()
    estimate = VectorizedELBO(6, gradient=gradient, bound=bound).estimate(regression, guide, X, Y)
    loc, matrix = (value.detach() for value in affine_of(guide))
    log_q = dist.MultivariateNormal(loc, scale_tril=matrix).log_prob(estimate.w)
    log_p = POSTERIOR.log_prob(estimate.w) + EVIDENCE
    torch.testing.assert_close(estimate.log_q, log_q)
    torch.testing.assert_close(estimate.log_p, log_p)
    weights = log_p - log_q
    expected = weights.mean() if bound == "elbo" else weights.exp().mean().log()
    torch.testing.assert_close(-estimate.loss, expected)


def test_loss_methods_agree():
    guide, elbo = off_optimum(), VectorizedELBO(5)
    elbo.loss(regression, guide, X, Y)  # the first call draws once more, to look for the model's params
    values = []
    for method in (elbo.loss, elbo.differentiable_loss, elbo.loss_and_grads):
        pyro.set_rng_seed(seed(3))
        loss = method(regression, guide, X, Y)
        values.append(loss.item() if isinstance(loss, torch.Tensor) else loss)
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0] == pytest.approx(values[2], rel=1e-12)
    stored = [parameter.grad for parameter in guide.parameters()]
    pyro.set_rng_seed(seed(3))
    fresh = torch.autograd.grad(elbo.differentiable_loss(regression, guide, X, Y), list(guide.parameters()))
    for a, b in zip(stored, fresh, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["graph", "eager", "loop"])
def test_every_mode_gives_the_same(mode):
    guide = off_optimum()
    pyro.set_rng_seed(seed(4))
    expected = VectorizedELBO(4).loss(regression, guide, X, Y)
    pyro.set_rng_seed(seed(4))
    assert VectorizedELBO(4, mode=mode).loss(regression, guide, X, Y) == pytest.approx(expected, rel=1e-12)


def test_at_the_posterior_the_path_gradient_is_zero_and_the_total_gradient_is_not():
    guide = exact_guide(X, Y)
    path = gradients(VectorizedELBO(2, gradient="path"), guide, 20)
    assert float(path.abs().max()) < 1e-9
    total = gradients(VectorizedELBO(2, gradient="total"), guide, 20)
    assert float(total.abs().max()) > 0.1
    assert VectorizedELBO(2).loss(regression, guide, X, Y) == pytest.approx(-EVIDENCE, abs=1e-9)


def test_importance_weighted_path_gradient_is_zero_at_the_posterior():
    elbo = VectorizedELBO(4, gradient="path", bound="importance_weighted")
    assert float(gradients(elbo, exact_guide(X, Y), 10).abs().max()) < 1e-9


@pytest.mark.parametrize("gradient", ["path", "total"])
def test_gradient_is_that_of_the_exact_elbo(gradient):
    guide = off_optimum()
    loc, matrix = affine_of(guide)
    kl = dist.kl.kl_divergence(dist.MultivariateNormal(loc, scale_tril=matrix), POSTERIOR)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(kl, list(guide.parameters()))])
    assert_means_agree(gradients(VectorizedELBO(200, gradient=gradient), guide, 100), expected)


def test_both_gradients_of_the_importance_weighted_bound_agree():
    guide = off_optimum()
    path, total = (
        gradients(VectorizedELBO(4, gradient=g, bound="importance_weighted"), guide, 800) for g in ("path", "total")
    )
    assert_means_agree(path, total.mean(0), total.var(0) / len(total))


def test_importance_weighted_bound_lies_between_elbo_and_evidence():
    guide = off_optimum()
    bounds = {}
    for bound in ("elbo", "importance_weighted"):
        pyro.set_rng_seed(seed(0))
        elbo = VectorizedELBO(8, bound=bound)
        bounds[bound] = torch.tensor([-elbo.loss(regression, guide, X, Y) for _ in range(200)])
    assert bool((bounds["importance_weighted"] > bounds["elbo"]).all())  # of the same draws, by Jensen
    tight = bounds["importance_weighted"]
    # Four standard errors: once in 30 000 runs by chance, were the bound itself the evidence.
    assert float(tight.mean()) < EVIDENCE + 4 * float(tight.std()) / 200**0.5


def test_auto_takes_the_path_gradient_where_the_inverse_is_cheap():
    elbo = VectorizedELBO()
    assert elbo.is_path(AutoHypernet(regression, "coupling").setup(X, Y))
    assert not elbo.is_path(AutoHypernet(regression, "iaf").setup(X, Y))
    mean_field = AutoDiagonalNormal(regression)
    mean_field(X, Y)
    assert not elbo.is_path(mean_field)


@pytest.mark.parametrize("bound", ["elbo", "importance_weighted"])
@pytest.mark.parametrize("make_guide", [AutoHypernet, *PYRO_GUIDES])
def test_gradient_of_the_models_own_params_is_that_of_the_bound(make_guide, bound):
    y = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.5, 0.5]])
    found = []
    for gradient in ("path", "total"):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed(1))
        guide = make_guide(m.with_param)
        guide(y)
        pyro.set_rng_seed(seed(2))
        elbo = VectorizedELBO(4, gradient=gradient, bound=bound)
        estimate = elbo.estimate(m.with_param, guide, y)
        leaf = pyro.param("noise").unconstrained()
        found.append(torch.autograd.grad(estimate.surrogate, leaf)[0])
    # By hand: the derivative of the bound of the draws at hand, the noise being exp(leaf).
    log_noise = leaf.detach().requires_grad_()
    likelihood = dist.Normal(estimate.w[:, None], log_noise.exp()).log_prob(y).sum((1, 2))
    log_p = likelihood + dist.Normal(0.0, 1.0).log_prob(estimate.w).sum(-1)
    weights = log_p - estimate.log_q
    value = weights.mean() if bound == "elbo" else weights.logsumexp(0)
    (expected,) = torch.autograd.grad(-value, log_noise)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", ["path", "total"])
def test_svi_learns_the_models_params(gradient):
    y = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.5, 0.5]])
    guide = AutoHypernet(m.with_param, "identity", "full")
    svi = SVI(m.with_param, guide, pyro.optim.Adam({"lr": 0.05}), VectorizedELBO(gradient=gradient))
    for _ in range(8):
        svi.step(y)
    # It starts at 2, and the data say less than 1: 1.34 to 1.36 in 20 seeds.
    assert float(pyro.param("noise").detach()) < 1.7


@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("make_guide", PYRO_GUIDES)
def test_bound_of_pyros_guides_is_evidence_minus_kl(make_guide, gradient):
    guide = make_guide(regression, init_scale=0.1)
    guide(X, Y)
    estimate = VectorizedELBO(20_000, gradient=gradient).estimate(regression, guide, X, Y)
    loc = guide.median(X, Y)["weight"].double()
    q = dist.MultivariateNormal(loc, scale_tril=0.1 * torch.eye(3, dtype=torch.float64))
    weights = estimate.log_p - estimate.log_q
    expected = EVIDENCE - float(dist.kl.kl_divergence(q, POSTERIOR))
    # Five standard errors: once in 10^6 runs by chance.
    assert abs(float(weights.mean()) - expected) < 5 * float(weights.std()) / 20_000**0.5
    found = torch.autograd.grad(estimate.surrogate, list(guide.parameters()))
    assert all(bool(g.abs().max() > 0) for g in found)


@pytest.mark.parametrize("make_guide", PYRO_GUIDES)
def test_pyros_guides_train_to_their_best(make_guide):
    guide = make_guide(regression)
    svi = SVI(regression, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.997}), VectorizedELBO(4, gradient="path"))
    for _ in range(1500):
        svi.step(X, Y)
    precision = POSTERIOR.precision_matrix
    gap = float((precision.diagonal().log().sum() - torch.logdet(precision)) / 2)  # KL of the best mean field
    best = EVIDENCE if make_guide is AutoMultivariateNormal else EVIDENCE - gap
    # The standard error of the estimate is below .02 nat.
    assert -VectorizedELBO(20_000).loss(regression, guide, X, Y) == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize(
    "options, start",
    [
        ({"num_particles": 0}, "num_particles must be a positive integer; got 0"),
        ({"num_particles": 2.0}, "num_particles must be a positive integer; got 2.0"),
        ({"gradient": "score"}, "gradient must be one of auto, path, total; got 'score'"),
        ({"bound": "chi"}, "bound must be one of elbo, importance_weighted; got 'chi'"),
        ({"mode": "fast"}, "mode must be one of graph, eager, loop; got 'fast'"),
    ],
)
def test_options(options, start):
    with pytest.raises(ValueError, match=f"^{start}"):
        VectorizedELBO(**options)


def test_guides_of_other_kinds():
    def plain(x, y):
        pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))

    guides = AutoGuideList(regression)
    guides.append(AutoNormal(regression))
    for guide in (plain, guides):
        with pytest.raises(TypeError, match="^VectorizedELBO needs an AutoHypernet or another AutoContinuous guide"):
            VectorizedELBO().loss(regression, guide, X, Y)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["guide alone", "with a parameter of the model's own"])
def test_many_steps_of_svi_are_captured_and_go_on_the_same(monkeypatch, case):
    monkeypatch.setattr(elbo_module, "_CAPTURE_AFTER", 4)
    model, args = (regression, (X, Y)) if case == "guide alone" else (m.with_param, (Y[:6].view(3, 2),))
    losses, captured = [], []
    for may_capture in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed(1))
        elbo = VectorizedELBO(4)
        elbo._may_capture = may_capture
        svi = SVI(model, AutoHypernet(model, "coupling", "full"), pyro.optim.Adam({"lr": 0.02}), elbo)
        losses.append([svi.step(*args) for _ in range(15)])
        captured.append(len(elbo._steps))
        if case != "guide alone":
            assert abs(float(pyro.param("noise").detach()) - 2.0) > 0.05
    assert captured == [0, 1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)

"""However a model is written, its density and gradient are those of Pyro, run draw by draw, with autograd."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_hypernet import AutoHypernet, HmcKernel, NutsKernel, bayesianize, fit, nuts, refine
from pyro_hypernet.model.density import LogJoint
from pyro_hypernet.model.layout import Layout

Y = torch.tensor([-1.0, -1.2, 1.0, 1.1, 0.9, -1.0, -0.8, 1.3])


def log_joint_of(model, *args):
    return LogJoint(model, Layout.from_trace(poutine.trace(model).get_trace(*args)))


def by_autograd(log_joint, w, *args):
    """Values and gradients, one draw at a time, without vmap and without a graph."""
    values, gradients = [], []
    for row in w:
        leaf = row.clone().requires_grad_()
        sites, log_det = log_joint.layout.constrain(leaf)
        conditioned = poutine.condition(log_joint.model, sites)
        with pyro.validation_enabled(False):
            value = poutine.trace(conditioned).get_trace(*args).log_prob_sum() + log_det
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, leaf)[0])
    return torch.stack(values), torch.stack(gradients)


def assert_as_by_autograd(log_joint, w, *args):
    """Three times: as it is first run, replayed, and differentiated by autograd."""
    expected, expected_gradient = by_autograd(log_joint, w, *args)
    for _ in range(2):
        value, gradient = log_joint.value_and_grad(w, *args)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(log_joint(w, *args), expected, rtol=1e-9, atol=1e-9)
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_joint(leaf, *args).sum(), leaf)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


class Double(torch.autograd.Function):
    """An old function, without `setup_context`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def hidden_markov(y):
    p = pyro.sample("p", dist.Dirichlet(y.new_full((2, 2), 2.0)).to_event(1))
    m = pyro.sample("m", dist.Normal(y.new_tensor([-1.0, 1.0]), 1.0).to_event(1))
    pyro.sample("y", dist.DiscreteHMM(y.new_zeros(2), p.log(), dist.Normal(m, 0.5)), obs=y)


def own_function(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(Double.apply(mean) / 2, 1.0), obs=y)


OLD_FUNCTIONS = {"DiscreteHMM": hidden_markov, "own function": own_function}


@pytest.mark.filterwarnings("ignore:The model cannot be vmapped:UserWarning")
@pytest.mark.parametrize("name", OLD_FUNCTIONS)
def test_old_autograd_functions_are_differentiated_by_autograd(name, double):
    log_joint = log_joint_of(OLD_FUNCTIONS[name], Y.double())
    assert_as_by_autograd(log_joint, 0.5 * torch.randn(3, log_joint.layout.dim), Y.double())
    assert log_joint.mode == "loop"


@pytest.mark.filterwarnings("ignore:The model cannot be vmapped:UserWarning")
@pytest.mark.filterwarnings("ignore:NUTS has not mixed:UserWarning", "ignore:The populations of:UserWarning")
def test_old_autograd_functions_go_through_fit_nuts_and_refine():
    result = fit(own_function, AutoHypernet(own_function), (Y,), num_steps=5, progress=False)
    assert math.isfinite(result.elbo)
    options = {"num_samples": 4, "warmup_steps": 4, "num_chains": 1, "kernel": NutsKernel(num_processes=1)}
    assert nuts(own_function, Y, **options).samples["mean"].shape == (4,)
    refined = refine(
        own_function,
        Y,
        num_samples=16,
        num_populations=2,
        num_moves=2,
        kernel=HmcKernel(num_leapfrogs=4),
        progress=False,
    )
    assert refined.samples["mean"].shape == (16,)


class Attend(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 1)

    def forward(self, x):
        h = self.inner(x, x, x)[0] if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x)
        return self.head(h.mean(1))


ATTENTION = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 1, enable_nested_tensor=False
    ),
}


@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_differentiated_whatever_ran_first(name, is_training, double):
    net = Attend(ATTENTION[name]()).train(is_training)
    x, y = torch.randn(6, 3, 4), torch.randn(6)
    log_joint = log_joint_of(bayesianize(net, "gaussian"), x, y)
    assert_as_by_autograd(log_joint, 0.5 * torch.randn(2, log_joint.layout.dim), x, y)
    assert log_joint.mode == "graph"


ENCODERS = [pytest.param(name, marks=pytest.mark.slow) for name in ATTENTION if name != "MultiheadAttention"]


@pytest.mark.parametrize("name", ["MultiheadAttention", *ENCODERS])
def test_attention_is_fitted(name):
    x, y = torch.randn(6, 3, 4), torch.randn(6)
    model = bayesianize(Attend(ATTENTION[name]()), "gaussian")
    result = fit(model, AutoHypernet(model), (x, y), num_steps=3, progress=False)
    assert math.isfinite(result.elbo)


def logits(u):
    return torch.stack([u, 0 * u, -u], -1)


def positive(u):
    return torch.stack([u.exp(), 1 + 0 * u, (-u).exp()], -1)


def covariance(u):
    return torch.eye(3) + u.exp()[..., None, None]


# A likelihood at a number u, for every distribution of Pyro's that has a sampler.
LIKELIHOODS = {
    "AffineBeta": lambda u: dist.AffineBeta(u.exp(), 2.0, 0.0, 2.0),
    "AsymmetricLaplace": lambda u: dist.AsymmetricLaplace(u, 1.0, 2.0),
    "Bernoulli": lambda u: dist.Bernoulli(logits=u),
    "Beta": lambda u: dist.Beta(u.exp(), 2.0),
    "BetaBinomial": lambda u: dist.BetaBinomial(u.exp(), 2.0, 10),
    "Binomial": lambda u: dist.Binomial(10, logits=u),
    "Binomial of probs": lambda u: dist.Binomial(10, u.sigmoid()),
    "Categorical": lambda u: dist.Categorical(logits=logits(u)),
    "Categorical of probs": lambda u: dist.Categorical(logits(u).softmax(-1)),
    "Cauchy": lambda u: dist.Cauchy(u, 1.0),
    "Chi2": lambda u: dist.Chi2(u.exp()),
    "CoalescentTimes": lambda u: dist.CoalescentTimes(torch.zeros(3)),
    "ContinuousBernoulli": lambda u: dist.ContinuousBernoulli(logits=u),
    "Delta": lambda u: dist.Delta(u),
    "Dirichlet": lambda u: dist.Dirichlet(positive(u)),
    "DirichletMultinomial": lambda u: dist.DirichletMultinomial(positive(u), 10),
    "Exponential": lambda u: dist.Exponential(u.exp()),
    "ExtendedBetaBinomial": lambda u: dist.ExtendedBetaBinomial(u.exp(), torch.tensor(2.0), torch.tensor(10)),
    "ExtendedBinomial": lambda u: dist.ExtendedBinomial(torch.tensor(10), logits=u),
    "FoldedDistribution": lambda u: dist.FoldedDistribution(dist.Normal(u, 1.0)),
    "Gamma": lambda u: dist.Gamma(u.exp(), 1.0),
    "GammaPoisson": lambda u: dist.GammaPoisson(u.exp(), 1.0),
    "Geometric": lambda u: dist.Geometric(logits=u),
    "Gumbel": lambda u: dist.Gumbel(u, 1.0),
    "HalfCauchy": lambda u: dist.HalfCauchy(u.exp()),
    "HalfNormal": lambda u: dist.HalfNormal(u.exp()),
    "InverseGamma": lambda u: dist.InverseGamma(u.exp(), 1.0),
    "Kumaraswamy": lambda u: dist.Kumaraswamy(u.exp(), 2.0),
    "LKJ": lambda u: dist.LKJ(3, u.exp()),
    "LKJCholesky": lambda u: dist.LKJCholesky(3, u.exp()),
    "Laplace": lambda u: dist.Laplace(u, 1.0),
    "LogNormal": lambda u: dist.LogNormal(u, 1.0),
    "Logistic": lambda u: dist.Logistic(u, 1.0),
    "LogisticNormal": lambda u: dist.LogisticNormal(logits(u)[..., :2], torch.ones(2)),
    "LowRankMultivariateNormal": lambda u: dist.LowRankMultivariateNormal(logits(u), torch.ones(3, 1), torch.ones(3)),
    "MaskedMixture": lambda u: dist.MaskedMixture(torch.tensor(True), dist.Normal(u, 1.0), dist.Normal(u, 2.0)),
    "MixtureOfDiagNormals": lambda u: dist.MixtureOfDiagNormals(
        torch.stack([u, -u])[..., None].expand(2, 3), torch.ones(2, 3), torch.zeros(2)
    ),
    "MixtureSameFamily": lambda u: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([u, -u], -1), 1.0)
    ),
    "Multinomial": lambda u: dist.Multinomial(10, logits=logits(u)),
    "Multinomial of probs": lambda u: dist.Multinomial(10, logits(u).softmax(-1)),
    "MultivariateNormal": lambda u: dist.MultivariateNormal(torch.zeros(3), covariance(u)),
    "MultivariateNormal of precision": lambda u: dist.MultivariateNormal(
        torch.zeros(3), precision_matrix=covariance(u)
    ),
    "MultivariateNormal of scale": lambda u: dist.MultivariateNormal(
        torch.zeros(3), scale_tril=torch.eye(3) * u.exp()[..., None, None]
    ),
    "MultivariateStudentT": lambda u: dist.MultivariateStudentT(torch.tensor(3.0), logits(u), torch.eye(3)),
    "NegativeBinomial": lambda u: dist.NegativeBinomial(3.0, logits=u),
    "Normal": lambda u: dist.Normal(u, 1.0),
    "OMTMultivariateNormal": lambda u: dist.OMTMultivariateNormal(
        torch.zeros(3), torch.eye(3) * u.exp()[..., None, None]
    ),
    "OneHotCategorical": lambda u: dist.OneHotCategorical(logits=logits(u)),
    "OrderedLogistic": lambda u: dist.OrderedLogistic(u, torch.tensor([-1.0, 0.0, 1.0])),
    "OrderedLogistic of cut points": lambda u: dist.OrderedLogistic(
        torch.zeros(()), torch.stack([u - 1, u, u + 1], -1)
    ),
    "Pareto": lambda u: dist.Pareto(torch.tensor(0.5), u.exp()),
    "Poisson": lambda u: dist.Poisson(u.exp()),
    "ProjectedNormal": lambda u: dist.ProjectedNormal(logits(u)),
    "RelaxedBernoulli": lambda u: dist.RelaxedBernoulli(torch.tensor(0.5), logits=u),
    "RelaxedOneHotCategorical": lambda u: dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits(u)),
    "SineBivariateVonMises": lambda u: dist.SineBivariateVonMises(
        u, 0 * u, torch.tensor(2.0), torch.tensor(2.0), correlation=torch.tensor(0.5)
    ),
    "SineSkewed": lambda u: dist.SineSkewed(
        dist.VonMises(u, torch.tensor(2.0)).expand((1,)).to_event(1), torch.tensor([0.1])
    ),
    "SkewLogistic": lambda u: dist.SkewLogistic(u, 1.0, 2.0),
    "SoftAsymmetricLaplace": lambda u: dist.SoftAsymmetricLaplace(u, 1.0, 2.0, 1.0),
    "SoftLaplace": lambda u: dist.SoftLaplace(u, 1.0),
    "StableWithLogProb": lambda u: dist.StableWithLogProb(torch.tensor(1.7), torch.tensor(0.1), torch.tensor(1.0), u),
    "StudentT": lambda u: dist.StudentT(u.exp(), 0.0, 1.0),
    "TransformedDistribution": lambda u: dist.TransformedDistribution(
        dist.Normal(u, 1.0), dist.transforms.SigmoidTransform()
    ),
    "TruncatedPolyaGamma": lambda u: dist.TruncatedPolyaGamma(u),
    "Uniform": lambda u: dist.Uniform(u - 9, u + 9.0),
    "VonMises": lambda u: dist.VonMises(u, u.exp()),
    "Weibull": lambda u: dist.Weibull(u.exp(), 1.0),
    "ZeroInflatedDistribution": lambda u: dist.ZeroInflatedDistribution(dist.Poisson(u.exp()), gate=torch.tensor(0.3)),
    "ZeroInflatedNegativeBinomial": lambda u: dist.ZeroInflatedNegativeBinomial(3.0, logits=u, gate=torch.tensor(0.3)),
    "ZeroInflatedPoisson": lambda u: dist.ZeroInflatedPoisson(torch.tensor(2.0), gate_logits=u),
}
# Their code asks for numbers: a sum over as many terms as the parameters say; a branch on a value.
NOT_CAPTURED = {"SineBivariateVonMises": "eager", "StableWithLogProb": "loop"}
QUICK = ("OrderedLogistic", "OrderedLogistic of cut points", "Multinomial", "Multinomial of probs", "StudentT")


@pytest.mark.filterwarnings("ignore:The model could not be captured:UserWarning")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LIKELIHOODS]
)
def test_no_likelihood_loops_where_torch_permits(name, double):
    make = LIKELIHOODS[name]

    def model(y):
        u = pyro.sample("u", dist.Normal(y.new_zeros(()), 1.0) if y.is_floating_point() else dist.Normal(0.0, 1.0))
        pyro.sample("y", make(u), obs=y)

    y = make(torch.tensor(0.3)).sample()
    with pyro.validation_enabled(False):
        log_joint = log_joint_of(model, y)
    w = torch.tensor([[-0.4], [0.3], [1.1]])
    if name == "StableWithLogProb":
        with pytest.warns(UserWarning, match="because of the distribution StableWithLogProb"):
            log_joint.value_and_grad(w, y)
        assert log_joint.mode == "loop"
        return
    assert_as_by_autograd(log_joint, w, y)
    assert log_joint.mode == NOT_CAPTURED.get(name, "graph")


def in_zeros(y):
    loc = torch.zeros(3)
    loc[1] = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def in_listed_numbers(y):
    loc = torch.tensor([0.5, 1.5, -0.5])
    loc[1:] += pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


def in_a_copy(y):
    whole = y.clone()
    whole[0] = pyro.sample("missing", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(whole.mean(), 1.0).expand([2]).to_event(1), obs=y[1:])


def where_a_mask_says(y):
    u = pyro.sample("u", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    loc = 2 * u
    loc[u < 0] = 0.0
    pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


WRITTEN_IN_PLACE = {f.__name__: f for f in (in_zeros, in_listed_numbers, in_a_copy, where_a_mask_says)}


@pytest.mark.parametrize("name", WRITTEN_IN_PLACE)
def test_what_is_written_in_place_is_vmapped_and_captured(name, double):
    y = torch.tensor([0.5, -1.0, 2.0])
    log_joint = log_joint_of(WRITTEN_IN_PLACE[name], y)
    assert_as_by_autograd(log_joint, torch.randn(4, log_joint.layout.dim), y)
    assert log_joint.mode == "graph"

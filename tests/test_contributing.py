"""What CONTRIBUTING.md shows works: each piece is one definition and one line of a dict or a list."""

import re
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch
from torch import nn

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from pyro_hypernet import AutoHypernet, bayesianize, diagnose, fit
from pyro_hypernet.bnn import likelihoods as likelihoods_module
from pyro_hypernet.evaluation import checks as checks_module
from pyro_hypernet.informed import structures as structures_module
from pyro_hypernet.maps import bijection as bijection_module
from pyro_hypernet.output import plots as plots_module
from tests import small_models as m
from tests.evaluation.conjugate import Y, guide_of_width
from tests.seeds import seed
from tests.small_models import one_weight

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
# Where each section's definition belongs: it is run there, with what that file imports.
SECTIONS = {
    "A map": bijection_module,
    "A structure": structures_module,
    "A likelihood": likelihoods_module,
    "A check of a diagnosis": checks_module,
    "A plot": plots_module,
}


def shown(section):
    """What the section's piece defines, run in the module that it is written for; at most ten lines."""
    body = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", body, flags=re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10, section
    names = dict(vars(SECTIONS[section]))
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    (name,) = re.findall(r"^(?:class|def) (\w+)", code, flags=re.M)
    return names[name]


def test_a_map(double):
    bijection, x = shown("A map")(), torch.randn(5, 3)
    y, log_det = bijection.forward_and_log_det(x)
    back, log_det_back = bijection.inverse_and_log_det(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    jacobian = torch.func.jacrev(lambda v: bijection.forward_and_log_det(v)[0])(x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[0])


def test_a_structure(monkeypatch):
    monkeypatch.setitem(structures_module.STRUCTURES, "first_site", shown("A structure"))
    guide = AutoHypernet(m.linear, structure="first_site").setup(*m.linear_data())
    assert guide.plan.structure == "first_site"
    assert "structure first_site." in guide.describe()
    draws = guide.sample_posterior(5)
    assert bool(guide.log_prob(draws).isfinite().all())


def test_a_likelihood(monkeypatch):
    monkeypatch.setitem(likelihoods_module.LIKELIHOODS, "laplace", shown("A likelihood"))
    model = bayesianize(nn.Linear(2, 1), likelihood="laplace")
    x, y = m.linear_data()
    assert type(pyro.poutine.trace(model).get_trace(x, y).nodes["y"]["fn"]).__name__ == "Laplace"
    fit(model, AutoHypernet(model), (x, y), num_steps=5, progress=False)
    with pytest.raises(ValueError, match="needs a network with one output; it has 2"):
        bayesianize(nn.Linear(2, 2), likelihood="laplace")(x, y)


def test_a_check():
    checks_module.CHECKS.append(shown("A check of a diagnosis"))
    try:
        pyro.set_rng_seed(seed())
        found = diagnose(one_weight, guide_of_width(1.0), Y, num_samples=100, max_seconds=0)
    finally:
        checks_module.CHECKS.pop()
    (number,) = [check for check in found.checks if check.name == "number"]
    assert number.level == "doubtful"


def test_a_plot():
    draw, (_, ax) = shown("A plot"), plt.subplots()
    assert draw(torch.randn(9), ax=ax) is ax
    assert ax.lines
    assert draw(torch.randn(9)).figure is not ax.figure
    plt.close("all")

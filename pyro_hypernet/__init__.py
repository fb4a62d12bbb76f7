"""Bayesian hypernetworks for Pyro."""

from pyro_hypernet.bnn import bayesianize
from pyro_hypernet.evaluation.compare import compare
from pyro_hypernet.evaluation.diagnostics import khat
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.guide import AutoHypernet
from pyro_hypernet.inference.checkpoint import load, save
from pyro_hypernet.inference.elbo import VectorizedELBO
from pyro_hypernet.inference.fit import Fit, fit
from pyro_hypernet.inference.nuts import Nuts, nuts
from pyro_hypernet.inference.refine import Refined, refine
from pyro_hypernet.modes import init_to_map
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.priors import fan_in

__all__ = [
    "AutoHypernet",
    "Fit",
    "Nuts",
    "Refined",
    "VectorizedELBO",
    "bayesianize",
    "compare",
    "fan_in",
    "fit",
    "init_to_map",
    "khat",
    "load",
    "nuts",
    "predict",
    "refine",
    "save",
    "to_arviz",
]

"""Bayesian hypernetworks for Pyro."""

from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.parameters import weights_of
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.bnn.shrinkage import ard, horseshoe
from pyro_hypernet.calibration.sbc import sbc
from pyro_hypernet.correction.distill import Distilled, distill
from pyro_hypernet.correction.langevin import SghmcKernel
from pyro_hypernet.correction.metropolis import metropolis
from pyro_hypernet.correction.microcanonical import Microcanonical, MicrocanonicalKernel, microcanonical
from pyro_hypernet.correction.move import Moved, move
from pyro_hypernet.correction.move_by_minibatch import MovedByMinibatch, move_by_minibatch
from pyro_hypernet.correction.resample import resample
from pyro_hypernet.evaluation.choice import ModelChoice, choose_model
from pyro_hypernet.evaluation.compare import compare
from pyro_hypernet.evaluation.convergence import fits_agree
from pyro_hypernet.evaluation.diagnose import diagnose
from pyro_hypernet.evaluation.importance import khat
from pyro_hypernet.evaluation.loo import loo
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.evaluation.score import Score, score
from pyro_hypernet.evaluation.sparsify import Sparse, sparsify
from pyro_hypernet.evaluation.stacking import Stacked, stack
from pyro_hypernet.evaluation.temperature import TemperatureChoice, choose_temperature
from pyro_hypernet.evaluation.verdict import Check, Diagnosis
from pyro_hypernet.guide.auto_hypernet import AutoHypernet
from pyro_hypernet.guide.checkpoint import load, save
from pyro_hypernet.guide.guide_mixture import GuideMixture
from pyro_hypernet.guide.plan import Plan
from pyro_hypernet.infer import infer
from pyro_hypernet.model.modes import init_to_map
from pyro_hypernet.output.arviz import to_arviz
from pyro_hypernet.output.forest import forest
from pyro_hypernet.output.report import report
from pyro_hypernet.pipeline.posterior import Posterior
from pyro_hypernet.sample.nuts import Nuts, NutsKernel, nuts
from pyro_hypernet.sample.refine import HmcKernel, Refined, refine
from pyro_hypernet.train.elbo import VectorizedELBO
from pyro_hypernet.train.fit import Fit, best_start, fit
from pyro_hypernet.train.optimiser import Optim
from pyro_hypernet.train.resume import Checkpoint

__version__ = "0.2.0"

__all__ = [
    "AutoHypernet",
    "Check",
    "Checkpoint",
    "Diagnosis",
    "Distilled",
    "Fit",
    "GuideMixture",
    "HmcKernel",
    "Microcanonical",
    "MicrocanonicalKernel",
    "ModelChoice",
    "Moved",
    "MovedByMinibatch",
    "Nuts",
    "NutsKernel",
    "Optim",
    "Plan",
    "Posterior",
    "Refined",
    "Score",
    "SghmcKernel",
    "Sparse",
    "Stacked",
    "TemperatureChoice",
    "VectorizedELBO",
    "ard",
    "bayesianize",
    "best_start",
    "choose_model",
    "choose_temperature",
    "compare",
    "diagnose",
    "distill",
    "fan_in",
    "fit",
    "fits_agree",
    "forest",
    "horseshoe",
    "infer",
    "init_to_map",
    "khat",
    "load",
    "loo",
    "metropolis",
    "microcanonical",
    "move",
    "move_by_minibatch",
    "nuts",
    "predict",
    "refine",
    "report",
    "resample",
    "save",
    "sbc",
    "score",
    "sparsify",
    "stack",
    "to_arviz",
    "weights_of",
]

"""Bayesian deep ensembles by scikit-learn-contrib's bde as its paper has them, run by an interpreter that has it.

    PYTHON benchmarks/tabular_bde.py FILE.npz SEED MEMBERS WARMUP DRAWS

FILE holds x, y and x_new; the means and standard deviations of all draws, shape `(S, N)`, are written back to it.
"""

import sys

import numpy as np
from bde import BdeRegressor
from bde.loss.loss import GaussianNLL

path, seed, members, warmup, num_draws = sys.argv[1], *map(int, sys.argv[2:])
data = np.load(path)
regressor = BdeRegressor(
    n_members=members,
    hidden_layers=[16, 16, 16, 16],
    loss=GaussianNLL(),
    epochs=1200,
    validation_split=0.15,
    lr=1e-3,
    weight_decay=1e-4,
    warmup_steps=warmup,
    n_samples=num_draws,
    n_thinning=10,
    patience=20,
    seed=seed,
)
regressor.fit(data["x"], data["y"])
raw = np.asarray(regressor.predict(data["x_new"], raw=True))
raw = raw.reshape(-1, *raw.shape[2:])
np.savez(path, means=raw[..., 0], sds=np.logaddexp(raw[..., 1], 0) + 1e-6)

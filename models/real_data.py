"""Small tanh networks on the real data that scikit-learn carries: wine and diabetes."""

from typing import Any

import torch

from models.networks import tanh_network
from models.problem import Problem
from pyro_hypernet.bnn.bayesianize import bayesianize
from pyro_hypernet.bnn.priors import fan_in
from pyro_hypernet.tables.tabular import Table, split


def wine() -> Problem:
    """Three classes of wine by 13 measurements, 178 rows: a 13→8→3 network.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    data = _datasets().load_wine()
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target).long()
    table = Table(x, y, tuple(data.feature_names), "class", tuple(map(str, data.target_names)))
    model = bayesianize(tanh_network(13, 8, 3), "categorical", prior=fan_in(gain=1.5))
    return _problem("wine", "Three classes, real data, more weights than rows.", model, table)


def diabetes() -> Problem:
    """Progression of diabetes by 10 measurements, 442 rows: a 10→10→1 network with learnt noise, as in the demo.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    data = _datasets().load_diabetes(scaled=False)
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target)
    table = Table(x, y, tuple(data.feature_names), "progression", ())
    model = bayesianize(tanh_network(10, 10, 1), "gaussian", prior=fan_in(gain=1.5))
    return _problem("diabetes", "Noisy regression on real data, the model of the demo.", model, table)


def _problem(name: str, description: str, model: Any, table: Table) -> Problem:
    """Holds out a quarter of the rows."""
    data = split(table, test_share=0.25, seed=0)
    return Problem(
        name=name,
        description=description,
        model=model,
        args=(data.x_train, data.y_train),
        x_test=data.x_test,
        y_test=data.y_test,
    )


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("This problem needs scikit-learn for its data: pip install 'pyro-hypernet[cli]'.") from error
    return datasets

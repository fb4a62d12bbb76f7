"""HypernetRegressor and HypernetClassifier in their default budget against scikit-learn's estimators.

python benchmarks/estimators.py [--quick]

Every line is one fit of one estimator on one split, three quarters to fit; finished lines are kept and not done again.
All clocks, that of the budget too, run by CPU time of the process, so that what else the machine does counts nothing.
"""

import argparse
import json
import time
import warnings

time.perf_counter = time.process_time  # before the package reads it

import numpy as np  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_diabetes, make_friedman1  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor  # noqa: E402
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor  # noqa: E402
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from timing import RESULTS, keep, kept, table  # noqa: E402

from pyro_hypernet.sklearn import HypernetClassifier, HypernetRegressor  # noqa: E402

DATA = {
    "friedman1, 1 333 × 10": lambda: make_friedman1(1333, 10, noise=1.0, random_state=0),  # 1 000 of them to fit
    "diabetes": lambda: load_diabetes(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
}
OURS = "pyro_hypernet"
REGRESSORS = {
    OURS: lambda seed: HypernetRegressor(random_state=seed),
    "MLP": lambda seed: MLPRegressor(early_stopping=True, max_iter=2000, random_state=seed),
    "Gaussian process": lambda seed: GaussianProcessRegressor(
        ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True, random_state=seed
    ),
    "gradient boosting": lambda seed: HistGradientBoostingRegressor(early_stopping=True, random_state=seed),
}
CLASSIFIERS = {
    OURS: lambda seed: HypernetClassifier(random_state=seed),
    "MLP": lambda seed: MLPClassifier(early_stopping=True, max_iter=2000, random_state=seed),
    "Gaussian process": lambda seed: GaussianProcessClassifier(ConstantKernel() * RBF(), random_state=seed),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(early_stopping=True, random_state=seed),
}
_NOTE = (
    "Means over the splits, with standard errors. Error: RMSE in units of y, or the share classified wrongly. Log "
    "density of held-out rows, nats a row. MLP and boosting regressors have no density: theirs is normal, with the "
    "deviation of their errors on a fifth of the training rows held out for that. All but ours get standardised inputs "
    "by a pipeline, and boosting needs none. Seconds are CPU time."
)


def split_of(name: str, number: int) -> list[np.ndarray]:
    """Inputs to fit and held out, and targets likewise."""
    X, y = DATA[name]()
    return train_test_split(X, y, test_size=0.25, random_state=number)


def look(name: str, who: str, number: int) -> dict:
    """One fit, and its figures on the held-out rows."""
    X, X_held, y, y_held = split_of(name, number)
    is_regression = y.dtype.kind == "f"
    make = (REGRESSORS if is_regression else CLASSIFIERS)[who]

    def fitted(X: np.ndarray, y: np.ndarray):
        return (make(number) if who == OURS else make_pipeline(StandardScaler(), make(number))).fit(X, y)

    start = time.process_time()
    model = fitted(X, y)
    line = {"data": name, "who": who, "split": number, "seconds": time.process_time() - start}
    if not is_regression:
        p = model.predict_proba(X_held)
        density = np.log(np.clip(p[np.arange(len(p)), y_held], 1e-15, 1))
        line |= {"error": float((p.argmax(1) != y_held).mean()), "log_density": float(density.mean())}
    else:
        mean, std = spread_of(model, who, fitted, X, y, X_held)
        density = -((y_held - mean) ** 2) / (2 * std**2) - np.log(std) - np.log(2 * np.pi) / 2
        density = model.score_samples(X_held, y_held) if who == OURS else density
        error = np.sqrt(((y_held - mean) ** 2).mean())
        line |= {"error": float(error), "log_density": float(density.mean())}
    if who == OURS:
        line |= {"verdict": model.posterior_.verdict, "source": model.posterior_.source, "log": model.posterior_.log}
    return line


def spread_of(model, who: str, fitted, X: np.ndarray, y: np.ndarray, X_held: np.ndarray) -> tuple:
    """Mean and standard deviation of the predictions, the latter by rows held out where the model has none."""
    if who in (OURS, "Gaussian process"):
        return model.predict(X_held, return_std=True)
    X_part, X_rest, y_part, y_rest = train_test_split(X, y, test_size=0.2, random_state=0)
    return model.predict(X_held), np.sqrt(((fitted(X_part, y_part).predict(X_rest) - y_rest) ** 2).mean())


def spelt(values: list[float]) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3g} ± {error:.2g}"


def main() -> None:
    """Fits what is not there yet, and writes the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one split, nothing kept")
    parser.add_argument("--data", choices=DATA, help="one data set alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    path = RESULTS / "estimators.jsonl"
    lines = [] if options.quick else kept("estimators")
    done = {(line["data"], line["who"], line["split"]) for line in lines}
    for number in range(1 if options.quick else 3):
        for name in [options.data] if options.data else DATA:
            for who in REGRESSORS:
                if (name, who, number) not in done:
                    lines.append(look(name, who, number))
                    print(lines[-1], flush=True)
                    if not options.quick:
                        with path.open("a") as file:
                            file.write(json.dumps(lines[-1]) + "\n")
    lines = lines if options.quick else kept("estimators")
    rows = []
    for name in DATA:
        for who in REGRESSORS:
            found = [line for line in lines if (line["data"], line["who"]) == (name, who)]
            if found:
                figures = [spelt([line[key] for line in found]) for key in ("log_density", "error", "seconds")]
                rows.append([name, who, len(found), *figures])
    headings = ["data", "estimator", "splits", "log density", "error", "CPU seconds of a fit"]
    text = f"{_NOTE}\n\nMade by estimators.py.\n\n{table(headings, rows)}"
    keep("estimators", sorted(lines, key=lambda line: (line["data"], line["split"])), text, quick=options.quick)


if __name__ == "__main__":
    main()

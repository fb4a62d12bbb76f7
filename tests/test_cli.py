"""The command line does its job on small data, and answers bad input with one line and exit code 2."""

import warnings

import numpy as np
import pytest

from pyro_hypernet.cli import main, read_diabetes
from pyro_hypernet.evaluation.psis import import_module_quietly
from tests.seeds import seed

QUICK = ["--budget", "1 second", "--steps", "40", "--hidden", "2", "--nuts-draws", "12"]
QUICK += ["--seed", str(seed())]


def write_csv(path, classes, header="a,b,y"):
    generator = np.random.default_rng(seed(0))
    x = generator.normal(size=(60, 2))
    score = x[:, 0] - x[:, 1] + 0.3 * generator.normal(size=60)
    target = score if classes is None else np.array(classes)[np.digitize(score, np.linspace(-1, 1, len(classes) - 1))]
    lines = [header, *(f"{row[0]:.4f},{row[1]:.4f},{t}" for row, t in zip(x, target, strict=True))]
    path.write_text("\n".join(lines))
    return path


pytestmark = pytest.mark.filterwarnings("ignore:NUTS has not mixed")


# Names that are formulas to matplotlib and markup to browsers.
BAD_CLASSES, BAD_HEADER = ["$no_{", "<b>yes</b>"], "$cost_{ & <i>,b,<script>"


@pytest.mark.parametrize(
    ("classes", "header"),
    [(None, "a,b,y"), (BAD_CLASSES, BAD_HEADER), (["low", "mid", "high"], "a,b,y")],
    ids=["regression", "two", "three"],
)
def test_fit_writes_its_files(tmp_path, classes, header, capsys):
    path = write_csv(tmp_path / "data.csv", classes, header)
    target = header.split(",")[-1]
    assert main(["fit", str(path), "--target", target, "--out", str(tmp_path / "out"), *QUICK]) == 0
    printed = capsys.readouterr().out
    for name in (
        "AutoHypernet",
        "AutoNormal",
        "AutoMultivariateNormal",
        "NUTS",
        "ELBO",
        "k-hat",
        "W1 over floor",
        "Verdict",
    ):
        assert name in printed
    assert ("test RMSE" in printed) == (classes is None)
    files = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert set(files) == {
        "posterior.nc",
        "guide.safetensors",
        "table.txt",
        "log.txt",
        "predictive.png",
        "posterior.png",
        "report.html",
        "report.json",
    }
    assert all(files.values())
    _check_report(tmp_path / "out", classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = set(import_module_quietly("arviz").from_netcdf(str(tmp_path / "out" / "posterior.nc")).groups())
    assert {"posterior", "posterior_predictive", "log_likelihood", "observed_data"} <= groups


def _check_report(out, classes):
    """The page says what was fitted, and the folder alone makes it again."""
    page = (out / "report.html").read_text()
    for text in (
        "60 rows, 45 to fit and 15 held out",
        "AutoMultivariateNormal",
        "NUTS",
        "noise floor",
        "up to symmetry",
    ):
        assert text in page
    assert page.count("<img ") == 8
    assert not any(tag in page for tag in ("<script", "<i>", "<b>"))
    assert ("Reliability" in page) == (classes is not None)
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


def test_report_of_a_bad_folder_ends_with_code_2(tmp_path, capsys):
    for folder, message in ((tmp_path, "holds no report.json"), (tmp_path / "nowhere", "There is no folder")):
        assert main(["report", str(folder)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1


def test_the_demo_has_its_data():
    table = read_diabetes()
    assert table.x.shape == (442, 10)
    assert table.task == "regression"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "is empty"),
        (lambda text: text.replace("a,b,y\n", "1,2,3\n"), "holds only numbers"),
        (lambda text: "\n".join(text.splitlines()[:8]), "The file has 7 rows"),
        (lambda text: text.replace("\n", "\nred,1,1\n", 1), "holds text, 'red' in line 2"),
        (lambda text: text.replace("\n", "\n,1,1\n", 1), "missing values, the first in line 2"),
    ],
)
def test_bad_files_end_with_code_2(tmp_path, change, message, capsys):
    path = write_csv(tmp_path / "data.csv", None)
    path.write_text(change(path.read_text()))
    assert main(["fit", str(path), "--target", "y", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyro-hypernet: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["fit", "nowhere.csv", "--target", "y", "--out", "o"], "There is no file nowhere.csv"),
        (["demo", "--out", "o", "--steps", "0"], "--steps must be at least 1"),
        (["demo", "--out", "o", "--budget", "soon"], "budget must be a positive number of seconds"),
        (["demo", "--out", "o", "--nuts-draws", "2"], "--nuts-draws must be at least 10"),
    ],
)
def test_bad_options_end_with_code_2(tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path, capsys):
    path = write_csv(tmp_path / "data.csv", None)
    assert main(["fit", str(path), "--target", "y", "--out", str(path)]) == 2
    assert "--out must be a folder" in capsys.readouterr().err

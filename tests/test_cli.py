"""The command line does its job on small data, and answers bad input with one line and exit code 2."""

import sys
import warnings

import numpy as np
import pytest
import torch

from pyro_hypernet.cli import main
from pyro_hypernet.evaluation.predict import predict
from pyro_hypernet.evaluation.psis import import_module_quietly
from pyro_hypernet.pipeline.budget import Clock, Cost
from pyro_hypernet.pipeline.forecast import Forecast
from pyro_hypernet.pipeline.posterior import Task
from pyro_hypernet.tables.tabular import Table, read_cells, read_diabetes
from tests.seeds import seed
from tests.test_tabular import CSV

QUICK = ["--budget", "20 minutes", "--steps", "40", "--hidden", "2", "--nuts-draws", "12"]
QUICK += ["--seed", str(seed()), "--engine", "guide"]  # which engine is cheaper depends on the machine


def write_csv(path, classes, header="a,b,y"):
    generator = np.random.default_rng(seed(0))
    x = generator.normal(size=(60, 2))
    score = x[:, 0] - x[:, 1] + 0.3 * generator.normal(size=60)
    target = score if classes is None else np.array(classes)[np.digitize(score, np.linspace(-1, 1, len(classes) - 1))]
    lines = [header, *(f"{row[0]:.4f},{row[1]:.4f},{t}" for row, t in zip(x, target, strict=True))]
    path.write_text("\n".join(lines))
    return path


pytestmark = pytest.mark.filterwarnings("ignore:NUTS has not mixed")


@pytest.fixture(autouse=True)
def no_mending(monkeypatch):
    """The budget is ample, so that no plan depends on the machine; what would use it up is left out."""
    monkeypatch.setattr(Forecast, "looking_seconds", lambda self: 0.0)
    monkeypatch.setattr(Forecast, "can_choose", lambda self, number: False)
    monkeypatch.setattr(Forecast, "weights", lambda self, most=0: 1000)
    monkeypatch.setattr(sys.modules["pyro_hypernet.infer"], "_mend", lambda *given: given[-1])


# Names that are formulas to matplotlib and markup to browsers.
BAD_CLASSES, BAD_HEADER = ["$no_{", "<b>yes</b>"], "$cost_{ & <i>,b,<script>"


@pytest.mark.parametrize(
    ("classes", "header"),
    [(BAD_CLASSES, BAD_HEADER), (["low", "mid", "high"], "a,b,y")],
    ids=["two", "three"],
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
    assert "test accuracy" in printed
    files = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert set(files) == {
        "posterior.nc",
        "guide.safetensors",
        "table.txt",
        "log.txt",
        "predictive.png",
        "posterior.png",
        "predictor.joblib",
        "report.html",
        "report.json",
    }
    assert all(files.values())
    _check_report(tmp_path / "out", classes)
    predicted = tmp_path / "predicted.csv"
    assert main(["predict", str(tmp_path / "out"), str(path), "--out", str(predicted)]) == 0
    _check_predictions(read_cells(predicted)[0], target, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = set(import_module_quietly("arviz").from_netcdf(str(tmp_path / "out" / "posterior.nc")).groups())
    assert {"posterior", "posterior_predictive", "log_likelihood", "observed_data"} <= groups


def test_a_real_table_is_fitted_and_another_predicted(tmp_path, monkeypatch, capsys):
    """Without a target or a folder named; words, missing values, ids; then the same columns with what is new."""
    monkeypatch.chdir(tmp_path)
    lines = write_csv(tmp_path / "homes.csv", None).read_text().splitlines()
    towns = ["town", *(["Oslo", "Moss", ""][i % 3] for i in range(60))]
    ids = ["id", *(f"A{i}" for i in range(60))]
    table = [",".join(cells) for cells in zip(ids, towns, lines, strict=True)]
    table[4] = f"A3,Oslo,,{lines[4].split(',', 1)[1]}"
    (tmp_path / "homes.csv").write_text("\n".join(table))
    (tmp_path / "homes-results").mkdir()  # not to be written over
    assert main(["fit", "homes.csv", *QUICK]) == 0
    printed = capsys.readouterr().out
    for note in (
        "the last column, 'y'",
        "'id': left out",
        "1 missing value filled in",
        "20 missing values taken as a word",
    ):
        assert note in printed
    assert "open homes-results-2/report.html" in printed
    assert "test RMSE" in printed
    _check_report(tmp_path / "homes-results-2", None)
    page = (tmp_path / "homes-results-2" / "report.html").read_text()
    for text in ("What became of the columns", "1 missing value filled in", "a, b, a = missing, town = Moss"):
        assert text in page
    (tmp_path / "new.csv").write_text("town,b,a\nOslo,1,\nParis,0.5,2\n")
    assert main(["predict", "homes-results-2", "new.csv"]) == 0
    assert "'town' has words that were not learnt from, 'Paris'" in capsys.readouterr().out
    predicted = (tmp_path / "new-predicted.csv").read_text().splitlines()
    assert predicted[0] == "town,b,a,predicted y,predicted y sd,predicted y 5%,predicted y 95%"
    mean, sd, low, high = map(float, predicted[1].split(",")[3:])
    assert low < mean < high
    assert sd > 0
    (tmp_path / "new.csv").write_text("b,a\n1,2\n")
    assert main(["predict", "homes-results-2", "new.csv"]) == 2
    assert "it lacks 'town'" in capsys.readouterr().err
    assert main(["predict", ".", "new.csv"]) == 2
    assert "holds no predictor.joblib" in capsys.readouterr().err


def test_an_exact_engine_has_the_guide_beside_it(tmp_path, capsys):
    path = write_csv(tmp_path / "data.csv", None)
    options = ["--target", "y", "--out", str(tmp_path / "out"), *QUICK[:-1], "refine"]
    assert main(["fit", str(path), *options]) == 0
    printed = capsys.readouterr().out
    assert "AutoHypernet, refined" in printed
    assert "for comparison" in printed
    assert "No guide was needed" in printed
    assert (tmp_path / "out" / "guide.safetensors").stat().st_size > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "carried from the prior by refine" in page
    assert page.count("<img ") == 6  # no training and no weights of a guide


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


def _check_predictions(predicted, target, classes):
    assert set(predicted[f"predicted {target}"]) <= set(classes)
    probability = predicted[[f"P({target} = {name})" for name in classes]].astype(float)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-5)


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
        (lambda text: text.replace("\n", "\nred,1,1\n1,red,1\n", 1), "Column 'b' holds text, 'red' in line 3"),
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


@pytest.mark.parametrize("budget", ["5 seconds", "1 minute"])
def test_a_budget_that_cannot_hold_is_refused_before_any_work(tmp_path, monkeypatch, budget, capsys):
    monkeypatch.setattr("pyro_hypernet.jobs.job.price_of_a_run", lambda *_: Cost(0.0, 0.05))
    path = write_csv(tmp_path / "data.csv", None)
    options = ["--target", "y", "--out", str(tmp_path / "out"), "--budget", budget]
    assert main(["fit", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert "is too short: the density of 45 rows takes about 50 ms a draw" in error
    assert "Give --budget 7100 or more, or fewer rows" in error


def test_a_budget_that_nobody_asked_for_grows_on_a_slow_machine(monkeypatch):
    """588 s are needed: the default of 180 becomes 360, then 720."""
    job = sys.modules["pyro_hypernet.jobs.job"]
    monkeypatch.setattr(job, "price_of_a_run", lambda *_: Cost(0.0, 0.005))
    monkeypatch.setattr(job, "_infer", lambda task, options: (task.clock.budget, ""))
    lines, args = [], (torch.zeros(45, 2), torch.zeros(45))
    task = Task(None, args, {}, Clock(job.DEFAULT_BUDGET), 1000, lines.append)
    grown, seconds = job._begin(task, job.Options())
    assert seconds == grown.clock.budget == 720
    assert lines[-1] == "This machine is too slow for 360 s; the budget is 720 s"
    with pytest.raises(ValueError, match="The budget of 180 s is too short"):
        job._begin(task, job.Options(budget=180))


def test_what_infer_refuses_is_said_of_the_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyro_hypernet.pipeline.forecast._price_of_a_step", lambda *_: Cost(0.0, 100.0))
    path = write_csv(tmp_path / "data.csv", None)
    assert main(["fit", str(path), "--target", "y", "--out", str(tmp_path / "out"), "--budget", "100 seconds"]) == 2
    error = capsys.readouterr().err
    assert "Of --budget 42% are for the first guide: give 2.4 times what is asked for here." in error
    assert "The budget of 42 s is too short" in error


def test_little_time_gives_fewer_steps_and_draws_and_says_so(monkeypatch):
    """Without time each of Pyro's guides takes four steps, and NUTS four draws of every chain."""
    job = sys.modules["pyro_hypernet.jobs.job"]
    monkeypatch.setattr(job, "_GUIDE", 1e-9)
    monkeypatch.setattr(job, "_NUTS", 1e-9)
    lines, table = [], read_diabetes()
    small = Table(table.x[:60, :2], table.y[:60], ("a", "b"), "y", ())
    options = job.Options(num_steps=20, budget="20 minutes", hidden=2, nuts_draws=50)
    result = job.run(small, options, say=lines.append, progress=False)
    _check_estimator(result, small)
    assert result.posteriors["NUTS"].diverging.shape == (2, 4)
    for name in ("AutoNormal", "AutoMultivariateNormal"):
        assert any(line.startswith(f"{name}: 4 steps of 20, for want of time") for line in lines)
    assert any("2 chains of 50 + 50, 4 of them kept for want of time" in line for line in lines)


def _check_estimator(result, table):
    """What is kept of a job predicts as its draws do, in the units of the table."""
    mean = predict(result.model, result.posterior, result.data.x_test)["f"][..., 0].mean(0)
    y = table.y[result.data.rows]
    predicted = torch.from_numpy(result.estimator.predict(result.data.x_test.numpy()))
    torch.testing.assert_close(predicted.double(), mean.double() * y.std() + y.mean(), rtol=1e-4, atol=1e-3)


def test_notes_on_the_table_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pyro_hypernet.jobs.job.price_of_a_run", lambda *_: Cost(0.0, 0.05))
    (tmp_path / "t.csv").write_text(CSV["a row number without a name"][0])
    main(["fit", str(tmp_path / "t.csv"), "--target", "y", "--out", str(tmp_path / "out"), "--budget", "1 s"])
    assert "note: column 'Unnamed: 0': left out, for it has no name and numbers the rows" in capsys.readouterr().out

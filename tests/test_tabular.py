"""Tables that can be learnt from are read; all others get a clear word."""

import numpy as np
import pytest
import torch

from pyro_hypernet.tabular import read_csv, split
from tests.seeds import seed


def write(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def rows():
    generator = np.random.default_rng(seed(0))
    return [[*generator.normal(size=2).round(3), round(generator.normal(), 3)] for _ in range(40)]


HEADER = ["a", "b", "y"]


def test_regression(tmp_path, rows):
    table = read_csv(write(tmp_path / "t.csv", HEADER, rows), "y")
    assert table.task == "regression"
    assert table.features == ("a", "b")
    torch.testing.assert_close(table.x, torch.tensor([row[:2] for row in rows], dtype=torch.float64))
    torch.testing.assert_close(table.y, torch.tensor([row[2] for row in rows], dtype=torch.float64))


@pytest.mark.parametrize("labels", [("no", "yes"), ("0", "1"), ("a", "b", "c")])
def test_classes_are_found(tmp_path, rows, labels):
    path = write(tmp_path / "t.csv", HEADER, [[*row[:2], labels[i % len(labels)]] for i, row in enumerate(rows)])
    table = read_csv(path, "y")
    assert table.classes == labels
    assert table.y.tolist() == [i % len(labels) for i in range(len(rows))]


def test_task_can_be_forced(tmp_path, rows):
    path = write(tmp_path / "t.csv", HEADER, [[*row[:2], i % 3] for i, row in enumerate(rows)])
    assert read_csv(path, "y").task == "regression"
    assert read_csv(path, "y", "classification").classes == ("0", "1", "2")


def test_byte_order_mark_and_spaces(tmp_path, rows):
    path = write(tmp_path / "t.csv", ["\ufeffa", " b", " y "], rows)
    assert read_csv(path, "y").features == ("a", "b")


def test_split_standardises_by_the_training_part(tmp_path, rows):
    data = split(read_csv(write(tmp_path / "t.csv", HEADER, rows), "y"), seed=seed(3))
    assert len(data.x_train) == 30
    assert len(data.x_test) == 10
    torch.testing.assert_close(data.x_train.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.x_train.std(0), torch.ones(2))
    torch.testing.assert_close(data.y_train.std(), torch.tensor(1.0))
    again = split(read_csv(tmp_path / "t.csv", "y"), seed=seed(3))
    torch.testing.assert_close(again.x_test, data.x_test)


@pytest.mark.parametrize(
    "header, change, message",
    [
        (["1", "2", "3"], lambda r: r, "No column is named 'y'|The first line"),
        (["a", "a", "y"], lambda r: r, "Column names must differ; 'a' stands more than once"),
        (HEADER, lambda r: [["", *r[0][1:]], *r[1:]], "Column 'a' has 1 missing values, the first in line 2"),
        (HEADER, lambda r: [*r[:3], [1.0, "NA", 2.0], *r[4:]], "Column 'b' has 1 missing values, the first in line 5"),
        (HEADER, lambda r: [[7, *row[1:]] for row in r], "Column 'a' has the same value, 7, in all rows"),
        (HEADER, lambda r: [["red", *row[1:]] for row in r], "Column 'a' holds text, 'red' in line 2"),
        (HEADER, lambda r: [*r[:-1], ["inf", 1.0, 2.0]], "Column 'a' holds text, 'inf' in line 41"),
        (HEADER, lambda r: [[*row[:2], "yes"] for row in r], "Target 'y' has the one class 'yes'"),
        (HEADER, lambda r: [[*row[:2], f"c{i}"] for i, row in enumerate(r)], "Target 'y' has 40 classes in 40 rows"),
        (HEADER, lambda r: r[:7], "The file has 7 rows; at least 20 are needed"),
        (HEADER, lambda r: [*r[:5], [1.0, 2.0], *r[5:]], "Line 7 has 2 cells; the header has 3 columns"),
        (["a", "b", "z"], lambda r: r, "No column is named 'y'; the columns are a, b, z"),
    ],
)
def test_errors(tmp_path, rows, header, change, message):
    with pytest.raises(ValueError, match=message):
        read_csv(write(tmp_path / "t.csv", header, change(rows)), "y")


def test_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_csv(tmp_path / "none.csv", "y")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is empty"):
        read_csv(tmp_path / "empty.csv", "y")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00a\x93")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        read_csv(tmp_path / "binary.csv", "y")
    write(tmp_path / "alone.csv", ["y"], [[i] for i in range(30)])
    with pytest.raises(ValueError, match="The file has the column 'y' alone"):
        read_csv(tmp_path / "alone.csv", "y")
    with pytest.raises(ValueError, match="task must be one of regression, classification; got 'guess'"):
        read_csv(tmp_path / "alone.csv", "y", "guess")

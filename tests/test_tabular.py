"""Tables that can be learnt from are read; all others get a clear word."""

import numpy as np
import pytest
import torch

from pyro_hypernet.tables.tabular import Table, read_cells, read_csv, split
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
        (HEADER, lambda r: [["red", *r[0][1:]], *r[1:]], "Column 'a' holds text, 'red' in line 2, where"),
        (
            HEADER,
            lambda r: [[7, "x", row[2]] for row in r],
            "No column is left to predict from: 'a' is left out, for it",
        ),
        (HEADER, lambda r: [*r[:-1], ["inf", 1.0, 2.0]], "Column 'a' holds text, 'inf' in line 41"),
        (HEADER, lambda r: [[*row[:2], "yes"] for row in r], "Target 'y' has the one class 'yes'"),
        (HEADER, lambda r: [[*row[:2], f"c{i}"] for i, row in enumerate(r)], "Target 'y' has 40 classes in 40 rows"),
        (HEADER, lambda r: r[:7], "The file has 7 rows; at least 20 are needed"),
        (HEADER, lambda r: [*r[:5], [1.0, 2.0], *r[5:]], "Line 7 has 2 cells; the header has 3 columns"),
        (
            HEADER,
            lambda r: [row[:2] for row in r],
            "Lines 2, 3, 4, 5, 6, 7, 8, 9 and 32 more have 2 cells; the header has 3",
        ),
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


NUMBERS = np.random.default_rng(seed()).normal(size=(60, 2)).round(3)


def lines_of(header, *columns, separator=","):
    """A file of 60 rows; a column is a function of the row's number, of `a` and of `b`."""
    rows = [[str(column(i, a, b)) for column in columns] for i, (a, b) in enumerate(NUMBERS)]
    return "\n".join([header, *(separator.join(row) for row in rows)]) + "\n"


def a(i, a, b):
    return a


def b(i, a, b):
    return b


def blank_lines(text):
    lines = text.split("\n")
    for place in (30, 12, 4, 1):
        lines.insert(place, "")
    return "\n".join(lines)


# Classes, features, words of a note; or the words of an error. The target is the last column.
CSV = {
    "ids with underscores are text": (
        lines_of("id,b,y", lambda i, *_: f"{i // 10}_{i % 10}", b, a),
        (),
        ("b",),
        "'id': left out, for it has 60 different words and none in 5 rows or more, such as '0_0'",
    ),
    "words": (
        lines_of("a,city,y", a, lambda i, *_: ("Oslo", "Moss", "Bergen")[i % 3] if i > 1 else f"rare {i}", b),
        (),
        ("a", "city = Bergen", "city = Moss", "city = Oslo", "city = rarer ones"),
        "'city': words; an input of 0 and 1 for each of 3, one for the 2 rarer ones",
    ),
    "more words than inputs": (
        lines_of("a,city,y", a, lambda i, *_: "abcdefghijkl"[i % 12], b).replace("\n", "\n1,a,1\n" * 21, 1),
        (),
        ("a", *(f"city = {word}" for word in "abcdefghijkl")),
        "an input of 0 and 1 for each of 12",
    ),
    "missing words": (
        lines_of("a,city,y", a, lambda i, *_: ("Oslo", "", "NA", "Moss")[i % 4], b),
        (),
        ("a", "city = Moss", "city = Oslo", "city = missing"),
        "'city': words; an input of 0 and 1 for each of 3; 30 missing values taken as a word",
    ),
    "missing numbers": (
        lines_of("a,b,y", lambda i, a, _: ("", "-", "none", "?")[i] if i < 4 else a, b, a),
        (),
        ("a", "b", "a = missing"),
        "'a': numbers; 4 missing values filled in by the median, ",
    ),
    "one value, or none": (
        lines_of("a,flag,y", a, lambda i, *_: "1" if i % 2 else "", b),
        (),
        ("a", "flag = missing"),
        "'flag': numbers; 30 missing values filled in by the median, 1, and marked",
    ),
    "missing truth": (
        lines_of("a,flag,y", a, lambda i, *_: ("True", "False", "")[i % 3], b),
        (),
        ("a", "flag", "flag = missing"),
        "'flag': numbers; 20 missing values filled in",
    ),
    "one value in all rows": (lines_of("a,k,y", a, lambda *_: "x", b), (), ("a",), "the same value, x, in all rows"),
    "a named column that is empty": (
        lines_of("a,k,y", a, lambda *_: "NA", b),
        (),
        ("a",),
        "'k': left out, for it is empty",
    ),
    "dates": (lines_of("a,t,y", a, lambda i, *_: f"2024-01-{i % 28 + 1:02d}", b), (), ("a",), "days since the first"),
    "dates with points": (lines_of("a,t,y", a, lambda i, *_: f"{i % 28 + 1}.1.24", b), (), ("a",), "'t': left out"),
    "times": (lines_of("a,t,y", a, lambda i, *_: f"{i % 12 + 1}:30", b), (), ("a",), "dates or times, such as '1:30'"),
    "a missing target": (
        lines_of("a,b,y", a, b, lambda i, a, _: "" if i in (3, 9) else a),
        (),
        ("a", "b"),
        "2 rows have no 'y', the first in line 5, and were left out.",
    ),
    "one missing target": (
        lines_of("a,b,y", a, b, lambda i, a, _: "NA" if i == 3 else a),
        (),
        ("a", "b"),
        "1 row has no 'y', the first in line 5, and was left out.",
    ),
    "text in a target of numbers": (
        lines_of("a,b,y", a, b, lambda i, a, _: "bad" if i == 9 else a),
        "Column 'y' holds text, 'bad' in line 11",
    ),
    "lines after blank ones": (
        blank_lines(lines_of("a,b,y", lambda i, a, _: "oops" if i == 20 else a, b, a)),
        "Column 'a' holds text, 'oops' in line 25",  # 22nd line of the file, and three blank lines before it
    ),
    "lines after breaks in quotes": (
        lines_of("a,b,y", lambda i, a, _: "oops" if i == 20 else a, b, lambda i, *_: f'"x\n{i % 2}"'),
        "Column 'a' holds text, 'oops' in line 42",
    ),
    "a row that is too long": (
        lines_of("a,b,y", a, b, lambda i, *_: "1,2,3" if i == 9 else i % 7),
        "Line 11 has 5 cells; the header has 3 columns",
    ),
    "a row that is too short": (
        lines_of("a,b,y", a, b, a).replace("\n", "\n\n1.5,2.5\n", 1),
        "Line 3 has 2 cells; the header has 3 columns",
    ),
    "a quotation mark left open": (lines_of("a,b,y", lambda i, a, _: f'"{a}' if i == 9 else a, b, a), "quotation mark"),
    "one value in nearly all rows of a target": (
        lines_of("a,b,y", a, b, lambda i, *_: {7: 5.0, 50: 5.01}.get(i, 0)),
        "Target 'y' has one and the same value in 58 of 60 rows",
    ),
    "a rare column of 0 and 1": (lines_of("a,rare,y", a, lambda i, *_: int(i == 3), b), (), ("a", "rare"), ""),
    "a row number without a name": (
        lines_of(",a,b,y", lambda i, *_: i, a, b, lambda i, *_: "pos" if i >= 30 else "neg"),
        ("neg", "pos"),
        ("a", "b"),
        "'Unnamed: 0': left out, for it has no name and numbers the rows",
    ),
    "the row numbers of a subset, shuffled": (
        lines_of("Unnamed: 0,a,b,y", lambda i, *_: 7 * i % 61, a, b, b),
        (),
        ("a", "b"),
        "'Unnamed: 0': left out, for it has no name",
    ),
    "a column without a name that is none": (lines_of(",b,y", a, b, a), "A column has no name"),
    "an empty last column, as spreadsheets write it": (
        lines_of("a,b,y,", a, b, a, lambda *_: ""),
        (),
        ("a", "b"),
        "",
    ),
    "a named row number": (lines_of("id,a,y", lambda i, *_: i + 1, a, b), (), ("id", "a"), "counts the rows"),
    "a class called none": (
        lines_of("a,b,y", a, b, lambda i, *_: ("none", "mild", "severe")[i % 3]),
        ("mild", "none", "severe"),
        ("a", "b"),
        "",
    ),
    "classes that differ in case": (
        lines_of("a,b,y", a, b, lambda i, *_: ("Yes", "yes", "NO", "no", "no", "yes")[i % 6]),
        ("no", "yes"),
        ("a", "b"),
        "'Yes', 'yes' were taken for one class",
    ),
    "classes that are the same number": (
        lines_of("a,b,y", a, b, lambda i, *_: ("1", "1.0", "1", "2")[i % 4]),
        ("1", "2"),
        ("a", "b"),
        "'1', '1.0' were taken for one class",
    ),
    "semicolons and decimal commas": (
        lines_of("a;b;y", a, b, b, separator=";").replace(".", ","),
        (),
        ("a", "b"),
        "decimal commas",
    ),
    "semicolons and decimal points": (lines_of("a;b;y", a, b, b, separator=";"), (), ("a", "b"), ""),
    "tabs": (lines_of("a\tb\ty", a, b, b, separator="\t"), (), ("a", "b"), ""),
    "commas and points in numbers": (
        lines_of("a;b;y", lambda i, a, _: "1,5" if i == 3 else a, b, b, separator=";"),
        "Column 'a' holds text, '1,5' in line 5",
    ),
    "decimal commas in quotes": (
        lines_of("a,b,y", lambda i, a, _: f'"{i},5"' if i < 3 else i, b, b),
        "decimal commas are read in files",
    ),
    "inputs of True and False": (
        lines_of("flag,b,y", lambda i, a, _: a > 0, b, b),
        (),
        ("flag", "b"),
        "",
    ),
    "numbers of other scripts": (lines_of("a,b,y", lambda i, a, _: "\u0661" if i == 0 else a, b, b), "holds text"),
    "no numbers at all in the header": (lines_of("1.5,2.5,y", a, b, b).replace("y", "3"), "a header is needed"),
}


@pytest.mark.parametrize("case", CSV.values(), ids=CSV.keys())
def test_every_file_is_read_or_gets_a_word(tmp_path, case):
    """The law: a table whose every cut can be learnt from, or an error; what was changed stands in a note."""
    text, *expected = case
    (tmp_path / "t.csv").write_text(text)
    if len(expected) == 1:
        with pytest.raises(ValueError) as caught:
            read_csv(tmp_path / "t.csv", "y")
        assert expected[0] in str(caught.value)
        return
    classes, features, note = expected
    table = read_csv(tmp_path / "t.csv", "y")
    assert (table.classes, table.features) == (classes, features)
    told = [*table.notes, *(f"{name!r}: {fate}" for name, fate in table.encoder.fates.items() if fate)]
    assert note in " ".join(told)
    assert bool(told) == bool(note)
    for cut in range(200):  # no cut makes numbers of what cannot be divided
        parts = split(table, seed=seed(cut))
        assert all(bool(part.isfinite().all()) for part in (parts.x_train, parts.y_train, parts.x_test, parts.y_test))


def test_values_of_true_false_and_decimal_commas(tmp_path):
    (tmp_path / "t.csv").write_text(CSV["inputs of True and False"][0])
    assert read_csv(tmp_path / "t.csv", "y").x[:, 0].tolist() == (NUMBERS[:, 0] > 0).astype(float).tolist()
    (tmp_path / "t.csv").write_text(CSV["semicolons and decimal commas"][0])
    assert read_csv(tmp_path / "t.csv", "y").y.tolist() == NUMBERS[:, 1].tolist()


def test_a_target_that_varies_in_the_held_out_rows_alone_is_no_number_to_divide_by():
    y = torch.zeros(60, dtype=torch.float64)
    y[torch.from_numpy(np.random.default_rng(seed()).permutation(60))[:15]] = torch.arange(15.0, dtype=torch.float64)
    data = split(Table(torch.from_numpy(NUMBERS), y, ("a", "b"), "y", ()), seed=seed())
    assert data.y_train.tolist() == [0.0] * 45
    assert bool(data.y_test.isfinite().all())


def test_the_last_column_is_the_target_unless_one_is_named(tmp_path, rows):
    path = write(tmp_path / "t.csv", HEADER, rows)
    table = read_csv(path)
    assert (table.target, table.features) == ("y", ("a", "b"))
    assert table.notes == ("No target was named: it is the last column, 'y'.",)
    assert read_csv(path, drop=["y"]).target == "b"
    assert read_csv(path, "y", drop=["a"]).features == ("b",)
    for target, drop, message in (
        ("y", ["y"], "must be another column"),
        ("y", ["c", "d"], "No column is named 'c', 'd'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_csv(path, target, drop=drop)


def test_all_faults_are_told_at_once(tmp_path):
    lines = lines_of(
        "a,,b,y", lambda i, a, _: "oops" if i == 3 else a, lambda i, *_: f"q{i}", lambda i, a, b: b, lambda *_: 1
    )
    (tmp_path / "t.csv").write_text(lines.replace("\n1", "\n?", 1))
    with pytest.raises(ValueError) as caught:
        read_csv(tmp_path / "t.csv", "y")
    first, *faults = str(caught.value).splitlines()
    assert first == "The table has 3 faults:"
    for fault, part in zip(faults, ("'oops' in line 5", "A column has no name", "has the one class"), strict=True):
        assert part in fault


def test_another_table_becomes_the_same_inputs(tmp_path):
    """The law of an encoder: columns in any order and among others; what is new is filled in, or told."""
    (tmp_path / "t.csv").write_text(CSV["words"][0])
    encoder = read_csv(tmp_path / "t.csv", "y").encoder
    (tmp_path / "new.csv").write_text("more,city,a\nx,Oslo,1\nx,Paris,\nx,,2\n")
    inputs, notes = encoder(read_cells(tmp_path / "new.csv")[0])
    median = float(np.median(NUMBERS[:, 0]))
    assert inputs.tolist() == [[1, 0, 0, 1, 0], [median, 0, 0, 0, 1], [2, 0, 0, 0, 1]]
    assert notes == ["Column 'city' has words that were not learnt from, 'Paris', 'missing': taken as rare words."]
    for text, message in {"city,b\nOslo,1\n": "it lacks 'a' and has", "city,a\nOslo,x\n": "'x' in line 2"}.items():
        (tmp_path / "new.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            encoder(read_cells(tmp_path / "new.csv")[0])


def test_every_class_is_learnt_from(tmp_path):
    """Of three classes two have one row each, which some cuts would hold out."""
    y = torch.tensor([0] * 58 + [1, 2])
    table = Table(torch.from_numpy(NUMBERS), y, ("a", "b"), "y", ("a", "b", "c"))
    for cut in range(20):
        data = split(table, seed=seed(cut))
        assert set(data.y_train.tolist()) == {0, 1, 2}
        assert len(data.y_train) + len(data.y_test) == 60

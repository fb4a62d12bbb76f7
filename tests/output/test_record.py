"""A record comes back from its file as it was, and a bad folder is told apart from a bad file."""

import json
from dataclasses import replace

import pytest

from pyro_hypernet.output.record import FILE_NAME, Record, read_record, write_record, write_whole
from tests.output.records import RECORD


@pytest.mark.parametrize("record", [RECORD, Record("a", "b", ())], ids=["full", "empty"])
def test_what_is_written_is_read(tmp_path, record):
    path = write_record(record, tmp_path / "new")
    assert path.name == FILE_NAME
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    # repr, for NaN differs from itself
    assert repr(read_record(tmp_path / "new")) == repr(record)


def test_writing_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    write_record(RECORD, tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / FILE_NAME, "half")
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bad_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no report\.json"):
        read_record(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; a folder"):
        read_record(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "is cut short or no JSON"),
        (lambda text: "[]", "was not written by"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "has version 2; this library reads version 1"),
        (lambda text: text.replace('"title"', '"titel"'), "is damaged: KeyError"),
        (lambda text: text.replace('"level": "bad"', '"level": "worse"'), "is damaged: ValueError"),
        (lambda text: text.replace('"verdict": "refine it"', '"verdict": "maybe"'), "verdict must be one of"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
    path = write_record(RECORD, tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path)


def test_no_verdict_is_no_error(tmp_path):
    write_record(replace(RECORD, verdict="", because="", diagnosis=None), tmp_path)
    assert read_record(tmp_path).verdict == ""

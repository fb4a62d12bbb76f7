"""Long work goes on where it was cut off."""

import pytest

from pyro_hypernet.calibration.journal import Journal


def test_parts_outlive_the_process(tmp_path):
    path = tmp_path / "folder" / "parts.jsonl"
    Journal(path, {"seed": 0}).add({"index": 3, "value": 1.5})
    assert Journal(path, {"seed": 0}).lines == {3: {"index": 3, "value": 1.5}}


def test_a_line_cut_short_is_done_again(tmp_path):
    path = tmp_path / "parts.jsonl"
    journal = Journal(path, {"seed": 0})
    journal.add({"index": 0, "value": 1.0})
    path.write_text(path.read_text() + '{"index": 1, "val')
    again = Journal(path, {"seed": 0})
    assert set(again.lines) == {0}
    again.add({"index": 1, "value": 2.0})
    assert set(Journal(path, {"seed": 0}).lines) == {0, 1}


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "parts.jsonl"
    Journal(path, {"seed": 0})
    with pytest.raises(ValueError, match="was made with other settings"):
        Journal(path, {"seed": 1})
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="is no file of sbc"):
        Journal(path, {"seed": 0})
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="is no file of JSON lines"):
        Journal(path, {"seed": 0})


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Journal(None, {}).add({"index": 0})
    assert not list(tmp_path.iterdir())

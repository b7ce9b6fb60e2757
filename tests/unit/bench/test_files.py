"""Files are written completely or not at all."""

from pathlib import Path

import pytest

from pressgauge.bench.files import write_files


def test_files_are_put_into_a_new_or_an_old_folder(tmp_path: Path) -> None:
    """Files are written to a new or existing folder, without other changes or remnants."""
    folder = tmp_path / "out"
    write_files(folder, {"a": "1"})
    write_files(folder, {"a": "2", "b": "\u00b5"})
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {"a": "2", "b": "\u00b5"}
    write_files(folder, {"b": "3"})
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {"a": "2", "b": "3"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_while_writing_changes_nothing(tmp_path: Path) -> None:
    """If a later file fails, no earlier file is put in place."""
    (tmp_path / "a").write_text("1", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        write_files(tmp_path, {"a": "2", "no/folder": "3"})
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("a", "1")]

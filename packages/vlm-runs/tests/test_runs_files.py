"""Files that are there whole, or not at all."""

import pytest

from vlm_runs.files import whole, write_whole


def test_what_is_written_replaces_what_was_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "one\r\nü\n")
    assert path.read_bytes() == "one\r\nü\n".encode()
    write_whole(path, b"\x00two")
    assert path.read_bytes() == b"\x00two"
    assert [one.name for one in path.parent.iterdir()] == ["file.txt"]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    write_whole(path, "before")
    with pytest.raises(ValueError, match="no more"), whole(path) as partial:
        partial.write_text("half of")
        raise ValueError("no more")
    assert path.read_text() == "before"

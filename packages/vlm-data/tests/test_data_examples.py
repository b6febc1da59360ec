"""The example of a source of one's own runs."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_source.py"


def test_a_custom_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "captions.txt:5: " in capsys.readouterr().out and len(EXAMPLE.read_text().splitlines()) <= 40
    assert names["rows"]["references"][:2] == [["a red square", "something red"], ["a blue square"]]
    assert len(names["train"]) + len(names["validation"]) == 3

"""The examples run, and learn."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_learns(example, tmp_path, monkeypatch, capsys):
    if "transformers" in example.read_text():
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    before, after = map(float, re.search(r"([\d.]+) → ([\d.]+)", capsys.readouterr().out).groups())
    assert after > before + 0.3 if "accuracy" in example.read_text() else after < before / 2
    assert len(example.read_text().splitlines()) <= 40 and list(tmp_path.rglob("adapter_model.safetensors"))

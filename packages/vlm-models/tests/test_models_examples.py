"""The example of a new chat family runs; it compares itself with the class's own forward pass."""

import runpy
from pathlib import Path

from vlm_models.load import FAMILIES

EXAMPLE = Path(__file__).parent.parent / "examples" / "new_chat_family.py"


def test_a_new_chat_family(capsys):
    known = dict(FAMILIES)
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)
    assert "14 linear layers for LoRA" in capsys.readouterr().out and len(EXAMPLE.read_text().splitlines()) <= 40

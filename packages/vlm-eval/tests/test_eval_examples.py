"""The example of a metric of one's own runs, and its numbers are those of a calculation by hand."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_metric.py"


def test_a_custom_metric(capsys):
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert names["one"].per_sample[:4] == pytest.approx([1, 1 - 1 / 6, 0, 1])
    assert names["other"].per_sample[:4] == pytest.approx([0.5, 1 - 2 / 6, 1, 1 - 1 / 3.5])
    low, high = names["one"].interval
    assert low < names["one"].value == pytest.approx((3 - 1 / 6) / 4) and names["one"].value < high
    assert "count_accuracy|slack:0.5|refs:1" in capsys.readouterr().out
    assert len(EXAMPLE.read_text().splitlines()) <= 40

"""Relaxed accuracy: what counts as a number, and how far it may be off."""

import pytest

from vlm_eval import relaxed_accuracy


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("-105", "-100", True),
        ("105", "-100", False),
        ("12%", "0.12", True),
        ("12 %", "12%", True),
        ("12%", "12", False),
        ("1e2", "100", True),
        ("0.0", "0", False),  # 0 is compared as text
        ("0", "0", True),
        ("0", "1", False),
        (" Blue ", "blue", True),
        ("blue", "red", False),
        ("100 apples", "100", False),
        ("nan", "NaN", True),
        ("nan", "1", False),
        ("inf", "inf", True),
        ("1e999", "5", False),
        ("", "", True),
        ("%", "%", True),
    ],
)
def test_which_answers_are_right(prediction, reference, right):
    assert relaxed_accuracy([prediction], [reference]).value == right


def test_any_reference_will_do_and_the_tolerance_is_an_option():
    score = relaxed_accuracy(["110", "x", "7"], [["1", "100"], "y", "7"], tolerance=0.1)
    assert score.per_sample == [1.0, 0.0, 1.0]
    assert score.details == {"correct": 2}
    assert score.signature == "relaxed_accuracy|tolerance:0.1|refs:1-2|bs:1000|seed:0"
    assert relaxed_accuracy(["110"], [["100", "1"]], tolerance=0.09).value == 0


@pytest.mark.parametrize("tolerance", [-0.1, float("nan")])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    with pytest.raises(ValueError, match="a relative distance is at least 0"):
        relaxed_accuracy(["1"], ["1"], tolerance)

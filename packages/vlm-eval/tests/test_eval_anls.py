"""ANLS against the recursive definition of the edit distance, and its threshold."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_eval import anls

TEXTS = st.text("ab c", max_size=8)


@cache
def distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_equal_to_the_definition(prediction, references, threshold):
    prediction_form, *forms = (" ".join(text.split()) for text in (prediction, *references))
    nearest = max(1 - distance(prediction_form, form) / max(len(prediction_form), len(form), 1) for form in forms)
    assert anls([prediction], [references], threshold).value == (nearest if nearest >= threshold else 0)
    assert anls([prediction], [references[::-1]], threshold) == anls([prediction], [references], threshold)


def test_case_and_blanks_do_not_count_and_the_threshold_itself_does():
    score = anls(["  Main\nStreet ", "ab", "abc", ""], ["main street", "ax", "axy", ["x", ""]])
    assert score.per_sample == [1.0, 0.5, 0.0, 1.0]
    assert score.details == {"above_threshold": 3}
    assert score.signature == "anls|threshold:0.5|norm:lower|refs:1-2|bs:1000|seed:0"


def test_a_threshold_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="threshold=50: a similarity lies between 0 and 1"):
        anls(["a"], ["a"], 50)

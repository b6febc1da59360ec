"""Exact match: what each normalisation makes equal, and invariances."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_eval import exact_match

WORDS = st.sampled_from(["red", "Red", " red", "Red.", "the red", "2", "two", ""])
ROWS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("prediction", "reference", "equal_in"),
    [
        ("red", "red", {"raw", "lower", "vqa"}),
        ("Red", "red", {"lower", "vqa"}),
        (" light \n red", "light red", {"lower", "vqa"}),
        ("Red.", "red", {"vqa"}),
        ("two", "2", {"vqa"}),
        ("the dog", "dog", {"vqa"}),
        ("dont", "don't", {"vqa"}),
        ("", " ", {"lower", "vqa"}),
        ("red", "blue", set()),
    ],
)
def test_what_each_normalisation_makes_equal(prediction, reference, equal_in):
    modes = {mode for mode in ("raw", "lower", "vqa") if exact_match([prediction], [reference], mode).value}
    assert modes == equal_in


def test_lower_is_the_default_and_the_signature_says_so():
    score = exact_match(["Red", "Red.", "dog"], [["red"], ["red"], ["cat", "DOG"]])
    assert score.per_sample == [1.0, 0.0, 1.0]
    assert score.value == 2 / 3
    assert score.details == {"correct": 2}
    assert score.signature == "exact_match|norm:lower|refs:1-2|bs:1000|seed:0"


@settings(deadline=None)
@given(ROWS, st.randoms())
def test_order_of_references_and_rows_never_matters(rows, random):
    score = exact_match(*zip(*rows, strict=True))
    assert exact_match(*zip(*[(p, random.sample(r, len(r))) for p, r in rows], strict=True)) == score
    shuffled = exact_match(*zip(*random.sample(rows, len(rows)), strict=True))
    assert (shuffled.value, shuffled.interval) == (score.value, score.interval)
    assert sorted(shuffled.per_sample) == sorted(score.per_sample)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalize='upper' is unknown: choose one of raw, lower, vqa"):
        exact_match(["a"], ["a"], "upper")

"""The documented rules of the caption tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_eval.tokenize import tokenize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man riding a wave.", "a man riding a wave"),
        ("Two dogs, one cat; and: a bird!", "two dogs one cat and a bird"),
        ("a dog's ball isn't here, they'll say I'm late", "a dog 's ball is n't here they 'll say i 'm late"),
        ("you cannot don’t", "you can not do n't"),
        ("a black-and-white t-shirt - on the and/or", "a black-and-white t-shirt on the and/or"),
        ("1,000 men at 10:30 with 3.5 or 1/2", "1,000 men at 10:30 with 3.5 or 1/2"),
        ("the U.S. team at five o'clock", "the u.s. team at five o'clock"),
        ("a sign (left) [x] {y}", "a sign -lrb- left -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
        ('"stop" “go” ... … -- kids\'', "stop go kids"),
        ("50% of $5 & #1", "50 % of $ 5 & # 1"),
        ("café\nat\u2028night", "café at night"),
        ("", ""),
        ("...?!", ""),
    ],
)
def test_documented_rules(text, expected):
    assert tokenize(text) == expected.split()


PLAIN = "A dog's Surfboard t-shirt isn't (red) 10:30 and, \"stop\" 1,000 they're; u.s. sit/stand 5% o'clock"


@settings(deadline=None)
@given(st.lists(st.sampled_from(PLAIN.split()), max_size=12))
def test_words_apart_are_tokenised_apart(words):
    assert tokenize(" ".join(words)) == [token for word in words for token in tokenize(word)]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_tokens_are_lower_case_without_blanks(text):
    for token in tokenize(text):
        assert token
        assert token == token.lower()
        assert len(token.split()) == 1

"""What a model writes, as questions with one-word answers."""

import pytest

from vlm_data.generate.questions import FormatError, checked
from vlm_data.generate.replies import pairs_in


@pytest.mark.parametrize(
    "reply",
    [
        '[{"question": "Is it red?", "answer": "yes"}, {"question": "How many legs?", "answer": 4}]',
        'Sure!\n```\n[{"question": "Is it red?", "answer": "yes"}, {"question": "How many legs?", "answer": 4}]\n```',
        '{"pairs": [{"question": "Is it red?", "answer": "yes"}, {"question": "How many legs?", "answer": 4}]}',
        "Question: Is it red?\nAnswer: yes\n\nQuestion: How many legs?\nAnswer: 4",
        "1. **Question:** Is it red?\n   **Answer:** yes\n2. **Question:** How many legs?\n   **Answer:** 4",
        "Here are two.\n- Q1: Is it red?\n\n- A1: yes\n- Q2: How many legs?\n- A2: 4\nAnswer: stray",
    ],
)
def test_the_pairs_of_a_reply(reply):
    assert [(question, str(answer)) for question, answer in pairs_in(reply)] == [
        ("Is it red?", "yes"),
        ("How many legs?", "4"),
    ]


@pytest.mark.parametrize("reply", ["", "I cannot see an image.", "[]", "[1, 2]", "{" * 10_000, "Question: a?"])
def test_a_reply_without_pairs(reply):
    with pytest.raises(FormatError, match="reply without pairs"):
        pairs_in(reply)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What color is it?", " Red. ", ("red", "color")),
        ("How many legs are there?", 4, ("4", "count")),
        ("Is it made of wood?", "No", ("no", "yes/no")),
        ("What is it made of?", "wood", ("wood", "material")),
        ("What shape is the top?", "T-shape", ("t-shape", "shape")),
        ("What is on the table?", "vase", ("vase", "other")),
        ("What color is it?", "dark red", "answer of several words"),
        ("What color is it?", "...", "empty answer"),
        ("What color is it?", None, "not texts"),
        ("Is it red?", True, "not texts"),
        ("Rectangular What shape is the table?", "square", "not a question"),
        ("Describe the table.", "brown", "not a question"),
        ("What?", "brown", "not a question"),
    ],
)
def test_questions_and_answers_are_checked(question, answer, expected):
    if isinstance(expected, str):
        with pytest.raises(FormatError, match=expected):
            checked("a.jpg", question, answer)
    else:
        one = checked("a.jpg", question, answer)
        assert (one.answer, one.question_type) == expected

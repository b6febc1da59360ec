"""Every metric refuses the same wrong inputs, naming the row."""

import numpy as np
import pytest

from vlm_eval import bert_score, bleu, exact_match, vqa_accuracy


def bert(predictions, references):
    return bert_score(predictions, references, model="no-such-folder")


METRICS = pytest.mark.parametrize("metric", [exact_match, vqa_accuracy, bleu, bert])
WRONG = [
    (["a", "b"], ["a"], ValueError, "2 predictions but 1 references"),
    ([], [], ValueError, "no rows"),
    ("a", ["a"], TypeError, "one entry a row"),
    (["a"], "a", TypeError, "one entry a row"),
    (["a", None], ["a", "b"], TypeError, "row 1: the prediction is of type NoneType"),
    (["a", "b", 3], ["a", "b", "c"], TypeError, "row 2: the prediction is of type int"),
    (["a", "b"], [["a"], []], ValueError, "row 1: there are no references"),
    (["a", "b"], [["a"], ["b", 2]], TypeError, "row 1: a reference is of type int"),
    (["a", "b"], ["a", None], TypeError, "row 1: references are of type NoneType"),
    (["a"], [{"answer": "a"}], TypeError, "row 0: references are of type dict"),
]


@METRICS
@pytest.mark.parametrize(("predictions", "references", "error", "message"), WRONG)
def test_wrong_input_is_refused(metric, predictions, references, error, message):
    with pytest.raises(error, match=message) as raised:
        metric(predictions, references)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("metric", [exact_match, vqa_accuracy, bleu])
def test_a_string_is_one_reference_and_columns_may_be_tuples_or_arrays(metric):
    predictions, references = ["a dog runs here", "two"], ["a dog runs here", "three"]
    expected = metric(predictions, [[reference] for reference in references])
    assert metric(predictions, references) == expected
    assert metric(tuple(predictions), tuple(references)) == expected
    assert metric(np.array(predictions), np.array(references)[:, None]) == expected

"""The metrics as `evaluate` objects."""

import evaluate
import pytest

import vlm_eval
import vlm_eval.hf

PREDICTIONS = ["a red dog", "Yes", "two cats on a mat"]
REFERENCES = [["a red dog", "the dog"], ["yes"], ["two cats on the mat", "cats"]]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize(
    ("name", "options"),
    [("exact_match", {}), ("exact_match", {"normalize": "raw"}), ("vqa_accuracy", {"mode": "official"}), ("bleu", {})],
)
def test_compute_returns_the_value_of_the_function(name, options):
    metric = getattr(vlm_eval.hf, name)(**options)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    expected = {name: getattr(vlm_eval, name)(PREDICTIONS, REFERENCES, **options).value}
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == expected
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == expected  # nothing stays behind


def test_rows_may_come_one_by_one_or_in_batches():
    metric = vlm_eval.hf.bleu(max_n=2)
    metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
    metric.add_batch(predictions=PREDICTIONS[1:], references=REFERENCES[1:])
    assert metric.compute() == {"bleu": vlm_eval.bleu(PREDICTIONS, REFERENCES, max_n=2).value}


def test_combine():
    parts = [vlm_eval.hf.exact_match(), vlm_eval.hf.vqa_accuracy(), vlm_eval.hf.bleu(max_n=1)]
    assert evaluate.combine(parts).compute(predictions=PREDICTIONS, references=REFERENCES) == {
        "exact_match": vlm_eval.exact_match(PREDICTIONS, REFERENCES).value,
        "vqa_accuracy": vlm_eval.vqa_accuracy(PREDICTIONS, REFERENCES).value,
        "bleu": vlm_eval.bleu(PREDICTIONS, REFERENCES, max_n=1).value,
    }


def test_a_text_is_one_reference_never_a_list_of_characters():
    metric = vlm_eval.hf.exact_match()
    assert metric.compute(predictions=["x", "b"], references=[["x"], "ab"]) == {"exact_match": 0.5}
    assert metric.compute(predictions=["x", "b"], references=["ab", ["b"]]) == {"exact_match": 0.5}


def test_a_wrong_row_is_named():
    with pytest.raises(TypeError, match="row 1: the prediction is of type int"):
        vlm_eval.hf.exact_match().compute(predictions=["a", 3], references=["a", "3"])

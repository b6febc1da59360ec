"""The metrics as `evaluate` objects."""

import evaluate
import numpy as np
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
    [
        ("exact_match", {}),
        ("exact_match", {"normalize": "raw"}),
        ("vqa_accuracy", {"mode": "official"}),
        ("bleu", {}),
        ("anls", {}),
        ("relaxed_accuracy", {}),
    ],
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


def test_there_is_one_for_every_metric():
    others = {"Comparison", "DocumentFrequencies", "Score", "compare", "document_frequencies"}
    names = [name for name in vlm_eval.__all__ if name not in others]
    assert [name for name in names if not hasattr(vlm_eval.hf, name)] == []


def test_models_and_images_are_options(monkeypatch):
    def stand_in(*arguments, **options):
        asked.append((arguments, options))
        return vlm_eval.Score(0.5, [], (0, 1), "stand_in", {})

    asked = []
    monkeypatch.setattr(vlm_eval, "clip_score", stand_in)
    metric = vlm_eval.hf.clip_score(images=["a.png", "b.png", "c.png"], model="clip")
    metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert asked == [((PREDICTIONS, ["a.png", "b.png", "c.png"]), {"model": "clip"})]


def test_a_trainer_evaluates_with_it(tmp_path):
    """By generation, with the ids that the trainer hands over decoded."""
    pytest.importorskip("accelerate")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        T5Config,
        T5ForConditionalGeneration,
    )

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "a", "red", "dog"])}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=5, decoder_start_token_id=0, pad_token_id=0, **shape))
    rows = [{"input_ids": [2, 3, 1], "labels": [3, 4, 1]}, {"input_ids": [4, 1], "labels": [2, 1]}]
    metric = evaluate.combine([vlm_eval.hf.exact_match(), vlm_eval.hf.bleu(max_n=1)])
    seen = {}

    def compute_metrics(output):
        ids = (np.where(part < 0, 0, part) for part in output)
        seen["predictions"], seen["references"] = (tokenizer.batch_decode(x, skip_special_tokens=True) for x in ids)
        return metric.compute(**seen)

    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(tmp_path, predict_with_generate=True, report_to=[], use_cpu=True),
        eval_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_metrics=compute_metrics,
    )
    scores = trainer.evaluate(max_new_tokens=4)
    assert seen["references"] == ["red dog", "a"]
    assert scores["eval_bleu"] == vlm_eval.bleu(**seen, max_n=1).value
    assert scores["eval_exact_match"] == vlm_eval.exact_match(**seen).value

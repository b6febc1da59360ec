"""BLEU against the COCO tools' scorer (on tokenised text), sacrebleu, and hand-worked cases."""

import math
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm_eval import bleu
from vlm_eval.tokenize import tokenize

WORDS = "a the dog's cat red, (left) t-shirt runs."
CAPTIONS = st.lists(st.sampled_from(WORDS.split()), max_size=14).map(" ".join)
CORPORA = st.lists(st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=5)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(CORPORA, st.integers(1, 4))
def test_equal_to_the_coco_scorer(corpus, max_n):
    scorer_module = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    scorer = scorer_module.BleuScorer(n=max_n)
    for prediction, references in corpus:
        scorer += (" ".join(tokenize(prediction)), [" ".join(tokenize(reference)) for reference in references])
    orders, per_image = scorer.compute_score(option="closest")
    score = bleu(*zip(*corpus, strict=True), max_n)
    assert score.value == pytest.approx(orders[-1], rel=1e-12, abs=1e-12)
    assert score.per_sample == pytest.approx(per_image[-1], rel=1e-12, abs=1e-12)
    assert [score.details[f"bleu_{k}"] for k in range(1, max_n + 1)] == pytest.approx(orders, rel=1e-12, abs=1e-12)
    assert score.details["prediction_length"] == scorer.testlen(option="closest")
    assert score.details["reference_length"] == scorer.reflen(option="closest")


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_equal_to_sacrebleu_without_smoothing(random, max_n):
    sacrebleu = pytest.importorskip("sacrebleu")
    words = ["a", "the", "dog", "cat", "runs", "on", "red", "grass", "with", "two", "balls"]
    references = [[" ".join(random.choices(words, k=random.randint(5, 15))) for _ in range(3)] for _ in range(60)]
    predictions = [" ".join(row[0].split()[:-1] + random.choices(words, k=random.randint(0, 3))) for row in references]
    scorer = sacrebleu.BLEU(smooth_method="none", tokenize="none", max_ngram_order=max_n)
    expected = scorer.corpus_score(predictions, list(zip(*references, strict=True))).score / 100
    assume(expected > 0)  # without a common n-gram, where sacrebleu gives 0, the COCO tools give a tiny number
    assert bleu(predictions, references, max_n).value == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(CORPORA, st.integers(1, 5))
def test_sacrebleu_variant_equals_the_library(corpus, max_n):
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, references = map(list, zip(*corpus, strict=True))
    most = max(map(len, references))
    streams = [[row[k] if k < len(row) else None for row in references] for k in range(most)]
    score = bleu(predictions, references, max_n, "sacrebleu")
    expected = sacrebleu.BLEU(max_ngram_order=max_n).corpus_score(predictions, streams)
    assert score.value == pytest.approx(expected.score / 100, abs=1e-12)
    assert score.details["prediction_length"] == expected.sys_len
    assert score.details["reference_length"] == expected.ref_len
    alone = sacrebleu.BLEU(max_ngram_order=max_n, effective_order=True)
    rows = [alone.sentence_score(p, row).score / 100 for p, row in corpus]
    assert score.per_sample == pytest.approx(rows, abs=1e-12)
    assert bleu(predictions, [row[::-1] for row in references], max_n, "sacrebleu") == score


def test_sacrebleu_published_example():
    predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert bleu(predictions, references, variant="sacrebleu").value == pytest.approx(0.48530827, abs=1e-8)


@settings(deadline=None)
@given(CORPORA, st.randoms())
def test_order_of_references_and_rows_never_matters(corpus, random):
    score = bleu(*zip(*corpus, strict=True))
    assert bleu(*zip(*[(p, random.sample(r, len(r))) for p, r in corpus], strict=True)) == score
    shuffled = bleu(*zip(*random.sample(corpus, len(corpus)), strict=True))
    assert (shuffled.value, shuffled.interval, shuffled.details) == (score.value, score.interval, score.details)


def test_clipping_and_brevity_by_hand():
    # "the" counts twice at most, as in the first reference; both references are equally far: the shorter one counts
    score = bleu(["the the the the"], [["the dog the", "a cat and a dog"]], max_n=1)
    assert score.value == pytest.approx(2 / 4, abs=1e-9)
    assert score.details["reference_length"] == 3
    short = bleu(["a dog"], ["a dog runs"], max_n=1)
    assert short.value == pytest.approx(math.exp(1 - 3 / 2), abs=1e-8)
    assert short.details["ratio"] == pytest.approx(2 / 3)


def test_two_perfect_words_have_almost_no_bleu_4():
    score = bleu(["a dog"], ["a dog"])
    assert score.value == pytest.approx(0.001, rel=1e-6)
    assert score.details["bleu_2"] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("prediction", "reference"), [("", "a dog"), ("a dog", ""), ("", ""), ("?!", "...")])
def test_texts_without_words_score_nearly_nothing(prediction, reference):
    score = bleu([prediction], [reference])
    assert 0 <= score.value < 1e-3
    assert all(math.isfinite(bound) for bound in score.interval)


def test_interval_comes_from_resampled_corpora():
    random = Random(3)
    words = ["a", "the", "dog", "cat", "runs"]
    references = [" ".join(random.choices(words, k=8)) for _ in range(25)]
    predictions = [" ".join(row.split()[:5] + random.choices(words, k=3)) for row in references]
    values = []
    for _ in range(400):
        rows = random.choices(range(25), k=25)
        values.append(bleu([predictions[i] for i in rows], [references[i] for i in rows]).value)
    values.sort()
    assert bleu(predictions, references).interval == pytest.approx((values[10], values[389]), abs=0.025)


def test_the_signature_names_every_choice():
    assert (
        bleu(["a"], [["a", "b"]], max_n=2).signature
        == "bleu|n:2|variant:coco|tok:ptb|case:lower|smooth:none|len:closest|refs:2|bs:1000|seed:0"
    )


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant='nltk' is unknown: choose one of coco, sacrebleu"):
        bleu(["a"], ["a"], variant="nltk")


def test_max_n_below_one_is_refused():
    with pytest.raises(ValueError, match="max_n=0"):
        bleu(["a"], ["a"], max_n=0)

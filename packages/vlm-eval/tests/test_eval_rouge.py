"""ROUGE against the COCO tools' and Google's programs."""

from random import Random

import pytest

from vlm_eval import rouge
from vlm_eval.tokenize import tokenize

GOOGLE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
WORDS = "a a the the dog's cat red (left) t-shirt running. on 1 1/2 isn't Grass,\n café 日本"


def corpus(random: Random, rows: int) -> tuple[list[str], list[list[str]]]:
    def text() -> str:
        return " ".join(random.choices(WORDS.split(" "), k=random.randint(0, 14)))

    references = [[text() for _ in range(random.randint(1, 5))] for _ in range(rows)]
    return [random.choice([text(), random.choice(row)]) for row in references], references


def test_equal_to_the_coco_scorer_on_500_corpora():
    module, random = pytest.importorskip("pycocoevalcap.rouge.rouge"), Random(0)
    for _ in range(500):
        predictions, references = corpus(random, random.randint(1, 8))
        value, per_sample = module.Rouge().compute_score(
            {i: [" ".join(tokenize(text)) for text in row] for i, row in enumerate(references)},
            {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)},
        )
        score = rouge(predictions, references)
        assert score.value == pytest.approx(value, abs=1e-12)
        assert score.per_sample == pytest.approx(per_sample, abs=1e-12)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("variant", GOOGLE)
def test_equal_to_google_with_plain_means(variant, stem):
    module = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, references = corpus(Random(1), 100)
    scorer = module.RougeScorer([variant], use_stemmer=stem)
    best = [
        max(scorer.score(reference, p)[variant].fmeasure for reference in row)
        for p, row in zip(predictions, references, strict=True)
    ]
    score = rouge(predictions, references, variant, stem)
    assert score.per_sample == pytest.approx(best, abs=1e-12)
    assert score.value == pytest.approx(sum(best) / len(best), abs=1e-12)
    assert score.details[variant] == score.value
    assert set(score.details) == set(GOOGLE)


@pytest.mark.parametrize("variant", ["coco", "rouge2", "rougeLsum"])
def test_order_of_references_and_rows_never_matters(variant):
    random = Random(2)
    predictions, references = corpus(random, 60)
    score = rouge(predictions, references, variant)
    assert rouge(predictions, [random.sample(row, len(row)) for row in references], variant) == score
    order = random.sample(range(60), 60)
    shuffled = rouge([predictions[i] for i in order], [references[i] for i in order], variant)
    assert (shuffled.value, shuffled.interval) == (score.value, score.interval)


def test_the_two_programs_differ_and_the_signature_tells():
    pair = ["a dog runs"], ["the dog runs fast"]
    assert rouge(*pair).value == pytest.approx(2.44 * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3))
    assert rouge(*pair, "rougeL").value == pytest.approx(4 / 7)
    assert rouge(*pair).signature == "rouge|variant:coco|kind:L|beta:1.2|tok:ptb|refs:1|bs:1000|seed:0"
    assert rouge(*pair, "rouge1").signature == "rouge|variant:google|kind:1|stem:no|refs:1|bs:1000|seed:0"


def test_texts_without_words():
    assert rouge(["", "a", "?"], ["a", "", ""]).per_sample == [0, 0, 1]  # as in the COCO tools: nothing equals nothing
    assert rouge(["", "a", "?"], ["a", "", ""], "rougeL").per_sample == [0, 0, 0]


def test_unknown_variant_and_stems_for_coco_are_refused():
    with pytest.raises(ValueError, match="variant='rouge3' is unknown: choose one of coco, rouge1"):
        rouge(["a"], ["a"], "rouge3")
    with pytest.raises(ValueError, match="stem=True: the COCO tools do not stem"):
        rouge(["a"], ["a"], stem=True)

"""CIDEr-D against the COCO tools' scorer on the same words, given document frequencies, and its warnings."""

import warnings
from random import Random

import numpy as np
import pytest

from vlm_eval import DocumentFrequencies, cider, document_frequencies
from vlm_eval.tokenize import tokenize

pytestmark = pytest.mark.filterwarnings("ignore:CIDEr")
WORDS = "a a the the dog's cat red (left) t-shirt runs. on 1 1/2 isn't Grass,"


def corpus(random: Random) -> tuple[list[str], list[list[str]]]:
    def text() -> str:
        return " ".join(random.choices(WORDS.split(" "), k=random.randint(0, 14)))

    references = [[text() for _ in range(random.randint(1, 5))] for _ in range(random.randint(1, 15))]
    references[0][0] = "a dog"  # the COCO tools fail where no reference has a word
    return [random.choice([text(), random.choice(row)]) for row in references], references


def test_equal_to_the_coco_scorer_on_500_corpora():
    module, random = pytest.importorskip("pycocoevalcap.cider.cider"), Random(0)
    for _ in range(500):
        predictions, references = corpus(random)
        value, per_sample = module.Cider().compute_score(
            {i: [" ".join(tokenize(text)) for text in row] for i, row in enumerate(references)},
            {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)},
        )
        score = cider(predictions, references)
        assert score.value == pytest.approx(value, abs=1e-12)
        assert score.per_sample == pytest.approx(per_sample, abs=1e-12)


def test_order_of_references_and_rows_never_matters():
    random = Random(1)
    for _ in range(50):
        predictions, references = corpus(random)
        score = cider(predictions, references)
        assert cider(predictions, [random.sample(row, len(row)) for row in references]) == score
        order = random.sample(range(len(references)), len(references))
        shuffled = cider([predictions[i] for i in order], [references[i] for i in order])
        assert (shuffled.value, shuffled.interval) == (score.value, score.interval)


def test_document_frequencies_of_the_same_references_change_nothing():
    predictions, references = corpus(Random(2))
    given = cider(predictions, references, document_frequencies(references))
    assert given.per_sample == cider(predictions, references).per_sample
    assert f"|df:given|documents:{len(references)}|" in given.signature


def test_a_part_scored_with_the_frequencies_of_the_whole_scores_as_in_the_whole():
    predictions, references = corpus(Random(4))
    whole, frequencies = cider(predictions, references), document_frequencies(references)
    part = cider(predictions[:1], references[:1], frequencies)
    assert part.per_sample == pytest.approx(whole.per_sample[:1], abs=1e-12)


def test_document_frequencies_count_each_image_once():
    frequencies = document_frequencies([["a dog", "a dog runs"], ["a cat"], "a"])
    assert frequencies.documents == 3
    assert frequencies.counts[("a",)] == 3
    assert frequencies.counts[("a", "dog")] == frequencies.counts[("cat",)] == 1
    assert ("dog", "a") not in frequencies.counts


def test_one_word_weighed_by_hand():
    # idf of "dog" is log(4 / 2), of "cat" log(4); the prediction shares one of the reference's two words
    frequencies = DocumentFrequencies(4, {("dog",): 2})
    a, b = np.log(2), np.log(4)
    expected = 10 * (a * a / (a * np.hypot(a, b))) / 4 * np.exp(-1 / 72)  # one bigram more or less
    assert cider(["dog"], ["dog cat"], frequencies).value == pytest.approx(expected, rel=1e-12)


def test_one_image_scores_0_and_few_images_are_warned_of():
    with pytest.warns(UserWarning, match="CIDEr of one image is always 0: give frequencies="):
        assert cider(["a dog"], ["a dog"]).value == 0
    with pytest.warns(UserWarning, match="CIDEr's weights come from 99 images"):
        cider(["a dog"] * 99, ["a dog"] * 99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cider(["a dog"] * 100, ["a dog"] * 100)


def test_frequencies_beyond_the_number_of_documents_are_refused():
    with pytest.raises(ValueError, match="frequencies: an n-gram is in more than its 2 documents"):
        cider(["a"], ["a"], DocumentFrequencies(2, {("a",): 3}))

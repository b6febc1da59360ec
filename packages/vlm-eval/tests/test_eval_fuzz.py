"""10,000 odd texts: no metric fails, and no value is NaN or out of range."""

import math
import shutil
from importlib.util import find_spec
from random import Random

import pytest
from PIL import Image

from vlm_eval import (
    anls,
    bert_score,
    bleu,
    cider,
    clip_score,
    exact_match,
    frechet_distance,
    meteor,
    ref_clip_score,
    relaxed_accuracy,
    rouge,
    vqa_accuracy,
)

ALPHABETS = [
    "abc XYZ",
    "012 .,:/-%$",
    "?!.,;:'\"()[]{}<>&#@*_~`|\\/-",
    "😀🐶👨‍👩‍👧🇺🇸❤️ ",
    "שלום مرحبا ",
    "日本語中文한국어",
    "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\u200b\ufeff\u202e",
    "é\u0301ßİıſﬁΩς½²Ⅷ\u00ad",
    "\ud800a\udfff",
]
LONG = ["a" * 100_000, "a b " * 25_000, "." * 100_000, "語" * 100_000, "a.b@c/" * 16_000, "1 " * 50_000]
METRICS = {
    "anls": (anls, 1),
    "bleu": (bleu, 1),
    "cider": (cider, 10),
    "exact_match": (lambda p, r: exact_match(p, r, "vqa"), 1),
    "meteor": (meteor, 1),
    "relaxed_accuracy": (relaxed_accuracy, 1),
    "rouge": (rouge, 1),
    "rougeLsum": (lambda p, r: rouge(p, r, "rougeLsum"), 1),
    "sacrebleu": (lambda p, r: bleu(p, r, variant="sacrebleu"), 1),
    "vqa_accuracy": (vqa_accuracy, 1),
}


JAVA = pytest.mark.skipif(not (shutil.which("java") and find_spec("pycocoevalcap")), reason="needs Java, pycocoevalcap")


def names(without: str = "-") -> list:
    kept = [name for name in METRICS if not name.startswith(without)]
    return [pytest.param(name, marks=JAVA if name == "meteor" else ()) for name in kept]


def texts() -> list[str]:
    random = Random(0)
    drawn = ["", " ", "a"]
    while len(drawn) < 10_000:
        alphabet = random.choice(ALPHABETS + ["".join(ALPHABETS)])
        drawn.append("".join(random.choices(alphabet, k=random.choice([1, 2, 5, 20]))))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_odd_texts_give_finite_values_in_range(name):
    metric, highest = METRICS[name]
    predictions = texts()
    check(metric(predictions, references_of(predictions)), highest)


def references_of(texts: list[str]) -> list[list[str]]:
    return [[texts[i - 1], text] if i % 3 else [texts[i - 7]] for i, text in enumerate(texts)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CIDEr")
@pytest.mark.parametrize("name", names(without="rougeL"))  # Google's is quadratic
def test_texts_of_100_000_characters(name):
    metric, highest = METRICS[name]
    predictions, references = [*LONG, "a"], [[LONG[0], "a"], *LONG[2:], LONG[1], ["", LONG[3]]]
    rows = slice(2 if name == "meteor" else None)  # METEOR's program is slow with many equal words
    check(metric(predictions[rows], references[rows]), highest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_score", "frechet_distance", "clip_score", "ref_clip_score"])
def test_odd_and_long_texts_in_tiny_models(name, tiny_roberta, tiny_clip):
    predictions = texts() + LONG
    references = references_of(predictions)
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")] * (len(predictions) // 2)
    if name == "bert_score":
        check(bert_score(predictions, references, tiny_roberta, num_layers=1), 1, lowest=-1)
    elif name == "frechet_distance":
        check(frechet_distance(predictions, references, tiny_roberta), 100)  # vectors of any length
    elif name == "clip_score":
        check(clip_score(predictions, images, tiny_clip), 2.5)
    else:
        check(ref_clip_score(predictions, references, images, tiny_clip), 2.5)


def check(score, highest: float, lowest: float = 0) -> None:
    tolerance = 1e-6  # of float32
    for value in (score.value, *score.per_sample, *score.interval):
        assert math.isfinite(value)
        assert lowest - tolerance <= value <= highest + tolerance

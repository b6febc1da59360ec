"""ROUGE (Lin, 2004): the words, or n-grams, that a text shares with its references.

Two programs are in use, and they differ. The COCO caption tools' ROUGE-L: P = longest common subsequence / predicted
words, R = the same / words of the reference, each the best over all references on its own, and

    F = (1 + b ** 2) * P * R / (R + b ** 2 * P),  b = 1.2

Google's `rouge-score`: F1 of 1-grams, 2-grams, or the longest common subsequence, of a text's best reference. Its
words are runs of the letters a to z and digits: texts in other scripts score 0.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature
from vlm_eval.tokenize import tokenize

BETA = 1.2
GOOGLE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    variant: str = "coco",
    stem: bool = False,
) -> Score:
    """Mean ROUGE over rows, 0 to 1.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        variant: `"coco"`: ROUGE-L of the COCO tools, words by `tokenize.py`. `"rouge1"`, `"rouge2"`, `"rougeL"`,
            `"rougeLsum"`: by `rouge-score`; the last one takes each line for a sentence.
        stem: Google's variants only: compare words without their endings (Porter's stemmer).

    Returns:
        A score whose details hold, for Google's variants, the means of all four. These are plain means; `evaluate`
        prints a median of unseeded resamples.

    Raises:
        ValueError: unknown `variant`, `stem` with `"coco"`, or see `rows.check_rows`.
    """
    if variant != "coco" and variant not in GOOGLE:
        raise ValueError(f"variant={variant!r} is unknown: choose one of coco, {', '.join(GOOGLE)}")
    if variant == "coco" and stem:
        raise ValueError("stem=True: the COCO tools do not stem; choose one of Google's variants")
    predictions, references = check_rows(predictions, references)
    if variant == "coco":
        per_sample = [_coco(p, row) for p, row in zip(predictions, references, strict=True)]
        return mean_score(
            per_sample, signature("rouge", references, variant="coco", kind="L", beta=BETA, tok="ptb"), {}
        )

    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(GOOGLE, use_stemmer=stem)
    rows = [scorer.score_multi(row, p) for p, row in zip(predictions, references, strict=True)]
    f1 = {name: [float(row[name].fmeasure) for row in rows] for name in GOOGLE}
    kind = {"kind": variant.removeprefix("rouge"), "stem": "yes" if stem else "no"}
    return mean_score(
        f1[variant],
        signature("rouge", references, variant="google", **kind),
        {name: math.fsum(values) / len(values) for name, values in f1.items()},
    )


def _coco(prediction: str, references: list[str]) -> float:
    from rapidfuzz.distance import LCSseq

    # One character for each word lets rapidfuzz compare strings. A text without words is one empty word, as there.
    characters = defaultdict(map(chr, chain(range(0xD800), range(0xE000, 0x110000))).__next__)
    predicted, *texts = ("".join([characters[w] for w in tokenize(t) or [""]]) for t in (prediction, *references))
    common = [LCSseq.similarity(predicted, text) for text in texts]
    precision = max(common) / len(predicted)
    recall = max(shared / len(text) for shared, text in zip(common, texts, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)

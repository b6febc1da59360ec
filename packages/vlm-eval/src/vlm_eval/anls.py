"""ANLS, average normalised Levenshtein similarity (Biten et al., 2019, eq. 1): answers that may be slightly misread.

    row score = s if s >= threshold else 0,  s = max over references of 1 - distance / length of the longer text

Both sides are compared in lower case with blanks squeezed. At exactly the threshold the similarity counts, as in the
evaluation server of the DocVQA challenge; the paper's equation drops it there.
"""

from collections.abc import Sequence

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature


def anls(predictions: Sequence[str], references: Sequence[str | Sequence[str]], threshold: float = 0.5) -> Score:
    """Mean over rows, 0 to 1, of the similarity to the nearest reference, where that is at least `threshold`.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        threshold: similarities below it score 0: the answer is another one, not a misread one.

    Returns:
        A score whose details hold `above_threshold`, the number of rows that do not score 0.

    Raises:
        ValueError: `threshold` is not in 0 to 1, or see `rows.check_rows`.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity lies between 0 and 1")
    predictions, references = check_rows(predictions, references)
    best = [max(_similarity(p, r) for r in row) for p, row in zip(predictions, references, strict=True)]
    per_sample = [similarity if similarity >= threshold else 0.0 for similarity in best]
    return mean_score(
        per_sample,
        signature("anls", references, threshold=threshold, norm="lower"),
        {"above_threshold": sum(value > 0 for value in per_sample)},
    )


def _similarity(prediction: str, reference: str) -> float:
    from rapidfuzz.distance import Levenshtein

    prediction, reference = (" ".join(text.lower().split()) for text in (prediction, reference))
    longer = max(len(prediction), len(reference))
    return 1 - Levenshtein.distance(prediction, reference) / longer if longer else 1.0

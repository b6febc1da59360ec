"""Exact match: a row is right if its prediction equals any of its references; the score is the share of right rows."""

from collections.abc import Sequence

from vlm_eval import vqa_normalize
from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature

NORMALIZERS = {
    "raw": str,
    "lower": lambda text: " ".join(text.lower().split()),
    "vqa": vqa_normalize.normalize,
}


def exact_match(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], normalize: str = "lower"
) -> Score:
    """Share of rows, 0 to 1, whose prediction equals one of the references.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        normalize: what is done to both sides before they are compared.
            `"raw"`: nothing.
            `"lower"`: lower case, blanks at the ends removed, runs of blanks inside made one.
            `"vqa"`: the VQA normalisation (`vqa_normalize.py`): also punctuation, articles, number words, contractions.

    Returns:
        A score whose details hold `correct`, the number of right rows.

    Raises:
        ValueError: unknown `normalize`, or see `rows.check_rows`.
    """
    if normalize not in NORMALIZERS:
        raise ValueError(f"normalize={normalize!r} is unknown: choose one of {', '.join(NORMALIZERS)}")
    predictions, references = check_rows(predictions, references)
    form = NORMALIZERS[normalize]
    hits = [form(p) in map(form, row) for p, row in zip(predictions, references, strict=True)]
    return mean_score(
        [float(hit) for hit in hits], signature("exact_match", references, norm=normalize), {"correct": sum(hits)}
    )

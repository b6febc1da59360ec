"""Relaxed accuracy (Methani et al., 2020; Masry et al., 2022): numbers read off a chart may be 5 % off.

A number within the tolerance of a reference number is right; everything else must be equal in lower case. "12%" is
the number 0.12. A reference of 0 has no relative distance and is compared as text.
"""

import math
from collections.abc import Sequence

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature


def relaxed_accuracy(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], tolerance: float = 0.05
) -> Score:
    """Share of rows, 0 to 1, whose prediction is close enough to one of the references.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        tolerance: largest |prediction - reference| / |reference| that is right.

    Returns:
        A score whose details hold `correct`, the number of right rows.

    Raises:
        ValueError: `tolerance` is negative or NaN, or see `rows.check_rows`.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: a relative distance is at least 0")
    predictions, references = check_rows(predictions, references)
    hits = [
        any(_is_close(p.strip(), r.strip(), tolerance) for r in row)
        for p, row in zip(predictions, references, strict=True)
    ]
    return mean_score(
        [float(hit) for hit in hits],
        signature("relaxed_accuracy", references, tolerance=tolerance),
        {"correct": sum(hits)},
    )


def _is_close(prediction: str, reference: str, tolerance: float) -> bool:
    value, target = _number(prediction), _number(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= tolerance
    return prediction.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # "nan" and "inf" are words here

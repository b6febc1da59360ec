"""BLEU as the COCO caption tools compute it (Papineni et al., 2002; Chen et al., 2015).

    BLEU-N = min(1, exp(1 - r/c)) * (p_1 * ... * p_N) ** (1/N)

c is the number of predicted words; r sums the length of each row's reference closest to the prediction, the shorter one
on a tie. p_k is the share of predicted k-grams found in the references, each counted at most as often as in the
reference that has most of it. Sums run over the corpus, there is no smoothing: a corpus without a common
4-gram has a BLEU-4 of nearly 0 (tiny constants stand in for division by zero).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlm_eval.rows import check_rows
from vlm_eval.score import Score, bootstrap_interval, signature
from vlm_eval.tokenize import tokenize

TINY, SMALL = 1e-15, 1e-9  # in numerators and denominators, as in the COCO tools


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]], max_n: int = 4) -> Score:
    """Corpus BLEU, 0 to 1, of word n-grams up to `max_n`; words by `tokenize.py`.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        max_n: longest n-gram.

    Returns:
        A score with `value` BLEU-`max_n` of the corpus and `per_sample` that of each row alone. Its details hold
        `bleu_1` to `bleu_<max_n>`, `ratio` (c / r), `prediction_length` (c) and `reference_length` (r) in words.

    Raises:
        ValueError: `max_n` < 1, or see `rows.check_rows`.
    """
    if max_n < 1:
        raise ValueError(f"max_n={max_n}: the longest n-gram has at least one word")
    predictions, references = check_rows(predictions, references)
    rows = np.array([_statistics(p, row, max_n) for p, row in zip(predictions, references, strict=True)], np.float64)
    total = rows.sum(0)
    corpus = _scores(total)
    details = {f"bleu_{k}": float(value) for k, value in enumerate(corpus, 1)}
    details |= {"ratio": float(total[0] / max(1, total[1]))}
    details |= {"prediction_length": int(total[0]), "reference_length": int(total[1])}
    return Score(
        value=float(corpus[-1]),
        per_sample=_scores(rows)[:, -1].tolist(),
        interval=bootstrap_interval(rows, lambda sums: _scores(sums)[:, -1]),
        signature=signature(
            "bleu", references, n=max_n, variant="coco", tok="ptb-lite", case="lower", smooth="none", len="closest"
        ),
        details=details,
    )


def _statistics(prediction: str, references: list[str], max_n: int) -> list[int]:
    """[c, r, guessed 1-grams, ..., guessed N-grams, found 1-grams, ..., found N-grams] of one row."""
    words, alternatives = tokenize(prediction), [tokenize(reference) for reference in references]
    c = len(words)
    r = min((abs(len(other) - c), len(other)) for other in alternatives)[1]
    guessed = [max(0, c - k + 1) for k in range(1, max_n + 1)]
    found = []
    for k in range(1, max_n + 1):
        counts = [_ngrams(other, k) for other in alternatives]
        found.append(sum(min(times, max(other[g] for other in counts)) for g, times in _ngrams(words, k).items()))
    return [c, r, *guessed, *found]


def _ngrams(words: list[str], k: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(k)), strict=False))


def _scores(statistics: np.ndarray) -> np.ndarray:
    """(..., 2 + 2N) sums of row statistics -> (..., N): BLEU-1 to BLEU-N."""
    c, r = statistics[..., :1], statistics[..., 1:2]
    guessed, found = np.split(statistics[..., 2:], 2, axis=-1)
    orders = np.arange(1, guessed.shape[-1] + 1)
    precision = np.cumprod((found + TINY) / (guessed + SMALL), axis=-1) ** (1 / orders)
    ratio = (c + TINY) / (r + SMALL)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))

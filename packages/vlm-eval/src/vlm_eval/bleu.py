"""BLEU as the COCO caption tools compute it (Papineni et al., 2002; Chen et al., 2015).

    BLEU-N = min(1, exp(1 - r/c)) * (p_1 * ... * p_N) ** (1/N)

c is the number of predicted words; r sums the length of each row's reference closest to the prediction, the shorter one
on a tie. p_k is the share of predicted k-grams found in the references, each counted at most as often as in the
reference that has most of it. Sums run over the corpus, there is no smoothing: a corpus without a common
4-gram has a BLEU-4 of nearly 0 (tiny constants stand in for division by zero).
"""

from collections.abc import Sequence

import numpy as np

from vlm_eval.ngrams import Corpus
from vlm_eval.rows import check_rows
from vlm_eval.score import Score, bootstrap_interval, signature

TINY, SMALL = 1e-15, 1e-9  # in numerators and denominators, as in the COCO tools


VARIANTS = ("coco", "sacrebleu")


def bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], max_n: int = 4, variant: str = "coco"
) -> Score:
    """Corpus BLEU, 0 to 1, of word n-grams up to `max_n`.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        max_n: longest n-gram.
        variant: `"coco"`: the formula above, words by `tokenize.py`. `"sacrebleu"`: by that library with its defaults:
            words by its `13a`, capitals count, exponential smoothing; single rows by effective order.

    Returns:
        A score with `value` BLEU-`max_n` of the corpus and `per_sample` that of each row alone. Its details hold
        `bleu_1` to `bleu_<max_n>`, `ratio` (c / r), `prediction_length` (c) and `reference_length` (r) in words.

    Raises:
        ValueError: `max_n` < 1, unknown `variant`, or see `rows.check_rows`.
    """
    if max_n < 1:
        raise ValueError(f"max_n={max_n}: the longest n-gram has at least one word")
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown: choose one of {', '.join(VARIANTS)}")
    predictions, references = check_rows(predictions, references)
    if variant == "coco":
        rows, scores = _statistics(predictions, references, max_n), _scores
        alone = scores(rows)[:, -1]
        choices = {"tok": "ptb", "case": "lower", "smooth": "none"}
    else:
        from sacrebleu import __version__

        rows, alone = _sacrebleu_rows(predictions, references, max_n)
        scores = _sacrebleu_scores
        choices = {"tok": "13a", "case": "mixed", "smooth": "exp", "version": __version__}
    total = rows.sum(0)
    corpus = scores(total[None])[0]
    details = {f"bleu_{k}": float(value) for k, value in enumerate(corpus, 1)}
    details |= {"ratio": float(total[0] / max(1, total[1]))}
    details |= {"prediction_length": int(total[0]), "reference_length": int(total[1])}
    return Score(
        value=float(corpus[-1]),
        per_sample=alone.tolist(),
        interval=bootstrap_interval(rows, lambda sums: scores(sums)[:, -1]),
        signature=signature("bleu", references, n=max_n, variant=variant, **choices, len="closest"),
        details=details,
    )


def _statistics(predictions: list[str], references: list[list[str]], max_n: int) -> np.ndarray:
    """(n, 2 + 2N): c, r, guessed 1-grams, ..., guessed N-grams, found 1-grams, ..., found N-grams of each row."""
    corpus = Corpus(predictions, references)
    n, lengths, rows = corpus.n, corpus.lengths, corpus.rows
    c = lengths[:n]
    # By row, then by distance to the prediction, then by length: each row's first reference is the closest one.
    order = np.lexsort((lengths[n:], np.abs(lengths[n:] - c[rows[n:]]), rows[n:]))
    r = lengths[n:][order][np.searchsorted(rows[n:], np.arange(n))]
    guessed, found = [], []
    for k, grams in enumerate(corpus.ngrams(max_n), 1):
        guessed.append(np.maximum(0, c - k + 1))
        most = np.zeros(len(grams.text), int)
        shared = grams.match >= 0
        np.maximum.at(most, grams.match[shared], grams.count[shared])
        predicted = grams.text < n
        hits = np.minimum(most, grams.count)[predicted]
        found.append(np.bincount(grams.text[predicted], hits, minlength=n))
    return np.stack([c, r, *guessed, *found], axis=1).astype(np.float64)


def _scores(statistics: np.ndarray) -> np.ndarray:
    """(..., 2 + 2N) sums of row statistics -> (..., N): BLEU-1 to BLEU-N."""
    c, r = statistics[..., :1], statistics[..., 1:2]
    guessed, found = np.split(statistics[..., 2:], 2, axis=-1)
    orders = np.arange(1, guessed.shape[-1] + 1)
    precision = np.cumprod((found + TINY) / (guessed + SMALL), axis=-1) ** (1 / orders)
    ratio = (c + TINY) / (r + SMALL)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def _sacrebleu_rows(predictions: list[str], references: list[list[str]], max_n: int) -> tuple[np.ndarray, np.ndarray]:
    """The same statistics by sacrebleu, (n, 2 + 2N), and its scores of single rows, (n,)."""
    from sacrebleu import BLEU

    scorer = BLEU(max_ngram_order=max_n, effective_order=True)
    rows = [scorer.sentence_score(p, row) for p, row in zip(predictions, references, strict=True)]
    statistics = [[row.sys_len, row.ref_len, *row.totals, *row.counts] for row in rows]
    return np.array(statistics, np.float64), np.array([row.score for row in rows]) / 100


def _sacrebleu_scores(statistics: np.ndarray) -> np.ndarray:
    """(m, 2 + 2N) sums of row statistics -> (m, N): BLEU-1 to BLEU-N."""
    from sacrebleu import BLEU

    orders = range(1, (statistics.shape[1] - 2) // 2 + 1)

    def score(sums: list[int], n: int) -> float:
        c, r, counts = sums[0], sums[1], sums[2:]
        guessed, found = counts[:n], counts[len(orders) :][:n]
        return BLEU.compute_bleu(found, guessed, c, r, smooth_method="exp", max_ngram_order=n).score / 100

    return np.array([[score(sums, n) for n in orders] for sums in statistics.astype(int).tolist()])

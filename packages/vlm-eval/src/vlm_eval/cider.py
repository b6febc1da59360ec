"""CIDEr-D (Vedantam et al., 2015) as the COCO caption tools compute it, without stemming.

    CIDEr-D = 10 * mean over references and over n = 1..4 of
              sum over n-grams of min(h, r) * r / (|h| * |r|) * exp(-(difference in bigrams) ** 2 / (2 * 6 ** 2))

h and r are the vectors of counts of n-grams in the prediction and in the reference, each count times
log N - log(number of images whose references hold the n-gram); N is the number of images. Both come from the references
at hand or from a larger set: with one image all weights are log 1 = 0, and so is the score.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_eval.ngrams import Corpus, Ngrams
from vlm_eval.rows import check_rows
from vlm_eval.score import Score, mean_score, signature

MAX_N, SIGMA, SCALE = 4, 6.0, 10.0
FEW = 100  # images, below which the weights of n-grams say little


@dataclass(frozen=True)
class DocumentFrequencies:
    """How many of `documents` images have an n-gram, a tuple of words, in at least one of their references."""

    documents: int
    counts: Mapping[tuple[str, ...], int]


def document_frequencies(references: Sequence[str | Sequence[str]]) -> DocumentFrequencies:
    """The document frequencies of a reference set, e.g. of a whole data set, to score a part of it with."""
    _, references = check_rows([""] * len(references), references)
    corpus, counts = Corpus([""] * len(references), references), {}
    for n, grams in enumerate(corpus.ngrams(MAX_N), 1):
        counts |= zip(_spelled(corpus, grams, n), _images_with(corpus, grams).tolist(), strict=True)
    return DocumentFrequencies(len(references), counts)


def cider(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Mean CIDEr-D over images, 0 to 10; words by `tokenize.py`.

    Args:
        predictions: n texts.
        references: n texts, or n lists of texts; their order does not matter.
        frequencies: weights from another reference set, see `document_frequencies`; by default from `references`,
            with a warning where these are few. n-grams that it lacks count as if in one document.

    Returns:
        A score whose details hold `documents`, the N above. In its interval the weights stay as they are.

    Raises:
        ValueError: an n-gram is in more documents than there are, or see `rows.check_rows`.
    """
    predictions, references = check_rows(predictions, references)
    corpus = Corpus(predictions, references)
    n, texts, rows = corpus.n, len(corpus.lengths), corpus.rows
    documents = frequencies.documents if frequencies else n
    if documents < FEW:
        always = "CIDEr of one image is always 0" if documents == 1 else f"CIDEr's weights come from {documents} images"
        warnings.warn(f"{always}: give frequencies=document_frequencies(a larger reference set)", stacklevel=2)
    if frequencies and max(frequencies.counts.values(), default=0) > documents:
        raise ValueError(f"frequencies: an n-gram is in more than its {documents} documents")

    similarity = np.zeros(texts)
    for order, grams in enumerate(corpus.ngrams(MAX_N), 1):
        if frequencies:
            known = frequencies.counts
            images = np.array([known.get(gram, 0) for gram in _spelled(corpus, grams, order)], np.float64)
        else:
            images = _images_with(corpus, grams)
        weights = math.log(documents) - np.log(np.maximum(1, images))
        weighted = grams.count * weights[grams.gram]
        norms = np.sqrt(np.bincount(grams.text, weighted**2, minlength=texts))
        shared = np.flatnonzero(grams.match >= 0)
        predicted, referred = weighted[grams.match[shared]], weighted[shared]
        products = np.bincount(grams.text[shared], np.minimum(predicted, referred) * referred, minlength=texts)
        both = norms * norms[rows]
        similarity += np.divide(products, both, out=np.zeros(texts), where=both > 0)

    bigrams = np.maximum(0, corpus.lengths - 1)
    similarity *= np.exp(-((bigrams - bigrams[rows]) ** 2) / (2 * SIGMA**2)) / MAX_N
    # Sorted within each row: sums of floats depend on the order.
    order = np.lexsort((similarity[n:], rows[n:]))
    totals = np.bincount(rows[n:], similarity[n:][order], minlength=n)
    per_sample = SCALE * totals / np.bincount(rows[n:], minlength=n)
    df = "given" if frequencies else "references"
    return mean_score(
        per_sample.tolist(),
        signature("cider", references, variant="coco-d", n=MAX_N, sigma=SIGMA, tok="ptb", df=df, documents=documents),
        {"documents": documents},
    )


def _images_with(corpus: Corpus, grams: Ngrams) -> np.ndarray:
    """(g,) number of rows whose references hold each n-gram."""
    of_references = grams.text >= corpus.n
    pairs = grams.gram[of_references] * corpus.n + corpus.rows[grams.text[of_references]]
    # Asking for the counts makes NumPy sort, which takes a hundredth of the time of its hash table.
    pairs, _ = np.unique(pairs, return_counts=True)
    return np.bincount(pairs // corpus.n, minlength=len(grams.words))


def _spelled(corpus: Corpus, grams: Ngrams, n: int) -> list[tuple[str, ...]]:
    return [tuple(corpus.words[start : start + n]) for start in grams.words.tolist()]

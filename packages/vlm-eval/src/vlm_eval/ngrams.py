"""Counts of the word n-grams of many texts at once, and which of a row's predicted n-grams its references share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from vlm_eval.tokenize import tokenize


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one order: one entry for each text and each n-gram that it holds, predictions first.

    Attributes:
        text, gram, count: (m,) which text holds which n-gram how often; sorted by text, then n-gram.
        match: (m,) for the entry of a reference, the entry of the same n-gram in the prediction of its row, or -1.
        words: (g,) where in `Corpus.words` each n-gram occurs for the first time.
    """

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    match: np.ndarray
    words: np.ndarray


class Corpus:
    """The words of n predictions and all their references.

    Attributes:
        words: the words of all texts in one list: the n predictions, then the references row by row.
        lengths: (texts,) words in each text.
        rows: (texts,) the row that each text belongs to.
    """

    def __init__(self, predictions: list[str], references: list[list[str]]):
        texts = [_words(text) for text in chain(predictions, chain.from_iterable(references))]
        self.n = len(predictions)
        self.words = list(chain.from_iterable(texts))
        self.lengths = np.array([len(words) for words in texts])
        counts = np.array([len(row) for row in references])
        self.rows = np.concatenate([np.arange(self.n), np.repeat(np.arange(self.n), counts)])

    def ngrams(self, max_n: int) -> Iterator[Ngrams]:
        """The 1-grams, 2-grams, ..., `max_n`-grams. An n-gram is numbered by its (n-1)-gram and its last word."""
        # Sorted, so that sums over n-grams do not depend on the order of the texts.
        vocabulary = {word: i for i, word in enumerate(sorted(set(self.words)))}
        ids = np.fromiter(map(vocabulary.__getitem__, self.words), np.int64, len(self.words))
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        left = np.cumsum(self.lengths)[owner] - np.arange(len(ids))  # words from here to the end of the text
        starts, gram = np.arange(len(ids)), np.zeros_like(ids)
        for n in range(1, max_n + 1):
            starts = starts[left[starts] >= n]
            number = gram[starts] * len(vocabulary) + ids[starts + n - 1]
            distinct, first, inverse = np.unique(number, return_index=True, return_inverse=True)
            gram[starts] = inverse
            many = max(1, len(distinct))
            entries, counts = np.unique(owner[starts] * many + inverse, return_counts=True)
            text, entry_gram = entries // many, entries % many
            predicted = entries[: np.searchsorted(text, self.n)]
            same = self.rows[text] * many + entry_gram  # the entry that would be the row's prediction's
            match = np.searchsorted(predicted, same)
            found = match < len(predicted)
            found[found] = predicted[match[found]] == same[found]
            yield Ngrams(text, entry_gram, counts, np.where(found & (text >= self.n), match, -1), starts[first])


def _words(text: str) -> list[str]:
    # Tokens that span a blank are apart here, as in the scorers of the COCO tools.
    return " ".join(tokenize(text)).split()

"""A score is a number, where it comes from, and how far another sample of rows would move it.

The interval is a percentile bootstrap (Efron, 1979): draw n rows with replacement, score them, repeat, and
take the middle 95 %. Every score here is a function of sums over rows, so a resample is a vector of
row counts times the matrix of row statistics. Equal rows are drawn together, as one multinomial category: the
distribution is the same, and the interval does not depend on the order of the rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Score:
    """The result of one metric on n rows.

    Attributes:
        value: the score of all rows together.
        per_sample: the n scores of the single rows, in input order. For corpus metrics their mean is not `value`.
        interval: 95 % bootstrap interval of `value`, low and high.
        signature: the metric's name and every choice that changes the number, joined by `|`.
        details: whatever else the metric knows, see each function.
    """

    value: float
    per_sample: list[float]
    interval: tuple[float, float]
    signature: str
    details: dict

    def __str__(self) -> str:
        name = self.signature.partition("|")[0]
        low, high = self.interval
        return f"{name} {self.value:.3f} [{low:.2f}, {high:.2f}] n={len(self.per_sample)}"


def mean_score(per_sample: list[float], signature: str, details: dict) -> Score:
    """The score that is the mean of its rows. `fsum` makes it independent of their order."""
    n = len(per_sample)
    interval = bootstrap_interval(np.array(per_sample)[:, None], lambda sums: sums[:, 0] / n)
    return Score(math.fsum(per_sample) / n, per_sample, interval, signature, details)


def bootstrap_interval(
    statistics: np.ndarray, value_of: Callable[[np.ndarray], np.ndarray], blocks: int = 10
) -> tuple[float, float]:
    """95 % percentile interval of a score that is a function of summed row statistics.

    Args:
        statistics: (n, k), one row of sufficient statistics per sample.
        value_of: maps sums over rows, (resamples, k), to scores, (resamples,).
        blocks: the resamples are drawn in this many blocks, which bounds the memory.
    """
    rows, counts = np.unique(statistics, axis=0, return_counts=True)
    n, generator = len(statistics), np.random.default_rng(SEED)
    draws = (generator.multinomial(n, counts / n, size=RESAMPLES // blocks) for _ in range(blocks))
    values = np.concatenate([value_of(draw @ rows) for draw in draws])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def signature(name: str, references: list[list[str]], **choices: object) -> str:
    """`name|choice:value|...|refs:1|bs:1000|seed:0`; `refs` is the number of references a row, or its range."""
    counts = [len(row) for row in references]
    refs = f"{min(counts)}-{max(counts)}" if min(counts) < max(counts) else counts[0]
    choices |= {"refs": refs, "bs": RESAMPLES, "seed": SEED}
    return "|".join([name, *(f"{key}:{value}" for key, value in choices.items())])

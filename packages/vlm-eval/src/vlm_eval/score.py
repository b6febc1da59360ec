"""A score is a number, where it comes from, and how far another sample of rows would move it.

The interval is a percentile bootstrap (Efron, 1979): draw n rows with replacement, score them, repeat, and
take the middle 95 %. Every score here is a function of sums over rows, so a resample is a vector of
row counts times the matrix of row statistics. The rows are sorted first, so that the interval does not depend on their
order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SEED = 0
FEW = 100  # distinct rows are few if each stands for more rows than this, on average
BLOCK = 2**18  # rows drawn at once, as a bound on the memory


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


def bootstrap_interval(statistics: np.ndarray, value_of: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of a score that is a function of summed row statistics.

    Args:
        statistics: (n, k), one row of sufficient statistics per sample.
        value_of: maps sums over rows, (resamples, k), to scores, (resamples,).
    """
    n, generator = len(statistics), np.random.default_rng(SEED)
    rows = statistics[np.lexsort(statistics.T)]
    starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(axis=1)]))
    if FEW * len(starts) < n:  # equal rows drawn together, as one category, are as good and faster
        draws = generator.multinomial(n, np.diff(starts, append=n) / n, size=RESAMPLES)
        values = value_of(draws.astype(np.float64) @ rows[starts])
    else:
        values = value_of(_sums_of_resamples(rows, generator))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _sums_of_resamples(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    n, sums = len(rows), []
    block = max(1, BLOCK // n)
    for done in range(0, RESAMPLES, block):
        many = min(block, RESAMPLES - done)
        drawn = generator.integers(n, size=(many, n))
        drawn += n * np.arange(many)[:, None]  # each resample has its own counters
        counts = np.bincount(drawn.ravel(), minlength=many * n)
        # Not `@`: threads of BLAS cost more than they bring for so few columns.
        sums.append(np.einsum("rn,nk->rk", counts.reshape(many, n).astype(np.float64), rows))
    return np.concatenate(sums)


def signature(name: str, references: list[list[str]], **choices: object) -> str:
    """`name|choice:value|...|refs:1|bs:1000|seed:0`; `refs` is the number of references a row, or its range."""
    counts = [len(row) for row in references]
    refs = f"{min(counts)}-{max(counts)}" if min(counts) < max(counts) else counts[0]
    choices |= {"refs": refs, "bs": RESAMPLES, "seed": SEED}
    return "|".join([name, *(f"{key}:{value}" for key, value in choices.items())])

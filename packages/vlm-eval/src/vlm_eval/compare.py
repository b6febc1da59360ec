"""Is one model better than another on the same rows? Paired tests on the differences of their scores by row.

Rows that share an image are not independent, so images are drawn and flipped, not rows (Miller, 2024, sec. 2.2):

    difference = (sum over images of the sum of a - b) / rows
    interval   = percentile bootstrap that draws images with replacement (Efron, 1979)
    p          = share of sign flips of the images' sums that are at least as far from 0 (Fisher, 1935), two-sided
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_eval.score import SEED, Score, bootstrap_interval

EXACT = 15  # up to this many images whose sums are not 0, all flips are tried
FLIPS = 20_000


@dataclass(frozen=True)
class Comparison:
    """How much `a` scores above `b`.

    Attributes:
        difference: mean of a - b over rows. For a metric that scores a corpus (BLEU, Fréchet distance) that is not the
            difference of the two values, but that of its values by row.
        interval: its 95 % bootstrap interval, low and high.
        p_value: of the sign-flip test that a and b are exchangeable, two-sided.
        better, equal, worse: rows where a is above, equal to, and below b.
        rows, clusters: how many there are.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    better: int
    equal: int
    worse: int
    rows: int
    clusters: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}] p={self.p_value:.3g} "
            f"better:{self.better} equal:{self.equal} worse:{self.worse} clusters:{self.clusters}"
        )


def compare(
    a: Score | Sequence[float], b: Score | Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Comparison:
    """Compare two scores of the same rows in the same order.

    Args:
        a: a score, or n values.
        b: a score of the same signature, or n values.
        clusters: n labels, as a rule the rows' images; rows of one label are drawn and flipped together. By default
            each row stands for itself.

    Raises:
        ValueError: the scores have different signatures or lengths, no rows, values that are not finite, or not one
            label a row.
    """
    if isinstance(a, Score) and isinstance(b, Score) and a.signature != b.signature:
        raise ValueError(f"scores of different kinds: {a.signature} and {b.signature}; score both in the same way")
    a, b = (np.asarray(x.per_sample if isinstance(x, Score) else x, np.float64) for x in (a, b))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"{a.size} and {b.size} values: give one a row, of the same rows, and at least one row")
    differences = a - b
    if not np.isfinite(differences).all():
        raise ValueError(f"row {np.flatnonzero(~np.isfinite(differences))[0]}: a value is not finite")
    groups = defaultdict(list)
    labels = range(len(a)) if clusters is None else clusters
    if len(labels) != len(a):
        raise ValueError(f"{len(labels)} clusters but {len(a)} rows: give one label a row")
    for label, difference in zip(labels, differences.tolist(), strict=True):
        groups[label].append(difference)
    sums = np.array([[math.fsum(group), len(group)] for group in groups.values()])
    return Comparison(
        difference=math.fsum(differences) / len(a),
        interval=bootstrap_interval(sums, lambda totals: totals[:, 0] / totals[:, 1]),
        p_value=_sign_flip(sums[:, 0]),
        better=int((differences > 0).sum()),
        equal=int((differences == 0).sum()),
        worse=int((differences < 0).sum()),
        rows=len(a),
        clusters=len(groups),
    )


def _sign_flip(sums: np.ndarray) -> float:
    """Two-sided p: exact for few clusters, else of random flips, of which the one observed counts as one."""
    sums = np.sort(sums[sums != 0])  # a sum of 0 is the same either way; the order must not change the flips
    observed = abs(math.fsum(sums)) - 1e-12 * np.abs(sums).sum()  # rounding must not tell equal totals apart
    k = len(sums)
    if k <= EXACT:
        flips = 1 - 2.0 * ((np.arange(2**k)[:, None] >> np.arange(k)) & 1)
        return float((np.abs(flips @ sums) >= observed).mean())
    generator, far = np.random.default_rng(SEED), 0
    for _ in range(FLIPS // 1000):  # in blocks, which bounds the memory
        flips = generator.integers(0, 2, (1000, k), dtype=np.int8)
        far += int((np.abs(2 * (flips @ sums) - sums.sum()) >= observed).sum())
    return (far + 1) / (FLIPS + 1)

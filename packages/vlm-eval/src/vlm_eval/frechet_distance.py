"""Fréchet distance between the sentence embeddings of two sets of texts (Dowson & Landau, 1982; Heusel et al., 2017).

    d = |mu_x - mu_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^(1/2))

With A the centred rows of x over sqrt(n - 1) and B those of y, S_x = A^T A and S_y = B^T B, and the eigenvalues of
S_x S_y are the squared singular values of A B^T: the last trace is the nuclear norm of A B^T. So there is no square
root of a d x d matrix, nothing has to be regularised, and n may be as small as 2.

d depends on n: two samples of one distribution are far apart as long as n is not well above d. Only distances of the
same n compare. What is left as n grows is estimated by a line in 1 / n (Chong & Forsyth, 2020).
"""

import warnings
from collections.abc import Sequence

import numpy as np

from vlm_eval.embed import embed
from vlm_eval.rows import check_rows
from vlm_eval.score import SEED, Score

RESAMPLES = 200  # each costs two matrix factorisations
RESAMPLED_ROWS = 1000  # at most
FRACTIONS = (0.2, 0.25, 1 / 3, 0.5, 1.0)  # of the rows, for the line in 1 / n
DRAWS = 5  # of each fraction


def frechet_distance(
    predictions: Sequence[str] | np.ndarray,
    references: Sequence[str | Sequence[str]] | np.ndarray,
    encoder: str = "thenlper/gte-small",
    device: str = "cpu",
) -> Score:
    """Fréchet distance of the predictions from all references together; 0 is best.

    Args:
        predictions: n >= 2 texts, or their embeddings, (n, d).
        references: n texts, n lists of texts, whose order does not matter, or embeddings of any texts, (m, d).
        encoder: see `embed.embed`; not used for embeddings.
        device: where the encoder runs.

    Returns:
        A score whose `per_sample` holds the squared distance of each prediction from the nearest of its references (of
        embeddings: of all). Its details hold `mean_term` and `covariance_term`, which add up to `value`; `n`, `m` and
        `d`; and `infinite_n`, the value extrapolated to infinite n, None below 20 rows.
        The interval is a bootstrap's of 200 resamples, moved so that its median is `value`: a resample repeats rows,
        which makes it farther from the references than the sample is. Of more than 1,000 rows it draws that many,
        and narrows the interval accordingly (m-out-of-n bootstrap; Bickel et al., 1997).

    Warns:
        UserWarning: n <= d; then the value says more about n than about the texts.

    Raises:
        ValueError: fewer than two predictions or references, embeddings of different widths or that are not finite, or
            see `rows.check_rows`.
        ImportError, OSError: see `embed.embed`.
    """
    if isinstance(predictions, np.ndarray) and predictions.ndim == 2:
        x, y, rows, name = *_check_embeddings(predictions, references), None, "none"
    else:
        predictions, references = check_rows(predictions, references)
        # In an order of their own, so that the bootstrap does not depend on that of the rows.
        order = sorted(range(len(predictions)), key=lambda i: (predictions[i], sorted(references[i])))
        targets = [text for i in order for text in sorted(references[i])]
        rows = np.repeat(np.arange(len(order)), [len(references[i]) for i in order])
        vectors = embed([*(predictions[i] for i in order), *targets], encoder, device)
        x, y, name = vectors[: len(order)], vectors[len(order) :], encoder
    n, d, m = *x.shape, len(y)
    if n < 2 or m < 2:
        raise ValueError(f"{n} predictions and {m} references: a covariance needs at least 2 of each")
    if min(n, m) <= d:
        warnings.warn(
            f"Fréchet distance of n={min(n, m)} texts in d={d} dimensions: it depends on n more than on the texts; "
            "compare it only with distances of the same n",
            stacklevel=2,
        )
    nearest = _nearest(x, y, rows)
    if rows is not None:
        nearest = nearest[np.argsort(order)]
    mean_term, covariance_term = _terms(x, y)
    value = mean_term + covariance_term
    choices = {"encoder": name, "d": d, "n": n, "m": m, "bs": RESAMPLES, "seed": SEED}
    return Score(
        value=value,
        per_sample=nearest.tolist(),
        interval=_interval(x, y, rows, value),
        signature="|".join(["frechet_distance", *(f"{key}:{choice}" for key, choice in choices.items())]),
        details={
            "mean_term": mean_term,
            "covariance_term": covariance_term,
            "infinite_n": _infinite_n(x, y, rows),
            "n": n,
            "m": m,
            "d": d,
        },
    )


def _check_embeddings(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings have shapes {x.shape} and {y.shape}: give (n, d) and (m, d) of one encoder")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("embeddings hold NaN or infinity: leave such rows out or encode them again")
    return x, y


def _terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """|mu_x - mu_y|^2 and what the covariances add to it, which rounding must not push below 0."""
    (mean_x, a), (mean_y, b) = map(_centred, (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    covariances = np.square(a).sum() + np.square(b).sum() - 2 * cross
    return float(np.square(mean_x - mean_y).sum()), max(0.0, float(covariances))


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the rows, and min(n, d) rows A with A^T A = the covariance: what a rotation of rows leaves alone."""
    mean = x.mean(0)
    a = (x - mean) / np.sqrt(x.dtype.type(len(x) - 1))
    return mean, np.linalg.qr(a, mode="r") if a.shape[0] > a.shape[1] else a


def _nearest(x: np.ndarray, y: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    if rows is not None:
        return np.minimum.reduceat(np.square(x[rows] - y).sum(1), np.flatnonzero(np.diff(rows, prepend=-1)))
    return np.array([np.square(row - y).sum(1).min() for row in x])


def _draw(
    x: np.ndarray, y: np.ndarray, rows: np.ndarray | None, share: float, replace: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A part of both samples: rows with their references, or each by itself where nothing pairs them."""
    chosen = generator.choice(len(x), max(2, round(share * len(x))), replace=replace)
    if rows is None:
        return x[chosen], y[generator.choice(len(y), max(2, round(share * len(y))), replace=replace)]
    starts = np.searchsorted(rows, np.arange(len(x) + 1))
    targets = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
    return x[chosen], y[targets]


def _interval(x: np.ndarray, y: np.ndarray, rows: np.ndarray | None, value: float) -> tuple[float, float]:
    generator, share = np.random.default_rng(SEED), min(1.0, RESAMPLED_ROWS / len(x))
    x, y = x.astype(np.float32), y.astype(np.float32)  # half the time, and far more digits than a resample is worth
    values = [sum(_terms(*_draw(x, y, rows, share, True, generator))) for _ in range(RESAMPLES)]
    low, median, high = np.percentile(values, [2.5, 50, 97.5])
    return max(0.0, value + float(low - median) * share**0.5), value + float(high - median) * share**0.5


def _infinite_n(x: np.ndarray, y: np.ndarray, rows: np.ndarray | None) -> float | None:
    if min(len(x), len(y)) < 20:
        return None
    generator = np.random.default_rng(SEED)
    means = []
    for share in FRACTIONS:
        draws = 1 if share == 1 else DRAWS
        means.append(np.mean([sum(_terms(*_draw(x, y, rows, share, False, generator))) for _ in range(draws)]))
    _, intercept = np.polyfit(1 / np.array(FRACTIONS), means, 1)
    return max(0.0, float(intercept))

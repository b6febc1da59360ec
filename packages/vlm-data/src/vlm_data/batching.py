"""Batches of rows of similar length: little padding, in random order."""

from collections.abc import Sequence

import numpy as np

from vlm_data.schema import DataError

BUCKET = 20  # batches among which rows change places


def batches(lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    """The rows of an epoch, as numbers from 0, in batches; a function of nothing but the arguments.

    lengths: of each row in tokens, as `fit` gives them.

    The rows are shuffled and cut into buckets of 20 batches; a bucket's rows are sorted by length and cut into batches,
    and all batches are shuffled. So a row is beside others of its length, but seldom beside the same. Only the last
    batch may be smaller than the others.
    """
    if batch_size < 1 or not 0 <= seed < 2**32:
        raise DataError(f"batch_size {batch_size}, seed {seed}: needed: 1 row or more, and a seed from 0 to 2**32 - 1")
    lengths = np.asarray(lengths)
    # RandomState and not default_rng: only its results are promised to be the same in every version of NumPy.
    random = np.random.RandomState([seed, epoch])
    shuffled, size = random.permutation(len(lengths)), BUCKET * batch_size
    buckets = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    ordered = np.concatenate([bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets or [shuffled]])
    cut = [ordered[start : start + batch_size].tolist() for start in range(0, len(ordered), batch_size)]
    whole = len(lengths) // batch_size
    return [cut[number] for number in [*random.permutation(whole), *range(whole, len(cut))]]

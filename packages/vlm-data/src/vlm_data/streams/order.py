"""The order of a stream's rows, as a pure function of (seed, epoch, blocks, window).

The blocks (runs of rows that are read together) are shuffled, laid end to end, and cut into windows of some rows each,
which are shuffled in turn. So the row at any place is found without reading or replaying what comes before it, which
a shuffle buffer that is refilled row by row does not allow.
"""

import numpy as np


class Order:
    """The order of one epoch over blocks of `lengths` rows, which are numbered through from 0, block after block."""

    def __init__(self, lengths: np.ndarray, seed: int, epoch: int, window: int, shuffle: bool) -> None:
        self._key, self._window, self._shuffle = (seed, epoch), window, shuffle
        blocks = self._permutation(len(lengths)) if shuffle else np.arange(len(lengths))
        self._ends = np.cumsum(lengths[blocks])  # places, of the blocks in their new order
        # row - place, which is one number throughout a block
        self._shifts = np.cumsum(lengths)[blocks] - self._ends

    def window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, turns): the rows of a window in their order, and which turn each has in the order of the blocks."""
        total = int(self._ends[-1])
        first, end = number * self._window, min((number + 1) * self._window, total)
        turns = self._permutation(end - first, number) if self._shuffle else np.arange(end - first)
        places = first + turns
        return places + self._shifts[np.searchsorted(self._ends, places, side="right")], turns

    def _permutation(self, size: int, *key: int) -> np.ndarray:
        # RandomState and not default_rng: only its results are promised to be the same in every version of NumPy.
        return np.random.RandomState([*self._key, *key]).permutation(size)

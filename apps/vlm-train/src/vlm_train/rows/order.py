"""Which rows a step is trained on: a function of the seed and the step's number, so that any step can be entered.

Rows are in random order, but for this: two of an image are neighbours where it has several, since a model does the
image's part of the work once for both. Four make steps hardly cheaper, and less varied: on easy-VQA losses are higher.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

TOGETHER = 2  # rows of an image


class Order:
    """Rows in an order of its own in each epoch, cut into steps of `size` rows that ignore epochs.

    images [rows]: a number for the image of each row.
    """

    def __init__(self, images: Sequence[int], size: int, seed: int):
        self.images, self.size, self.seed = torch.tensor(images), size, seed
        self._epochs: dict[int, np.ndarray] = {}  # the latest two

    @property
    def rows(self) -> int:
        return len(self.images)

    def step(self, number: int) -> list[int]:
        """The rows of step `number`, the first being 0."""
        places = range(number * self.size, (number + 1) * self.size)
        return [int(self._epoch(place // self.rows)[place % self.rows]) for place in places]

    def epoch(self, number: int) -> int:
        """The epoch in which step `number` begins."""
        return number * self.size // self.rows

    def _epoch(self, number: int) -> np.ndarray:
        if number not in self._epochs:
            self._epochs = dict(list(self._epochs.items())[-1:])
            self._epochs[number] = self._shuffled(torch.Generator().manual_seed(self.seed * 1_000_003 + number))
        return self._epochs[number]

    def _shuffled(self, generator: torch.Generator) -> np.ndarray:
        rows = torch.randperm(self.rows, generator=generator)
        rows = rows[self.images[rows].argsort(stable=True)]  # of each image in random order
        images = self.images[rows]
        first = torch.searchsorted(images, images)  # where the image's rows begin
        turn = (torch.arange(self.rows) - first) // TOGETHER
        _, group = torch.stack([images, turn]).unique(dim=1, return_inverse=True)
        keys: Tensor = torch.randperm(int(group.max()) + 1, generator=generator)
        return rows[keys[group].argsort(stable=True)].numpy()

"""A shard whose rows are found by the byte at which each begins."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np


class IndexedShard:
    """Length and blocks of a shard; who derives from it makes the index, and reads."""

    block: ClassVar[int]  # rows that are shuffled as one

    def __init__(self, path: Path, columns: Mapping[str, str] | None, image_dir: Path) -> None:
        self.path, self._columns, self._image_dir = path, columns, image_dir
        self._starts = self._index()

    def _index(self) -> np.ndarray:
        """The byte at which each row begins."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._starts)

    def blocks(self) -> list[int]:
        return [min(self.block, len(self) - start) for start in range(0, len(self), self.block)]

"""A JSONL file as a shard: one JSON object a line."""

import json
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, Rejected
from vlm_data.streams.indexed_shard import IndexedShard
from vlm_data.streams.rows import row_of


class JsonLinesShard(IndexedShard):
    """Raises OSError for a file that cannot be read."""

    block = 256

    def _index(self) -> np.ndarray:
        starts, numbers, start = array("Q"), array("L"), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    starts.append(start)
                    numbers.append(number)
                start += len(line)
        self._numbers = np.array(numbers, dtype=np.uint32)  # of the lines, from 1
        return np.array(starts, dtype=np.uint64)

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]:
        images = ImageFolder(self._image_dir, search=False)
        with self.path.open("rb") as file:
            for position in positions:
                number = self._numbers[position]
                source = f"{self.path}:{number}"
                file.seek(int(self._starts[position]))
                try:
                    record = json.loads(file.readline())
                    yield row_of(record, f"{self.path.stem}-{number}", source, self._columns, images)
                except BadRow as error:
                    yield Rejected(source, str(error))
                except (ValueError, RecursionError) as error:  # what is not UTF-8 as well
                    yield Rejected(source, f"not JSON ({error})")

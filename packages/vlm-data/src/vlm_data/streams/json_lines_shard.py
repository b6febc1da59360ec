"""A JSONL file as a shard: one JSON object a line."""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, Rejected
from vlm_data.streams.rows import row_of

_BLOCK = 256  # rows that are shuffled as one


class JsonLinesShard:
    """Raises OSError for a file that cannot be read."""

    def __init__(self, path: Path, columns: Mapping[str, str] | None, image_dir: Path) -> None:
        self.path, self._columns, self._image_dir = path, columns, image_dir
        starts, numbers, start = array("Q"), array("L"), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    starts.append(start)
                    numbers.append(number)
                start += len(line)
        self._starts = np.array(starts, dtype=np.uint64)
        self._numbers = np.array(numbers, dtype=np.uint32)  # of the lines, from 1

    def __len__(self) -> int:
        return len(self._starts)

    def blocks(self) -> list[int]:
        return [min(_BLOCK, len(self) - start) for start in range(0, len(self), _BLOCK)]

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]:
        images = ImageFolder(self._image_dir)
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

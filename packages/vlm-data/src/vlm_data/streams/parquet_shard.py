"""A Parquet file as a shard. Its row groups are the blocks: no part of one can be read without the rest."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, Rejected
from vlm_data.streams.rows import row_of


class ParquetShard:
    """Raises OSError or pa.ArrowException for a file that is no Parquet."""

    def __init__(self, path: Path, columns: Mapping[str, str] | None, image_dir: Path) -> None:
        self.path, self._columns, self._image_dir = path, columns, image_dir
        with pq.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            self._lengths = [file.metadata.row_group(group).num_rows for group in groups]
        self._ends = np.cumsum(self._lengths)
        self._held: tuple[int, pa.Table] | None = None  # the last row group read: the next window goes on in it

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held": None}

    def __len__(self) -> int:
        return sum(self._lengths)

    def blocks(self) -> list[int]:
        return [length for length in self._lengths if length]

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]:
        images = ImageFolder(self._image_dir, search=False)
        for group, run in groupby(positions, lambda position: int(np.searchsorted(self._ends, position, side="right"))):
            run = list(run)
            sources = [f"{self.path}:{position}" for position in run]
            first = self._ends[group] - self._lengths[group]
            try:
                records = self._row_group(group).take(np.array(run) - first).to_pylist()
            except (OSError, ValueError, pa.ArrowException) as error:
                for source in sources:
                    yield Rejected(source, f"row group {group} is damaged ({error})")
                continue
            for position, source, record in zip(run, sources, records, strict=True):
                try:
                    yield row_of(record, f"{self.path.stem}-{position}", source, self._columns, images)
                except BadRow as error:
                    yield Rejected(source, str(error))

    def _row_group(self, group: int) -> pa.Table:
        if self._held is None or self._held[0] != group:
            self._held = None  # before the next one is read, so that there are never two
            with pq.ParquetFile(self.path) as file:
                self._held = group, file.read_row_group(group)
        return self._held[1]

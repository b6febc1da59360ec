"""Shards: files of rows of which any can be read by its position. What one gives:

len(shard)              its rows
shard.blocks()          lengths of the runs of neighbours that are best read together; their sum is len(shard)
shard.read(positions)   for each position its row, or a `Rejected` record that says what is wrong there
"""

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from vlm_data.image_folder import ImageFolder
from vlm_data.schema import DataError, Rejected
from vlm_data.streams.json_lines_shard import JsonLinesShard
from vlm_data.streams.parquet_shard import ParquetShard
from vlm_data.streams.tar_shard import TarShard

FORMATS = {".tar": TarShard, ".parquet": ParquetShard, ".jsonl": JsonLinesShard}


class Shard(Protocol):
    path: Path

    def __len__(self) -> int: ...

    def blocks(self) -> list[int]: ...

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]: ...


class BrokenShard:
    """A file that cannot be read at all: one row, which is rejected."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self._reason = path, reason

    def __len__(self) -> int:
        return 1

    def blocks(self) -> list[int]:
        return [1]

    def read(self, positions: Iterable[int]) -> Iterator[Rejected]:
        for _ in positions:
            yield Rejected(str(self.path), self._reason)


def open_shard(path: Path, columns: Mapping[str, str] | None, image_dir: str | os.PathLike | None) -> Shard:
    """Raises DataError for a file of an unknown kind; one that cannot be read is a BrokenShard."""
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: a shard ends in {', '.join(FORMATS)}" + _hint(path))
    image_dir = ImageFolder(image_dir or path.parent).root
    try:
        return FORMATS[path.suffix](path, columns, image_dir)
    except (OSError, EOFError, ValueError, TypeError, OverflowError, tarfile.TarError, pa.ArrowException) as error:
        return BrokenShard(path, f"the shard cannot be read ({error})")


def _hint(path: Path) -> str:
    return "; unpack it first: its middle cannot be reached" if path.suffix in (".gz", ".zst", ".bz2", ".xz") else ""

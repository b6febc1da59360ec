"""Rows of shards that are too large for memory, in an order that any place can be entered in."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from vlm_data.columns import parse
from vlm_data.schema import DataError, Rejected
from vlm_data.streams.loader import Loader
from vlm_data.streams.order import Order
from vlm_data.streams.shards import FORMATS, open_shard

Shards = str | os.PathLike | Iterable[str | os.PathLike]


class Stream:
    """Shards and the order of their rows; `stream` makes one. It holds 8 to 12 bytes for each row, and no row."""

    def __init__(
        self,
        paths: list[Path],
        columns: Mapping[str, str] | None,
        image_dir: str | os.PathLike | None,
        shuffle: bool,
        window: int,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.shuffle, self.window, self.seed = shuffle, window, seed
        self.shards = []
        for path in paths:
            self.shards.append(open_shard(path, columns, image_dir))
            if progress is not None:
                progress(len(self.shards), len(paths))
        self._ends = np.cumsum([len(shard) for shard in self.shards])
        self._blocks = np.array([length for shard in self.shards for length in shard.blocks()], dtype=np.int64)

    def __len__(self) -> int:
        """Rows in an epoch, those included that will be rejected."""
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Equal for streams whose rows have the same order: made of seed, window, and the shards' names and sizes."""
        shards = [(shard.path.name, shard.path.stat().st_size, len(shard)) for shard in self.shards]
        return hashlib.sha256(json.dumps([self.seed, self.window, self.shuffle, shards]).encode()).hexdigest()[:16]

    def order(self, epoch: int) -> Order:
        return Order(self._blocks, self.seed, epoch, self.window, self.shuffle)

    def read(self, rows: np.ndarray) -> Iterator[dict | Rejected]:
        """The rows of these numbers, or why there is none. Neighbours should lie in one shard."""
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard, run in groupby(range(len(rows)), lambda index: int(shards[index])):
            first = self._ends[shard] - len(self.shards[shard])
            yield from self.shards[shard].read([int(rows[index] - first) for index in run])

    def loader(
        self,
        batch_size: int,
        collate: Callable[[list[dict]], object] | None = None,
        *,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rejected: list[Rejected] | None = None,
    ) -> Loader:
        """Batches of `collate(rows)`, by default the rows themselves; see `Loader`."""
        return Loader(self, batch_size, collate, workers, rank, world_size, rejected)


def stream(
    shards: Shards,
    *,
    columns: Mapping[str, str] | str | None = None,
    image_dir: str | os.PathLike | None = None,
    shuffle: bool = True,
    window: int = 2048,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Stream:
    """A stream of the rows in shards: WebDataset `.tar`, `.parquet`, `.jsonl`.

    shards: a file, a folder of shards, a pattern such as "train-*.tar", or several of these.
    columns: which are image, prompt and references, as "image=photo,references=texts"; default: the usual names.
    image_dir: where the images are that a row names by path; default: the shard's folder.
    shuffle: blocks of rows over all shards, then the rows of every `window` rows; another order in each epoch.
    window: rows shuffled together; the workers of a process hold so many between them.
    progress: called with the number of shards indexed and of all. A tar file is gone through for it, header by header.

    Raises DataError for shards that are not there or of an unknown kind, and for shards without rows. A shard that
    cannot be read is rejected when its turn comes.
    """
    if window < 1 or not 0 <= seed < 2**32:
        raise DataError(f"window {window}, seed {seed}: needed: 1 row or more, and a seed from 0 to 2**32 - 1")
    paths = _paths(shards)
    columns = parse(columns) if isinstance(columns, str) else columns
    made = Stream(paths, columns, image_dir, shuffle, window, seed, progress)
    if len(made) == 0:
        raise DataError(f"{paths[0]}{' and the other shards' if len(paths) > 1 else ''}: there are no rows in it")
    return made


def _paths(shards: Shards) -> list[Path]:
    found: list[Path] = []
    for given in [shards] if isinstance(shards, str | os.PathLike) else shards:
        path = Path(given)
        if path.is_dir():
            matches = sorted(path / name for name in os.listdir(path) if Path(name).suffix in FORMATS)
        else:
            matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(given))))
        if not matches:
            raise DataError(f"{given}: no shards ({', '.join(FORMATS)}) of that name")
        found += matches
    if not found:
        raise DataError("no shards are given")
    return found

"""Batches of a stream, for one of several processes, made in workers; its state says where to go on.

The rows of an epoch, in their order, are dealt out to the processes one by one. A process cuts its rows into batches
and deals these out to its workers, from which a DataLoader takes them in turn. So the order does not depend on the
workers, and a count of rows is all there is to remember.
"""

import inspect
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vlm_data.images import ImageError, decode
from vlm_data.schema import DataError, Rejected, reject

if TYPE_CHECKING:
    from vlm_data.streams.stream import Stream

GRACE = 20  # seconds


class Loader:
    """Iterating gives the batches that are left in the epoch, and then begins the next one; one iteration at a time.

    collate: rows to a batch; if it has a parameter `epoch`, it is told that, as ours which draw answers by it.
    rank, world_size: of this process. All processes get equally many batches; the last few rows, fewer than there are
    processes, are left out of the epoch.
    rejected: a row that cannot be read, whose image does not decode, or that `collate` refuses (DataError, ImageError),
    is missing in its batch and is appended here as that batch is given; None raises DataError. A batch that has no row
    left is not given.
    """

    def __init__(
        self,
        stream: "Stream",
        batch_size: int,
        collate: Callable[[list[dict]], object] | None,
        workers: int,
        rank: int,
        world_size: int,
        rejected: list[Rejected] | None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DataError(
                f"batch_size {batch_size}, rank {rank} of {world_size}: needed: 1 or more, and 0 to one less"
            )
        self.stream, self.batch_size, self.workers, self.rejected = stream, batch_size, workers, rejected
        self.rank, self.world_size = rank, world_size
        self._collate = collate or _decodable
        self._epoch = self._row = 0

    def state(self) -> dict[str, int | str]:
        """Where the batches given so far end: epoch, rows dealt out in it to all processes, fingerprint of the stream.

        It fits JSON, is the same on all processes after equally many batches, and does not depend on the workers.
        """
        return {"epoch": self._epoch, "row": self._row, "stream": self.stream.fingerprint}

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on from a state, with as many workers, processes and rows in a batch as you like.

        Raises DataError for the state of another stream.
        """
        if state["stream"] != self.stream.fingerprint:
            raise DataError(
                "the state is of a stream with other shards, seed, window or shuffle; open the same to go on"
            )
        self._epoch, self._row = state["epoch"], state["row"]

    def __len__(self) -> int:
        """Batches that are left in the epoch, those without a good row included."""
        return -(-((len(self.stream) - self._row) // self.world_size) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        share = _Share(self, self._epoch, self._row)
        # No collate_fn of its own: the default turns the numbers in it into tensors.
        options = {"collate_fn": _same, "worker_init_fn": _leave_signals if self.workers else None}
        for places, batch, bad in DataLoader(share, batch_size=None, num_workers=self.workers, **options):
            for record in bad:
                reject(record, self.rejected)
            self._row += places * self.world_size
            if batch is not None:
                yield batch
        self._epoch, self._row = self._epoch + 1, 0


class _Share(IterableDataset):
    """What is left of an epoch for one process: (places, batch or None, rejected records) of each batch."""

    def __init__(self, loader: Loader, epoch: int, row: int) -> None:
        self._stream, self._epoch, self._row = loader.stream, epoch, row
        takes_epoch = "epoch" in inspect.signature(loader._collate).parameters
        self._collate = partial(loader._collate, epoch=epoch) if takes_epoch else loader._collate
        self._rank, self._world_size, self._batch_size = loader.rank, loader.world_size, loader.batch_size

    def __iter__(self) -> Iterator[tuple[int, Any, list[Rejected]]]:
        for _, pairs in groupby(self._items(), lambda pair: pair[0]):
            items = [item for _, item in pairs]
            rows = [item for item in items if isinstance(item, dict)]
            bad = [item for item in items if isinstance(item, Rejected)]
            yield len(items), self._batch(rows, bad), bad

    def _items(self) -> Iterator[tuple[int, dict | Rejected]]:
        """(number of its batch, row or why there is none), of the batches of this worker."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        order, window = self._stream.order(self._epoch), self._stream.window
        end = len(self._stream) - (len(self._stream) - self._row) % self._world_size
        for number in range(self._row // window, -(-end // window)):
            places = np.arange(max(number * window, self._row), min((number + 1) * window, end))
            turn, rank = np.divmod(places - self._row, self._world_size)
            batch = turn // self._batch_size
            mine = (rank == self._rank) & (batch % workers == worker)
            yield from zip(batch[mine], self._rows(order, number, places[mine] - number * window), strict=True)

    def _rows(self, order: Any, number: int, places: np.ndarray) -> list[dict | Rejected]:
        """What is at these places of a window; read in the order of the blocks, so from front to back."""
        rows, turns = order.window(number)
        reading = np.argsort(turns[places])
        items: list[dict | Rejected] = [None] * len(places)
        for index, item in zip(reading, self._stream.read(rows[places[reading]]), strict=True):
            items[index] = item
        return items

    def _batch(self, rows: list[dict], bad: list[Rejected]) -> Any:
        try:
            return self._collate(rows) if rows else None
        except (ImageError, DataError):
            good = [row for row in rows if self._is_good(row, bad)]
            return self._collate(good) if good else None

    def _is_good(self, row: dict, bad: list[Rejected]) -> bool:
        try:
            self._collate([row])
        except (ImageError, DataError) as error:
            bad.append(Rejected(row["source"], str(error)))
            return False
        return True


def _decodable(rows: list[dict]) -> list[dict]:
    for row in rows:
        decode(row["image"])
    return rows


def _same(item: Any) -> Any:
    return item


def _leave_signals(worker: int) -> None:
    """Ctrl-C, and often SIGTERM too, goes to a whole group of processes: what it means is the main one's to say.

    A worker that is told to end has some seconds more, in which the main one may take its batches and end it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))

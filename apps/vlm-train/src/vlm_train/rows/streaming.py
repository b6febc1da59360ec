"""Training from shards that are larger than memory: `--stream`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console

import vlm_data
from vlm_data import Collator, Rejected
from vlm_models import VLM, Batch
from vlm_runs.progress import track
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.data import Data, check_rejected, part_of, sample_of

EXAMPLES = 64  # rows that are looked at before the first step


def read_stream(config: TrainConfig, console: Console) -> Data:
    """A stream of the training rows, a few of them as examples, and the rows of `--val-data`."""
    rejected: list[Rejected] = []
    with track(console, "indexing shards", 1) as progress:
        stream = vlm_data.stream(
            config.data, columns=config.columns, image_dir=config.image_dir, seed=config.seed, progress=progress.at
        )
    numbers, _ = stream.order(0).window(0)
    first = list(stream.read(np.sort(numbers[:EXAMPLES])))
    found = [row for row in first if not isinstance(row, Rejected)]
    if not found:
        why = f"; {first[0].source}: {first[0].reason}" if first else ""
        raise vlm_data.DataError(f"{config.data}: none of its first rows can be read{why}")
    val = part_of(replace(config, data=config.val_data, stream=False, val_data=None), None, rejected, console)
    return Data(Dataset.from_list(found), sample_of(val, config.val_rows, config.seed), rejected, stream)


class StreamBatches:
    """What this process trains on; as `Batches`, but for steps that come one after the other.

    A row that cannot be used is missing in its batch, and is in `rejected` of this process; too many are an error.
    """

    def __init__(
        self,
        vlm: VLM,
        collate: Collator,
        stream: vlm_data.Stream,
        config: TrainConfig,
        processes: Processes,
    ):
        self.vlm, self.collate, self.stream, self.config = vlm, collate, stream, config
        self._rejected: dict[str, Rejected] = {}  # by source: a row comes again in every epoch
        self._heard: list[Rejected] = []  # of the loader, since the latest step
        self._loader = stream.loader(
            config.batch_size // processes.count,
            _RowsAndBatch(collate),
            workers=config.worker_count,
            rank=processes.rank,
            world_size=processes.count,
            rejected=self._heard,
        )
        self._endless = self._batches()
        self._step, self._before, self._parts = None, self._loader.state(), []

    @property
    def rejected(self) -> list[Rejected]:
        return list(self._rejected.values())

    def rows(self, step: int) -> list[list[dict]]:
        """The rows of each micro-batch of the next step; or those of the latest, if it is asked for again."""
        if step != self._step:
            self._before = self._loader.state()
            self._parts = [next(self._endless) for _ in range(self.config.accumulate)]
            self._step = step
            self._rejected |= {one.source: one for one in self._heard}
            self._heard.clear()
            seen = self._before["row"] if self._before["epoch"] == 0 else len(self.stream)
            check_rejected(self.config, self.rejected, max(seen, len(self.rejected) + 1))
        return [rows for rows, _ in self._parts]

    def ready(self, rows: list[dict], step: int) -> Batch:
        """Rows as a batch on the model's device."""
        made = next((batch for own, batch in self._parts if own is rows), None)
        return self.vlm.to_device(made if made is not None else self.collate(rows))

    def state(self, step: int) -> dict[str, Any]:
        """Where step `step` begins, the next one to train, and what was rejected; it fits JSON."""
        place = self._before if step == self._step else self._loader.state()
        return {**place, "rejected": [one.as_dict() for one in self.rejected]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises DataError if it is of other shards."""
        self._loader.restore(state)
        self._rejected = {one["source"]: Rejected(**one) for one in state["rejected"]}

    def close(self) -> None:
        """End the workers."""
        self._endless.close()

    def _batches(self) -> Iterator[tuple[list[dict], Batch]]:
        while True:
            yield from self._loader


class _RowsAndBatch:
    """Rows as they are, and a batch of them. It is sent to workers."""

    def __init__(self, collate: Collator):
        self._collate = collate

    def __call__(self, rows: list[dict], epoch: int) -> tuple[list[dict], Batch]:
        return rows, self._collate(rows, epoch=epoch)

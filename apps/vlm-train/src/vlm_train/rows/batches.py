"""The rows of a step, and the batches that a model takes made of them."""

from collections.abc import Iterator
from itertools import count, islice

from datasets import Dataset

from vlm_data import Collator
from vlm_models import VLM, Batch
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.features import Features, prepared
from vlm_train.rows.images import image_numbers
from vlm_train.rows.order import Order
from vlm_train.rows.prefetch import prefetched


class Batches:
    """What this process trains on: of each micro-batch of `batch_size` rows its share.

    Without features, batches of the steps to come are prepared ahead, which is most of the work then.
    """

    def __init__(
        self,
        vlm: VLM,
        collate: Collator,
        data: Dataset,
        features: Features | None,
        config: TrainConfig,
        processes: Processes,
    ):
        self.vlm, self.collate, self.data, self.features = vlm, collate, data, features
        self.order, self.config, self.processes = order_of(data, config), config, processes
        self._coming: Iterator[tuple[list[dict], Batch | None]] | None = None
        self._step, self._parts = -1, []  # the latest, and of each of its micro-batches rows and batch

    def rows(self, step: int) -> list[list[dict]]:
        """The rows of each micro-batch of step `step`, counted from 0."""
        if step != self._step or not self._parts:
            if self._coming is None or step != self._step + 1:
                self.close()
                workers = self.config.worker_count if self.features is None else 0
                self._coming = prefetched(self._made, self._from(step), workers)
            self._parts = []  # before the next ones are made, so that there are never two steps'
            self._parts = list(islice(self._coming, self.config.accumulate))
            self._step = step
        return [rows for rows, _ in self._parts]

    def ready(self, rows: list[dict], step: int) -> Batch:
        """Rows of a step as a batch on the model's device."""
        made = next((batch for own, batch in self._parts if own is rows), None)
        if made is None:
            made = self.collate(rows, prepared(self.features, self.collate, rows), self.order.epoch(step))
        return self.vlm.to_device(made)

    def close(self) -> None:
        """Drop what was prepared ahead."""
        if self._coming is not None:
            self._coming.close()
        self._coming, self._parts = None, []

    def state(self, step: int) -> None:
        """Nothing: where a step begins follows from its number."""

    def _from(self, step: int) -> Iterator[tuple[int, list[int]]]:
        """Of each micro-batch from a step on, the step's number and the rows' numbers."""
        size = self.config.batch_size
        for number in count(step):
            numbers = self.order.step(number)
            yield from ((number, numbers[start : start + size]) for start in range(0, len(numbers), size))

    def _made(self, part: tuple[int, list[int]]) -> tuple[list[dict], Batch | None]:
        """A micro-batch's rows, and their batch; None where features are looked up for it, which is for `ready`."""
        step, numbers = part
        columns = self.data[list(self.processes.share(numbers))]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return rows, None if self.features is not None else self.collate(rows, None, self.order.epoch(step))


def order_of(data: Dataset, config: TrainConfig) -> Order:
    """The order in which a run goes through its rows."""
    return Order(image_numbers(data), config.batch_size * config.accumulate, config.seed)

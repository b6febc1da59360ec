"""The rows of a step, and the batches that a model takes made of them."""

from datasets import Dataset

from vlm_data import Collator
from vlm_data.collators import image_identity
from vlm_models import VLM, Batch
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.features import Features, prepared
from vlm_train.rows.order import Order


class Batches:
    """What this process trains on: of each micro-batch of `batch_size` rows its share."""

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
        self.order, self.size, self.processes = order_of(data, config), config.batch_size, processes

    def rows(self, step: int) -> list[list[dict]]:
        """The rows of each micro-batch of step `step`, counted from 0."""
        numbers = self.order.step(step)
        parts = (numbers[start : start + self.size] for start in range(0, len(numbers), self.size))
        return [self._read(self.processes.share(part)) for part in parts]

    def ready(self, rows: list[dict], step: int) -> Batch:
        """Rows of a step as a batch on the model's device."""
        images = prepared(self.features, self.collate, rows)
        return self.vlm.to_device(self.collate(rows, images, self.order.epoch(step)))

    def state(self, step: int) -> None:
        """Nothing: where a step begins follows from its number."""

    def _read(self, numbers: list[int]) -> list[dict]:
        columns = self.data[numbers]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def order_of(data: Dataset, config: TrainConfig) -> Order:
    """The order in which a run goes through its rows."""
    numbers: dict[str | bytes, int] = {}
    images = [numbers.setdefault(image_identity(image), len(numbers)) for image in data["image"]]
    return Order(images, config.batch_size * config.accumulate, config.seed)

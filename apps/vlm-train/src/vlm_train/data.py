"""Rows to train and to evaluate on, and what was rejected on the way."""

from dataclasses import dataclass

from datasets import Dataset
from rich.console import Console

import vlm_data
from vlm_train.config import TrainConfig
from vlm_train.progress import track

WITH_TEST_SPLIT = ("easy-vqa", "scenes")


@dataclass(frozen=True)
class Data:
    """Training and validation rows, which share no image, and the rows that could not be used."""

    train: Dataset
    val: Dataset
    rejected: list[vlm_data.Rejected]


def read_data(config: TrainConfig, console: Console) -> Data:
    """Open, verify every image, split by image. Raises `DataError` if too many rows are bad, or none is left."""
    rejected: list[vlm_data.Rejected] = []
    if config.data in WITH_TEST_SPLIT:
        options = {"image_dir": config.image_dir, "format": config.format, "seed": config.seed}
        train, val = (vlm_data.open(config.data, split=split, **options) for split in ("train", "test"))
    else:
        rows = vlm_data.open(config.data, image_dir=config.image_dir, format=config.format, rejected=rejected)
        rows = _answered(rows, rejected)
        total = len(rows) + len(rejected)
        with track(console, "checking images", len(rows)) as progress:
            rows = vlm_data.verify(rows, rejected, progress.at)
        _check_rejected(config, rejected, total)
        train, val = vlm_data.split(rows, val_fraction=config.val_fraction, seed=config.seed)
    return Data(train, _sample(val, config.val_rows, config.seed), rejected)


def fitting(data: Data, collate: vlm_data.Collator, config: TrainConfig) -> Data:
    """Without the rows whose text is longer than the model takes; they are rejected."""
    rejected = list(data.rejected)
    image = collate.image_inputs([vlm_data.decode(data.train[0]["image"])])[0]
    train_rows, val_rows = (_fitting_rows(rows, collate, image, rejected) for rows in (data.train, data.val))
    _check_rejected(config, rejected, len(data.train) + len(data.val) + len(data.rejected))
    if not len(train_rows) or not len(val_rows):
        raise vlm_data.DataError(f"{config.data}: no rows are left to train and evaluate on; {rejected[-1].reason}")
    return Data(train_rows, val_rows, rejected)


def _check_rejected(config: TrainConfig, rejected: list[vlm_data.Rejected], total: int) -> None:
    """Raise if more rows are bad than is tolerated: then it is the data that needs mending."""
    tolerated = config.max_rejected if config.max_rejected is not None else max(10, total // 100)
    if len(rejected) == total or len(rejected) > tolerated:
        first = "; ".join(f"{record.source}: {record.reason}" for record in rejected[:3])
        raise vlm_data.DataError(
            f"{len(rejected)} of {total} rows of {config.data} cannot be used ({tolerated} tolerated, see "
            f"--max-rejected); the first: {first}"
        )


def _answered(rows: Dataset, rejected: list[vlm_data.Rejected]) -> Dataset:
    """Only rows with something to learn from."""
    without = [index for index, references in enumerate(rows["references"]) if not references]
    rejected += [vlm_data.Rejected(rows[index]["source"], "no answer to train on") for index in without]
    skip = set(without)
    return rows.select([index for index in range(len(rows)) if index not in skip]) if skip else rows


def _sample(rows: Dataset, size: int, seed: int) -> Dataset:
    """At most `size` rows, chosen by the seed, in their order; 0 is all."""
    if size == 0 or size >= len(rows):
        return rows
    chosen = rows.shuffle(seed=seed).select(range(size))["id"]
    keep = set(chosen)
    return rows.select([index for index, name in enumerate(rows["id"]) if name in keep])


def _fitting_rows(rows: Dataset, collate: vlm_data.Collator, image: dict, rejected: list[vlm_data.Rejected]) -> Dataset:
    keep = []
    columns = [rows[name][:] for name in ("prompt", "references", "source")]
    for index, (prompt, references, source) in enumerate(zip(*columns, strict=True)):
        try:
            collate.encode({"prompt": prompt, "references": references, "source": source}, image)
            keep.append(index)
        except vlm_data.DataError as error:
            rejected.append(vlm_data.Rejected(source, str(error).removeprefix(f"{source}: ")))
    return rows if len(keep) == len(rows) else rows.select(keep)

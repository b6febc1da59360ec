"""Rows to train and to evaluate on, and what was rejected on the way."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datasets import Dataset
from rich.console import Console

import vlm_data
from vlm_train.config import TrainConfig
from vlm_train.progress import track

NAMED = ("easy-vqa", "scenes")  # made by us: their images are good and their parts share none


@dataclass(frozen=True)
class Data:
    """Training and validation rows, which share no image, and the rows that could not be used."""

    train: Dataset
    val: Dataset
    rejected: list[vlm_data.Rejected]


def read_data(config: TrainConfig, console: Console) -> Data:
    """Open, verify every image, and take the data's own validation or test part, or split by picture.

    Raises `DataError` if too many rows are bad, none is left, or the parts share pictures.
    """
    rejected: list[vlm_data.Rejected] = []
    with said_on(console):
        parts = vlm_data.splits(config.data)
        if config.data in NAMED:
            train, val = (open_part(config, part) for part in ("train", "test"))
        else:
            train = _part(config, "train" if parts else None, rejected, console)
            val = next((rows for part in parts[1:] if (rows := _held_out(config, part, rejected, console))), None)
            if val is None:
                train, val = vlm_data.split(train, val_fraction=config.val_fraction, seed=config.seed)
            elif not config.allow_overlap:
                _check_overlap(train, val)
    return Data(train, _sample(val, config.val_rows, config.seed), rejected)


def open_part(config: TrainConfig, part: str | None, rejected: list[vlm_data.Rejected] | None = None) -> Dataset:
    """The rows of one part of the configured data, None for data that has none; images are not opened yet."""
    options = {"image_dir": config.image_dir, "format": config.format, "columns": config.columns}
    return vlm_data.open(config.data, split=part, seed=config.seed, rejected=rejected, **options)


@contextmanager
def said_on(console: Console) -> Iterator[None]:
    """Show what vlm-data says about the data: which format it takes them for, and what it had to guess."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: console.print(record.getMessage(), style="dim", highlight=False, soft_wrap=True)
    log = logging.getLogger("vlm_data")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def fitting(data: Data, collate: vlm_data.Collator, config: TrainConfig) -> Data:
    """Without the rows whose text is longer than the model takes; they are rejected."""
    rejected = list(data.rejected)
    image = collate.image_inputs([vlm_data.decode(data.train[0]["image"])])[0]
    train_rows, val_rows = (_fitting_rows(rows, collate, image, rejected) for rows in (data.train, data.val))
    _check_rejected(config, rejected, len(data.train) + len(data.val) + len(data.rejected))
    if not len(train_rows) or not len(val_rows):
        raise vlm_data.DataError(f"{config.data}: no rows are left to train and evaluate on; {rejected[-1].reason}")
    return Data(train_rows, val_rows, rejected)


def _part(config: TrainConfig, part: str | None, rejected: list[vlm_data.Rejected], console: Console) -> Dataset:
    """The rows of a part that have a reference and an image that opens; raises if too many have not."""
    bad: list[vlm_data.Rejected] = []
    rows = open_part(config, part, bad)
    return _usable(config, rows, bad, rejected, console)


def _held_out(config: TrainConfig, part: str, rejected: list[vlm_data.Rejected], console: Console) -> Dataset | None:
    """The same of a validation or test part; None, which is said, if nobody has answered it."""
    bad: list[vlm_data.Rejected] = []
    try:
        rows = open_part(config, part, bad)
        problem = None if any(rows["references"]) else "none of its rows has a reference"
    except vlm_data.DataError as error:
        problem = str(error)
    if problem is not None:
        console.print(f"{part} part not used: {problem}", style="yellow", highlight=False, soft_wrap=True)
        return None
    return _usable(config, rows, bad, rejected, console)


def _usable(
    config: TrainConfig,
    rows: Dataset,
    bad: list[vlm_data.Rejected],
    rejected: list[vlm_data.Rejected],
    console: Console,
) -> Dataset:
    rows = _answered(rows, bad)
    total = len(rows) + len(bad)
    with track(console, "checking images", len(rows)) as progress:
        rows = vlm_data.verify(rows, bad, progress.at)
    _check_rejected(config, bad, total)
    rejected += bad
    return rows


def _check_overlap(train: Dataset, val: Dataset) -> None:
    """Raise if a picture is in both parts: what is measured would be memory."""
    shared = vlm_data.overlap(train, val)
    if shared:
        first = "; ".join(f"{one} and {other}" for one, other in shared[:3])
        raise vlm_data.DataError(
            f"{len(shared)} pictures are trained on and evaluated on, the first: {first}; remove them from one part, "
            "or give --allow-overlap"
        )


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

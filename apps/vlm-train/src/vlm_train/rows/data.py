"""Rows to train and to evaluate on, and what was rejected on the way."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from datasets import Dataset
from rich.console import Console

import vlm_data
from vlm_models import VLM
from vlm_runs.progress import track
from vlm_train.options.checks import NAMED_DATA
from vlm_train.options.config import TrainConfig


@dataclass(frozen=True)
class Data:
    """Training and validation rows, which share no image, and the rows that could not be used.

    With a `stream` of the training rows, `train` is a few of them, to look at.
    """

    train: Dataset
    val: Dataset
    rejected: list[vlm_data.Rejected]
    stream: vlm_data.Stream | None = None

    @property
    def train_rows(self) -> int:
        return len(self.train) if self.stream is None else len(self.stream)


def read_data(config: TrainConfig, console: Console) -> Data:
    """Open, verify every image, and take the data's own validation or test part, or split by picture.

    Raises `DataError` if too many rows are bad, none is left, or the parts share pictures.
    """
    rejected: list[vlm_data.Rejected] = []
    with said_on(console):
        parts = vlm_data.splits(config.data)
        if config.data in NAMED_DATA:
            train, val = (open_part(config, part) for part in ("train", "test"))
        else:
            train = part_of(config, "train" if parts else None, rejected, console)
            if config.val_data is not None:
                val = part_of(replace(config, data=config.val_data), None, rejected, console)
            else:
                val = next((rows for part in parts[1:] if (rows := _held_out(config, part, rejected, console))), None)
            if val is None:
                train, val = vlm_data.split(
                    train, val_fraction=config.val_fraction, seed=config.seed, stratify=config.stratify
                )
            elif not config.allow_overlap:
                _check_overlap(train, val)
    return Data(train, sample_of(val, config.val_rows, config.seed), rejected)


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


def collator_of(config: TrainConfig, vlm: VLM, data: Data, console: Console) -> vlm_data.Collator:
    """What makes batches for the model. Its processor learns how large an image may be, which is said if one is larger.

    Call it before features are kept: they depend on the images' sizes.
    """
    shown = (image for rows in (data.train, data.val) for image in rows["image"])
    note = vlm_data.limit_image_tokens(vlm.processor, config.max_image_tokens, shown)
    if note is not None:
        console.print(f"{note} (see --max-image-tokens)", highlight=False, soft_wrap=True)
    options = {"answer_choice": config.answer_choice, "seed": config.seed}
    return vlm_data.collator(vlm.processor, vlm.family, vlm.max_length, **options)


def fitting(data: Data, collate: vlm_data.Collator, config: TrainConfig) -> Data:
    """Without the rows whose text is longer than the model takes; they are rejected."""
    rejected = list(data.rejected)
    train_rows, val_rows = (vlm_data.fit(rows, collate, rejected)[0] for rows in (data.train, data.val))
    check_rejected(config, rejected, len(data.train) + len(data.val) + len(data.rejected))
    if not len(train_rows) or not len(val_rows):
        raise vlm_data.DataError(f"{config.data}: no rows are left to train and evaluate on; {rejected[-1].reason}")
    return replace(data, train=train_rows, val=val_rows, rejected=rejected)


def part_of(config: TrainConfig, part: str | None, rejected: list[vlm_data.Rejected], console: Console) -> Dataset:
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
    if len(rows) and not any(rows["references"]):
        raise vlm_data.DataError(
            f"{config.data}: none of its rows has an answer or a caption to train on; if they are in a column of "
            "another name, give --columns references=NAME"
        )
    rows = _answered(rows, bad)
    total = len(rows) + len(bad)
    with track(console, "checking images", len(rows)) as progress:
        rows = vlm_data.verify(rows, bad, progress.at)
    check_rejected(config, bad, total)
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


def check_rejected(config: TrainConfig, rejected: list[vlm_data.Rejected], total: int) -> None:
    """Raise if more rows are bad than is tolerated: then it is the data that needs mending."""
    tolerated = config.max_rejected if config.max_rejected is not None else max(10, total // 100)
    if len(rejected) == total or len(rejected) > tolerated:
        first = "; ".join(f"{record.source}: {record.reason}" for record in rejected[:3])
        limit = f" ({tolerated} tolerated, see --max-rejected)" if len(rejected) < total else ""
        raise vlm_data.DataError(
            f"{len(rejected)} of {total} rows of {config.data} cannot be used{limit}; the first: {first}"
        )


def _answered(rows: Dataset, rejected: list[vlm_data.Rejected]) -> Dataset:
    """Only rows with something to learn from."""
    without = [index for index, references in enumerate(rows["references"]) if not references]
    rejected += [vlm_data.Rejected(rows[index]["source"], "no answer to train on") for index in without]
    skip = set(without)
    return rows.select([index for index in range(len(rows)) if index not in skip]) if skip else rows


def sample_of(rows: Dataset, size: int, seed: int) -> Dataset:
    """At most `size` rows, chosen by the seed, in their order; 0 is all."""
    if size == 0 or size >= len(rows):
        return rows
    chosen = rows.shuffle(seed=seed).select(range(size))["id"]
    keep = set(chosen)
    return rows.select([index for index, name in enumerate(rows["id"]) if name in keep])

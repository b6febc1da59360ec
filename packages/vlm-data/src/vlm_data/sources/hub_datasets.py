"""A data set of the `datasets` library, saved to disk or by its name on the Hugging Face hub."""

from collections.abc import Iterator
from typing import Any

import datasets

from vlm_data import records
from vlm_data.columns import Columns
from vlm_data.request import Request
from vlm_data.schema import DataError, Rejected

FILES = ("dataset_info.json", "dataset_dict.json")  # of a data set, and of several splits of one


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each record; other columns are not read."""
    found = _load(asked)
    if isinstance(found, datasets.DatasetDict):
        if (asked.split or "train") not in found:
            raise DataError(f"{asked.path} has no split {asked.split or 'train'!r}: its splits are {', '.join(found)}")
        found = found[asked.split or "train"]
    chosen = Columns.choose(found.column_names, asked.columns, str(asked.path))
    found = found.select_columns(chosen.read_of(found.column_names))
    if isinstance(found.features[chosen.image], datasets.Image):
        found = found.cast_column(chosen.image, datasets.Image(decode=False))
    return records.rows(_records(found, chosen, asked), asked, asked.path.name)


def _load(asked: Request) -> Any:
    try:
        if asked.path.is_dir():
            return datasets.load_from_disk(str(asked.path))
        return datasets.load_dataset(asked.path.as_posix(), split=asked.split or "train")
    except Exception as error:  # of the file system, the network, the hub and Arrow
        place = "from disk" if asked.path.is_dir() else "from the hub"
        raise DataError(f"{asked.path}: cannot be loaded {place} ({' '.join(str(error).split())[:200]})") from error


def _records(found: datasets.Dataset, chosen: Columns, asked: Request) -> Iterator[tuple[str, dict]]:
    labels = found.features.get(chosen.references)
    for number, record in enumerate(found):
        if isinstance(labels, datasets.ClassLabel) and record[chosen.references] is not None:
            record[chosen.references] = labels.int2str(record[chosen.references])
        yield f"{asked.path}: row {number}", record

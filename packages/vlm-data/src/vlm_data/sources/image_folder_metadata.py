"""Hugging Face's `imagefolder`: images and a metadata.csv, .jsonl or .parquet that names them in file_name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_data import json_file, records
from vlm_data.csv_table import CsvTable
from vlm_data.image_folder import files_below
from vlm_data.images import looks_like_image
from vlm_data.request import Request
from vlm_data.schema import DataError, Rejected
from vlm_data.sources import parquet

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata(folder: Path) -> list[str]:
    """Names of the metadata files in a folder; there should be one."""
    return [name for name in NAMES if (folder / name).is_file()]


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each record; an image that no record names is rejected."""
    folder = asked.without_image_dir()
    found = metadata(folder)
    if len(found) != 1:
        raise DataError(f"{folder}: needed in it: one of {', '.join(NAMES)}; found: {' and '.join(found) or 'none'}")
    named = set()
    for row in records.rows(_records(folder / found[0], asked), asked):
        if isinstance(row, dict):
            named.add(row["image"]["path"])
        yield row
    for name in filter(looks_like_image, files_below(folder)):
        path = os.path.join(os.path.abspath(folder), name)
        if path not in named:
            yield Rejected(str(folder / name), f"no record of {found[0]} names it, or only one that was rejected")


def _records(file: Path, asked: Request) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".csv":
        return CsvTable(file).records()
    return json_file.records(file) if file.suffix == ".jsonl" else parquet.file_records(file, asked)

"""Parquet: columns of images (bytes, {"bytes", "path"} or names), prompts and texts; one file or a folder of shards."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_data import records
from vlm_data.columns import Columns
from vlm_data.request import Request
from vlm_data.schema import DataError, Rejected

_BATCH = 64  # rows: of images, some megabytes


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each record; other columns are not read."""
    for file in asked.files(".parquet"):
        yield from records.rows(file_records(file, asked), asked, file.stem)


def file_records(path: Path, asked: Request) -> Iterator[tuple[str, dict | Rejected]]:
    """(source, record) of each record of one file. Raises DataError for a file that is no Parquet."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            chosen = Columns.choose(names, asked.columns, str(path))
            number = 0
            for batch in file.iter_batches(_BATCH, columns=chosen.read_of(names)):
                for record in batch.to_pylist():
                    yield f"{path}: row {number}", record
                    number += 1
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0][:200]})") from error

"""JSON records of an image, maybe a prompt, and texts: `{"image": …, "question": …, "answer": …}` or a caption."""

from collections.abc import Iterator

from vlm_data import json_file, records
from vlm_data.request import Request
from vlm_data.schema import Rejected


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each record of an array, or of a file with one record a line."""
    return records.rows(json_file.records(asked.path), asked)

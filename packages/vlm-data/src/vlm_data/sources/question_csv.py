"""Questions in a CSV: an image column, `question`, and `answer` where the answers are known."""

import os
from collections.abc import Iterator
from pathlib import Path

from vlm_data.csv_table import CsvTable, filled
from vlm_data.schema import DataError, Rejected


def read(path: Path, image_dir: str | os.PathLike | None) -> Iterator[dict | Rejected]:
    """One row for each question; its references are the answer, or nothing where there is none."""
    table = CsvTable(path)
    if table.header is None:
        raise DataError(f"{path}: no header; needed as its first line: image_name,question,answer")
    return table.rows(image_dir, "question", _texts)


def _texts(fields: dict[str, str]) -> tuple[str, list[str]]:
    answer = fields.get("answer")
    return filled(fields, "question"), [answer] if answer else []

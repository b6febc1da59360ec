"""Captions in a CSV: an image column and `caption`; or no header, each line being an image's name and its caption."""

from collections.abc import Iterator

from vlm_data.csv_table import CsvTable, filled
from vlm_data.request import Request
from vlm_data.schema import Rejected


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each caption, without a prompt."""
    return CsvTable(asked.path, asked.columns).rows(asked.image_dir, "caption", _texts)


def _texts(fields: dict[str, str]) -> tuple[None, list[str]]:
    return None, [filled(fields, "caption")]

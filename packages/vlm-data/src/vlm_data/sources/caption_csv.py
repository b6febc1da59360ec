"""Captions in a CSV: an image column and `caption`; or no header, each line being an image's name and its caption."""

import os
from collections.abc import Iterator
from pathlib import Path

from vlm_data.csv_table import CsvTable, filled
from vlm_data.schema import Rejected


def read(path: Path, image_dir: str | os.PathLike | None) -> Iterator[dict | Rejected]:
    """One row for each caption, without a prompt."""
    return CsvTable(path).rows(image_dir, "caption", lambda fields: (None, [filled(fields, "caption")]))

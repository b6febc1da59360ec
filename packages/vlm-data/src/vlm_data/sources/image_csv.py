"""Images named in a CSV, with nothing said about them yet: to be captioned."""

from collections.abc import Iterator

from vlm_data.csv_table import IMAGE_COLUMNS, CsvTable
from vlm_data.request import Request
from vlm_data.schema import Rejected


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each record; whatever stands beside the image column is not read."""
    table = CsvTable(asked.path, asked.columns)
    if table.header is None:
        return table.rows(asked.image_dir, "caption", _texts)  # beside the name there is a text: it is not read
    image_column = next((name for name in IMAGE_COLUMNS if name in table.header), IMAGE_COLUMNS[0])
    return table.rows(asked.image_dir, image_column, _texts)


def _texts(fields: dict[str, str]) -> tuple[None, list[str]]:
    return None, []

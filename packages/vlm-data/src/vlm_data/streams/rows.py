"""A record of a shard as a row of the schema."""

from collections.abc import Mapping
from typing import Any

from vlm_data import records
from vlm_data.columns import Columns
from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, DataError
from vlm_data.sources import conversations


def row_of(record: Any, id: str, source: str, columns: Mapping[str, str] | None, images: ImageFolder) -> dict:
    """The row of a conversation, or of a record with an image and texts, whose columns are chosen for itself.

    columns: as the user gives them, see `vlm_data.columns`. Raises BadRow.
    """
    if columns is None and conversations.matches(record):
        return conversations.row_of(record, id, source, images)
    try:
        chosen = Columns.choose(record, columns, "record") if isinstance(record, Mapping) else None
    except DataError as error:
        raise BadRow(str(error)) from error
    return records.row_of(record, id, source, chosen, images)

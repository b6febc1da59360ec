"""A record (an object of named values) as a row of the schema."""

import os
from collections.abc import Mapping
from typing import Any

from vlm_data.columns import Columns
from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, DataError


def row_of(record: Any, id: str, source: str, columns: Mapping[str, str] | None, images: ImageFolder) -> dict:
    """The row of a record whose image is the bytes of a file, {"bytes", "path"}, or a path below the image folder.

    columns: see `vlm_data.columns`. A path is taken as it is, not searched for: a stream keeps no list of all files.
    Raises BadRow.
    """
    if not isinstance(record, dict):
        raise BadRow(f"{type(record).__name__} in place of an object with named values")
    try:
        chosen = Columns.choose(record, columns, "record")
    except DataError as error:
        raise BadRow(str(error)) from error
    prompt, references = chosen.texts(record)
    image = _image(record.get(chosen.image), chosen.image, images)
    return {"id": id, "image": image, "prompt": prompt, "references": references, "source": source}


def _image(value: Any, column: str, images: ImageFolder) -> dict:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes):
        return {"path": None, "bytes": data}
    if not isinstance(path, str) or not path or "\0" in path:
        raise BadRow(f"{column} is neither a path nor the bytes of an image")
    return {"path": images.inside(os.path.join(images.root, path)), "bytes": None}

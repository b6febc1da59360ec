"""Records (named values, as of JSON, Parquet or a data set) as rows of the schema."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlm_data.columns import Columns
from vlm_data.image_folder import ImageFolder
from vlm_data.request import Request
from vlm_data.schema import BadRow, Rejected

ID_EXTENSIONS = (".jpg", ".png", ".jpeg")  # an image's id mostly comes without one


def rows(records: Iterable[tuple[str, Any]], asked: Request, id_prefix: str | None = None) -> Iterator[dict | Rejected]:
    """A row for each (source, record); records of one file have the columns of its first.

    A record may be a `Rejected` itself, which is passed on. Images that are given by name are looked up in
    `asked.image_dir`, by default beside the file.
    """
    columns = None
    folder = asked.image_dir or (asked.path if asked.path.is_dir() else asked.path.parent)
    # Not a data set of the hub: that has no folder, and its images are bytes.
    images = ImageFolder(folder) if asked.path.exists() or asked.image_dir else None
    for number, (source, record) in enumerate(records):
        if isinstance(record, Rejected):
            yield record
            continue
        if columns is None and isinstance(record, Mapping):
            columns = Columns.choose(record, asked.columns, str(asked.path))
        try:
            yield row_of(record, f"{id_prefix or asked.path.stem}-{number}", source, columns, images)
        except BadRow as error:
            yield Rejected(source, str(error))


def row_of(record: Any, id: str, source: str, columns: Columns | None, images: ImageFolder | None) -> dict:
    """The row of a record. Raises BadRow. Columns may be None only for what is no record."""
    if not isinstance(record, Mapping):
        raise BadRow(f"no object with named values but {type(record).__name__}")
    prompt, references = columns.texts(record)
    image = image_of(record.get(columns.image), images)
    return {"id": id, "image": image, "prompt": prompt, "references": references, "source": source}


def image_of(value: Any, images: ImageFolder | None) -> dict:
    """{"path", "bytes"} of an image: bytes, a name below `images`, {"bytes", "path"}, or a list of one of these."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise BadRow(f"{len(value)} images; a row has one")
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return {"path": None, "bytes": value}
    if value is None or value == "":
        raise BadRow("there is no image")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(f"the image is no name and no bytes but {type(value).__name__}")
    name = str(value).removeprefix("file://")
    if "://" in name or name.startswith("data:"):
        raise BadRow(f"the image is a link, {name[:80]}; download it and give its file's name")
    if images is None:
        raise BadRow(f"the image is a name, {name[:80]}; give image_dir, the folder it is in")
    names = [name + extension for extension in ID_EXTENSIONS] if isinstance(value, int) else [name]
    return {"path": images.find(*names), "bytes": None}

"""Products: an image and what a table says about it, from any CSV file with columns of attributes."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlm_data.csv_table import IMAGE_COLUMNS, CsvTable
from vlm_data.generate.abo import read_abo
from vlm_data.image_folder import ImageFolder
from vlm_data.schema import BadRow, DataError, Rejected, reject


@dataclass(frozen=True)
class Product:
    """image: the file's name relative to the image folder, as a table of questions gives it. path: of the file.

    attributes: lower-case name to value, as written.
    """

    image: str
    path: str
    attributes: dict[str, str] = field(hash=False)


def read_products(
    data: str | os.PathLike,
    *,
    image_dir: str | os.PathLike | None = None,
    language: str = "en",
    rejected: list[Rejected] | None = None,
) -> tuple[list[Product], Path]:
    """(products, image folder) of a CSV file with an image column, or of a folder with Amazon Berkeley Objects.

    image_dir: default: the CSV's folder; of ABO the folder `small` or `original` beside that of `images.csv`.
    language: of ABO's texts; "en" takes all of "en_US", "en_GB" and so on.
    Rows that show one image make one product; attributes on which they differ are left out, for one must be wrong.
    rejected: None raises DataError at the first bad row; a list gets them, and reading goes on.
    """
    path = Path(data)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a CSV file, or the folder of Amazon Berkeley Objects")
    items, image_dir = read_abo(path, image_dir, language) if path.is_dir() else _read_table(path, image_dir)
    images = ImageFolder(image_dir)
    merged: dict[str, dict[str, set[str]]] = {}
    for source, item in items:
        try:
            if isinstance(item, Rejected):
                raise BadRow(item.reason)
            names, attributes = item
            found = merged.setdefault(images.find(*names), {})
            for name, value in attributes.items():
                found.setdefault(name, set()).add(value)
        except BadRow as error:
            reject(Rejected(source, str(error)), rejected)
    products = [
        Product(
            Path(os.path.relpath(path, images.root)).as_posix(),
            path,
            {name: next(iter(values)) for name, values in found.items() if len(values) == 1},
        )
        for path, found in merged.items()
    ]
    if not products:
        first = f"; the first row left out: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{path}: no product with an image{first}")
    return products, images.root


Item = tuple[list[str], dict[str, str]]  # the names its image may have, and its attributes


def _read_table(
    path: Path, image_dir: str | os.PathLike | None
) -> tuple[Iterable[tuple[str, Item | Rejected]], str | os.PathLike]:
    table = CsvTable(path)
    column = next((name for name in IMAGE_COLUMNS if name in (table.header or ())), None)
    if column is None:
        raise DataError(f"{path}: no column names the image; name one of them {' or '.join(IMAGE_COLUMNS)}")
    return _table_items(table, column), image_dir or path.parent


def _table_items(table: CsvTable, column: str) -> Iterator[tuple[str, Item | Rejected]]:
    for source, fields in table.records():
        if isinstance(fields, Rejected):
            yield source, fields
            continue
        name = fields[column]
        names = [name, *(name + extension for extension in (".jpg", ".png", ".jpeg"))] if name else [name]
        yield source, (names, {key: value for key, value in fields.items() if value and key and key != column})

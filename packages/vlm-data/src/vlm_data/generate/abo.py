"""Amazon Berkeley Objects (Collins et al., CVPR 2022): products from its listings and its table of images.

A listing is a line of JSON, its texts given by language: {"color": [{"language_tag": "en_US", "value": "Red"}], ...}.
"""

import csv
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vlm_data.schema import DataError, Rejected

TEXTS = ("item_name", "color", "material", "fabric_type", "item_shape", "pattern", "brand", "style", "product_type")


def read_abo(
    folder: Path, image_dir: str | os.PathLike | None, language: str
) -> tuple[Iterable[tuple[str, Any]], str | os.PathLike]:
    """((source, ([image's name], attributes) or Rejected) of each listing, image folder)."""
    tables = [path for name in ("images.csv", "images.csv.gz") for path in sorted(folder.rglob(name))]
    listings = [path for name in ("listings_*.json", "listings_*.json.gz") for path in sorted(folder.rglob(name))]
    if not tables or not listings:
        missing = "images.csv" if not tables else "listings_*.json"
        raise DataError(f"{folder}: no {missing} below it, which Amazon Berkeley Objects has; give a CSV file's path")
    if image_dir is None:
        around = tables[0].parent.parent
        image_dir = next((around / name for name in ("small", "original") if (around / name).is_dir()), None)
        if image_dir is None:
            raise DataError(f"{around}: neither small/ nor original/ is in it; give the images' folder as image_dir")
    return _items(listings, _image_paths(tables[0]), language), image_dir


def _image_paths(table: Path) -> dict[str, str]:
    """Path of each image below the image folder, by its id."""
    with _open(table) as file:
        rows = csv.DictReader(file)
        if not {"image_id", "path"} <= set(rows.fieldnames or ()):
            raise DataError(f"{table}: columns found: {', '.join(rows.fieldnames or ())[:200]}; needed: image_id, path")
        return {row["image_id"]: row["path"] for row in rows}


def _items(listings: list[Path], images: dict[str, str], language: str) -> Iterator[tuple[str, Any]]:
    for path in listings:
        with _open(path) as file:
            number = 0
            try:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"{path}:{number}", _item(line, f"{path}:{number}", images, language)
            except (OSError, EOFError, UnicodeError) as error:  # a .gz that is cut off
                yield f"{path}:{number + 1}", Rejected(f"{path}:{number + 1}", f"cannot be read further ({error})")


def _item(line: str, source: str, images: dict[str, str], language: str) -> Any:
    try:
        listing = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Rejected(source, f"not JSON ({error})")
    image = listing.get("main_image_id") if isinstance(listing, dict) else None
    if not isinstance(image, str):
        return Rejected(source, "no main_image_id")
    if image not in images:
        return Rejected(source, f"the image {image!r} is not in images.csv")
    texts = {name: _text(listing.get(name), language) for name in TEXTS}
    return [images[image]], {name: text for name, text in texts.items() if text}


def _text(values: Any, language: str) -> str:
    """The first value in the language, or without one; the standardised one where there is one."""
    for value in values if isinstance(values, list) else ():
        if isinstance(value, dict) and str(value.get("language_tag", language)).startswith(language):
            standard = value.get("standardized_values")
            text = standard[0] if isinstance(standard, list) and standard else value.get("value")
            if isinstance(text, str):
                return text.strip()
    return ""


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")

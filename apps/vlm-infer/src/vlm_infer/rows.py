"""Rows to infer on, from an image, a folder or a table; what cannot be read is left out and told."""

from pathlib import Path

from datasets import Dataset

import vlm_data
from vlm_infer.errors import InferError


def read_rows(
    image: Path | None, images: Path | None, table: Path | None, image_dir: Path | None, question: str | None
) -> tuple[Dataset, list[vlm_data.Rejected]]:
    """The rows in the order they are given, all with readable images, and those left out."""
    rejected: list[vlm_data.Rejected] = []
    if image is not None:
        vlm_data.decode(str(image))  # one image: its error is the command's error
        rows = _row(image)
    elif images is not None:
        rows = vlm_data.open(images, format="file-names", rejected=rejected)
    else:
        rows = _table(table, image_dir, question, rejected)
    if images is not None or question is not None:
        rows = rows.remove_columns("prompt").add_column("prompt", [question] * len(rows), feature=_TEXT)
    rows = vlm_data.verify(rows, rejected)
    if len(rows) == 0:
        first = f"; the first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
        raise InferError(f"{image or images or table}: no readable image{first}")
    return rows, rejected


_TEXT = vlm_data.FEATURES["prompt"]


def _row(image: Path) -> Dataset:
    picture = {"path": str(image), "bytes": None}
    row = {"id": image.name, "image": picture, "prompt": None, "references": [], "source": str(image)}
    return Dataset.from_list([row], features=vlm_data.FEATURES)


def _table(table: Path, image_dir: Path | None, question: str | None, rejected: list[vlm_data.Rejected]) -> Dataset:
    """A table with a question column is asked its questions, any other is captioned."""
    if question is None:
        try:
            return vlm_data.open(table, image_dir=image_dir, format="questions-csv", rejected=rejected)
        except vlm_data.DataError:
            pass
    return vlm_data.open(table, image_dir=image_dir, format="images-csv", rejected=rejected)
